#!/bin/bash
# A daemon that the system refuses threads: refused_threads.sh VREMOTE SHIM
#
# SHIM is preloaded (refuse_threads.c). From the first thread to the last that a start, a start after a kill, and a new
# program after an upgrade ask for: each serves, or ends at once, says why, and leaves the mount to the next start.
# Needs root and /dev/fuse. Everything it starts and mounts goes with the namespaces of this script.
set -uo pipefail

vremote=$(realpath "$1")
shim=$(realpath "$2")
if [ "${3-}" != inside ]; then
  [ "$(id -u)" -eq 0 ] && [ -e /dev/fuse ] && unshare --mount --net --pid --fork --mount-proc true 2>/dev/null ||
    { echo "SKIPPED: needs root, namespaces and /dev/fuse"; exit 77; }
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  timeout -k 5 280 unshare --mount --net --pid --fork --mount-proc --kill-child "$0" "$vremote" "$shim" inside "$dir"
  exit
fi

dir=$4
failed=0
ip link set lo up
mkdir -p "$dir/mnt" "$dir/export"
cat >"$dir/node.toml" <<END
node = "n1"
mount = "$dir/mnt"
state_dir = "$dir/state"
listen = "127.0.0.1:20001"
loops = 2
cluster.tls = "off"
[[export]]
name = "files"
path = "$dir/export"
[[peer]]
name = "n2"
address = "localhost:20002"
END
wrong() { echo "$*"; tail -20 "$dir/err"; failed=1; }
serves() { "$vremote" status --config "$dir/node.toml" --json 2>/dev/null | grep -q '"ready":true'; }
run() { : >"$dir/err"; "$@" node --config "$dir/node.toml" 2>>"$dir/err" 5>&- & node=$!; } # not the open file: it would wait for itself
# Until it serves or ends; false: neither.
settled() {
  for ((i = 0; i < 100; i++)); do
    serves && return
    kill -0 "$node" 2>/dev/null || return 0
    sleep 0.1
  done
  return 1
}
ended() { ! kill -0 "$node" 2>/dev/null; }
stop() {
  kill "$node"
  for ((i = 0; i < 150; i++)); do ended && return; sleep 0.1; done
  wrong "$1: does not end"
  kill -9 "$node"
}
start() { # WHAT: without a refusal
  run "$vremote"
  settled && ! ended || wrong "$1: the next start"
  sleep 0.8 # one that dies earlier counts as an early death, and after some of them the mount is begun anew
}
check() { # WHAT: how a daemon that was refused threads has fared; true: it serves
  settled || { wrong "$1: hangs"; kill -9 "$node"; return 1; }
  ended || { sleep 0.5; ended || return 0; }
  wait "$node"
  local status=$?
  [ $status -le 2 ] || wrong "$1: exit status $status"
  grep -q "cannot start a thread" "$dir/err" || wrong "$1: does not say what was refused"
  return 1
}

# A start.
for ((k = 1, served = 0; served < 2 && k < 80; k++)); do
  run env LD_PRELOAD="$shim" REFUSE_FROM=$k "$vremote"
  if check "start, thread $k"; then
    ((served++))
    stop "start, thread $k"
  else
    served=0
  fi
  # After a refusal the next one serves; a look at some is enough.
  if ((served == 0 && k % 4 == 0)); then
    start "start, thread $k"
    stop "start, thread $k, the next"
  fi
done
((served > 0)) || wrong "no start served"
echo "starts: refused up to thread $((k - 3))"

# A start after a kill, and a new program, under an open file.
start "first"
exec 5>>"$dir/mnt/files/a"
for ((k = 1, served = 0; served < 1 && k < 80; k++)); do
  kill -9 "$node"
  wait "$node" 2>/dev/null
  run env LD_PRELOAD="$shim" REFUSE_FROM=$k "$vremote"
  if check "after a kill, thread $k"; then served=1; else start "after a kill, thread $k"; fi
  echo "$k" >&5 || { wrong "after a kill, thread $k: the open file is lost"; exec 5>>"$dir/mnt/files/a"; }
done
echo "after a kill: refused up to thread $((k - 2))"
kill -9 "$node"
wait "$node" 2>/dev/null
start "before the upgrades"
for ((k = 1, served = 0; served < 1 && k < 80; k++)); do
  printf '#!/bin/bash\n[[ " $* " = *take-over* ]] && export LD_PRELOAD=%q REFUSE_FROM=%d\nexec -a vremote %q "$@"\n' \
    "$shim" "$k" "$vremote" >"$dir/next"
  chmod 755 "$dir/next"
  if "$vremote" upgrade --config "$dir/node.toml" --binary "$dir/next" >"$dir/upgrade" 2>&1; then
    served=1
  else
    check "upgrade, thread $k" && wrong "upgrade, thread $k: $(cat "$dir/upgrade")"
    start "upgrade, thread $k"
  fi
  echo "$k" >&5 || { wrong "upgrade, thread $k: the open file is lost"; exec 5>>"$dir/mnt/files/a"; }
done
((served > 0)) || wrong "no upgrade served"
echo "upgrades: refused up to thread $((k - 2))"
# One that sees beforehand that there are too few goes on as it was.
kill -9 "$node"
wait "$node" 2>/dev/null
for ((k = 24; k < 80; k++)); do
  run env LD_PRELOAD="$shim" REFUSE_FROM=$k "$vremote"
  check "short, thread $k" && break
done
"$vremote" upgrade --config "$dir/node.toml" >"$dir/upgrade" 2>&1 && wrong "an upgrade without threads"
grep -q "cannot start a thread.*goes on as before" "$dir/upgrade" || wrong "upgrade: $(cat "$dir/upgrade")"
echo end >&5 || wrong "the refused upgrade: the open file is lost"
exec 5>&-
stop "last"
exit $failed
