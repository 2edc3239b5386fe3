#!/usr/bin/env python3
"""An origin whose disk fails: it hangs for longer than a recall may take; it refuses an fsync.

    bad_disk.py VREMOTE SHIM      exit status 77: skipped, because nothing can be mounted here

SHIM is preloaded at the origin (../bad_disk.c).
"""

import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from cases import case, check, holder
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


FLUSHED = """
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.fsync(fd)
os.pwrite(fd, A[1].encode(), int(A[2]))
ready()
for line in sys.stdin:
    print(told(fd), flush=True)
"""


def a_refused_fsync(shim, end):
    # Linux tells whoever asks first, once: not a node that asks a daemon begun after that.
    @case(nodes=("origin", "b", "c"), seconds=100)
    def the_others_hear_of_it_too(cluster):
        refused = os.path.join(cluster.dir, "refused")
        cluster.configure("origin")
        os.makedirs(cluster.disk("origin", ""), exist_ok=True)
        cluster.start("origin", LD_PRELOAD=shim, BAD_DISK=cluster.disk("origin", ""), REFUSE_SYNCS=refused)
        for name in ("b", "c"):
            cluster.start(name)
        for name in ("origin", "b", "c"):
            cluster.wait_ready(name)
        writers = []
        for name, byte, offset in (("b", "b", "0"), ("c", "c", "8192")):
            writers.append(cluster.program(FLUSHED, cluster.path(name, "origin", "f"), byte, offset))
            check(writers[-1].stdout.readline().strip() == "ready", f"{name} has written")
        wait_until("both are flushed", lambda: os.path.getsize(cluster.disk("origin", "f")) == 8193)

        def ask(writer):
            writer.stdin.write("?\n")
            writer.stdin.flush()
            return writer.stdout.readline().strip()

        with open(refused, "w", encoding="utf-8"):
            check(ask(writers[0]) == "EIO", "the disk refuses what b has written")
        os.remove(refused)
        end(cluster)
        cluster.start("origin")
        cluster.wait_ready("origin")
        check(ask(writers[1]) == "EIO", "c hears of it")
        check(ask(writers[1]) == "ok", "once")
        for writer in writers:
            writer.stdin.close()
            writer.wait(60)
    return the_others_hear_of_it_too


def a_refused_rescue(shim):
    @case(nodes=("origin", "b"), seconds=100)
    def is_no_good_news(cluster):
        refused, kept = os.path.join(cluster.dir, "refused"), os.path.join(cluster.nodes["b"].state, "recovery")
        cluster.configure("b")
        cluster.start("origin")
        cluster.start("b", LD_PRELOAD=shim, BAD_DISK=kept, REFUSE_SYNCS=refused)
        for name in ("origin", "b"):
            cluster.wait_ready(name)
        holder(cluster, cluster.path("b", "origin", "late"), "too late").kill()
        cluster.hold("b", "origin")
        with open(refused, "w", encoding="utf-8"):
            cluster.signal("b", signal.SIGTERM)
            cluster.nodes["b"].daemon.wait(timeout=60)
        log = cluster.log("b")
        check("8 bytes written here to" in log and "are LOST: they cannot be kept: " + kept in log, "it is told: " + log[-2000:])
        check("is kept in" not in log, "nobody knows that")
        check("DAMAGED" in cluster.recover("b", "list").stdout, "nor is it taken for the whole")
    return is_no_good_news


def ended(cluster):
    cluster.signal("origin", signal.SIGTERM)
    cluster.nodes["origin"].daemon.wait(60)


def main():
    if len(sys.argv) != 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"skipped: {reason}")
        return 77
    cases = {
        "a disk that hangs": a_hung_disk(sys.argv[2]),
        "one that refuses, and a daemon that is killed": a_refused_fsync(sys.argv[2], lambda c: c.kill("origin")),
        "one that refuses, and a daemon that ends": a_refused_fsync(sys.argv[2], ended),
        "one that refuses what cannot be flushed any more": a_refused_rescue(sys.argv[2]),
    }
    return 0 if all([run_case(sys.argv[1], name, case_of_it) for name, case_of_it in cases.items()]) else 1


if __name__ == "__main__":
    sys.exit(main())
