"""Runs inside a sandbox: holds every kind of state and tells about it on port 9000."""

import hashlib
import http.server
import json
import os
import sqlite3
import subprocess
import threading
import time

BLOB = os.urandom(64 << 20)
ticks = 0
rows = 0
unlinked = open("/home/user/unlinked", "w+b")
unlinked.write(os.urandom(1 << 20))
unlinked.flush()
os.unlink("/home/user/unlinked")
child = subprocess.Popen(["sleep", "1000000"])


def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)


def write():
    """An SQLite database under write load, and the count of what was committed, in memory."""
    global rows
    database = sqlite3.connect("/home/user/load.db")
    database.execute("CREATE TABLE load (number INTEGER PRIMARY KEY, noise BLOB)")
    database.commit()
    while True:
        database.execute("INSERT INTO load VALUES (?, ?)", (rows + 1, os.urandom(512)))
        database.commit()
        rows += 1
        time.sleep(0.005)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        unlinked.seek(0)
        before = rows
        database = sqlite3.connect("/home/user/load.db")
        stored, greatest = database.execute("SELECT count(*), max(number) FROM load").fetchone()
        check = database.execute("PRAGMA integrity_check").fetchone()[0]
        body = json.dumps({
            "pid": os.getpid(),
            "blob": hashlib.sha256(BLOB).hexdigest(),
            "unlinked": hashlib.sha256(unlinked.read()).hexdigest(),
            "ticks": ticks,
            "rows_before": before,
            "stored": stored,
            "greatest": greatest,
            "integrity": check,
            "child": child.pid,
            "child_lives": child.poll() is None,
            "clock": time.time(),
        }).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


for work in (tick, write):
    threading.Thread(target=work, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Handler).serve_forever()
