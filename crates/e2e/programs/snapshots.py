"""Snapshots, forks and rollbacks as users have them."""

import json
import os
import time
import urllib.error
import urllib.request

from e2b import Sandbox, SandboxException

COUNTER = """
import http.server, os, socket, threading, time
state = {"count": 0, "first": None}
def sample():
    return {"host": socket.gethostname(), "clock": time.time(), "random": os.urandom(8).hex()}
def tick():
    last = time.monotonic()
    while True:
        time.sleep(0.002)
        now = time.monotonic()
        # The first thing that any code of ours does after a restore.
        if now - last > 0.05:
            state["first"] = sample()
        last = now
threading.Thread(target=tick, daemon=True).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        import json
        if self.path == "/count":
            state["count"] += 1
        body = json.dumps(dict(state, pid=os.getpid())).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(sandbox, path="/"):
    request = urllib.request.Request(
        os.environ["E2B_SANDBOX_URL"] + path, headers={"Host": sandbox.get_host(8000)})
    return json.loads(opener.open(request, timeout=60).read())


def rollback(sandbox_id, snapshot_id):
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox_id}/rollback",
        json.dumps({"snapshotID": snapshot_id}).encode(),
        {"Authorization": f"Bearer {os.environ['E2B_API_KEY']}", "Content-Type": "application/json"})
    return json.loads(opener.open(request, timeout=60).read())


source = Sandbox.create(timeout=600, metadata={"kind": "source"})
source.files.write("counter.py", COUNTER)
source.files.write("note.txt", "one")
source.commands.run("python3 counter.py", background=True, timeout=0)
source.commands.run("until curl -s localhost:8000/count; do :; done", timeout=30)
before = ask(source)
deadline = source.get_info().end_at
snapshot = source.create_snapshot(name="e2e-story:v1")
assert snapshot.snapshot_id == "sandbase/e2e-story:v1", snapshot
assert source.is_running() and source.get_info().end_at == deadline
assert ask(source, "/count")["count"] == before["count"] + 1, "the source goes on"
source.files.write("note.txt", "two")

# Children and forks are at their moment, and know from the first instruction on who they are.
begin = time.time()
child = Sandbox.create("e2e-story:v1", timeout=600)
forks = source.fork(count=3, timeout=600)
clones = [child, *forks]
assert all(isinstance(clone, Sandbox) for clone in clones), forks
seen = [ask(clone) for clone in clones]
assert [state["count"] for state in seen] == [before["count"]] + 3 * [before["count"] + 1], seen
assert {state["pid"] for state in seen} == {before["pid"]}
assert child.files.read("note.txt") == "one"
for clone, state in zip(clones, seen):
    assert state["first"]["host"] == clone.sandbox_id, (clone.sandbox_id, state)
assert len({state["first"]["random"] for state in seen}) == len(clones), seen
for state in seen:
    assert begin - 1 < state["first"]["clock"] < time.time() + 1, (begin, state)
for fork in forks:
    assert fork.files.read("note.txt") == "two"
    assert fork.get_info().metadata == {"kind": "source"}
    fork.files.write("note.txt", fork.sandbox_id)
assert [fork.files.read("note.txt") for fork in forks] == [fork.sandbox_id for fork in forks]
assert source.files.read("note.txt") == "two"

# In use it stays; the source's own past is one call away.
try:
    Sandbox.delete_snapshot(snapshot.snapshot_id)
    raise AssertionError("a snapshot in use must not be deleted")
except SandboxException as error:
    assert "kill it first" in str(error), error
try:
    rollback(child.sandbox_id, snapshot.snapshot_id)
    raise AssertionError("a rollback to what another sandbox was must be refused")
except urllib.error.HTTPError as error:
    assert error.code == 400, error
for paused in (False, True):
    if paused:
        source.pause()
    rollback(source.sandbox_id, snapshot.snapshot_id)
    if paused:
        assert source.get_info().state.value == "paused"
        source.connect(timeout=600)
    assert source.files.read("note.txt") == "one"
    assert ask(source)["count"] == before["count"]
    source.files.write("note.txt", "three")
    ask(source, "/count")
    # What a rolled back sandbox does survives the next pause as ever.
    source.pause()
    source.connect(timeout=600)
    assert source.files.read("note.txt") == "three"
    assert ask(source)["count"] == before["count"] + 1

# A snapshot outlives its source.
for clone in clones:
    assert clone.kill()
assert source.kill()
late = Sandbox.create(snapshot.snapshot_id, timeout=600)
assert ask(late)["count"] == before["count"]
assert late.kill()
assert Sandbox.delete_snapshot(snapshot.snapshot_id)
