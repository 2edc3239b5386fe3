"""A real tree copied onto the mount by tar and by rsync, with owners, modes, times, hard and symbolic links, extended attributes; compared
with the original through both nodes, while the other node reads, and copied back out."""
# At most 600 seconds.

import hashlib
import os
import pathlib
import shlex
import stat
import subprocess
import sys

NODES = {1: pathlib.Path(os.environ["NODE1"]), 2: pathlib.Path(os.environ["NODE2"])}
SCRATCH = pathlib.Path(os.environ["SCRATCH"])
SOURCE = pathlib.Path("/usr/include")
FILES_MAX = 6000


def run(command):
    subprocess.run(["bash", "-o", "pipefail", "-ec", command], check=True)


def make_source(root):
    """So much of a real tree that it stays quick, and what such a tree lacks."""
    names = subprocess.run(["find", ".", "-type", "f", "-o", "-type", "l"], cwd=SOURCE, capture_output=True, check=True).stdout.split(b"\n")
    listed = b"\0".join(sorted(n for n in names if n)[:FILES_MAX])
    root.mkdir()
    subprocess.run(f"tar -C {SOURCE} --null -T - -cf - | tar -C {root} -xpf -", shell=True, input=listed, check=True)
    odd = root / "odd"
    odd.mkdir(mode=0o2750)
    (odd / "with a\nnewline, ä and \x80".encode("utf8", "surrogateescape").decode("utf8")).write_text("x")
    (odd / ("n" * 255)).write_text("longest name")
    (odd / "empty").touch()
    with open(odd / "sparse", "wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    (odd / "random").write_bytes(os.urandom(5_000_001))
    for i in range(5):
        os.link(odd / "random", odd / f"hard link {i}")
    (odd / "dangling").symlink_to("no/such/file")
    (odd / "long link").symlink_to("l" * 4000)
    (odd / "link to directory").symlink_to("..")
    for i, mode in enumerate((0o4755, 0o2711, 0o1777, 0o000, 0o604)):
        path = odd / f"mode {mode:o}"
        path.write_bytes(bytes([i]) * i)
        os.chown(path, 1000 + i, 2000 + i)
        path.chmod(mode)
        os.utime(path, ns=(1_000_000_000_123_456_789 + i, 1_234_567_890_987_654_321 + i))
    os.utime(odd / "empty", ns=(-86_400_000_000_001, -1))
    os.setxattr(odd / "random", "user.colour", b"blue\0green")
    os.mkfifo(odd / "fifo")
    os.utime(odd, ns=(10**18, 10**18 + 7))


def look(root):
    """Everything that is to survive a copy, by name."""
    seen, links = {}, {}
    for path, folders, names in os.walk(root):
        for name in sorted(folders + names):
            whole = os.path.join(path, name)
            s = os.lstat(whole)
            key = os.path.relpath(whole, root)
            what = [s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns if not stat.S_ISLNK(s.st_mode) else 0]
            if stat.S_ISLNK(s.st_mode):
                what.append(os.readlink(whole))
            elif stat.S_ISREG(s.st_mode):
                with open(whole, "rb") as file:
                    what += [s.st_size, s.st_nlink, hashlib.file_digest(file, "sha256").hexdigest()]
                what.append({n: os.getxattr(whole, n) for n in os.listxattr(whole) if n.startswith("user.")})
                if s.st_nlink > 1:
                    what.append(links.setdefault(s.st_ino, key))
            seen[key] = what
    return seen


def compare(wanted, root, but_not_links_out_of=False):
    found = look(root)
    for name in sorted(wanted.keys() | found.keys()):
        assert wanted.get(name) == found.get(name), f"{root}/{name}: {found.get(name)} instead of {wanted.get(name)}"


def main():
    source = SCRATCH / "source"
    make_source(source)
    wanted = look(source)
    s, one, two, back = (shlex.quote(str(p)) for p in (source, NODES[1], NODES[2], SCRATCH / "back"))
    tar = "tar --xattrs --xattrs-include='*' --numeric-owner"

    # Onto the mount by either node, both at once.
    run(f"mkdir {one}/tar1 {one}/tar2; {tar} -C {s} -cSf - . | {tar} -C {one}/tar1 -xpSf - & {tar} -C {s} -cf - . | {tar} -C {two}/tar2 -xpf -; wait $!")
    for node in NODES.values():
        compare(wanted, node / "tar1")
        compare(wanted, node / "tar2")
    assert os.stat(NODES[2] / "tar1/odd/sparse").st_blocks * 512 < 1 << 20, "a sparse file is not"

    # One node writes what the other reads from the mount; then rsync finds nothing left to do, by content and by attributes.
    run(f"rsync -aHAXS --numeric-ids {one}/tar2/ {two}/rsync/")
    compare(wanted, NODES[1] / "rsync")
    for left in (f"rsync -aHAXSni --checksum --numeric-ids {s}/ {one}/rsync/", f"rsync -aHAXSni --numeric-ids {two}/tar1/ {one}/rsync/"):
        said = subprocess.run(left, shell=True, check=True, capture_output=True, text=True).stdout
        assert said == "", f"{left}: {said[:500]}"

    # A change is carried over, in place and by rename, and a removal.
    (NODES[1] / "tar1/odd/random").open("r+b").write(b"changed")
    (NODES[1] / "tar1/odd/new").write_text("new")
    (NODES[1] / "tar1/odd/empty").unlink()
    run(f"rsync -aHAX --numeric-ids --delete --inplace --no-whole-file {two}/tar1/ {two}/rsync/")
    compare(look(NODES[1] / "tar1"), NODES[1] / "rsync")
    run(f"rsync -aHAX --numeric-ids --delete --no-whole-file {s}/ {two}/rsync/")
    compare(wanted, NODES[1] / "rsync")

    # And off it again, while the other node removes the copy beside it.
    run(f"rm -rf {two}/tar1 & {tar} -C {one}/tar2 -cf - . | (mkdir {back}; {tar} -C {back} -xpf -); wait $!")
    compare(wanted, SCRATCH / "back")
    assert not (NODES[1] / "tar1").exists()
    size = sum(w[4] for w in wanted.values() if stat.S_ISREG(w[0]))
    print(f"{len(wanted)} names, {size >> 20} MiB by tar and rsync, both ways and between the nodes: contents, modes, owners, times, links, xattrs")


if __name__ == "__main__":
    sys.exit(main())
