"""A cluster of real nodes that a test may kill, stop, cut off and start again.

Every node speaks to every other through a relay of this process, so that what travels can be held back in
either direction. Nothing outlives the test: daemons are its children, and at the end, or when the time is
over, the FUSE connections of its own mounts are aborted before they are unmounted.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

TERM_MS = 2000


def wait_until(what, condition, seconds=60):
    """Until condition() is true; a loaded machine may need long, and nothing is proved by how long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


def free_ports(count):
    """None that the kernel gives to an outgoing connection before its node listens there."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as f:
        first, last = map(int, f.read().split())
    unprivileged = range(10000, 65536)
    candidates = [p for p in unprivileged if not first <= p <= last] or list(unprivileged)
    random.shuffle(candidates)
    ports = []
    for port in candidates:
        if len(ports) == count:
            break
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                ports.append(port)
            except OSError:
                pass
    return ports


class Relay:
    """Forwards connections to a port; holds back what goes to the home, what comes from it, or both."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.flows = [threading.Event(), threading.Event()]  # to the home, from the home
        for flow in self.flows:
            flow.set()
        self.sockets = set()
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, to_home=True, from_home=True):
        for flow, held in zip(self.flows, (to_home, from_home)):
            flow.clear() if held else flow.set()

    def release(self):
        for flow in self.flows:
            flow.set()

    def cut(self):
        """Ends all connections; what was held back is lost."""
        with self.lock:
            for s in self.sockets:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()
        with self.lock:
            for s in self.sockets:
                s.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self.lock:
                self.sockets |= {near, far}
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(near, far, self.flows[0]), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, self.flows[1]), daemon=True).start()

    def _pump(self, source, sink, flow):
        try:
            while True:
                flow.wait()
                piece = source.recv(1 << 16)
                flow.wait()
                if not piece:
                    break
                sink.sendall(piece)
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()
            with self.lock:
                self.sockets.discard(s)


class Node:
    def __init__(self, name, directory, port):
        self.name, self.port = name, port
        self.dir = os.path.join(directory, name)
        self.mount = os.path.join(self.dir, "mnt")
        self.export = os.path.join(self.dir, "export")
        self.state = os.path.join(self.dir, "state")
        self.config = os.path.join(self.dir, "node.toml")
        self.log = os.path.join(self.dir, "log")
        self.daemon = None
        self.lease = {}
        for d in (self.mount, self.export, self.state):
            os.makedirs(d)


class Cluster:
    def __init__(self, vremote, names, seconds):
        self.vremote = vremote
        self.dir = tempfile.mkdtemp(prefix="vremote-faults-")
        os.chmod(self.dir, 0o755)
        self.children = []
        self.relays = {}  # (from, to)
        self.nodes = {n: Node(n, self.dir, p) for n, p in zip(names, free_ports(len(names)))}
        for a in names:
            for b in names:
                if a != b:
                    self.relays[a, b] = Relay(self.nodes[b].port)
        self.over = threading.Timer(seconds, self._out_of_time)
        self.over.daemon = True
        self.over.start()

    # ---- nodes

    def configure(self, name, **lease):
        node = self.nodes[name]
        node.lease = {"term_ms": TERM_MS, "recall_warn_ms": 500, "recall_deadline_ms": 30000, **lease}

    def start(self, name, **environment):
        node = self.nodes[name]
        if not node.lease:
            self.configure(name)
        with open(node.config, "w", encoding="utf-8") as f:
            f.write(f'node = "{name}"\nmount = "{node.mount}"\n')
            f.write(f'state_dir = "{node.state}"\nlisten = "127.0.0.1:{node.port}"\nloops = 2\n[cluster]\nname = "faults"\ntls = "off"\n')
            f.write(f'[log]\nfile = "{node.log}"\nlevel = "debug"\n[lease]\n')
            for key, value in node.lease.items():
                f.write(f"{key} = {value}\n")
            f.write(f'[[export]]\nname = "{name}"\npath = "{node.export}"\n')
            for other in self.nodes:
                if other != name:
                    port = self.relays[name, other].port
                    f.write(f'[[peer]]\nname = "{other}"\naddress = "127.0.0.1:{port}"\n')
        node.daemon = subprocess.Popen([self.vremote, "node", "--config", node.config],
                                       env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=open(node.log + ".err", "ab"))

    def start_all(self):
        for name in self.nodes:
            self.start(name)
        for name in self.nodes:
            self.wait_ready(name)

    def wait_ready(self, name):
        def ready():
            if self.nodes[name].daemon.poll() is not None:
                raise AssertionError(f"{name} has ended: {open(self.nodes[name].log + '.err').read()}")
            status = self.status(name)
            return status and status.get("ready") and all(
                p["state"] == "connected" for p in status["peers"]
                if self.nodes[p["name"]].daemon and self.nodes[p["name"]].daemon.poll() is None)
        wait_until(f"{name} is ready", ready)

    def status(self, name):
        try:
            out = subprocess.run([self.vremote, "status", "--json", "--config", self.nodes[name].config],
                                 capture_output=True, timeout=20, check=False)
            return json.loads(out.stdout) if out.returncode == 0 else None
        except (subprocess.TimeoutExpired, ValueError):
            return None

    def counter(self, name, key):
        status = self.status(name)
        return status["counters"].get(key, 0) if status else 0

    def kill(self, name):
        self.nodes[name].daemon.kill()
        self.nodes[name].daemon.wait()

    def lose_power(self, name):
        """Its daemon is killed, and finds that the machine has been started anew."""
        self.kill(name)
        life = os.path.join(self.nodes[name].state, "home", "disk")
        with open(life, encoding="utf-8") as f:
            head, body = f.read().split("\n", 1)
        with open(life, "w", encoding="utf-8") as f:
            f.write(head + "\nanother-" + body)
        self.start(name)
        self.wait_ready(name)

    def signal(self, name, number):
        self.nodes[name].daemon.send_signal(number)

    def hold(self, a, b, **how):
        """Nothing passes between the two any more, whoever has begun."""
        self.relays[a, b].hold(**how)
        self.relays[b, a].hold(**how)

    def release(self, a, b):
        self.relays[a, b].release()
        self.relays[b, a].release()

    def upgrade(self, name):
        child = subprocess.Popen([self.vremote, "upgrade", "--config", self.nodes[name].config],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.children.append(child)
        return child

    def recover(self, name, *args):
        return subprocess.run([self.vremote, "recover", "--config", self.nodes[name].config, *args],
                              capture_output=True, text=True, timeout=60, check=False)

    def log(self, name):
        with open(self.nodes[name].log, encoding="utf-8", errors="replace") as f:
            return f.read()

    # ---- programs

    def path(self, node, origin, name=""):
        return os.path.join(self.nodes[node].mount, origin, name)

    def disk(self, origin, name):
        return os.path.join(self.nodes[origin].export, name)

    def program(self, code, *args):
        """A program of its own: whatever hangs, this one does not."""
        child = subprocess.Popen([sys.executable, "-c", PRELUDE + code, *map(str, args)],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.children.append(child)
        return child

    def run(self, code, *args, timeout=60):
        child = self.program(code, *args)
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still not done after {timeout} s: {code}") from None
        if child.returncode != 0:
            raise AssertionError(f"failed: {code}\n{err}")
        return out.strip()

    def put(self, path, text, timeout=60):
        self.run("fd = os.open(A[0], os.O_WRONLY | os.O_CREAT, 0o644)\nos.pwrite(fd, A[1].encode(), 0)\nos.fsync(fd)", path, text,
                 timeout=timeout)

    def get(self, path, timeout=60):
        return self.run("print(open(A[0]).read())", path, timeout=timeout)

    # ---- the end

    def _connections(self):
        mounts = {os.path.realpath(n.mount) for n in self.nodes.values()}
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            for line in f:
                fields = line.split()
                if fields[4] in mounts:
                    yield fields[4], fields[2].split(":")[1]

    def _abort(self):
        control = os.path.join(self.dir, "control")
        os.makedirs(control, exist_ok=True)
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=False, capture_output=True)
        for _, minor in self._connections():
            try:
                with open(os.path.join(control, minor, "abort"), "w", encoding="utf-8") as f:
                    f.write("1")
            except OSError:
                pass
        subprocess.run(["umount", control], check=False, capture_output=True)

    def _out_of_time(self):
        print("out of time: ending everything", file=sys.stderr, flush=True)
        self._kill_all()
        self._abort()
        os._exit(1)

    def _kill_all(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
        for node in self.nodes.values():
            if node.daemon and node.daemon.poll() is None:
                node.daemon.send_signal(signal.SIGCONT)
                node.daemon.kill()
                node.daemon.wait()

    def end(self, failed):
        if failed:
            for name, node in self.nodes.items():
                for suffix in ("", ".err"):
                    if os.path.exists(node.log + suffix):
                        with open(node.log + suffix, encoding="utf-8", errors="replace") as f:
                            text = f.read()[-6000:]
                        print(f"---- {name}{suffix}\n{text}", file=sys.stderr)
        self._kill_all()
        self._abort()
        for mount, _ in list(self._connections()):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        for relay in self.relays.values():
            relay.close()
        self.over.cancel()
        shutil.rmtree(self.dir, ignore_errors=True)


PRELUDE = """
import errno, fcntl, mmap, os, sys, time
A = sys.argv[1:]
def ready():
    print("ready", flush=True)
def told(fd):
    try:
        os.fsync(fd)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
"""
