# shellcheck shell=bash
# Sourced by the other scripts: runs a command so that nothing of it outlives the script.
#
# contained CMD...  runs CMD with process numbers, mounts, /tmp and /run/vremote of its own (as root; else only TMPDIR and a
#                   process group). Whatever a test forgets, a process, a mount or a file, goes at the end, however that comes.
#
# FUSE makes that more than a kill: a process that waits for an answer nobody will give stays in D state for good. So the
# connections of the command's own mounts are aborted first.

contained_dir=
contained_pid=
contained_init=

# The FUSE connections (minor device numbers) mounted in the mount namespace of process $1.
contained_connections() {
  # Fields: mount id, parent, major:minor, root, mount point, options..., "-", file system type, ...
  sed -n 's/^[0-9]* [0-9]* [0-9]*:\([0-9]*\) .* - fuse\.vremote .*/\1/p' "/proc/$1/mountinfo" 2>/dev/null | sort -u
}

# Aborts the connections named on standard input. Their control file system is mounted afresh below the directory $1:
# containers seldom have it.
contained_abort() {
  local minor control=$1/control
  mkdir -p "$control" && mount -t fusectl none "$control" 2>/dev/null || return
  while read -r minor; do
    # One that has ended meanwhile has left its number to a stranger.
    contained_connections "$contained_init" | grep -qx "$minor" || continue
    echo 1 2>/dev/null >"$control/$minor/abort"
  done
  umount "$control"
  rmdir "$control"
}

contained_end() {
  local status=$?
  trap - EXIT
  # A second ^C must not leave half of it behind.
  trap '' INT TERM HUP
  if [ -n "$contained_pid" ] && kill -0 "$contained_pid" 2>/dev/null; then
    if [ -n "$contained_init" ]; then
      comm -13 <(contained_connections self) <(contained_connections "$contained_init") |
        contained_abort "$contained_dir"
      kill -KILL "$contained_init" 2>/dev/null
    fi
    kill -KILL -- "-$contained_pid" 2>/dev/null
    wait "$contained_pid" 2>/dev/null
  fi
  [ -z "$contained_dir" ] || rm -rf --one-file-system "$contained_dir"
  exit "$status"
}

# Inside the new namespaces, as their process 1 (and so the one that reaps orphans).
# shellcheck disable=SC2016  # expanded there
contained_inside='
set -e
mkdir -p "$contained_dir/tmp" "$contained_dir/run" /run/vremote
chmod 1777 "$contained_dir/tmp"
case "$PWD/" in
  /tmp/*)  # the project itself lives in the /tmp that is about to be covered
    mkdir -p "$contained_dir/tmp/${PWD#/tmp/}"
    mount --rbind "$PWD" "$contained_dir/tmp/${PWD#/tmp/}" ;;
esac
mount --bind "$contained_dir/run" /run/vremote
mount --rbind "$contained_dir/tmp" /tmp
cd "$PWD"
set +e
unset contained_dir
"$@"
exit $?'

contained() {
  local status=0
  contained_dir=$(mktemp -d /tmp/vremote-run.XXXXXX) || return 1
  trap contained_end EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  # Job control: the command gets a process group of its own, and ^C reaches this script alone and not, ignored, its children.
  set -m
  if [ "$(id -u)" -eq 0 ] && unshare --mount --pid --fork --mount-proc true 2>/dev/null; then
    export contained_dir
    TMPDIR=/tmp unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
      bash -c "$contained_inside" contained "$@" &
    contained_pid=$!
    while [ -z "$contained_init" ] && kill -0 "$contained_pid" 2>/dev/null; do
      read -r contained_init _ 2>/dev/null <"/proc/$contained_pid/task/$contained_pid/children" || sleep 0.02
    done
  else
    TMPDIR=$contained_dir "$@" &
    contained_pid=$!
  fi
  set +m
  wait "$contained_pid" || status=$?
  contained_pid=
  return "$status"
}
