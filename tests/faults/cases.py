"""The cases, each a claim. `origin` has the disk, `b` and `c` are other nodes."""

import os
import signal
import subprocess
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
fd, other = os.open(A[0], os.O_RDWR), os.open(A[0], os.O_RDONLY)
os.pread(fd, 100, 0)
os.pwrite(fd, b'OLD', 0)
ready()
sys.stdin.readline()
print(os.pread(fd, 9, 0).decode(), flush=True)
for each in fd, other, fd:
    print(told(each), flush=True)
""", path)
    check(reader.stdout.readline().strip() == "ready", "b has it dirty")
    cluster.signal("b", signal.SIGSTOP)
    cluster.put(cluster.path("c", "origin", "shared"), "NEWER FILE")
    reader.stdin.write("go\n")
    reader.stdin.flush()
    time.sleep(0.2)
    cluster.signal("b", signal.SIGCONT)
    check(reader.stdout.readline().strip() == "NEWER FIL", "b sees what c wrote")
    check([reader.stdout.readline().strip() for _ in range(3)] == ["EIO", "EIO", "ok"],
          "fsync tells the loss, once for each open file")
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


# Writes to c's file what cannot get there: while b is cut off from c, no upgrade of b finds a good moment.
def upgrade_that_looks_for_a_moment(cluster):
    child = cluster.program(HOLDER + "os.pwrite(fd, b'later', 0)\nready()\ntime.sleep(1000)\n", cluster.path("b", "c", "kept"), "x")
    check(child.stdout.readline().strip() == "ready", "the file is there")
    cluster.hold("b", "c")
    child.stdin.close()
    check(child.stdout.readline().strip() == "ready", "and dirty")
    upgrade = cluster.upgrade("b")
    wait_until("it is begun", lambda: "upgrade to" in cluster.log("b"))
    return upgrade


@case()
def a_node_that_is_cut_off_while_it_is_upgraded_serves_nothing_old(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "shared")
    cluster.put(path, "version 1")
    reader = cluster.program("""
mapped = mmap.mmap(os.open(A[0], os.O_RDONLY), 9, prot=mmap.PROT_READ)
print(mapped[:].decode(), flush=True)
sys.stdin.readline()
print(mapped[:].decode(), flush=True)
""", path)
    check(reader.stdout.readline().strip() == "version 1", "cached at b")
    upgrade = upgrade_that_looks_for_a_moment(cluster)
    cluster.hold("b", "origin")
    cluster.put(cluster.path("c", "origin", "shared"), "version 2")
    reader.stdin.write("now\n")
    reader.stdin.flush()
    time.sleep(0.3)
    check(upgrade.poll() is None, "it was looked for a moment all the time: the machine is too slow for this test")
    cluster.release("b", "origin")
    check(reader.stdout.readline().strip() == "version 2", "a load sees what c wrote")
    upgrade.wait(100)


@case()
def an_origin_that_restarts_gets_back_what_a_node_has_that_is_upgraded(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "stored")
    child = cluster.program("""
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, 8192)
mapped = mmap.mmap(fd, 8192)
mapped[:6] = b'before'
fcntl.lockf(fd, fcntl.LOCK_EX)
ready()
sys.stdin.readline()
mapped[4096:4102] = b'stored'
ready()
sys.stdin.readline()
os.fsync(fd)
print('synced', flush=True)
""", path)
    check(child.stdout.readline().strip() == "ready", "b has it mapped")
    upgrade = upgrade_that_looks_for_a_moment(cluster)
    child.stdin.write("now\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "ready", "and dirty")
    cluster.kill("origin")
    cluster.start("origin")
    wait_until("the origin serves again", lambda: "requests are served" in cluster.log("origin"))
    check(upgrade.poll() is None, "it was looked for a moment all the time: the machine is too slow for this test")
    check("b did not bring back" not in cluster.log("origin"), "b is not given up")
    child.stdin.write("now\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "synced", "nothing is lost")
    check(cluster.get(cluster.path("c", "origin", "stored"))[4096:4102] == "stored", "c sees it")
    check(cluster.counter("b", "recovery_files") == 0, "nothing was put aside")
    upgrade.wait(100)


@case()
def nobody_writes_under_a_lock_that_is_lost(cluster):
    """Neither a write that waits since before the session ended, nor one after it; by a new handle all is as ever."""
    cluster.start_all()
    holders = {}
    for kind in ("lockf", "flock"):
        cluster.put(cluster.path("c", "origin", kind), "of none")
        holders[kind] = cluster.program("""
def write(fd):
    try:
        os.pwrite(fd, b'of b', 0)
        return 'written'
    except OSError as e:
        return errno.errorcode[e.errno]
lock = getattr(fcntl, A[1])
fd = os.open(A[0], os.O_RDWR)
lock(fd, fcntl.LOCK_EX)
other = os.open(A[0] + '2', os.O_RDWR | os.O_CREAT)
ready()
sys.stdin.readline()
ready()
print(write(fd), write(fd), write(other), flush=True)
os.close(fd)
fd = os.open(A[0], os.O_RDWR)
lock(fd, fcntl.LOCK_EX)
print(write(fd), flush=True)
os.fsync(fd)
""", cluster.path("b", "origin", kind), kind)
        check(holders[kind].stdout.readline().strip() == "ready", "b has the lock")
    waiters = {}
    for what in ("read", "fill", "fsync", "lock", "wait", "test", "unlock"):
        cluster.put(cluster.path("c", "origin", what), "of none")
        waiters[what] = cluster.program("""
import struct
fd = os.open(A[0], os.O_RDONLY if A[1] == 'fill' else os.O_RDWR)
kind = fcntl.F_RDLCK if A[1] == 'fill' else fcntl.F_WRLCK
lock = lambda call, what: fcntl.fcntl(fd, call, struct.pack('hhqqi4x', what, 0, 0, 0, 0))
lock(fcntl.F_SETLK, kind)
if A[1] != 'fill':
    mapped = mmap.mmap(fd, 7)
calls = {'read': lambda: os.pread(fd, 4, 0), 'fill': lambda: os.pread(fd, 4, 0), 'fsync': lambda: os.fsync(fd),
         'lock': lambda: lock(fcntl.F_SETLK, kind), 'wait': lambda: lock(fcntl.F_SETLKW, kind),
         'test': lambda: lock(fcntl.F_GETLK, kind), 'unlock': lambda: lock(fcntl.F_SETLK, fcntl.F_UNLCK)}
def said(what):
    try:
        calls[what]()
        return 'done'
    except OSError as e:
        return errno.errorcode[e.errno]
ready()
sys.stdin.readline()
ready()
print(said(A[1]), *(said(what) for what in calls if what != 'unlock'), flush=True)
if A[1] != 'fill':
    print(mapped[0:4].decode(), flush=True)
    mapped[0:1] = b'O'
    sys.stdin.readline()
""", cluster.path("b", "origin", what), what)
        check(waiters[what].stdout.readline().strip() == "ready", "b has the locks")
    check(cluster.upgrade("b").wait(60) == 0, "and its next daemon")
    cluster.hold("b", "origin")
    wait_until("b's leases are over", lambda: cluster.counter("b", "leases_suspended") > 0)
    for child in (*holders.values(), *waiters.values()):
        child.stdin.write("now\n")
        child.stdin.flush()
        check(child.stdout.readline().strip() == "ready", "b writes")
    for name in (*holders, *waiters):
        cluster.run("""
fd = os.open(A[0], os.O_RDWR)
getattr(fcntl, A[1])(fd, fcntl.LOCK_EX)
os.pwrite(fd, b'of c', 0)
os.fsync(fd)
""", cluster.path("c", "origin", name), "flock" if name == "flock" else "lockf")
    cluster.release("b", "origin")
    for what, child in waiters.items():
        told = child.stdout.readline().split()
        check(told == ["done" if what == "unlock" else "EIO"] + ["EIO"] * 6, f"who waited with {what}: {told}")
        if what == "fill":
            continue
        check(child.stdout.readline().strip() == "of c", "what the mapping shows is as ever")
        # While b's handle is open, and says EIO: the lock is nobody's.
        cluster.run("fd = os.open(A[0], os.O_RDWR)\nfcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                    cluster.path("c", "origin", what))
        child.stdin.write("now\n")
        child.stdin.flush()
        check(child.wait(20) == 0, "and it lives")
    for kind, child in holders.items():
        path = cluster.path("b", "origin", kind)
        check(child.stdout.readline().strip() == "EIO EIO written", "b has lost it, and can write to other files")
        check(child.stdout.readline().strip() == "written", "it may lock it anew")
        child.wait(20)
        check(cluster.get(cluster.path("c", "origin", kind)).startswith("of b"), "and write then")
        check("has lost its lock on " + path in cluster.log("b"), "the log names the file")


@case(nodes=("origin", "b"))
def a_kernel_that_forgets_much_keeps_no_call_waiting(cluster):
    cluster.start_all()
    many = os.path.join(cluster.nodes["origin"].export, "many")
    os.mkdir(many)
    for k in range(30000):
        os.close(os.open(f"{many}/{k}", os.O_CREAT | os.O_WRONLY))
    cluster.put(cluster.path("b", "b", "other"), "some")

    def forget():
        cluster.run("for entry in os.scandir(A[0]):\n  entry.stat()", cluster.path("b", "origin", "many"), timeout=120)
        known = cluster.counter("b", "kernel_inodes")
        check(known > 30000, f"b's kernel knows only {known} files")
        begun = time.monotonic()
        # Drops what the kernel knows of this mount alone.
        subprocess.run(["mount", "-i", "-o", "remount", cluster.nodes["b"].mount], check=True)
        return begun

    def all_forgotten():
        return cluster.status("b") is not None and cluster.counter("b", "kernel_inodes") < 100

    child = cluster.program("""
import threading
ready()
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set())).start()
longest = 0
while not ended.is_set():
    begun = time.monotonic()
    os.close(os.open(A[0], os.O_RDONLY))
    longest = max(longest, time.monotonic() - begun)
    time.sleep(0.001)
print(longest)
""", cluster.path("b", "b", "other"))
    check(child.stdout.readline().strip() == "ready", "the file is there")
    begun = forget()
    wait_until("all are forgotten", all_forgotten)
    lasted = time.monotonic() - begun
    child.stdin.write("enough\n")
    child.stdin.flush()
    longest = float(child.stdout.readline())
    check(longest < lasted / 2, f"an open took {longest} s while files were forgotten for {lasted} s")
    forget()
    check(cluster.upgrade("b").wait(60) == 0, "and its next daemon")
    wait_until("all are forgotten over an upgrade", all_forgotten)


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
def a_lock_that_a_soft_mount_did_not_wait_for_is_nobodys(cluster):
    cluster.configure("b", soft_timeout_ms=500)
    cluster.start_all()
    cluster.put(cluster.path("c", "origin", "locked"), "some")
    child = cluster.program("""
fd = os.open(A[0], os.O_RDWR)
ready()
sys.stdin.readline()
try:
    fcntl.lockf(fd, fcntl.LOCK_EX)
    print('locked', flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
sys.stdin.readline()
""", cluster.path("b", "origin", "locked"))
    check(child.stdout.readline().strip() == "ready", "b has it open")
    cluster.hold("b", "origin")
    child.stdin.write("now\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "EIO", "b does not wait")
    cluster.release("b", "origin")
    wait_until("b is back", lambda: cluster.counter("b", "leases_suspended") == 0)
    locks = "fcntl.lockf(os.open(A[0], os.O_RDWR), fcntl.LOCK_EX)"
    cluster.run(locks, cluster.path("c", "origin", "locked"))
    check(child.poll() is None, "while b has it open")
    child.stdin.write("now\n")
    child.stdin.flush()
    child.wait(20)


@case()
def what_a_node_cannot_flush_at_its_end_is_kept(cluster):
    cluster.start_all()
    holder(cluster, cluster.path("b", "origin", "late"), "too late").kill()
    cluster.hold("b", "origin")
    cluster.signal("b", signal.SIGTERM)
    cluster.nodes["b"].daemon.wait(timeout=60)
    listed = cluster.recover("b", "list").stdout
    check("8 bytes" in listed, "kept: " + cluster.log("b")[-2000:])
    check(listed.rstrip().endswith(cluster.path("b", "origin", "late")), "with its name: " + listed)


# ---- the origin

@case()
def a_writer_outlives_its_origin(cluster):
    """Writes, reads its own, syncs now and then, and makes, renames and removes names, while the origin is killed
    and started again: sees a pause, EIO only from the call that was being carried out at that moment, and everything is there in the end."""
    cluster.start_all()
    path = cluster.path("b", "origin", "log")
    writer = cluster.program("""
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
fcntl.lockf(fd, fcntl.LOCK_EX)
folder = os.path.dirname(A[0])
unsure = 0
# What the origin was carrying out when it was killed ends with EIO, and may have happened: one call for each time.
def sure(call, done):
    global unsure
    try:
        call()
    except OSError as e:
        unsure += 1
        if e.errno != errno.EIO or unsure > 2:
            raise
        if not done():
            call()
ready()
n = 0
end = time.monotonic() + float(A[1])
while time.monotonic() < end or n < 50:
    os.pwrite(fd, b'%07d\\n' % n, 8 * n)
    if os.pread(fd, 8, 8 * n) != b'%07d\\n' % n:
        sys.exit('not what was written')
    if n % 10 == 0:
        os.fsync(fd)
    name = folder + '/name%d' % n
    sure(lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)), lambda: os.path.exists(name))
    sure(lambda: os.rename(name, name + '.new'), lambda: os.path.exists(name + '.new'))
    sure(lambda: os.unlink(name + '.new'), lambda: not os.path.exists(name + '.new'))
    n += 1
    time.sleep(0.002)
os.fsync(fd)
print(n, flush=True)
""", path, 6)
    check(writer.stdout.readline().strip() == "ready", "the writer runs")
    for _ in range(2):
        time.sleep(1)
        cluster.kill("origin")
        time.sleep(0.3)
        cluster.start("origin")
        cluster.wait_ready("origin")
    last = writer.stdout.readline().strip()
    check(last.isdigit(), "the writer ended well: " + (writer.stderr.read() if not last else last))
    want = "".join(f"{i:07d}\n" for i in range(int(last)))
    with open(cluster.disk("origin", "log"), encoding="utf-8") as f:
        check(f.read() == want, "on the origin's disk")
    check(cluster.get(cluster.path("c", "origin", "log")) + "\n" == want, "for everybody")
    check(os.listdir(cluster.nodes["origin"].export) == ["log"], "no name was left")
    check(cluster.counter("b", "recovery_files") == 0, "nothing was put aside")


@case()
def a_call_is_carried_out_once_however_often_its_origin_restarts(cluster):
    for name in cluster.nodes:
        cluster.configure(name, term_ms=20000)
    cluster.start_all()
    path = cluster.path("b", "origin", "file")
    child = cluster.program("""
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
ready()
sys.stdin.readline()
os.setxattr(fd, 'trusted.vremote', b'x', os.XATTR_CREATE)
print('done', flush=True)
""", path)
    check(child.stdout.readline().strip() == "ready", "b has it open")
    # So that b has no lease which the call would take from it: it could not be told.
    cluster.run("os.chmod(A[0], 0o600)", cluster.path("c", "origin", "file"))
    cluster.relays["b", "origin"].hold(to_home=False)
    child.stdin.write("now\n")
    child.stdin.flush()
    wait_until("it is carried out", lambda: "trusted.vremote" in os.listxattr(cluster.disk("origin", "file")))
    for _ in range(3):
        cluster.kill("origin")
        cluster.start("origin")
        wait_until("the origin is there again", lambda: cluster.status("origin"))
    cluster.relays["b", "origin"].cut()
    cluster.release("b", "origin")
    check(child.stdout.readline().strip() == "done", "b hears that it has made it")


@case()
def unflushed_bytes_come_back_before_anybody_else(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "file")
    child = holder(cluster, path, "from b, not flushed")
    cluster.kill("origin")
    cluster.start("origin")
    # c asks at once; it must not get the file before b has brought back what it wrote.
    got = cluster.run("""
while True:
    try:
        print(open(A[0]).read())
        break
    except FileNotFoundError:
        time.sleep(0.01)
""", cluster.path("c", "origin", "file"))
    check(got == "from b, not flushed", "c sees what b had written: " + repr(got))
    child.kill()


@case(nodes=("origin", "b"))
def an_fsync_tells_of_a_power_failure_of_the_origin(cluster):
    """The origin's daemon is killed, and finds that the machine has been started anew: what had been flushed there and not synced may be lost."""
    cluster.start_all()
    synced, flushed, clean = (cluster.path("b", "origin", name) for name in ("synced", "flushed", "clean"))
    child = cluster.program("""
files = [os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in A]
for fd in files:
    os.pwrite(fd, b'x' * 4096, 0)
os.fsync(files[0])
folder = os.open(os.path.dirname(A[0]), os.O_RDONLY)
os.fsync(folder)
ready()
while line := sys.stdin.readline():
    print(*[told(fd) for fd in files + [folder]], flush=True)
    os.pwrite(files[1], b'y' * 4096, 0)
    os.close(os.open(A[0] + line.strip(), os.O_CREAT | os.O_WRONLY, 0o644))
    ready()
""", synced, flushed, clean)

    def ask(name):
        child.stdin.write(name + "\n")
        child.stdin.flush()
        said = child.stdout.readline().split()
        check(child.stdout.readline().strip() == "ready", "it goes on")
        return said

    check(child.stdout.readline().strip() == "ready", "the files are there")
    wait_until("all is flushed", lambda: all(
        os.path.exists(cluster.disk("origin", name)) and os.path.getsize(cluster.disk("origin", name)) == 4096
        for name in ("synced", "flushed", "clean")))
    cluster.kill("origin")
    cluster.start("origin")
    cluster.wait_ready("origin")
    check(ask("1") == ["ok"] * 4, "a daemon that is started again has lost nothing")
    with open(cluster.disk("origin", "flushed"), "rb") as f:
        wait_until("what was written then is flushed", lambda: os.pread(f.fileno(), 1, 0) == b"y")
    cluster.lose_power("origin")
    check(ask("2") == ["ok", "EIO", "ok", "EIO"], "of what had not been synced fsync tells")
    check(ask("3") == ["ok"] * 4, "once")
    child.stdin.close()
    child.wait(60)


@case(nodes=("origin", "b"))
def an_fsync_tells_of_lost_bytes_that_were_written_behind_the_mount_and_seen(cluster):
    cluster.start_all()
    if not cluster.status("origin")["exports"][0]["watched"]:
        return  # nothing of this holds there: docs/promise.md
    child = cluster.program("""
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.pwrite(fd, b'mine', 0)
os.fsync(fd)
ready()
sys.stdin.readline()
while os.pread(fd, 4, 0) != b'OUTS':
    time.sleep(0.01)
ready()
for line in sys.stdin:
    print(told(fd), flush=True)
""", cluster.path("b", "origin", "seen"))
    check(child.stdout.readline().strip() == "ready", "the file is there")
    recalls = cluster.counter("b", "recalls_received")
    with open(cluster.disk("origin", "seen"), "r+b") as f:
        f.write(b"OUTS")
    # Before that a look may show the new bytes, and nobody tells that they are new.
    wait_until("b is told of the change", lambda: cluster.counter("b", "recalls_received") > recalls)
    child.stdin.write("look\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "ready", "b has seen it")
    cluster.lose_power("origin")
    for want in ("EIO", "ok"):
        child.stdin.write("sync\n")
        child.stdin.flush()
        said = child.stdout.readline().strip()
        check(said == want, f"{said} instead of {want}")
    child.stdin.close()
    child.wait(60)


# Writes more than the disk has through the first of three descriptors, then syncs each twice, and one opened afterwards.
# Then it goes on so.
OVERFLOW = """
fds = [os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644) for _ in range(3)]
for k in range(4):
    os.pwrite(fds[0], b'x' * (1 << 20), k << 20)
said = [told(fd) for fd in fds + fds]
print(*said, told(os.open(A[0], os.O_RDWR)))
for k in range(50):
    os.pwrite(fds[0], b'x' * 4096, (8 + k) << 20)
    told(fds[0])
"""


@case(nodes=("origin", "b"))
def a_full_disk_is_told_to_each_open_file_once(cluster):
    export = cluster.nodes["origin"].export
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", export], check=True)
    try:
        cluster.start_all()
        want = "ENOSPC ENOSPC ENOSPC ok ok ok ok"
        for node in ("b", "origin"):
            said = cluster.run(OVERFLOW, cluster.path(node, "origin", "full"))
            check(said == want, f"at {node}: {said}")
            os.remove(cluster.disk("origin", "full"))
        said = [line for line in cluster.log("origin").splitlines() if "dirty bytes not written" in line]
        check(said and all(f"export origin: {export}/full, inode" in line for line in said), f"which file: {said}")
        # Less than once for each flush: some that were under way may have found room.
        check(len(said) < 20, f"{len(said)} lines of it")
        said = cluster.log("b").count("could not be stored")
        check(0 < said < 10, f"{said} lines of it at b")
    finally:
        cluster.kill("origin")
        subprocess.run(["umount", "-l", export], check=False)


@case()
def a_full_disk_of_an_origins_notes_takes_no_file_from_anybody(cluster):
    """What the notes say is used; a restart after calls that were not noted counts as a power failure."""
    home = os.path.join(cluster.nodes["origin"].state, "home")
    os.makedirs(home)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", home], check=True)
    try:
        cluster.start_all()
        child = cluster.program("""
fd = os.open(A[0], os.O_RDWR | os.O_CREAT, 0o644)
os.fsync(fd)
os.pwrite(fd, b'x', 0)
ready()
for line in sys.stdin:
    print(told(fd), os.pread(fd, 1, 0).decode(), flush=True)
""", cluster.path("b", "origin", "f"))

        def ask():
            child.stdin.write("?\n")
            child.stdin.flush()
            return child.stdout.readline().strip()

        check(child.stdout.readline().strip() == "ready", "the file is there")
        wait_until("it is flushed", lambda: os.path.getsize(cluster.disk("origin", "f")) == 1)
        junk = os.path.join(home, "junk")
        try:
            with open(junk, "wb", buffering=0) as f:
                while f.write(b"x" * 4096):
                    pass
        except OSError:
            pass
        cluster.run("for i in range(200): os.mkdir(A[0] + str(i))", cluster.path("b", "origin", "d"))
        wait_until("the log tells", lambda: "calls that are under way when this daemon dies" in cluster.log("origin"))
        check(not os.path.exists(os.path.join(home, "disk")), "the next daemon begins a new life of the disk")
        os.remove(junk)
        cluster.kill("origin")
        cluster.start("origin")
        cluster.wait_ready("origin")
        check(ask() == "EIO x", "as after a power failure")
        check(ask() == "ok x", "once")
        cluster.kill("origin")
        cluster.start("origin")
        cluster.wait_ready("origin")
        check(ask() == "ok x", "and not after another restart")
        child.stdin.close()
        child.wait(60)
    finally:
        cluster.kill("origin")
        subprocess.run(["umount", "-l", home], check=False)


@case()
def locks_outlive_the_origins_daemon(cluster):
    cluster.start_all()
    cluster.put(cluster.path("b", "origin", "locked"), "x")
    child = cluster.program("""
fd = os.open(A[0], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
ready()
sys.stdin.readline()
fcntl.lockf(fd, fcntl.LOCK_UN)
ready()
sys.stdin.read()
""", cluster.path("b", "origin", "locked"))
    check(child.stdout.readline().strip() == "ready", "b has the lock")
    cluster.kill("origin")
    cluster.start("origin")
    tried = "fd = os.open(A[0], os.O_RDWR)\ntry:\n  fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n  print('mine')\n" \
            "except BlockingIOError:\n  print('busy')"
    check(cluster.run(tried, cluster.path("c", "origin", "locked")) == "busy", "c does not get it")
    child.stdin.write("go\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "ready", "b lets go")
    check(cluster.run(tried, cluster.path("c", "origin", "locked")) == "mine", "now c gets it")


@case()
def an_open_file_stays_when_its_name_goes_after_a_restart(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "open")
    cluster.put(path, "still here")
    child = cluster.program("fd = os.open(A[0], os.O_RDWR)\nready()\nsys.stdin.readline()\n"
                            "print(os.pread(fd, 20, 0).decode(), flush=True)", path)
    check(child.stdout.readline().strip() == "ready", "open")
    cluster.kill("origin")
    cluster.start("origin")
    cluster.run("os.unlink(A[0])", cluster.path("c", "origin", "open"))
    child.stdin.write("go\n")
    child.stdin.flush()
    check(child.stdout.readline().strip() == "still here", "what was open can be read")


@case()
def a_node_that_does_not_come_back_is_not_waited_for_longer_than_the_term(cluster):
    cluster.start_all()
    holder(cluster, cluster.path("b", "origin", "file"), "from b")
    cluster.kill("b")
    cluster.kill("origin")
    cluster.start("origin")
    cluster.put(cluster.path("c", "origin", "other"), "c goes on")
    check(cluster.get(cluster.path("c", "origin", "other")) == "c goes on", "c")


@case()
def a_node_that_comes_back_after_the_grace_overwrites_nothing(cluster):
    cluster.start_all()
    path = cluster.path("b", "origin", "file")
    cluster.put(path, "from the beginning")
    child = holder(cluster, path, "OLD")
    cluster.hold("b", "origin")
    cluster.kill("origin")
    cluster.start("origin")
    cluster.put(cluster.path("c", "origin", "file"), "NEWER")
    cluster.release("b", "origin")
    wait_until("b keeps its bytes", lambda: cluster.counter("b", "recovery_files") > 0)
    check(cluster.get(path).startswith("NEWER"), "b sees what c wrote")
    check(cluster.get(cluster.path("c", "origin", "file")).startswith("NEWER"), "and so does c")
    child.kill()
