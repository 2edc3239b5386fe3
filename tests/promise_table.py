#!/usr/bin/env python3
"""Every row of the table in docs/promise.md names tests that back it, and each of them exists.

A name ends with "..." where it is shortened; one without a suite is PosixTest's. Programs and folders are named by
their path or, when they are built, by the name of their target.
"""
import pathlib
import re
import sys


def tests_of(root: pathlib.Path) -> set[str]:
    """Suite.Name of all tests in C++ sources."""
    found = set()
    for folder in ("tests", "src"):
        for source in (root / folder).rglob("*_test.cc"):
            for suite, name in re.findall(r"^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", source.read_text(), re.M):
                found.add(f"{suite}.{name}")
    return found


def rows_of(table: str):
    """(line number, cells) of the rows below the heading of the table that has tests."""
    inside = False
    for number, line in enumerate(table.splitlines(), 1):
        # A | within `code` does not end a cell.
        cells = [c.strip() for c in re.split(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)", line)[1:-1]]
        if cells[:1] == ["call"]:
            inside = True
        elif not cells:
            inside = False
        elif inside and set(cells[0]) != {"-"}:
            yield number, cells


def exists(name: str, tests: set[str], targets: str, root: pathlib.Path) -> bool:
    if "/" in name:
        return (root / name.split()[0]).exists()
    if name.startswith("vremote-"):
        return f"vremote_live_program({name.split()[0]}\n" in targets
    pattern = name if "." in name.replace("...", "") else f"PosixTest.{name}"
    if pattern.endswith(("...", ".*")):
        return any(t.startswith(pattern.removesuffix("...").removesuffix("*")) for t in tests)
    return pattern in tests


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    tests = tests_of(root)
    targets = (root / "tests/CMakeLists.txt").read_text()
    wrong = []
    rows = 0
    for number, cells in rows_of((root / "docs/promise.md").read_text()):
        rows += 1
        names = re.findall(r"`([^`]+)`", cells[-1])
        if len(cells) != 5 or not names:
            wrong.append(f"{number}: '{cells[0]}' has {len(cells)} cells and names {len(names)} tests; give it five, the last with a test")
        for name in names:
            if not exists(name, tests, targets, root):
                wrong.append(f"{number}: '{cells[0]}': there is no test {name}; name the one that backs the row")
    if rows < 30:
        wrong.append(f"only {rows} rows were found")
    for line in wrong:
        print(f"docs/promise.md:{line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
