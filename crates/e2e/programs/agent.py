"""What a sandbox is asked for in bulk or in error gets an answer, and the agent lives on."""

import json
import os
import time
import urllib.error
import urllib.request

# A thousand streams at once.
os.environ["E2B_MAX_CONNECTIONS"] = "2000"

from e2b import CommandExitException, FileNotFoundException, NotEnoughSpaceException, Sandbox

sandbox = Sandbox.create(timeout=1200)
ORIGIN = os.environ["E2B_SANDBOX_URL"]


def ask(path, body=None, port=49983, headers={}):
    """A request into the sandbox: status and body."""
    request = urllib.request.Request(ORIGIN + path, data=body)
    request.add_header("E2b-Sandbox-Id", sandbox.sandbox_id)
    request.add_header("E2b-Sandbox-Port", str(port))
    request.add_header("X-Access-Token", sandbox._envd_access_token)
    for name, value in headers.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def rpc(method, message, kind="application/json"):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return ask(method, body, headers={"Content-Type": kind})


def resident():
    """Bytes of memory of the agent."""
    status = sandbox.files.read("/proc/1/status")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def well():
    assert sandbox.commands.run("echo well").stdout == "well\n"


# A thousand processes at once: all listed, all ended, none left.
starts = "for i in $(seq 1000); do sleep 1000 & done; echo $(jobs -p | wc -l); kill $(jobs -p); wait"
assert sandbox.commands.run(starts, timeout=120).stdout == "1000\n"
handles = [
    sandbox.commands.run(f"exec sleep {1000 + n}", background=True, timeout=0) for n in range(1000)
]
live = {p.pid for p in sandbox.commands.list()}
assert len(live) > 400, len(live)
# Those there was no room for say so.
for handle in [handle for handle in handles if handle.pid not in live]:
    try:
        handle.wait()
        raise AssertionError("a process that is not there has not ended")
    except CommandExitException as error:
        assert "out of memory" in error.error, error
# There may have been no room for some of the others a moment later.
killed = {handle.pid for handle in handles if sandbox.commands.kill(handle.pid)}
assert killed <= live and len(killed) > 300, (len(killed), len(live))
deadline = time.time() + 30
while sandbox.commands.list():
    assert time.time() < deadline, sandbox.commands.list()
well()

# A listing of many files is whole, in order, and takes no memory to speak of.
count = int(os.environ.get("FILES", "50000"))
sandbox.commands.run(
    f"mkdir -p /tmp/many && cd /tmp/many && seq -f %07g {count} | xargs -n 5000 touch", timeout=600
)
before = resident()
status, body = rpc("/filesystem.Filesystem/ListDir", {"path": "/tmp/many", "depth": 1})
assert status == 200, body
names = [entry["name"] for entry in json.loads(body)["entries"]]
assert names == [f"{n:07}" for n in range(1, count + 1)]
grown = resident() - before
assert grown < 8 << 20, grown
sandbox.commands.run("rm -rf /tmp/many", timeout=600)
well()

# A watcher of a directory that goes away says so once and lives on.
sandbox.files.make_dir("/home/user/watched")
watch = sandbox.files.watch_dir("/home/user/watched", recursive=True)
sandbox.files.remove("/home/user/watched")
sandbox.files.make_dir("/home/user/watched")
sandbox.files.write("/home/user/watched/new", "x")
events = [(event.name, event.type.value) for event in watch.get_new_events()]
assert [event for event in events if event[0] == "."] == [(".", "remove")], events
assert not [event for event in events if event[0] == "new"], events
watch.stop()

# Ports on every loopback address and on all addresses are reached through the edge.
for port, address in enumerate(["127.0.0.1", "::1", "0.0.0.0", "::", "localhost"], 8100):
    # Not http.server.HTTPServer, which first looks its address up by DNS.
    script = (
        "import http.server, socket, socketserver, sys\n"
        "class Server(socketserver.TCPServer):\n"
        "    address_family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "Server((sys.argv[1], int(sys.argv[2])), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    sandbox.files.write("/tmp/serve.py", script)
    sandbox.commands.run(
        f"python3 /tmp/serve.py {address} {port}", background=True, timeout=0
    ).disconnect()
    deadline = time.time() + 30
    while ask("/", port=port)[0] != 200:
        assert time.time() < deadline, f"{address} is not reached"
assert ask("/", port=8099)[0] == 502
sandbox.pause()
sandbox.connect(timeout=1200)
for port in range(8100, 8105):
    assert ask("/", port=port)[0] == 200, port

# Nonsense gets the contract's error.
for what, wanted, (status, body) in [
    ("unknown method", 404, rpc("/process.Process/Nothing", {})),
    ("wrong type", 415, rpc("/process.Process/List", {}, "text/plain")),
    ("envelope where none belongs", 415, rpc("/process.Process/List", {}, "application/connect+json")),
    ("no JSON", 400, rpc("/process.Process/List", b"{")),
    ("bad base64", 400, rpc("/process.Process/SendInput", {"process": {"pid": 1}, "input": {"stdin": "*"}})),
    ("unknown process", 404, rpc("/process.Process/SendSignal", {"process": {"pid": 999999}, "signal": 9})),
    ("NUL", 400, rpc("/filesystem.Filesystem/Stat", {"path": "/a\0"})),
    ("upload of nothing known", 400, ask("/files?path=/tmp/x", b"x", headers={"Content-Type": "a/b"})),
    ("host's route", 404, ask("/init", b"{}")),
]:
    assert status == wanted, (what, status, body)
for what, envelope in [
    ("truncated", b"\x00\x00\x00\x00\x09{}"),
    ("oversized", b"\x00\xff\xff\xff\xff{}"),
    ("compressed", b"\x01\x00\x00\x00\x02{}"),
]:
    status, body = rpc("/process.Process/Start", envelope, "application/connect+json")
    assert status == 200 and body[0] == 2 and b"invalid_argument" in body, (what, status, body)
try:
    sandbox.files.read("/no/such/file")
    raise AssertionError("a file that is not there was read")
except FileNotFoundException as error:
    assert "'/no/such/file' does not exist" in str(error), error
well()

# A full disk is 507, and the sandbox goes on.
try:
    sandbox.commands.run("head -c 100G /dev/zero > /home/user/fill", timeout=600)
    raise AssertionError("the disk has no end")
except CommandExitException:
    pass
try:
    sandbox.files.write("/home/user/more", "x" * (1 << 20))
    raise AssertionError("a full disk took a file")
except NotEnoughSpaceException:
    pass
sandbox.files.remove("/home/user/fill")
sandbox.files.write("/home/user/more", "x")
well()

# Python 1.5 fails on fields that it does not know: replies to it have only those it does.
status, body = ask(
    "/filesystem.Filesystem/Stat", b'{"path": "/etc/passwd"}',
    headers={"Content-Type": "application/json", "User-Agent": "connect-python"},
)
assert json.loads(body) == {"entry": {"name": "passwd", "type": "FILE_TYPE_FILE", "path": "/etc/passwd"}}
assert sandbox.kill()
