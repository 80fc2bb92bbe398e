"""Fills a sandbox with a running process and files, or checks that another one is its continuation.

    moved.py fill ID            prints what was there
    moved.py empty ID           fails unless the sandbox has nothing of it
    moved.py check ID PRINTED   fails unless the sandbox has it and the process counts on
"""

import json
import sys
import time

from e2b import Sandbox

COUNT = """
import os, time
held, number = os.urandom(20 << 20), 0
import hashlib
while True:
    number += 1
    told = f"{os.getpid()} {number} {hashlib.sha256(held).hexdigest()}"
    with open("count.new", "w") as file:
        file.write(told)
    os.replace("count.new", "count")
    time.sleep(0.05)
"""
TREE = ("cd /home/user && find data -print0 | sort -z | xargs -0 stat -c '%n %F %a %U %s %Y' && "
        "find data -type f -print0 | sort -z | xargs -0 sha256sum && readlink data/link")


def count(sandbox):
    pid, number, memory = sandbox.files.read("/home/user/count").split()
    return {"pid": pid, "number": int(number), "memory": memory}


what, sandbox_id = sys.argv[1:3]
sandbox = Sandbox.connect(sandbox_id, timeout=600)
if what == "fill":
    sandbox.commands.run(
        "mkdir -p data/deep && cd data && head -c 50M /dev/urandom > random && "
        "truncate -s 1G holes && echo end >> holes && ln -s /etc/passwd link && "
        "ln random deep/same && chmod 4751 deep/same && touch -d @1000000000 deep", timeout=120)
    sandbox.files.write("/home/user/count.py", COUNT)
    sandbox.commands.run("exec python3 count.py", background=True, timeout=0)
    deadline = time.time() + 60
    while not sandbox.files.exists("/home/user/count"):
        assert time.time() < deadline, "the process does not count"
    told = count(sandbox)
    told["tree"] = sandbox.commands.run(TREE, timeout=120).stdout
    print(json.dumps(told))
elif what == "empty":
    assert not sandbox.files.exists("/home/user/data")
    assert not sandbox.files.exists("/home/user/count")
else:
    before = json.loads(sys.argv[3])
    now = count(sandbox)
    assert (now["pid"], now["memory"]) == (before["pid"], before["memory"]), (before, now)
    deadline = time.time() + 60
    while count(sandbox)["number"] <= max(now["number"], before["number"]):
        assert time.time() < deadline, "the process does not count on"
    tree = sandbox.commands.run(TREE, timeout=120).stdout
    assert tree == before["tree"], (before["tree"], tree)
