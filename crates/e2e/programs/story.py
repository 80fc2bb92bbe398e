"""The story of the README, by the synchronous Python SDK."""

import urllib.error
import urllib.request
import os

from e2b import Sandbox, SandboxNotFoundException

SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        Handler.count += 1
        body = f"{os.getpid()} {Handler.count}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def fetch(sandbox):
    """What the server inside answers, by the host name of its port."""
    base = os.environ["E2B_SANDBOX_URL"]
    request = urllib.request.Request(base, headers={"Host": sandbox.get_host(8000)})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=30).read().decode().split()


sandbox = Sandbox.create()
sandbox.files.write("/home/user/server.py", SERVER)
server = sandbox.commands.run("python3 server.py", background=True, timeout=0)
sandbox.files.write("/home/user/note.txt", "hello")
first = None
while first is None:
    try:
        first = fetch(sandbox)
    except urllib.error.HTTPError as error:
        assert error.code == 502, error
pid = first[0]
assert int(first[1]) >= 1

# /tmp is on the disk, not in memory.
assert sandbox.commands.run("df --output=target /tmp | tail -1").stdout == "/\n"
assert sandbox.commands.run("ls -A /tmp").stdout == ""

assert sandbox.pause()
assert not sandbox.pause(), "the second pause says that it is paused already"
assert not sandbox.is_running()
info = sandbox.get_info()
assert info.state.value == "paused", info
try:
    fetch(sandbox)
    raise AssertionError("a paused sandbox must not answer")
except urllib.error.HTTPError as error:
    assert error.code == 502, error

same = Sandbox.connect(sandbox.sandbox_id, timeout=60)
assert same.is_running()
assert same.files.read("/home/user/note.txt") == "hello"
again = fetch(same)
assert again[0] == pid, (again, pid)
assert int(again[1]) == int(first[1]) + 1, (again, first)
assert [process.pid for process in same.commands.list()] == [server.pid]
assert same.commands.run("echo $HOME; whoami").stdout == "/home/user\nuser\n"
assert same.commands.run("sudo id -u").stdout == "0\n"
# A login shell speaks UTF-8, and has it from one file: loading a locale is most of what its profile costs.
locale = same.commands.run("locale charmap && localedef --list-archive").stdout
assert locale == "UTF-8\nC.utf8\n", locale

assert same.kill()
assert not Sandbox.kill(sandbox.sandbox_id)
try:
    Sandbox.connect(sandbox.sandbox_id)
    raise AssertionError("a killed sandbox must not come back")
except SandboxNotFoundException:
    pass
