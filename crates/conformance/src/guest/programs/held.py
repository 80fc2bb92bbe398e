"""State that engines find hard to save, each kind in a process of its own.

    held.py KIND

reads a line, does one step, answers a line of JSON. The functions below start such processes and
pass steps on to them.
"""

import fcntl
import json
import mmap
import os
import subprocess
import sys

workers = {}


def start(kind):
    """Starts the process of a kind, and does its first step."""
    command = [sys.executable, "-u", os.path.abspath(__file__), kind]
    workers[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return step(kind)


def step(kind):
    """The process tells its state; each step also changes something that the next one needs."""
    worker = workers[kind]
    worker.stdin.write("step\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process of '{kind}' has ended with {worker.wait(10)}")
    return json.loads(answer)


def links():
    """An open file whose first name was removed while a second one stays."""
    first = os.open("first", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(first, bytes(mmap.PAGESIZE))
    os.link("first", "second")
    os.unlink("first")
    fcntl.flock(first, fcntl.LOCK_EX)
    mapped = mmap.mmap(first, mmap.PAGESIZE)
    number = 0
    while True:
        number += 1
        os.pwrite(first, b"%8d" % number, 0)
        mapped[8:16] = b"%8d" % number
        second = os.open("second", os.O_RDWR)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock = "held twice"
        except BlockingIOError:
            lock = "held once"
        seen = os.pread(second, 16, 0)
        here, there = os.fstat(first), os.fstat(second)
        answer = {"write arrives": seen[:8] == b"%8d" % number,
                  "mapping arrives": seen[8:] == b"%8d" % number,
                  "same inode": (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino),
                  "links": [here.st_nlink, there.st_nlink], "lock": lock}
        # The second name must be found anew after the pause.
        os.close(second)
        yield answer


if __name__ == "__main__":
    steps = {"links": links}[sys.argv[1]]()
    for _line in sys.stdin:
        print(json.dumps(next(steps)), flush=True)
