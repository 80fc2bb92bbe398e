"""Pauses and resumes keeper.py again and again and compares everything it holds.

    persistence.py ROUNDS
"""

import json
import os
import pathlib
import sys
import time
import urllib.error
import urllib.request

from e2b import Sandbox

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(sandbox):
    request = urllib.request.Request(
        os.environ["E2B_SANDBOX_URL"], headers={"Host": sandbox.get_host(9000)})
    return json.loads(opener.open(request, timeout=60).read())


sandbox = Sandbox.create(timeout=600)
keeper = (pathlib.Path(__file__).parent / "keeper.py").read_text()
sandbox.files.write("/home/user/keeper.py", keeper)
process = sandbox.commands.run("exec python3 keeper.py", background=True, timeout=0)
deadline = time.time() + 60
while True:
    try:
        first = ask(sandbox)
        break
    except urllib.error.HTTPError as error:
        assert error.code == 502 and time.time() < deadline, error

tree = "cd / && find usr/lib/python3 home etc -xdev -type f ! -name 'load.db*' -print0 | sort -z | xargs -0 sha256sum | sha256sum"
files = sandbox.commands.run(tree, user="root", timeout=120).stdout
last = first
for number in range(int(sys.argv[1])):
    before = ask(sandbox)
    assert sandbox.pause()
    try:
        ask(sandbox)
        raise AssertionError("a paused sandbox must not answer")
    except urllib.error.HTTPError as error:
        assert error.code == 502
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    now = ask(sandbox)
    host_clock = time.time()
    for same in ("pid", "blob", "unlinked", "child"):
        assert now[same] == first[same], (number, same, now, first)
    assert now["child_lives"], number
    assert now["ticks"] > before["ticks"], (number, "the thread stands still")
    assert now["integrity"] == "ok", (number, now)
    # Every row that the program knows to be committed is there, and no two of them.
    assert now["stored"] == now["greatest"] >= now["rows_before"] >= before["rows_before"], now
    assert abs(now["clock"] - host_clock) < 1.0, (number, now["clock"], host_clock)
    assert process.pid in [running.pid for running in sandbox.commands.list()]
    last = now
assert sandbox.commands.run(tree, user="root", timeout=120).stdout == files
assert last["stored"] > first["stored"]
print(f"{sys.argv[1]} rounds, {last['stored']} rows, {last['ticks']} ticks")
assert sandbox.kill()
