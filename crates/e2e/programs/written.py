"""What a sandbox wrote right before a pause is on its disk, with its memory and without."""

import json
import os
import time
import urllib.request

from e2b import Sandbox

# More files than the guest's kernel remembers at a time, none of them synced; a file that is still
# open, and one that was only written through a mapping.
WRITE = """
import hashlib, mmap, os, time
def content(n): return hashlib.sha256(str(n).encode()).hexdigest() * 40
os.makedirs("many")
for n in range(2500):
    with open(f"many/{n}", "w") as file: file.write(content(n))
held = open("held", "wb", buffering=0)
held.write(content("held").encode() * 100)
with open("mapped", "wb") as file: file.truncate(8 << 20)
mapped = mmap.mmap(os.open("mapped", os.O_RDWR), 8 << 20)
for n in range(0, 8 << 20, 4096): mapped[n:n + 8] = n.to_bytes(8, "big")
os.rename("many/7", "many/seven")
os.remove("many/8")
open("done", "w").close()
time.sleep(1000)
"""
CHECK = """
import hashlib, os
def content(n): return hashlib.sha256(str(n).encode()).hexdigest() * 40
def has(path, text):
    with open(path) as file: assert file.read() == text, path
expected = {str(n) for n in range(2500)} - {"7", "8"} | {"seven"}
found = set(os.listdir("many"))
assert found == expected, (len(found), sorted(expected - found)[:5], sorted(found - expected)[:5])
for n in expected: has(f"many/{n}", content(7 if n == "seven" else n))
has("held", content("held") * 100)
with open("mapped", "rb") as file: data = file.read()
for n in range(0, 8 << 20, 4096): assert data[n:n + 8] == n.to_bytes(8, "big"), n
print("all there")
"""


def call(sandbox, verb, body):
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}/{verb}", json.dumps(body).encode(),
        {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}, method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        assert answer.status in (200, 201, 204), answer.status


for kept in (True, False):
    sandbox = Sandbox.create(timeout=600)
    sandbox.files.write("write.py", WRITE)
    sandbox.files.write("check.py", CHECK)
    sandbox.commands.run("exec python3 write.py", background=True, timeout=0)
    deadline = time.time() + 60
    while not sandbox.files.exists("done"):
        assert time.time() < deadline, "it does not end to write"
        time.sleep(0.01)
    call(sandbox, "pause", {"memory": kept})
    # The memory, if there is any, is given up: what is on the disk must do.
    call(sandbox, "connect", {"timeout": 600, "memory": False})
    assert len(sandbox.commands.list()) == 0, "it was booted"
    assert sandbox.commands.run("python3 check.py", timeout=120).stdout == "all there\n"
    assert sandbox.kill()
