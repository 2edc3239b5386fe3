"""Runs the programs of this directory, each on a fresh cluster of two nodes, and prints one line for each.

    run.py --vremote BINARY [--keep-logs DIR] [NAMES...]

A program is a file NAME.sh or NAME.py beside this one. Its standard output is kept; the last line of it becomes the summary. It is told
in its environment where things are:

    NODE1, NODE2   one directory of node1's export, as node1 (its origin) and as node2 show it; empty, and anybody may write to it
    SCRATCH        an empty directory on the local disk
    VREMOTE        the binary;  CONFIG1, CONFIG2: the configuration of the nodes, for `vremote status`
    TESTS          this directory

It fails with a non-zero exit status. Whatever it leaves behind, processes above all, is ended. A run is good only if the cluster is
well afterwards, too: nothing waits, nothing was reported in the nodes' logs, and both end in order.
"""

import argparse
import collections
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
SECONDS_MAX = 900  # for one program; a comment "# At most N seconds." in its first lines says otherwise
QUIET_SECONDS_MAX = 30
SHOWN_LINES = 40
PR_SET_CHILD_SUBREAPER = 36


class Failure(Exception):
    pass


class Playground:
    def __init__(self, vremote, directory):
        self.vremote, self.directory = vremote, directory
        self.log = open(directory / "playground.log", "w")
        self.process = subprocess.Popen([vremote, "playground", "--nodes", "2", "--dir", directory], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, start_new_session=True)
        deadline = time.monotonic() + 90
        while not (directory / "ready").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failure("the playground did not start:\n" + (directory / "playground.log").read_text())
            time.sleep(0.05)
        self.log_sizes = {n: self.node_log(n).stat().st_size for n in (1, 2)}  # nodes may start in any order, and say so

    def node_log(self, node):
        return self.directory / f"node{node}" / "log"

    def mount(self, node):
        return self.directory / f"node{node}" / "mnt"

    def config(self, node):
        return self.directory / f"node{node}" / "node.toml"

    def status(self, node):
        command = [self.vremote, "status", "--json", "--config", self.config(node)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)

    def check(self):
        """Everything written comes to rest, nobody waits, and the nodes found nothing to complain about."""
        waiting = ("requests_waiting", "home_requests_waiting", "home_recalls_pending")
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        while True:
            nodes = [self.status(n) for n in (1, 2)]
            left = [f"{s['node']} {k} {v}" for s in nodes
                    for k, v in [("dirty_bytes", s["dirty_bytes"])] + [(k, s["counters"][k]) for k in waiting] if v]
            # One waits for the next purge for as long as the node lives.
            left += [f"{s['node']} purge_threads {n}" for s in nodes if (n := s["counters"]["purge_threads"]) > 1]
            if not left:
                break
            if time.monotonic() > deadline:
                raise Failure("does not come to rest: " + ", ".join(left))
            time.sleep(0.1)
        for s in nodes:
            if s["counters"]["write_backs_without_exclusive"]:
                raise Failure(f"{s['node']} was given write-backs of pages it had no right to")
        for n in (1, 2):
            for line in self.node_log(n).read_bytes()[self.log_sizes[n]:].decode(errors="replace").splitlines():
                if re.match(r"\S+ \S+ [WEC] ", line):
                    raise Failure(f"in the log of node{n}: {line}")

    def connections(self):
        for line in open("/proc/self/mountinfo"):
            fields = line.split()
            if " - fuse.vremote " in line and fields[4].startswith(f"{self.directory}/"):
                yield fields[2].split(":")[1]

    def stop(self):
        """In order; it says how that went. The daemons' own way out of a stuck mount is given the time it needs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.abort()
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Failure("the playground did not end")
        finally:
            self.log.close()
        if status != 0:
            raise Failure(f"the playground ended with status {status}:\n" + (self.directory / "playground.log").read_text())
        if left := list(self.connections()):
            raise Failure(f"{len(left)} mounts are left")

    def abort(self):
        """Frees every process that waits in one of our own mounts."""
        control = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
        for minor in self.connections():
            (control / minor / "abort").write_text("1")
        subprocess.run(["umount", control], check=False)


def descendants(but_not):
    """Numbers and states of all processes that come from this one, however they detached themselves (we are their subreaper)."""
    children = collections.defaultdict(list)
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children[int(fields[1])].append((int(path.parent.name), fields[0]))
    found, todo = [], [os.getpid()]
    while todo:
        for pid, state in children[todo.pop()]:
            if pid != but_not:
                todo.append(pid)
                if state != "Z":
                    found.append((pid, state))
    return found


def reap_orphans(but_not):
    """A program that looks for its dead daemon must not find a zombie."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in but_not:
        os.waitpid(ended.si_pid, 0)


def where_they_wait(playground):
    text = ""
    for pid, state in descendants(playground.process.pid):
        try:
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
            text += f"{pid} {state} {command}\n"
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                stack = (task / "stack").read_text()
                text += stack if "fuse" in stack or "folio" in stack else ""
        except OSError:
            continue
    for n in (1, 2):
        status = playground.status(n)
        text += f"{status['node']}: " + json.dumps({k: v for k, v in status["counters"].items() if v}) + "\n"
    return text


def end_all(playground):
    """Kills what a program left. What is there after a while waits for an answer of a node: then the mounts are given up."""
    for attempt in range(60):
        left = descendants(playground.process.pid)
        if not left:
            return
        for pid, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if attempt == 50:
            playground.abort()
        time.sleep(0.2)


def seconds_max(program):
    said = re.search(r"^# At most (\d+) seconds\.", program.read_text(), re.M)
    return int(said[1]) if said else SECONDS_MAX


def run_program(program, playground, directory):
    shared = {n: playground.mount(n) / "node1" / program.stem for n in (1, 2)}
    shared[1].mkdir()
    shared[1].chmod(0o1777)
    scratch = directory / "scratch"
    scratch.mkdir()
    scratch.chmod(0o1777)
    environment = os.environ | {"NODE1": str(shared[1]), "NODE2": str(shared[2]), "SCRATCH": str(scratch), "VREMOTE": str(playground.vremote),
                                "CONFIG1": str(playground.config(1)), "CONFIG2": str(playground.config(2)), "TESTS": str(HERE),
                                "LC_ALL": "C", "HOME": str(scratch), "TMPDIR": str(scratch)}
    output = directory / "output"
    command = [sys.executable if program.suffix == ".py" else "bash", program]
    with open(output, "w") as out:
        process = subprocess.Popen(command, env=environment, cwd=scratch, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    problem = None
    try:
        deadline = time.monotonic() + seconds_max(program)
        while process.poll() is None and time.monotonic() < deadline:
            reap_orphans({process.pid, playground.process.pid})
            time.sleep(0.05)
        if process.returncode:
            problem = f"exit status {process.returncode}"
        elif process.returncode is None:
            problem = f"not done after {seconds_max(program)} s:\n{where_they_wait(playground)}"
    finally:
        end_all(playground)
    lines = output.read_text(errors="replace").splitlines()
    if problem:
        raise Failure("\n".join(list(collections.deque(lines, SHOWN_LINES)) + [problem]))
    return lines[-1] if lines else ""


def run(program, arguments):
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"vremote-{program.stem}."))
    directory.chmod(0o755)
    start = time.monotonic()
    summary, problems, playground = "", [], None
    try:
        playground = Playground(arguments.vremote, directory)
        summary = run_program(program, playground, directory)
        playground.check()
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        problems.append(str(failure))
    try:
        if playground:
            playground.stop()
    except Failure as failure:
        problems.append(str(failure))
    if arguments.keep_logs:
        kept = arguments.keep_logs / program.stem
        kept.mkdir(parents=True, exist_ok=True)
        for path in [directory / "output", directory / "playground.log", directory / "node1/log", directory / "node2/log"]:
            if path.exists():
                shutil.copy(path, kept / str(path.relative_to(directory)).replace("/", "-"))
    shutil.rmtree(directory, ignore_errors=True)
    print(f"{'FAILED' if problems else 'ok':7}{program.stem:12} {time.monotonic() - start:4.0f} s  {summary}", flush=True)
    for problem in problems:
        print("       " + problem.replace("\n", "\n       "), flush=True)
    return not problems


def main():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vremote", required=True, type=pathlib.Path)
    parser.add_argument("--keep-logs", type=pathlib.Path, metavar="DIR")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    arguments.vremote = arguments.vremote.resolve()
    if arguments.keep_logs:
        arguments.keep_logs = arguments.keep_logs.resolve()
    programs = {p.stem: p for p in sorted(HERE.iterdir()) if p.suffix in (".sh", ".py") and p.stem not in ("run", "lib")}
    if unknown := [name for name in arguments.names if name not in programs]:
        parser.error(f"no program {', '.join(unknown)}; there are: {' '.join(programs)}")
    good = [run(programs[name], arguments) for name in arguments.names or programs]
    print(f"{sum(good)} of {len(good)} programs ok")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
