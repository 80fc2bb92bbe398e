"""The way from outside to a port inside: both addressings, streams both ways, WebSockets, what the
edge says itself, and what happens to open connections when the sandbox goes away."""

import base64
import hashlib
import json
import os
import pathlib
import socket
import struct
import time
import urllib.parse

from e2b import Sandbox

PORT = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"]).port
PROGRAM = (pathlib.Path(__file__).parent / "guest_server.py").read_text()


class Exchange:
    """One request on one socket, with everything visible."""

    def __init__(self, target, method="GET", headers=(), host=None, body=b""):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'localhost:{PORT}'}", *headers]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        self.file = self.socket.makefile("rb")

    def head(self):
        self.status = int(self.file.readline().split()[1])
        self.headers = {}
        for line in iter(self.file.readline, b"\r\n"):
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()
        return self

    def chunk(self):
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        self.file.readline()
        return data

    def rest(self):
        if "content-length" in self.headers:
            return self.file.read(int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") == "chunked":
            return b"".join(iter(self.chunk, b""))
        return self.file.read()

    def send_chunk(self, data):
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def send_frame(self, opcode, data):
        mask = os.urandom(4)
        if len(data) < 126:
            header = struct.pack(">BB", 0x80 | opcode, 0x80 | len(data))
        else:
            header = struct.pack(">BBQ", 0x80 | opcode, 0xFF, len(data))
        repeated = (mask * (len(data) // 4 + 1))[: len(data)]
        masked = (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(len(data))
        self.socket.sendall(header + mask + masked)

    def frame(self):
        first, size = self.file.read(2)
        if size == 126:
            (size,) = struct.unpack(">H", self.file.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.file.read(8))
        return first & 15, self.file.read(size)

    def assert_cut(self):
        """The connection ends within the socket's timeout, and not as if all had been said."""
        seen = b""
        try:
            while data := self.file.read1(65536):
                seen = (seen + data)[-64:]
        except ConnectionResetError:
            return
        assert not seen.endswith(b"0\r\n\r\n"), "the stream was ended politely"


def host(sandbox, port=8000):
    return f"{port}-{sandbox.sandbox_id}.localhost:{PORT}"


def by_headers(sandbox, port=8000):
    return (f"E2b-Sandbox-Id: {sandbox.sandbox_id}", f"E2b-Sandbox-Port: {port}")


def serve(sandbox):
    sandbox.files.write("/home/user/guest_server.py", PROGRAM)
    sandbox.commands.run("python3 guest_server.py", background=True, timeout=0)
    deadline = time.monotonic() + 30
    while True:
        answer = Exchange("/info", host=host(sandbox)).head()
        if answer.status == 200:
            return json.loads(answer.rest())
        assert answer.status == 502 and time.monotonic() < deadline, answer.rest()


def says_not_found(answer, sandbox_id):
    body = json.loads(answer.head().rest())
    assert answer.status == 502 and answer.headers["content-type"].startswith("application/json"), body
    assert body == {"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}, body


sandbox = Sandbox.create(timeout=600)
first = serve(sandbox)

# Two ways to name the port; what is sent arrives as it was.
info = json.loads(Exchange("/info?a=%2F&b", host=host(sandbox), headers=["X-Own: ä"]).head().rest())
assert info["query"] == "a=%2F&b" and info["headers"]["host"] == host(sandbox), info
info = json.loads(Exchange("/info", headers=by_headers(sandbox)).head().rest())
assert info["pid"] == first["pid"], info
info = json.loads(Exchange("/info", host=sandbox.get_host(8000)).head().rest())
assert info["pid"] == first["pid"], info

# Streams: each piece is answered before the next is sent.
echo = Exchange("/echo", "POST", ["Transfer-Encoding: chunked"], host(sandbox))
for number in range(20):
    echo.send_chunk(b"piece %d" % number)
    if number == 0:
        assert echo.head().status == 200
    assert echo.chunk() == b"piece %d" % number
echo.send_chunk(b"")
assert echo.chunk() == b""

# Size, both ways.
block = hashlib.shake_256(b"sandbase").digest(1 << 20)
big = Exchange(f"/bytes?{64 << 20}", host=host(sandbox)).head()
assert hashlib.sha256(big.rest()).digest() == hashlib.sha256(block * 64).digest()
sent = Exchange("/hash", "POST", [f"Content-Length: {64 << 20}"], host(sandbox), block * 64).head().rest()
assert sent.decode() == f"{hashlib.sha256(block * 64).hexdigest()} {64 << 20}", sent

# WebSocket.
UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
           "Sec-WebSocket-Key: " + base64.b64encode(b"0123456789abcdef").decode()]
web = Exchange("/ws", headers=UPGRADE, host=host(sandbox)).head()
assert web.status == 101 and web.headers["upgrade"] == "websocket", (web.status, web.headers)
web.send_frame(1, b"hello")
assert web.frame() == (1, b"hello")
web.send_frame(2, block)
assert web.frame() == (2, block)

# What the edge says itself.
closed = Exchange("/", host=host(sandbox, 8001)).head()
body = json.loads(closed.rest())
assert closed.status == 502 and body["port"] == 8001 and body["code"] == 502, body
assert body["message"] == "The sandbox is running but port is not open", body
assert body["sandboxId"] == sandbox.sandbox_id, body
page = Exchange("/", host=host(sandbox, 8001), headers=["User-Agent: Mozilla/5.0 Firefox/140"]).head()
text = page.rest().decode()
assert page.status == 502 and page.headers["content-type"].startswith("text/html"), page.headers
assert text.startswith("<html") and text.rstrip().endswith("</html>"), text
assert "no service running on port" in text.lower(), text
unknown = "i" + "0" * 19
says_not_found(Exchange("/", host=f"8000-{unknown}.localhost:{PORT}"), unknown)
for port in ("0", "65536", "99999999999"):
    assert Exchange("/", host=f"{port}-{sandbox.sandbox_id}.localhost").head().status in (400, 404, 502)
assert Exchange("/init", "POST", ["Content-Length: 2"], host(sandbox, 49983), b"{}").head().status == 404

# Pause cuts what is open, hard; afterwards nobody is there; afterwards everything is again.
endless = Exchange("/endless", host=host(sandbox)).head()
assert endless.chunk() == b"tick\n"
assert sandbox.pause()
endless.assert_cut()
web.assert_cut()
says_not_found(Exchange("/info", host=host(sandbox)), sandbox.sandbox_id)
says_not_found(Exchange("/info", headers=by_headers(sandbox)), sandbox.sandbox_id)
assert sandbox.get_info().state.value == "paused", "a request must not wake it"
sandbox.connect(timeout=600)
info = json.loads(Exchange("/info", host=host(sandbox)).head().rest())
assert info["pid"] == first["pid"] and info["requests"] > first["requests"], (first, info)
web = Exchange("/ws", headers=UPGRADE, host=host(sandbox)).head()
web.send_frame(1, b"again")
assert web.frame() == (1, b"again")

# Kill does the same for good.
endless = Exchange("/endless", host=host(sandbox)).head()
assert endless.chunk() == b"tick\n"
assert sandbox.kill()
endless.assert_cut()
web.assert_cut()
says_not_found(Exchange("/info", host=host(sandbox)), sandbox.sandbox_id)

# With auto-resume a request waits for the sandbox to run and is answered by the same process.
woken = Sandbox.create(timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True})
first = serve(woken)
assert woken.pause()
answers = [Exchange("/info", host=host(woken)) for _ in range(3)]
for answer in answers:
    assert json.loads(answer.head().rest())["pid"] == first["pid"]
assert woken.get_info().state.value == "running"
assert woken.kill()
