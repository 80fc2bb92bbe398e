"""A sandbox whose next start is prepared while it is paused. EXECUTIONS is the server's directory of them.

    prepared.py EXECUTIONS create              prints the id
    prepared.py EXECUTIONS pause ID            prints the name of the execution that was prepared
    prepared.py EXECUTIONS connect ID [NAME]   it goes on as it was, in this execution
    prepared.py EXECUTIONS hurry ID            connects before, while and after it is prepared
    prepared.py EXECUTIONS kill ID
"""

import json
import os
import pathlib
import sys
import time

from e2b import Sandbox

# Holds random bytes, of which no file knows, and counts.
PROGRAM = """
import hashlib, json, os, time
held, count = os.urandom(8 << 20), 0
while True:
    count += 1
    with open("new", "w") as file:
        json.dump({"pid": os.getpid(), "count": count, "clock": time.time(),
                   "hash": hashlib.sha256(held).hexdigest()}, file)
    os.replace("new", "state")
    time.sleep(0.05)
"""
executions, verb = pathlib.Path(sys.argv[1]), sys.argv[2]


def state(sandbox):
    return json.loads(sandbox.files.read("state"))


def after(sandbox, count):
    """Its state when it has counted on."""
    deadline = time.time() + 20
    while time.time() < deadline:
        now = state(sandbox)
        if now["count"] > count:
            return now
        time.sleep(0.05)
    raise AssertionError("it does not count any more")


def wait_prepared(before):
    deadline = time.time() + 20
    while time.time() < deadline:
        others = [name for name in os.listdir(executions) if name not in before]
        # The last file before it is ready.
        if len(others) == 1 and (executions / others[0] / "pid").exists():
            time.sleep(0.2)
            return others[0]
        time.sleep(0.02)
    raise AssertionError("nothing was prepared")


def goes_on(sandbox, execution=()):
    """As it was, in this execution if one is named."""
    found = os.listdir(executions)
    assert not execution or found == execution, (found, execution)
    first, now = json.loads(sandbox.files.read("first")), state(sandbox)
    assert now["count"] >= first["count"], (first, now)
    now = after(sandbox, now["count"])
    assert (now["pid"], now["hash"]) == (first["pid"], first["hash"]), (first, now)
    assert abs(now["clock"] - time.time()) < 2, (now, time.time())


if verb == "create":
    sandbox = Sandbox.create(timeout=600)
    sandbox.files.write("count.py", PROGRAM)
    sandbox.commands.run("exec python3 count.py", background=True, timeout=0)
    while not sandbox.files.exists("state"):
        time.sleep(0.05)
    sandbox.files.write("/home/user/first", json.dumps(state(sandbox)))
    print(sandbox.sandbox_id)
elif verb == "pause":
    before = os.listdir(executions)
    assert Sandbox.connect(sys.argv[3]).pause()
    print(wait_prepared(before))
elif verb == "connect":
    goes_on(Sandbox.connect(sys.argv[3], timeout=600), sys.argv[4:])
elif verb == "hurry":
    for wait in (0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2):
        assert Sandbox.connect(sys.argv[3]).pause()
        time.sleep(wait)
        sandbox = Sandbox.connect(sys.argv[3], timeout=600)
        assert len(os.listdir(executions)) == 1, (wait, os.listdir(executions))
        goes_on(sandbox)
else:
    assert Sandbox.kill(sys.argv[3])
