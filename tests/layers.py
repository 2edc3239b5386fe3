#!/usr/bin/env python3
"""Each file of src includes only what is left of its folder's arrows in docs/architecture.md, and each library of
src/node has the files of one folder. layers.py: exit status 0 when that is so; else a line for each that is not."""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def arrows():
    """The two lines of arrows: {folder: folders directly left of it}, those of src and those of src/node."""
    with open(os.path.join(ROOT, "docs", "architecture.md"), encoding="utf-8") as f:
        text = f.read()
    block = re.search(r"```\n(base <- .*?)```", text, re.S).group(1)
    of_src, of_node = block.split("in node:")
    return parse(of_src), parse(of_node)


def parse(text):
    left = {}
    for chain in " ".join(text.split()).split(";"):
        known = []
        for part in chain.split("<-"):
            excluded = re.search(r"all but ([a-z, ]+)", part)
            if excluded:
                without = {w.strip() for w in excluded.group(1).split(",")}
                now = [name for name in left if name not in without]
            elif part.strip() == "all":
                now = list(left)
            else:
                now = [w.strip() for w in part.split(",") if w.strip()]
            for name in now:
                left.setdefault(name, set()).update(known)
            known = now
    return left


def closure(left):
    def below(name, seen):
        for other in left.get(name, ()):
            if other not in seen:
                seen.add(other)
                below(other, seen)
        return seen
    return {name: below(name, set()) for name in left}


def folders(src, path):
    """The folder of src, and the one of src/node (or 'node' for its own files)."""
    parts = path.split("/")
    if parts[0] != "node":
        return parts[0], None
    return "node", parts[1] if len(parts) > 2 else "node"


def wrong_includes(of_src, of_node):
    src = os.path.join(ROOT, "src")
    for directory, _, names in os.walk(src):
        for name in sorted(names):
            # Tests look at several folders at once.
            if not re.search(r"\.(h|cc)$", name) or re.search(r"_(test|bench)\.cc$|_test_|_world\.h$|^test_", name):
                continue
            path = os.path.relpath(os.path.join(directory, name), src)
            layer, inner = folders(src, path)
            with open(os.path.join(src, path), encoding="utf-8") as f:
                included = re.findall(r'^#include "([^"]+/[^"]+)"', f.read(), re.M)
            for other in included:
                if not os.path.exists(os.path.join(src, other)):
                    continue
                theirs, their_inner = folders(src, other)
                if theirs != layer and theirs not in of_src[layer]:
                    yield f"src/{path} includes {other}: {theirs} is not left of {layer}"
                if theirs == layer == "node" and inner not in ("node", their_inner) and their_inner not in of_node[inner]:
                    yield f"src/{path} includes {other}: {their_inner} is not left of {inner}"


def mixed_libraries():
    with open(os.path.join(ROOT, "src", "node", "CMakeLists.txt"), encoding="utf-8") as f:
        text = f.read()
    for name, sources in re.findall(r"vremote_layer\((\w+)\s+SOURCES(.*?)\bDEPS", text, re.S):
        found = {s.split("/")[0] if "/" in s else "." for s in re.findall(r"[\w/]+\.cc", sources)}
        if len(found) > 1:
            yield f"src/node/CMakeLists.txt: {name} has files of {', '.join(sorted(found))}"


def main():
    of_src, of_node = (closure(left) for left in arrows())
    found = list(wrong_includes(of_src, of_node)) + list(mixed_libraries())
    print("\n".join(found) or "each file includes what it may")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
