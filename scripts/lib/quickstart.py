"""The claims of scripts/quickstart, each checked on a running playground of two nodes and told in one line."""

import argparse
import hashlib
import json
import os
import shutil
import stat
import statistics
import subprocess
import sys
import time

MIB = 1 << 20
ALTERNATIONS = 1000
TRIES = 5
failed = 0


def claim(holds, text):
    global failed
    failed += not holds
    print(f"  {'✓' if holds else '✗'} {text}", flush=True)


def begin(text):
    print(f"        {text}", flush=True)


def sha256_of_file(path, folder=None):
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY, dir_fd=folder)
    while block := os.read(fd, MIB):
        digest.update(block)
    os.close(fd)
    return digest.hexdigest()


def sha256_of_tree(root):
    """Names, types, permissions, link targets and contents; with the numbers of files and bytes."""
    digest, files, size = hashlib.sha256(), 0, 0
    for path, folders, names, folder in os.fwalk(root):
        folders.sort()
        for name in sorted(names + folders):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            digest.update(f"{os.path.relpath(path, root)}/{name} {status.st_mode:o}\n".encode())
            if stat.S_ISLNK(status.st_mode):
                digest.update(os.readlink(name, dir_fd=folder).encode())
            elif stat.S_ISREG(status.st_mode):
                digest.update(bytes.fromhex(sha256_of_file(name, folder)))
                files, size = files + 1, size + status.st_size
    return digest.hexdigest(), files, size


def timed(function, *arguments):
    start = time.monotonic()
    result = function(*arguments)
    return result, time.monotonic() - start


class Cluster:
    def __init__(self, vremote, directory):
        self.vremote = vremote
        self.directory = directory

    def config(self, node):
        return f"{self.directory}/node{node}/node.toml"

    def shared(self, node):
        """The export of node 1, as this node shows it."""
        return f"{self.directory}/node{node}/mnt/node1"

    def status(self, node):
        command = [self.vremote, "status", "--json", "--config", self.config(node)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def run(self, node, *command):
        """As `vremote run` on that node, in the exported directory; what it prints, or None if it fails."""
        done = subprocess.run(
            [self.vremote, "run", "--config", self.config(node), "--", *command],
            cwd=f"{self.directory}/node1/export", capture_output=True, timeout=60)
        if done.returncode != 0:
            sys.stderr.write(done.stderr.decode(errors="replace"))
            return None
        return done.stdout


def check_original(cluster):
    begin("the original project's example: open(\"hello.txt\", O_RDWR | O_REMOTE | O_ORIGIN), run by `vremote run`")
    content = "".join(f"line {i}: shared by all nodes\n" for i in range(100)).encode()
    path = f"{cluster.shared(1)}/hello.txt"
    with open(path, "wb") as file:
        file.write(content)
    for linked in "dynamic", "static":
        program = f"{cluster.directory}/original-{linked}"
        for node, arguments in (1, ["hello.txt"]), (2, ["hello.txt", "remote"]):
            printed = cluster.run(node, program, *arguments)
            whole = all(sha256_of_file(f"{cluster.shared(n)}/hello.txt") == hashlib.sha256(content).hexdigest() for n in (1, 2))
            where = "on the origin, O_ORIGIN = decimal 10000000" if node == 1 else "on the other node, without O_ORIGIN"
            claim(printed == content[:256] and whole,
                  f"{linked:7}  {where}: printed {len(printed or b'')} of 256 bytes; the file is {'whole' if whole else 'HARMED'}")


def check_tree(cluster, sources):
    begin(f"real files: {' and '.join(sources)}")
    for source in sources:
        target = f"{cluster.shared(1)}/{os.path.basename(source)}"
        _, seconds = timed(lambda: subprocess.run(["cp", "-r", source, target], check=True))
        wanted, files, size = sha256_of_tree(source)
        (near, _, _), near_seconds = timed(sha256_of_tree, target)
        (far, _, _), far_seconds = timed(sha256_of_tree, target.replace(cluster.shared(1), cluster.shared(2)))
        (again, _, _), again_seconds = timed(sha256_of_tree, target.replace(cluster.shared(1), cluster.shared(2)))
        claim(wanted == near == far == again,
              f"{files} files, {size / MIB:.0f} MiB, copied in through node1 ({seconds:.1f} s): one checksum at the source, through node1 "
              f"({near_seconds:.1f} s) and through node2 (first {far_seconds:.1f} s, again {again_seconds:.1f} s)")


def read_all(path, buffer):
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def check_big(cluster, mib):
    begin(f"one file of {mib} MiB")
    local, buffer = f"{cluster.directory}/big.local", bytearray(MIB)
    digest = hashlib.sha256()
    with open(local, "wb") as file:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    shutil.copyfile(local, f"{cluster.shared(1)}/big")
    far = f"{cluster.shared(2)}/big"
    near_sum, far_sum = sha256_of_file(f"{cluster.shared(1)}/big"), sha256_of_file(far)
    claim(near_sum == far_sum == digest.hexdigest(), f"one checksum, {near_sum[:16]}…, through both nodes and on the local disk")

    # By now node2 has it. The counters are node2's own; asking for them changes none of them. The kernel may have reclaimed pages
    # meanwhile, as of any file: then this read brings them back, and the next one is looked at.
    wait_until_quiet(cluster)
    for _ in range(TRIES):
        before = cluster.status(2)
        read_all(far, buffer)
        after = cluster.status(2)
        change = {name: after["counters"][name] - before["counters"][name] for name in ("fills", "direct_reads", "fetches", "upcalls")}
        traffic = {name: sum(p[name] for p in after["peers"]) - sum(p[name] for p in before["peers"])
                   for name in ("messages_in", "messages_out", "bytes_in", "bytes_out")}
        data = change["fills"] + change["direct_reads"]
        if data == 0:
            break
    messages = traffic["messages_in"] + traffic["messages_out"]
    claim(data == 0 and change["fetches"] == 0,
          f"second read on node2: {data} upcalls for data, {change['fetches']} fetches "
          f"(for path and open: {change['upcalls']} upcalls, answered from leases)")
    claim(messages == 0,
          f"second read on node2: {messages} messages to or from node1 "
          f"({traffic['bytes_in'] + traffic['bytes_out']} bytes of pings meanwhile; the file has {mib * MIB})")

    speeds = {far: [], local: []}
    for path in [local] + [far, local] * 7:
        _, seconds = timed(read_all, path, buffer)
        speeds[path].append(mib * MIB / seconds / 1e9)
    there, here = statistics.median(speeds[far]), statistics.median(speeds[local][1:])
    print(f"  · its speed on node2: {there:.2f} GB/s; the same file on the local disk, cached: {here:.2f} GB/s (medians of 7, ratio {there / here:.2f})")


def wait_until_quiet(cluster):
    """Until written data has reached the origin's disk, so that nothing of it runs while we count."""
    deadline = time.monotonic() + 30
    while any(cluster.status(n)["dirty_bytes"] for n in (1, 2)) and time.monotonic() < deadline:
        time.sleep(0.1)


def check_alternation(cluster):
    begin("a change made on either node is read on the other at once")
    paths = [f"{cluster.shared(n)}/turns" for n in (1, 2)]
    with open(paths[0], "wb") as file:
        file.write(bytes(8))
    writers = [os.open(p, os.O_WRONLY) for p in paths]
    readers = [os.open(p, os.O_RDONLY) for p in paths]
    stale, times = 0, []
    for i in range(1, ALTERNATIONS + 1):
        start = time.monotonic()
        os.pwrite(writers[i % 2], i.to_bytes(8, "little"), 0)
        seen = int.from_bytes(os.pread(readers[1 - i % 2], 8, 0), "little")
        times.append(time.monotonic() - start)
        stale += seen != i
    claim(stale == 0, f"{ALTERNATIONS} writes, in turns on both nodes, each read at once on the other: {stale} stale "
                      f"(median {statistics.median(times) * 1e6:.0f} µs for a write and its read)")
    for fd in writers + readers:
        os.close(fd)

    stale = 0
    for i in range(ALTERNATIONS // 10):
        here, there = (cluster.shared(1), cluster.shared(2)) if i % 2 else (cluster.shared(2), cluster.shared(1))
        with open(f"{here}/log", "ab") as file:
            file.write(b"one more line\n")
        os.rename(f"{here}/log", f"{here}/log.{i}")
        stale += os.path.exists(f"{there}/log") or os.stat(f"{there}/log.{i}").st_size != 14 * (i + 1)
        os.rename(f"{there}/log.{i}", f"{there}/log")
        stale += os.path.exists(f"{here}/log.{i}")
    claim(stale == 0, f"{ALTERNATIONS // 10} appends and {ALTERNATIONS // 5} renames, seen at once by the other node's stat(): {stale} stale")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vremote", required=True)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--big-mib", type=int, default=256)
    parser.add_argument("sources", nargs="+")
    arguments = parser.parse_args()
    cluster = Cluster(arguments.vremote, arguments.dir)
    for check in (lambda: check_original(cluster), lambda: check_alternation(cluster),
                  lambda: check_tree(cluster, arguments.sources), lambda: check_big(cluster, arguments.big_mib)):
        try:
            check()
        except (OSError, subprocess.SubprocessError, shutil.Error) as error:
            claim(False, f"{type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
