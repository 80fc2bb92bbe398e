"""State that engines find hard to save, each kind in a process of its own.

    held.py KIND

reads a line, does one step, answers a line of JSON. The functions below start such processes and
pass steps on to them.
"""

import fcntl
import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys

MIB = 1 << 20
workers = {}


def start(kind):
    """Starts the process of a kind, and does its first step."""
    # A network namespace of its own, which needs a user namespace for those who are not root.
    command = ["unshare", "-Urn"] if kind == "network" else []
    command += [sys.executable, "-u", os.path.abspath(__file__), kind]
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


def large():
    """An open file of 64 MiB that has no name, and a mapped one whose name was replaced."""
    block = os.urandom(MIB)
    nameless = open("large", "w+b", buffering=0)
    for _ in range(64):
        nameless.write(block)
    os.unlink("large")
    replaced = open("library", "w+b", buffering=0)
    for _ in range(16):
        replaced.write(block)
    mapped = mmap.mmap(replaced.fileno(), 0, prot=mmap.PROT_READ)
    with open("library.new", "wb") as file:
        file.write(b"new")
    os.rename("library.new", "library")
    while True:
        whole = hashlib.sha256()
        for number in range(64):
            whole.update(os.pread(nameless.fileno(), MIB, number * MIB))
        with open("library", "rb") as file:
            name = file.read(16).decode()
        yield {"sha256": whole.hexdigest(), "bytes": os.fstat(nameless.fileno()).st_size,
               "mapped": hashlib.sha256(mapped).hexdigest(), "replaced by": name}


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


def network():
    """A listener, a connection and a datagram socket in a network namespace of its own."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listener = socket.create_server(("127.0.0.1", 7777))
    client = socket.create_connection(("127.0.0.1", 7777))
    server, _ = listener.accept()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 7777))
    client.sendall(b"waits")
    seen = {}
    for each in (listener, client, server, datagrams):
        each.settimeout(20)
    while True:
        def attempt(name, action):
            try:
                seen[name] = action()
            except OSError as error:
                seen[name] = repr(error)

        def fresh():
            with socket.create_connection(("127.0.0.1", 7777), timeout=20) as other:
                accepted, _ = listener.accept()
                with accepted:
                    other.sendall(b"fresh")
                    return accepted.recv(5, socket.MSG_WAITALL).decode()

        def datagram():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"datagram", ("127.0.0.1", 7777))
                return datagrams.recv(100).decode()

        def back():
            server.sendall(b"back")
            return client.recv(4, socket.MSG_WAITALL).decode()

        attempt("in flight", lambda: server.recv(5, socket.MSG_WAITALL).decode())
        attempt("connection", back)
        attempt("listener", fresh)
        attempt("datagrams", datagram)
        yield dict(seen)
        attempt("sent", lambda: client.sendall(b"waits"))
        del seen["sent"]


def pipe():
    """An open named pipe that was deleted, with bytes in it, and handles of names that are gone."""
    os.mkfifo("deleted-pipe")
    ends = os.open("deleted-pipe", os.O_RDWR)
    os.unlink("deleted-pipe")
    os.symlink("nowhere", "deleted-link")
    handle = os.open("deleted-link", os.O_PATH | os.O_NOFOLLOW)
    os.unlink("deleted-link")
    os.write(ends, b"tokens")
    while True:
        held = os.read(ends, 100).decode()
        os.write(ends, b"tokens")
        yield {"in flight": held, "pipe": oct(os.fstat(ends).st_mode),
               "handle": oct(os.fstat(handle).st_mode)}


if __name__ == "__main__":
    steps = {"large": large, "links": links, "network": network, "pipe": pipe}[sys.argv[1]]()
    for _line in sys.stdin:
        print(json.dumps(next(steps)), flush=True)
