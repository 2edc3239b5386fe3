#!/bin/bash
# `vremote` whose standard descriptors are closed, or lead to a full disk: closed_descriptors.sh VREMOTE
#
# The part with a node needs root and /dev/fuse. Everything it starts and mounts goes with the namespaces of this script.
set -uo pipefail

vremote=$(realpath "$1")
if [ "${2-}" != inside ]; then
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  if [ "$(id -u)" -eq 0 ] && unshare --mount --pid --fork --mount-proc true 2>/dev/null; then
    timeout -k 5 100 unshare --mount --pid --fork --mount-proc --kill-child "$0" "$vremote" inside "$dir" node
  else
    timeout -k 5 100 "$0" "$vremote" inside "$dir" ""
  fi
  exit
fi

dir=$3
failed=0
expect() { # STATUS WHAT...: the last command's exit status
  local got=$?
  [ "$got" -eq "$1" ] || { echo "${*:2}: exit status $got and not $1"; failed=1; }
}

"$vremote" status --config "$dir/nothing" 2>/dev/full; expect 2 "a mistake that nobody can be told"
"$vremote" status --config "$dir/nothing" 2>&-; expect 2 "a mistake without standard error"
"$vremote" version >/dev/full 2>&1; expect 1 "standard output on a full disk"
"$vremote" version >&- 2>&-; expect 1 "closed standard output"
"$vremote" cluster join --config "$dir/nothing" <&- >&- 2>&-; expect 2 "nothing open at all"
[ -n "$4" ] && [ -e /dev/fuse ] || { echo "SKIPPED the part with a node: needs root and /dev/fuse"; exit $failed; }

mkdir "$dir/mnt" "$dir/export"
echo shared >"$dir/export/file"
cat >"$dir/node.toml" <<END
node = "n1"
mount = "$dir/mnt"
state_dir = "$dir/state"
listen = "127.0.0.1:$((20000 + RANDOM % 10000))"
log.file = "$dir/log"
cluster.tls = "off"
[[export]]
name = "data"
path = "$dir/export"
END
"$vremote" node --config "$dir/node.toml" <&- >&- 2>&- &
node=$!
until [ -e "$dir/mnt/data" ]; do
  kill -0 "$node" 2>/dev/null || { echo "the node has ended:"; cat "$dir/log"; exit 1; }
  sleep 0.05
done
for fd in 0 1 2; do
  [[ $(readlink "/proc/$node/fd/$fd") == /dev/null ]]; expect 0 "the node's descriptor $fd"
done
"$vremote" run --config "$dir/node.toml" -- sh -c "ls -l /proc/\$\$/fd >$dir/fds; exit 5" <&- >&- 2>&-
expect 5 "a command without standard descriptors"
grep -q -E ' [02] -> ' "$dir/fds"; expect 1 "what the command had open"
kill "$node"
wait "$node"; expect 0 "the node's end"
exit $failed
