# shellcheck shell=bash source=tests/programs/lib.sh
# fio with checksums in every block: written by one node and verified by the other, for each way of reading and writing; then both at once.
# At most 400 seconds.
. "$TESTS/lib.sh"
readonly kSize=48m

run() {
  fio --output="$SCRATCH/fio.log" --size=$kSize --verify=crc32c --verify_fatal=1 --verify_dump=0 --randrepeat=0 "$@" >"$SCRATCH/fio.err" 2>&1 &&
    ! grep -i 'verify:\|err= *[1-9]' "$SCRATCH/fio.log" || { cat "$SCRATCH/fio.err"; head -n 30 "$SCRATCH/fio.log"; fail "fio $*"; }
}

count=0
writer=$NODE1 reader=$NODE2
for how in 'psync 4k' 'psync 1777' 'pvsync2 64k' 'mmap 4k' 'mmap 16k' 'libaio 4k --iodepth=16' 'libaio 64k --iodepth=8 --direct=1' 'psync 4k --direct=1' 'io_uring 16k --iodepth=8'; do
  read -r engine block more <<<"$how"
  for pattern in write randwrite; do
    name=file.$((count += 1))
    read -ra options <<<"$more"
    aligned=(--ioengine="$engine" --bs="$block" --rw="$pattern" --name=job "${options[@]}")
    run "${aligned[@]}" --filename="$writer/$name" --do_verify=0
    # Another engine than the writer's reads it, too: what counts is the file.
    run "${aligned[@]}" --filename="$reader/$name" --verify_only=1
    run --ioengine=psync --bs="$block" --rw=$pattern --name=job --filename="$writer/$name" --verify_only=1
    rm "$reader/$name"
    swap=$writer writer=$reader reader=$swap
  done
done

# Both nodes write to and verify one file at once, in blocks that share pages at every border: node1 the even ones, node2 the odd ones.
readonly kBlock=1536 kBlocks=4000
interleaved() {
  fio --output="$SCRATCH/interleaved$2.log" --ioengine=psync --bs=$kBlock --rw=write:$kBlock --name=job --filename="$1/interleaved" --offset=$(($2 * kBlock)) \
    --size=$((2 * kBlock * kBlocks)) --io_size=$((kBlock * kBlocks)) --verify=crc32c --verify_fatal=1 --do_verify=1 >"$SCRATCH/interleaved$2.err" 2>&1 ||
    { cat "$SCRATCH/interleaved$2.err"; head -n 20 "$SCRATCH/interleaved$2.log"; return 1; }
}
truncate -s $((2 * kBlock * (kBlocks + 1))) "$NODE1/interleaved"
together interleaved "$NODE1" 0 -- interleaved "$NODE2" 1
echo "$count files of $kSize written on one node and verified on the other by psync, pvsync2, mmap, libaio, io_uring and O_DIRECT; one by both at once"
