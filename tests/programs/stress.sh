# shellcheck shell=bash source=tests/programs/lib.sh
# stress-ng's file stressors, each verifying what it does, for a few seconds on both nodes at once.
# At most 900 seconds.
. "$TESTS/lib.sh"
readonly kSeconds=3
# Not here: what makes mounts of its own, is about the machine's directories or devices, or needs fiemap, quotas, verity or leases.
stressors=(access aio aiol chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock fpunch fsize fstat getdent handle hdd io io-uring
  iomix link locka lockf lockofd mknod mmap mmapaddr mmapfork msync open pipe readahead rename revio seek sendfile splice symlink sync-file tee touch utime xattr)
[ -z "${STRESSORS-}" ] || read -ra stressors <<<"$STRESSORS"

# --mmap-file and friends make the memory stressors use files; an option of a stressor that does not run is ignored.
options=(--temp-path . --timeout "$kSeconds" --verify --metrics-brief --hdd-bytes 8m --seek-size 8m --readahead-bytes 8m --aiol-requests 16 --iomix-bytes 16m --mmap-file
  --mmap-bytes 4m --fallocate-bytes 16m --revio-bytes 8m --sendfile-size 256k --sync-file-bytes 16m --copy-file-bytes 128m --msync-bytes 4m --dirdeep-dirs 1 --dirdeep-inodes 300
  --splice-bytes 64k)
stress() {
  mkdir -p "$1/$2"
  (cd "$1/$2" && stress-ng "${options[@]}" --"$3" 1 >"$SCRATCH/$2.$3.log" 2>&1) || { echo "$2: $3: exit status $?"; grep -v 'dispatching\|setting to\|metrics\|stress-ng: info:.*completed' "$SCRATCH/$2.$3.log" | head -8; return 1; }
  ! grep -i 'stress-ng: fail' "$SCRATCH/$2.$3.log" || return 1
}
failed=()
for stressor in "${stressors[@]}"; do
  together stress "$NODE1" one "$stressor" -- stress "$NODE2" two "$stressor" || failed+=("$stressor")
done
skipped=$(grep -l 'skipped: 1\|skipping stressor\|not implemented' "$SCRATCH"/one.*.log | sed 's/.*one\.\(.*\)\.log/\1/' | xargs || true)
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
left=$(find "$NODE1/one" "$NODE2/two" -mindepth 1 | wc -l)
[ "$left" -eq 0 ] || fail "$left files are left: $(find "$NODE1/one" "$NODE2/two" -mindepth 1 | head -3)"
echo "${#stressors[@]} stressors on both nodes at once${skipped:+; skipped themselves: $skipped}"
