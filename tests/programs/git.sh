# shellcheck shell=bash source=tests/programs/lib.sh
# git on one repository from both nodes: in turns, at once (its lock files must hold), packed while in use, and cloned.
# At most 300 seconds.
. "$TESTS/lib.sh"
readonly kCommits=25
git config --global user.name tester
git config --global user.email tester@example.org
git config --global init.defaultBranch main
git config --global safe.directory '*'
git config --global gc.auto 0

git init -q "$NODE1/repository"
cd "$NODE1/repository"
for i in $(seq 40); do head -c $((i * 500)) /dev/urandom | base64 >"file$i"; done
git add .
git commit -qm 'first'

# In turns: each node sees the other's last commit and nothing to commit.
for i in $(seq $kCommits); do
  there=$NODE1
  [ $((i % 2)) -eq 0 ] || there=$NODE2
  cd "$there/repository"
  [ -z "$(git status --porcelain)" ] || fail "turn $i: $(git status --porcelain | head -3)"
  echo "turn $i" >>"file$((i % 40 + 1))"
  git commit -qam "turn $i"
  [ "$(git -C "$NODE1/repository" log -1 --format=%s)" = "$(git -C "$NODE2/repository" log -1 --format=%s)" ] || fail "turn $i: two heads"
done
[ "$(git rev-list --count HEAD)" -eq $((kCommits + 1)) ] || fail "$(git rev-list --count HEAD) commits after the turns"

# At once, on one branch: update-ref compares and swaps under a lock; whoever loses tries again. No commit may be lost.
commit_often() {
  local root=$1 name=$2 i tree parent commit
  for i in $(seq $kCommits); do
    while :; do
      parent=$(git -C "$root" rev-parse refs/heads/shared)
      tree=$({ git -C "$root" ls-tree "$parent"; printf '100644 blob %s\t%s\n' "$(echo "$name $i" | git -C "$root" hash-object -w --stdin)" "$name.$i"; } |
        git -C "$root" mktree)
      commit=$(git -C "$root" commit-tree -p "$parent" -m "$name $i" "$tree")
      ! git -C "$root" update-ref refs/heads/shared "$commit" "$parent" 2>/dev/null || break
    done
  done
}
git branch shared
together commit_often "$NODE1/repository" one -- commit_often "$NODE2/repository" two
for node in "$NODE1" "$NODE2"; do
  for name in one two; do
    [ "$(git -C "$node/repository" log --format=%s shared | grep -c "^$name ")" -eq $kCommits ] || fail "lost commits of $name"
  done
  [ "$(git -C "$node/repository" ls-tree --name-only shared | grep -c '^\(one\|two\)\.')" -eq $((2 * kCommits)) ] || fail "lost files"
done

# git commit from two nodes in one working tree: index.lock refuses one of two, or both get through, one after the other.
commit_in_tree() {
  local root=$1 name=$2 i
  for i in $(seq $kCommits); do
    echo "$i" >"$root/tree.$name"
    until git -C "$root" add "tree.$name" 2>/dev/null && git -C "$root" commit -qm "$name in the tree $i" -- "tree.$name" 2>/dev/null; do
      [ -e "$root/.git" ] || fail "the repository is gone"
    done
  done
}
together commit_in_tree "$NODE1/repository" one -- commit_in_tree "$NODE2/repository" two
for name in one two; do
  [ "$(git log --format=%s | grep -c "^$name in the tree")" -eq $kCommits ] || fail "$name: $(git log --format=%s | grep -c "^$name in the tree") commits"
done
[ -z "$(git status --porcelain)" ] || fail "after commits in one tree: $(git status --porcelain | head -3)"

# Packed by one node while the other clones; then both look at every object. (A local clone copies files: git itself forbids that beside a gc.)
together git -C "$NODE1/repository" gc -q --prune=now -- git clone -q --no-local "$NODE2/repository" "$SCRATCH/clone"
together git -C "$NODE2/repository" repack -adq -- git clone -q --no-local "$NODE1/repository" "$NODE1/clone"
for root in "$NODE1/repository" "$NODE2/repository" "$NODE1/clone" "$NODE2/clone" "$SCRATCH/clone"; do
  git -C "$root" fsck --full --strict >"$SCRATCH/fsck" 2>&1 || { cat "$SCRATCH/fsck"; fail "fsck of $root"; }
  [ -z "$(git -C "$root" status --porcelain)" ] || fail "$root: $(git -C "$root" status --porcelain | head -3)"
done
[ "$(git -C "$SCRATCH/clone" rev-parse HEAD)" = "$(git -C "$NODE2/clone" rev-parse HEAD)" ] || fail "clones differ"
echo "$(git rev-list --count --all) commits, half of them while the other node commits; gc, repack, clones, fsck"
