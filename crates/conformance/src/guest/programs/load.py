"""Writers that never stop: an SQLite database and an append log.

What a writer knows to be done is counted in memory, after it was done.
"""

import hashlib
import os
import sqlite3
import threading
import time

DATABASE = os.path.abspath("load.db")
LOG = os.path.abspath("load.log")
committed = 0
appended = 0
failure = None


def connect():
    return sqlite3.connect(DATABASE, timeout=60)


def commit_rows():
    global committed
    database = connect()
    database.execute("CREATE TABLE load (number INTEGER PRIMARY KEY, noise BLOB, sha TEXT)")
    database.commit()
    while True:
        noise = os.urandom(256)
        sha = hashlib.sha256(noise).hexdigest()
        database.execute("INSERT INTO load VALUES (?, ?, ?)", (committed + 1, noise, sha))
        database.commit()
        committed += 1
        time.sleep(0.01)


def append_lines():
    global appended
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    while True:
        text = f"{appended + 1:010d} {os.urandom(24).hex()}"
        line = f"{text} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n".encode()
        if os.write(log, line) != len(line):
            raise OSError("a short write")
        appended += 1
        time.sleep(0.002)


def guarded(work):
    """A writer that fails is told of, not only silent."""
    global failure
    try:
        work()
    except Exception as error:
        failure = f"{work.__name__}: {error!r}"


def start():
    for work in (commit_rows, append_lines):
        threading.Thread(target=guarded, args=(work,), daemon=True).start()
    return counts()


def counts():
    return {"committed": committed, "appended": appended, "failure": failure}


def database():
    """What is stored, beside what was known to be committed before it was looked at."""
    known = committed
    rows = connect().execute("SELECT count(*), coalesce(max(number), 0) FROM load").fetchone()
    wrong = [number for number, noise, sha in connect().execute("SELECT * FROM load")
             if hashlib.sha256(noise).hexdigest() != sha]
    check = connect().execute("PRAGMA integrity_check").fetchone()[0]
    return {"known": known, "stored": rows[0], "greatest": rows[1], "wrong": wrong[:5],
            "integrity": check, "failure": failure}


def log():
    """What is stored, beside what was known to be appended before it was looked at."""
    known = appended
    with open(LOG, "rb") as file:
        text = file.read()
    # The last line may be in the making.
    whole, _, rest = text.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    wrong = []
    for number, line in enumerate(lines, 1):
        text, _, sha = line.rpartition(b" ")
        good = hashlib.sha256(text).hexdigest()[:16].encode() == sha
        if not good or not text.startswith(b"%010d " % number):
            wrong.append([number, line.decode(errors="replace")[:100]])
    return {"known": known, "lines": len(lines), "wrong": wrong[:3], "count_wrong": len(wrong),
            "rest": len(rest), "failure": failure}


def prefix(rows, lines):
    """Digest of the first rows and lines."""
    digest = hashlib.sha256()
    query = "SELECT number, sha FROM load WHERE number <= ? ORDER BY number"
    for number, sha in connect().execute(query, (rows,)):
        digest.update(f"{number} {sha}\n".encode())
    with open(LOG, "rb") as file:
        for _ in range(lines):
            digest.update(file.readline())
    return digest.hexdigest()
