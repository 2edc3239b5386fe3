"""The cases, each a claim. `origin` has the disk, `b` and `c` are other nodes."""

import os
import signal
import time

from cluster import TERM_MS, wait_until

CASES = {}
TERM = TERM_MS / 1000


def case(nodes=("origin", "b", "c"), seconds=240):
    def note(function):
        function.nodes, function.seconds = nodes, seconds
        CASES[function.__name__] = function
        return function
    return note


def check(condition, what):
    if not condition:
        raise AssertionError(what)


# Writes without fsync and stays, so that its node goes on holding what it has.
HOLDER = """
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.pwrite(fd, A[1].encode(), 0)
ready()
sys.stdin.read()
"""


def holder(cluster, path, text):
    child = cluster.program(HOLDER, path, text)
    check(child.stdout.readline().strip() == "ready", "the holder could not write: " + path)
    return child


@case()
def a_killed_node_blocks_nobody(cluster):
    cluster.start_all()
    cluster.put(cluster.path("b", "origin", "synced"), "kept")
    cluster.run("fd = os.open(A[0], os.O_RDWR)\nos.pwrite(fd, b'SAFE', 0)\nos.fsync(fd)",
                cluster.path("b", "origin", "synced"))
    holder(cluster, cluster.path("b", "origin", "dirty"), "lost with its node")
    cluster.get(cluster.path("b", "origin", "synced"))
    cluster.kill("b")
    cluster.put(cluster.path("c", "origin", "dirty"), "written by c")
    check(cluster.get(cluster.path("origin", "origin", "dirty")).startswith("written by c"), "what c wrote")
    check(cluster.get(cluster.path("c", "origin", "synced")) == "SAFE", "what was synced")
    check(cluster.get(cluster.path("origin", "origin", "synced")) == "SAFE", "what was synced, at the origin")


@case()
def locks_of_a_killed_node_are_free(cluster):
    cluster.start_all()
    cluster.put(cluster.path("c", "origin", "locked"), "x")
    taker = """
fd = os.open(A[0], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
fd2 = os.open(A[0], os.O_RDWR)
fcntl.flock(fd2, fcntl.LOCK_EX)
ready()
sys.stdin.read()
"""
    child = cluster.program(taker, cluster.path("b", "origin", "locked"))
    check(child.stdout.readline().strip() == "ready", "b has the locks")
    waiter = cluster.program(taker, cluster.path("c", "origin", "locked"))
    cluster.kill("b")
    check(waiter.stdout.readline().strip() == "ready", "c gets them")
    waiter.kill()


@case()
def a_lock_of_a_silent_node_refuses_nobody(cluster):
    cluster.start_all()
    cluster.put(cluster.path("c", "origin", "locked"), "x")
    child = cluster.program("fd = os.open(A[0], os.O_RDWR)\nfcntl.lockf(fd, fcntl.LOCK_EX)\nready()\nsys.stdin.read()",
                            cluster.path("b", "origin", "locked"))
    check(child.stdout.readline().strip() == "ready", "b has the lock")
    cluster.kill("b")
    cluster.run("""
fd = os.open(A[0], os.O_RDWR)
while True:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        time.sleep(0.05)
""", cluster.path("c", "origin", "locked"))


@case()
def a_node_that_was_stopped_and_not_missed_goes_on(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "mine")
    child = cluster.program(HOLDER + "os.pwrite(fd, b'second', 0)\nos.fsync(fd)\nprint('synced', flush=True)\n", path,
                            "first!")
    check(child.stdout.readline().strip() == "ready", "first write")
    cluster.signal("b", signal.SIGSTOP)
    time.sleep(3 * TERM)  # the time itself is what this is about
    cluster.signal("b", signal.SIGCONT)
    child.stdin.close()
    check(child.stdout.readline().strip() == "synced", "goes on")
    with open(cluster.disk("origin", "mine"), encoding="utf-8") as f:
        check(f.read() == "second", "on the origin's disk")
    check(cluster.counter("b", "lease_suspensions") > 0, "its leases had run out")
    check(cluster.counter("b", "recovery_files") == 0, "nothing was lost")


@case()
def a_stopped_node_that_was_missed_serves_nothing_old(cluster):
    cluster.configure("b", term_ms=2000)
    cluster.start_all()
    path = cluster.path("b", "origin", "shared")
    cluster.put(path, "from the beginning")
    reader = cluster.program("""
fd = os.open(A[0], os.O_RDWR)
os.pread(fd, 100, 0)
os.pwrite(fd, b'OLD', 0)
ready()
sys.stdin.readline()
print(os.pread(fd, 9, 0).decode(), flush=True)
try:
    os.fsync(fd)
    print('synced', flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
""", path)
    check(reader.stdout.readline().strip() == "ready", "b has it dirty")
    cluster.signal("b", signal.SIGSTOP)
    cluster.put(cluster.path("c", "origin", "shared"), "NEWER FILE")
    reader.stdin.write("go\n")
    reader.stdin.flush()
    time.sleep(0.2)
    cluster.signal("b", signal.SIGCONT)
    check(reader.stdout.readline().strip() == "NEWER FIL", "b sees what c wrote")
    check(reader.stdout.readline().strip() == "EIO", "fsync tells the loss")
    check(cluster.get(cluster.path("c", "origin", "shared")).startswith("NEWER FILE"), "nothing old came over it")
    listed = wait_until("the bytes are kept", lambda: [
        line for line in cluster.recover("b", "list").stdout.splitlines() if line.endswith("/shared")])
    kept = listed[0].split()[0]
    shown = cluster.recover("b", "show", kept).stdout
    check("3 bytes at 0" in shown, shown)
    refused = cluster.recover("b", "apply", kept)
    check(refused.returncode == 1 and "--force" in refused.stderr, "a changed file is not written over: " + str(refused))
    done = cluster.recover("b", "apply", kept, "--force")
    check(done.returncode == 0, done.stderr)
    check(cluster.get(cluster.path("c", "origin", "shared")).startswith("OLDER FILE"), "applied where it belongs")
    check(cluster.recover("b", "discard", kept).returncode == 0, "discard")
    check("nothing was kept" in cluster.recover("b", "list").stdout, "gone")


def cut_off(cluster, **how):
    path = cluster.path("b", "origin", "shared")
    cluster.put(path, "version 1")
    check(cluster.get(path).startswith("version 1"), "cached at b")
    cluster.hold("b", "origin", **how)
    cluster.put(cluster.path("c", "origin", "shared"), "version 2")
    # Whoever reads at b from now on may wait, and must not be shown the old.
    reader = cluster.program("print(open(A[0]).read(), flush=True)", path)
    time.sleep(0.5)
    check(reader.poll() is None, "a reader of a node that is cut off waits")
    cluster.release("b", "origin")
    check(reader.stdout.readline().strip() == "version 2", "the reader sees what c wrote")


@case()
def a_node_that_is_cut_off_serves_nothing_old(cluster):
    cluster.start_all()
    cut_off(cluster)


@case()
def a_node_that_is_not_heard_serves_nothing_old(cluster):
    cluster.start_all()
    cut_off(cluster, to_home=True, from_home=False)


@case()
def a_node_that_does_not_hear_serves_nothing_old(cluster):
    cluster.start_all()
    cut_off(cluster, to_home=False, from_home=True)


@case()
def a_soft_mount_fails_instead_of_waiting(cluster):
    cluster.configure("b", soft_timeout_ms=500)
    cluster.start_all()
    path = cluster.path("b", "origin", "shared")
    cluster.put(path, "version 1")
    cluster.hold("b", "origin")
    tried = """
while True:
    try:
        fd = os.open(A[0], os.O_RDONLY)
        os.pread(fd, 10, 0)
        os.close(fd)
        time.sleep(0.05)
    except OSError as e:
        print(errno.errorcode[e.errno])
        break
"""
    check(cluster.run(tried, path) == "EIO", "reading")
    check(cluster.run("try:\n  os.mkdir(A[0])\nexcept OSError as e:\n  print(errno.errorcode[e.errno])",
                      cluster.path("b", "origin", "directory")) == "EIO", "an operation")
    cluster.release("b", "origin")
    wait_until("b is back", lambda: cluster.counter("b", "leases_suspended") == 0)
    check(cluster.get(path).startswith("version 1"), "and all is well")


@case()
def what_a_node_cannot_flush_at_its_end_is_kept(cluster):
    cluster.start_all()
    holder(cluster, cluster.path("b", "origin", "late"), "too late").kill()
    cluster.hold("b", "origin")
    cluster.signal("b", signal.SIGTERM)
    cluster.nodes["b"].daemon.wait(timeout=60)
    check("bytes" in cluster.recover("b", "list").stdout, "kept: " + cluster.log("b")[-2000:])
