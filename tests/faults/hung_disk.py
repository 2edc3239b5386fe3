#!/usr/bin/env python3
"""A disk that hangs for longer than a recall may take costs no node that waits for it anything.

    hung_disk.py VREMOTE SHIM      exit status 77: skipped, because nothing can be mounted here

SHIM is preloaded at the origin (../hang_writes.c).
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from cases import case, check
from cluster import wait_until
from run import run_case, why_not

DEADLINE_MS = 2000
WRITER = """
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.pwrite(fd, b'b' * (1 << 20), 0)
ready()
print(told(fd), flush=True)
os.pwrite(fd, b'B', 0)
print(told(fd), flush=True)
"""


def at_disk(cluster, what, node):
    said = subprocess.run([cluster.vremote, "status", "--blocked", "--config", cluster.nodes["origin"].config],
                          capture_output=True, text=True, timeout=20, check=False).stdout
    return any(line.startswith(what) and f" {node} " in line and "its disk" in line for line in said.splitlines())


def a_hung_disk(shim):
    @case(nodes=("origin", "b", "c"), seconds=100)
    def it_costs_no_node_anything(cluster):
        hung = os.path.join(cluster.dir, "hung")
        cluster.configure("origin", recall_deadline_ms=DEADLINE_MS)
        cluster.start("origin", LD_PRELOAD=shim, HANG_WRITES=hung)
        for name in ("b", "c"):
            cluster.start(name)
        for name in ("origin", "b", "c"):
            cluster.wait_ready(name)
        with open(hung, "w", encoding="utf-8"):
            writer = cluster.program(WRITER, cluster.path("b", "origin", "f"))
            check(writer.stdout.readline().strip() == "ready", "b has written")
            wait_until("its fsync is under way", lambda: cluster.counter("b", "messages_out_flush") > 0)
            wait_until("the origin says that it waits for the disk", lambda: at_disk(cluster, "write", "b"))
            reader = cluster.program("print(open(A[0]).read(1), flush=True)", cluster.path("c", "origin", "f"))
            wait_until("b is to give up its bytes", lambda: cluster.counter("origin", "recalls_sent") > 0)
            time.sleep(5 * DEADLINE_MS / 1000)  # the time itself is what this is about
            check(at_disk(cluster, "lease", "c"), "what b is not asked for yet")
            check(reader.poll() is None, "nobody reads what b's kernel may still change")
        os.remove(hung)
        check(reader.communicate()[0].strip() in ("b", "B"), "c reads what b has written")
        check(writer.communicate()[0] == "ok\nok\n", "b goes on")
        log = cluster.log("origin")
        check("fence" not in log and "does not answer" not in log, "nobody is put out")
    return it_costs_no_node_anything


def main():
    if len(sys.argv) != 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"skipped: {reason}")
        return 77
    case_of_it = a_hung_disk(sys.argv[2])
    return 0 if run_case(sys.argv[1], "a_hung_disk", case_of_it) else 1


if __name__ == "__main__":
    sys.exit(main())
