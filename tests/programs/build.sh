# shellcheck shell=bash source=tests/programs/lib.sh
# A layer of this project and its test program, built from sources on the mount by both nodes at once (cmake and ninja, each node in a build
# directory of its own) and once on the local disk. The three agree bit for bit, and each node runs what the other has linked.
# At most 900 seconds.
. "$TESTS/lib.sh"
readonly kTargets=(fuse_test)
export CCACHE_DISABLE=1

mkdir "$NODE1/source"
tar -C "$TESTS/../.." -cf - --exclude=./build --exclude='./.*' . | tar -C "$NODE1/source" -xf -

# The sources in $1, built in $2: no path of either is in what comes out.
build() {
  { cmake -S "$1" -B "$2" -G Ninja -DVREMOTE_BENCH=OFF -DCMAKE_CXX_FLAGS="-O0 -g0 -ffile-prefix-map=$1=. -ffile-prefix-map=$2=." &&
    ninja -j"$3" -C "$2" "${kTargets[@]}"; } >"$SCRATCH/${2##*/}.log" 2>&1 || { tail -n 30 "$SCRATCH/${2##*/}.log"; return 1; }
}
together build "$NODE1/source" "$NODE1/build1" 1 -- build "$NODE2/source" "$NODE2/build2" 1
cp -r "$NODE2/source" "$SCRATCH/source"
build "$SCRATCH/source" "$SCRATCH/build0" 2

results() { (cd "$1" && find . -name '*.o' -o -name '*.a' -o -name '*_test' -type f | sort | xargs sha256sum); }
results "$SCRATCH/build0" >"$SCRATCH/wanted"
for node in "$NODE1" "$NODE2"; do
  for made in build1 build2; do
    results "$node/$made" | diff "$SCRATCH/wanted" - || fail "$node/$made is not what a local build makes"
  done
done

# Nothing is to be built again: the times that ninja goes by are as it left them.
for node in 1 2; do
  mount=NODE$node
  ninja -n -C "${!mount}/build$node" "${kTargets[@]}" | grep -q "no work to do" ||
    fail "node$node: $(ninja -n -d explain -C "${!mount}/build$node" "${kTargets[@]}" 2>&1 | head -5)"
done
for target in "${kTargets[@]}"; do
  together "$(find "$NODE2/build1" -name "$target" -type f)" --gtest_brief=1 -- "$(find "$NODE1/build2" -name "$target" -type f)" --gtest_brief=1
done >"$SCRATCH/run.log" 2>&1 || { tail -n 30 "$SCRATCH/run.log"; fail "a program from the mount failed"; }
echo "$(wc -l <"$SCRATCH/wanted") objects, archives and programs the same from both nodes and from the local disk; programs run from the other node"
