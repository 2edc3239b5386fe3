#!/bin/bash
# A node that must not start as its configuration says, or not quite so: refused_starts.sh VREMOTE
#
# Needs root and /dev/fuse. Everything it starts and mounts goes with the namespaces of this script.
set -uo pipefail

vremote=$(realpath "$1")
if [ "${2-}" != inside ]; then
  [ "$(id -u)" -eq 0 ] && [ -e /dev/fuse ] && unshare --mount --net --pid --fork --mount-proc true 2>/dev/null ||
    { echo "SKIPPED: needs root, namespaces and /dev/fuse"; exit 77; }
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  timeout -k 5 280 unshare --mount --net --pid --fork --mount-proc --kill-child "$0" "$vremote" inside "$dir"
  exit
fi

dir=$3
failed=0
wrong() { echo "$*"; failed=1; }
ip link set lo up

config() { # NAME EXPORT: a node.toml
  mkdir -p "$dir/$1/mnt" "$2"
  cat >"$dir/$1/node.toml" <<END
node = "$1"
mount = "$dir/$1/mnt"
state_dir = "$dir/$1/state"
listen = "127.0.0.1:$((20000 + 10#${1//[^0-9]/}))"
cluster.tls = "off"
[[export]]
name = "of-$1"
path = "$2"
END
}
start() { # NAME: until it serves; its process is $node
  "$vremote" node --config "$dir/$1/node.toml" 2>"$dir/$1/err" &
  node=$!
  until [ -e "$dir/$1/mnt/of-$1" ]; do
    kill -0 "$node" 2>/dev/null || { echo "$1 has ended:"; cat "$dir/$1/err"; exit 1; }
    sleep 0.05
  done
}
refused() { # NAME WORDS: it ends by itself and says so, in one line of the log
  "$vremote" node --config "$dir/$1/node.toml" 2>"$dir/$1/err"
  [ $? -eq 2 ] || wrong "$1: another exit status than that of a wrong configuration"
  grep -qF -- "$2" "$dir/$1/err" || { wrong "$1 did not say: $2"; cat "$dir/$1/err"; }
}

# One directory, two daemons; also by another path.
config n1 "$dir/shared"
config n2 "$dir/shared"
start n1
first=$node
refused n2 "node.toml: key 'export[0].path': another node of this machine exports $dir/shared"
mkdir "$dir/elsewhere"
mount --bind "$dir/shared" "$dir/elsewhere"
config n3 "$dir/elsewhere"
refused n3 "another node of this machine exports"
# The next program of the same node is no other node, and goes on to keep others out.
"$vremote" upgrade --config "$dir/n1/node.toml" >"$dir/n1/upgrade" 2>&1 || { wrong "the upgrade"; cat "$dir/n1/upgrade"; }
until [ -e "$dir/n1/mnt/of-n1" ]; do sleep 0.05; done
refused n2 "another node of this machine exports"
# The lock goes with the process, however that ends.
kill -KILL "$first"
wait "$first" 2>/dev/null
start n2
kill "$node"
wait "$node" || wrong "the end of n2"

# A disk that is mounted read-only: told at the start, and to whoever writes at once.
mkdir "$dir/disk"
mount -t tmpfs none "$dir/disk"
echo kept >"$dir/disk/file"
mount -o remount,ro "$dir/disk"
config n4 "$dir/disk"
start n4
grep -qF "export of-n4: $dir/disk is on a file system that is mounted read-only" "$dir/n4/err" || wrong "no warning of the read-only disk"
[ "$(cat "$dir/n4/mnt/of-n4/file")" = kept ] || wrong "its file cannot be read"
said=$( (echo lost >"$dir/n4/mnt/of-n4/file") 2>&1)
[[ $said == *"Read-only file system"* ]] || wrong "writing there is not refused at once: $said"
# access(2) is answered by the kernel, from the mode alone (docs/promise.md).
[ -w "$dir/n4/mnt/of-n4/file" ] || wrong "access(2) knows of read-only exports: say so in docs/promise.md"
kill "$node"
wait "$node" || wrong "the end of n4"

# What is wrong is named by its key.
config n5 "$dir/five"
touch "$dir/n5/mnt/something"
refused n5 "node.toml: key 'mount': $dir/n5/mnt is not empty"
config n6 "$dir/six"
mkdir -p "$dir/n6/state/control.sock.lock"
refused n6 "node.toml: key 'state_dir': control socket $dir/n6/state/control.sock: cannot make its lock file"

# A device that is none: the start says what it is, and how to mend it.
config n7 "$dir/seven"
touch "$dir/no-device"
mount --bind "$dir/no-device" /dev/fuse
refused n7 "/dev/fuse is not the kernel's device of that name: remove what is there"
umount /dev/fuse

# Where another user could have put something nothing is made or changed.
config n13 "$dir/thirteen"
mkdir -m 755 "$dir/victim" "$dir/n13/state"
ln -s "$dir/victim" "$dir/n13/state/recovery"
chown -h 12345 "$dir/n13/state/recovery"
refused n13 "node.toml: key 'recovery_dir': $dir/n13/state/recovery is a symbolic link of user 12345"
rm "$dir/n13/state/recovery"
chown 12345 "$dir/n13/state"
refused n13 "node.toml: key 'state_dir': $dir/n13/state belongs to user 12345"
[ "$(stat -c %a "$dir/victim" "$dir/n13/state" | tr '\n' ' ')" = "755 755 " ] || wrong "the mode of somebody's directory was changed"
chown 0 "$dir/n13/state"
mkdir "$dir/n13/state/home"
chown 12345 "$dir/n13/state/home"
refused n13 "node.toml: key 'state_dir': $dir/n13/state/home belongs to user 12345"
chown 0 "$dir/n13/state/home"
echo "what others were to believe" >"$dir/n13/state/home/of-n13.files"
chown 12345 "$dir/n13/state/home/of-n13.files"
refused n13 "node.toml: key 'state_dir': $dir/n13/state/home/of-n13.files belongs to user 12345"
"$vremote" node --config "$dir/n13/node.toml" --check >"$dir/n13/said" 2>&1
[ $? -eq 2 ] && grep -qF "belongs to user 12345" "$dir/n13/said" || { wrong "the check of n13"; cat "$dir/n13/said"; }

# What a start makes it takes at the next one, whatever the umask.
config n15 "$dir/fifteen"
(
  umask 0002
  for again in first second; do
    start n15
    kill "$node"
    wait "$node" || exit 1
  done
) || wrong "n15 does not take what it has made"

# Too little to live on.
config n14 "$dir/fourteen"
(ulimit -n 200; refused n14 "this process may have 200 descriptors, and a node needs 256 at least: raise the limit"; exit $failed) || failed=1
(ulimit -f 4; exec setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource -- "$vremote" node --config "$dir/n14/node.toml") 2>"$dir/n14/err"
[ $? -eq 2 ] && grep -qF "files of this process may have 4096 bytes" "$dir/n14/err" || { wrong "n14 with small files"; cat "$dir/n14/err"; }
# Where root may.
(
  ulimit -f 4
  (ulimit -f unlimited) 2>/dev/null || exit 0
  start n14
  kill "$node"
  wait "$node"
) || wrong "root raises the limit of files' sizes"

# Who may not mount is told so before a start.
config n12 "$dir/twelve"
setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin -- "$vremote" node --config "$dir/n12/node.toml" --check >"$dir/n12/said" 2>&1
[ $? -eq 2 ] && grep -qF "node.toml: key 'mount': this user may not mount" "$dir/n12/said" || { wrong "the check of who may not mount"; cat "$dir/n12/said"; }

# What the start says, the check says, too; of a node that runs it says nothing.
config n8 "$dir/eight"
"$vremote" node --config "$dir/n8/node.toml" --check >"$dir/n8/said" || wrong "n8 is not good"
start n8
"$vremote" node --config "$dir/n8/node.toml" --check >>"$dir/n8/said" 2>&1 || { wrong "n8 runs, and is not good"; cat "$dir/n8/said"; }
# Nor of one that was killed; unless somebody else has its port now.
kill -KILL "$node"
wait "$node" 2>/dev/null
"$vremote" node --config "$dir/n8/node.toml" --check >>"$dir/n8/said" 2>&1 || { wrong "n8 was killed, and is not good"; cat "$dir/n8/said"; }
python3 -c 'import socket, sys, time; s = socket.create_server(("127.0.0.1", 20008)); print("listens", flush=True); time.sleep(60)' >"$dir/n8/stranger" &
stranger=$!
until grep -q listens "$dir/n8/stranger"; do sleep 0.05; done
"$vremote" node --config "$dir/n8/node.toml" --check >"$dir/n8/said" 2>&1
[ $? -eq 2 ] && grep -qF "node.toml: key 'listen': " "$dir/n8/said" || { wrong "the check of n8, whose port is taken"; cat "$dir/n8/said"; }
kill "$stranger"
wait "$stranger" 2>/dev/null
start n8
kill "$node"
wait "$node" || wrong "the end of n8"
# What another node shows is no place for a node's own files, by whatever path; nor for its mount.
config n9 "$dir/nine"
start n9
config n10 "$dir/ten"
sed -i "s|^state_dir.*|state_dir = \"$dir/n9/mnt/of-n9/state\"|" "$dir/n10/node.toml"
refused n10 "node.toml: key 'state_dir': $dir/n9/mnt/of-n9/state lies on $dir/n9/mnt"
ln -s "$dir/n9/mnt/of-n9" "$dir/link"
sed -i "s|^state_dir.*|state_dir = \"$dir/link/state\"|" "$dir/n10/node.toml"
refused n10 "node.toml: key 'state_dir': $dir/link/state lies on $dir/n9/mnt"
config n11 "$dir/eleven"
sed -i "s|^mount.*|mount = \"$dir/n9/mnt/of-n9/mnt\"|" "$dir/n11/node.toml"
refused n11 "node.toml: key 'mount': $dir/n9/mnt/of-n9/mnt lies on $dir/n9/mnt"
[ -z "$(ls "$dir/nine")" ] || wrong "something was made there"
# A link to where nobody answers: the check ends, and names it.
kill -STOP "$node"
sed -i "s|^state_dir.*|state_dir = \"$dir/link/not-seen-yet/state\"|" "$dir/n10/node.toml"
timeout 30 "$vremote" node --config "$dir/n10/node.toml" --check >"$dir/n10/said" 2>&1
[ $? -eq 2 ] && grep -qF "node.toml: key 'state_dir': $dir/link/not-seen-yet/state leads to a file system that does not answer" "$dir/n10/said" ||
  { wrong "the check of a hung directory"; cat "$dir/n10/said"; }
kill -CONT "$node"
kill "$node"
wait "$node" || wrong "the end of n9"
touch "$dir/n8/mnt/something"
"$vremote" node --config "$dir/n8/node.toml" --check >"$dir/n8/said" 2>&1
[ $? -eq 2 ] && grep -qF "node.toml: key 'mount': $dir/n8/mnt is not empty" "$dir/n8/said" || { wrong "the check of n8"; cat "$dir/n8/said"; }
exit $failed
