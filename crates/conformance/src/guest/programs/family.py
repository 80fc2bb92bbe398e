"""A tree of processes: children, grandchildren, an orphan, sessions, and one that counts."""

import os
import struct
import subprocess
import sys
import time

COUNTER = os.path.abspath("counter")
children = []
orphans = []

COUNT = """
import mmap, struct, time
file = open(%r, "r+b")
counter = mmap.mmap(file.fileno(), 8)
number = 0
while True:
    number += 1
    counter[:] = struct.pack("Q", number)
    time.sleep(0.005)
"""

COMMANDS = [
    ["sh", "-c", "sleep 1000001 & sleep 1000002 & wait"],
    ["sh", "-c", "(sh -c 'sleep 1000003 & sleep 1000004; true') | cat"],
    ["setsid", "sh", "-c", "sleep 1000005; true"],
    # The parent ends at once: its child has no parent of its own any more.
    ["sh", "-c", "setsid sleep 1000006 &"],
]


def start():
    with open(COUNTER, "wb") as file:
        file.write(bytes(8))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    for command in COMMANDS + [[sys.executable, "-c", COUNT % COUNTER]]:
        children.append(subprocess.Popen(command, **quiet))
    children.pop(3).wait()
    wanted = {str(number) for number in range(1000001, 1000007)}
    deadline = time.monotonic() + 30
    while True:
        present = all_processes()
        orphans[:] = [pid for pid, process in present.items() if "1000006" in process["words"]]
        if wanted <= {word for process in tree().values() for word in process["words"]}:
            return tree()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all processes came up: {present}")
        time.sleep(0.02)


def all_processes():
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                rest = file.read().rpartition(")")[2].split()
            with open(f"/proc/{pid}/cmdline") as file:
                words = file.read().split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent, group, session = map(int, rest[1:4])
        found[pid] = {"parent": parent, "group": group, "session": session, "words": words}
    return found


def tree():
    """This process, the children that were started here, and everything below them."""
    present = all_processes()
    members = {str(child.pid) for child in children} | set(orphans)
    size = 0
    while size != len(members):
        size = len(members)
        members |= {pid for pid, process in present.items() if str(process["parent"]) in members}
    members.add(str(os.getpid()))
    return {pid: process for pid, process in present.items() if pid in members}


def counted():
    with open(COUNTER, "rb") as file:
        return struct.unpack("Q", file.read())[0]


def goes_on(than):
    """Waits until the counting child has counted beyond `than`."""
    deadline = time.monotonic() + 20
    while counted() <= than:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return all(child.poll() is None for child in children)
