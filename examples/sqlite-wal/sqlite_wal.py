#!/usr/bin/env python3
"""One SQLite database in WAL mode, written on two machines at once.

    sqlite_wal.py PATH [PATH...]       the same new file, as each node's mount shows it

Starts a writer and a reader for each path, and says at the end whether every transaction is there. On real machines, run it on each with
that machine's own path alone, at the same time: the first creates the database, the others join in.
"""

import multiprocessing
import os
import socket
import sqlite3
import sys
import time

TRANSACTIONS = 1000  # of each writer


def connect(path):
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE IF NOT EXISTS entries (writer TEXT, number INTEGER, PRIMARY KEY (writer, number))")
    return db


def write(path, name):
    db = connect(path)
    for number in range(TRANSACTIONS):
        db.execute("INSERT INTO entries VALUES (?, ?)", (name, number))


def watch(path, done):
    db, last = connect(path), 0
    while not done.wait(0.02):
        (count,) = db.execute("SELECT count(*) FROM entries").fetchone()
        if count < last:
            sys.exit(f"{path}: {count} entries where there had been {last}")
        last = count


def main(paths):
    if not paths or paths[0].startswith("-"):
        sys.exit(__doc__)
    connect(paths[0]).close()
    names = {path: f"{socket.gethostname()}.{os.getpid()}.{i}" for i, path in enumerate(paths)}
    done = multiprocessing.Event()
    writers = [multiprocessing.Process(target=write, args=item) for item in names.items()]
    readers = [multiprocessing.Process(target=watch, args=(path, done)) for path in paths]
    start = time.monotonic()
    for process in writers + readers:
        process.start()
    for process in writers:
        process.join()
    seconds = time.monotonic() - start
    done.set()
    for process in readers:
        process.join()
    good = all(process.exitcode == 0 for process in writers + readers)
    for path in paths:
        db = connect(path)
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        counts = [db.execute("SELECT count(*) FROM entries WHERE writer = ?", (name,)).fetchone()[0] for name in names.values()]
        print(f"{path}: integrity {verdict}, entries of each writer: {counts}")
        good = good and verdict == "ok" and counts == [TRANSACTIONS] * len(paths)
    print(f"{len(paths) * TRANSACTIONS / seconds:.0f} transactions a second" if good else "SOMETHING IS MISSING")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
