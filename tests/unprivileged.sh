#!/bin/bash
# A user without any privilege runs a node for files of her own, in a user namespace: unprivileged.sh VREMOTE
#
# Run as root it becomes somebody else first. /dev/fuse is made as most distributions have it (all may open it), in a mount
# namespace of this script's own, where the mount lives and dies, too. Exit status 77: not possible on this machine.
set -euo pipefail

vremote=$(realpath "$1")
[ "$(id -u)" -eq 0 ] || { echo "SKIPPED: needs root, to become somebody else"; exit 77; }
for tool in unshare setpriv mknod; do
  command -v "$tool" >/dev/null || { echo "SKIPPED: there is no $tool"; exit 77; }
done

if [ "${2-}" != inside ]; then
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  chmod 755 "$dir"
  mknod "$dir/fuse" c 10 229 2>/dev/null || { echo "SKIPPED: device nodes cannot be made"; exit 77; }
  chmod 666 "$dir/fuse"
  # Whatever hangs goes with the process namespace.
  status=0
  timeout -k 5 100 unshare --mount --pid --fork --mount-proc --kill-child "$0" "$vremote" inside "$dir" || status=$?
  exit "$status"
fi

dir=$3
mount --bind "$dir/fuse" /dev/fuse
(: <>/dev/fuse) 2>/dev/null || { echo "SKIPPED: /dev/fuse cannot be opened"; exit 77; }
user="setpriv --reuid 12345 --regid 12345 --clear-groups"
$user unshare --user --map-root-user --mount true 2>/dev/null || { echo "SKIPPED: no user namespaces"; exit 77; }
# Its parent is of a user whom her namespace does not know.
mkdir -p "$dir/u/mnt" "$dir/u/export" "$dir/state"
cat >"$dir/u/node.toml" <<TOML
node = "mine"
mount = "$dir/u/mnt"
state_dir = "$dir/state"
listen = "127.0.0.1:$((20000 + $$ % 1000 + RANDOM % 10000))"
[cluster]
name = "mine"
[[export]]
name = "files"
path = "$dir/u/export"
TOML
chown -R 12345:12345 "$dir/u" "$dir/state"

cat >"$dir/session" <<'SESSION'
set -euo pipefail
vremote=$1
cd "$2"
[ "$(id -u)" -eq 0 ] # of her own namespace
wait_until_ready() {
  for ((i = 0; i < 600; i++)); do
    "$vremote" status --config node.toml --json 2>/dev/null | grep -q '"ready":true' && break
    kill -0 "$node" || { cat log; exit 1; }
    sleep 0.1
  done
}
"$vremote" node --config node.toml >log 2>&1 &
node=$!
wait_until_ready
echo hello >mnt/files/a
[ "$(cat mnt/files/a)" = hello ]
mkdir mnt/files/d
mv mnt/files/a mnt/files/d/b
chmod 600 mnt/files/d/b
ln -s b mnt/files/d/link
[ "$(cat mnt/files/d/link)" = hello ]
exec 5>>mnt/files/d/b
"$vremote" upgrade --config node.toml
echo again >&5
[ "$(cat mnt/files/d/b)" = $'hello\nagain' ]
exec 5>&-
kill "$node"
wait "$node"

# More files than she may have descriptors: each that the node knows takes one.
mkdir export/many
for ((i = 0; i < 600; i++)); do echo $i >export/many/f$i; done
(ulimit -n 256; exec "$vremote" node --config node.toml) >log 2>&1 &
node=$!
wait_until_ready
timeout 20 cat mnt/files/many/f* >known 2>refused || true
[ "$(wc -l <known)" -ge 64 ]
[ "$(($(wc -l <known) + $(wc -l <refused)))" -eq 600 ]
[ "$(grep -c "Too many open files in system$" refused)" -eq "$(wc -l <refused)" ]
[ "$(grep -c 'raise the limit (ulimit -n' log)" -eq 1 ]
echo written >mnt/files/many/f0
[ "$(cat mnt/files/many/f0)" = written ]
timeout 10 "$vremote" status --config node.toml >/dev/null
exec 5<mnt/files/many/f1 # ended under a file in use
kill "$node"
for ((i = 0; i < 200; i++)); do
  kill -0 "$node" 2>/dev/null || break
  sleep 0.1
done
if kill -0 "$node" 2>/dev/null; then echo "it does not end"; exit 1; fi
wait "$node"
[ "$(grep -c " $PWD/mnt " /proc/self/mountinfo)" -eq 0 ]
exec 5<&-
[ "$(cat export/many/f0)" = written ]
SESSION
$user "$vremote" cluster init --config "$dir/u/node.toml"
$user unshare --user --map-root-user --mount bash "$dir/session" "$vremote" "$dir/u" || { cat "$dir/u/log"; exit 1; }
[ "$(cat "$dir/u/export/d/b")" = $'hello\nagain' ]
[ "$(stat -c '%u %a' "$dir/u/export/d/b")" = "12345 600" ]
echo "a user runs a node of her own"
