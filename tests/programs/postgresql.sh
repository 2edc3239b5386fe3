# shellcheck shell=bash source=tests/programs/lib.sh
# PostgreSQL with its data on the mount: made and loaded on node2, killed in mid-work, and taken over by the other node, several times.
# At most 600 seconds.
. "$TESTS/lib.sh"
readonly kTakeovers=3 kScale=5 kClients=4
bin=$(echo /usr/lib/postgresql/*/bin)
[ -x "$bin/initdb" ] || fail "PostgreSQL is not installed: scripts/install-deps --programs"

# PostgreSQL refuses to run as root.
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME="$SCRATCH" PATH="$bin:$PATH" "$@"; }
sql() { as_postgres psql -h "$SCRATCH" -d postgres -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
# The server on the node whose directory is $1.
server_start() { as_postgres pg_ctl -s -w -t 120 -D "$1/data" -l "$SCRATCH/server.log" -o "-k $SCRATCH -c listen_addresses=" start || { tail -n 20 "$SCRATCH/server.log"; return 1; }; }
# What every page, index and sum says.
check() {
  as_postgres pg_amcheck -h "$SCRATCH" -d postgres --install-missing --heapallindexed --parent-check --no-dependent-indexes >"$SCRATCH/amcheck" 2>&1 ||
    { tail -n 20 "$SCRATCH/amcheck"; fail "pg_amcheck"; }
  local sums
  sums=$(sql 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)
    AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)')
  [ "$sums" = t ] || fail "balances differ"
}

as_postgres initdb -D "$NODE2/data" --data-checksums -A trust >"$SCRATCH/initdb.log" || { cat "$SCRATCH/initdb.log"; fail initdb; }
server_start "$NODE2"
as_postgres pgbench -h "$SCRATCH" -i -q -s $kScale postgres >"$SCRATCH/bench.log" 2>&1 || { cat "$SCRATCH/bench.log"; fail "pgbench -i"; }
check

here=$NODE2 there=$NODE1 told=0
for takeover in $(seq $kTakeovers); do
  # Each client writes a line for each transaction it was told is committed.
  rm -f "$SCRATCH"/told.*
  as_postgres pgbench -h "$SCRATCH" -n -c $kClients -j 2 -T 60 -l --log-prefix="$SCRATCH/told" postgres >"$SCRATCH/bench.log" 2>&1 &
  bench=$!
  sleep 8
  server=$(head -n 1 "$here/data/postmaster.pid")
  mapfile -t pids < <(echo "$server"; pgrep -P "$server")
  kill -KILL "${pids[@]}"
  wait $bench && fail "pgbench did not notice that its server is gone"
  for pid in "${pids[@]}"; do while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done; done
  told=$((told + $(cat "$SCRATCH"/told.* | wc -l)))
  [ "$told" -ge $((takeover * 20)) ] || fail "only $told transactions: $(tail -n 5 "$SCRATCH/bench.log")"

  [ "$(sha256sum <"$here/data/global/pg_control")" = "$(sha256sum <"$there/data/global/pg_control")" ] || fail "pg_control differs between nodes"
  swap=$here here=$there there=$swap
  server_start "$here"
  check
  rows=$(sql 'SELECT count(*) FROM pgbench_history')
  [ "$rows" -ge "$told" ] || fail "takeover $takeover: $rows rows, $told transactions had been told committed"
  told=$rows
done

# In order, and every page's checksum.
as_postgres pg_ctl -s -w -m fast -D "$here/data" stop
as_postgres pg_checksums -D "$there/data" --check >"$SCRATCH/checksums" 2>&1 || { cat "$SCRATCH/checksums"; fail pg_checksums; }
echo "$told transactions, killed and taken over by the other node $kTakeovers times; no committed one lost, indexes and checksums right"
