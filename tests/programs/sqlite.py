"""SQLite from both nodes at once, in each journal mode: writers, readers and checkpoints, then processes killed in mid-transaction.

Every transaction adds one row and moves money between two accounts. Held against that: a reader never sees money made or lost, nor
fewer rows than had been committed anywhere when it began; at the end each row of each writer is there exactly once, for both nodes.
"""
# At most 600 seconds.

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

NODES = {1: os.environ["NODE1"], 2: os.environ["NODE2"]}
WRITERS = 2  # on each node
TRANSACTIONS = 500  # of each writer
KILLS = 12
ACCOUNTS, MONEY = 50, 1000


def connect(path):
    db = sqlite3.connect(path, timeout=120, isolation_level=None)
    db.execute("PRAGMA busy_timeout = 120000")
    return db


def create(path, mode):
    db = connect(path)
    assert db.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
    db.execute("CREATE TABLE rows (writer INTEGER, number INTEGER, filler BLOB, PRIMARY KEY (writer, number))")
    db.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, money INTEGER)")
    db.executemany("INSERT INTO accounts VALUES (?, ?)", [(i, MONEY) for i in range(ACCOUNTS)])
    db.close()


def transact(db, writer, number, chance):
    giver, taker, sum_ = chance.randrange(ACCOUNTS), chance.randrange(ACCOUNTS), chance.randrange(100)
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO rows VALUES (?, ?, ?)", (writer, number, chance.randbytes(chance.randrange(1, 6000))))
    db.execute("UPDATE accounts SET money = money - ? WHERE id = ?", (sum_, giver))
    db.execute("UPDATE accounts SET money = money + ? WHERE id = ?", (sum_, taker))
    db.execute("COMMIT")


def write(path, writer, committed):
    chance, db = random.Random(writer), connect(path)
    for number in range(TRANSACTIONS):
        transact(db, writer, number, chance)
        with committed.get_lock():
            committed.value += 1
    db.close()


def look(path, committed, done):
    db, looks = connect(path), 0
    while not done.is_set() or looks == 0:
        before = committed.value
        db.execute("BEGIN")
        rows = db.execute("SELECT count(*) FROM rows").fetchone()[0]
        money = db.execute("SELECT sum(money) FROM accounts").fetchone()[0]
        again = db.execute("SELECT count(*) FROM rows").fetchone()[0]
        db.execute("COMMIT")
        assert money == ACCOUNTS * MONEY, f"{path}: {money} of {ACCOUNTS * MONEY}"
        assert rows >= before, f"{path}: {rows} rows where {before} had been committed"
        assert rows == again, f"{path}: {rows} rows, then {again} in the same transaction"
        looks += 1
        time.sleep(0.01)
    db.close()


def checkpoint(path, done):
    db = connect(path)
    for kind in iter(lambda: random.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]), None):
        if done.wait(0.1):
            break
        try:
            db.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()
        except sqlite3.OperationalError as busy:  # the other node's checkpoint: the busy handler does not cover that
            assert "locked" in str(busy), busy
    db.close()


def check(name, wanted):
    for node, directory in NODES.items():
        db = connect(f"{directory}/{name}")
        assert (verdict := db.execute("PRAGMA integrity_check").fetchall()) == [("ok",)], f"node{node}: {verdict[:5]}"
        assert db.execute("SELECT sum(money) FROM accounts").fetchone()[0] == ACCOUNTS * MONEY, f"node{node}: money"
        found = {w: {n for (n,) in db.execute("SELECT number FROM rows WHERE writer = ?", (w,))} for w in wanted}
        for writer, numbers in wanted.items():
            assert found[writer] == numbers, f"node{node}: writer {writer}: {len(found[writer])} rows of {len(numbers)}"
        db.close()


def together(mode):
    name = f"{mode}.db"
    create(f"{NODES[1]}/{name}", mode)
    committed, done = multiprocessing.Value("l", 0), multiprocessing.Event()
    start = time.monotonic()
    writers, others = [], []
    for node, directory in NODES.items():
        path = f"{directory}/{name}"
        writers += [multiprocessing.Process(target=write, args=(path, 10 * node + i, committed)) for i in range(WRITERS)]
        others.append(multiprocessing.Process(target=look, args=(path, committed, done)))
        if mode == "wal":
            others.append(multiprocessing.Process(target=checkpoint, args=(path, done)))
    for process in writers + others:
        process.start()
    for process in writers:
        process.join()
    seconds = time.monotonic() - start
    done.set()
    for process in others:
        process.join()
    assert all(p.exitcode == 0 for p in writers + others), f"{mode}: {[p.exitcode for p in writers + others]}"
    check(name, {10 * node + i: set(range(TRANSACTIONS)) for node in NODES for i in range(WRITERS)})
    return f"{mode} {2 * WRITERS * TRANSACTIONS / seconds:.0f}/s"


def write_until_killed(path, writer, first, acknowledged):
    chance, db = random.Random(first), connect(path)
    for number in range(first, 1 << 30):
        transact(db, writer, number, chance)
        acknowledged.value = number + 1


def kills(mode):
    """The next transaction, on the other node, meets a hot journal, or a log and shared memory somebody died over."""
    name = f"{mode}-kill.db"
    create(f"{NODES[1]}/{name}", mode)
    acknowledged = multiprocessing.Value("l", 0)
    for attempt in range(KILLS):
        first = acknowledged.value
        node = 1 + attempt % 2
        process = multiprocessing.Process(target=write_until_killed, args=(f"{NODES[node]}/{name}", 1, first, acknowledged))
        process.start()
        deadline = time.monotonic() + 30
        while acknowledged.value < first + 3:  # it is at work
            assert process.is_alive() and time.monotonic() < deadline, f"{mode}: the writer of node{node} does not get on"
            time.sleep(0.001)
        time.sleep(random.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        db = connect(f"{NODES[3 - node]}/{name}")
        rows = db.execute("SELECT count(*) FROM rows").fetchone()[0]
        db.close()
        # The one under way may have been committed without being told.
        assert rows in (acknowledged.value, acknowledged.value + 1), f"{mode}: {rows} rows, {acknowledged.value} told"
        acknowledged.value = rows
    check(name, {1: set(range(acknowledged.value))})


def main():
    print(f"seed of Python's random: {(seed := random.randrange(1 << 30))}")
    random.seed(seed)
    rates = []
    for mode in ("delete", "wal"):
        rates.append(together(mode))
        kills(mode)
    example = f"{os.environ['TESTS']}/../../examples/sqlite-wal/sqlite_wal.py"
    subprocess.run([sys.executable, example, *(f"{d}/example.db" for d in NODES.values())], check=True)
    print(f"{2 * WRITERS * TRANSACTIONS} transactions in each mode, {KILLS} killed writers: {', '.join(rates)}")


if __name__ == "__main__":
    sys.exit(main())
