#!/usr/bin/env python3
"""Measures the agent in a running server's sandbox through the published SDK, each figure beside
what bounds it in the same run.

    E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=… python3 scripts/measure-agent.py [--server PID]

- commands.run("true"), beside the same fork and exec inside the sandbox;
- 1 GiB up and down, beside a plain TCP copy into and out of the same sandbox, and how much memory
  server (with --server) and agent take for it;
- the agent's size, memory, and its switches and CPU time when idle.
"""

import argparse
import ctypes
import os
import socket
import statistics
import threading
import time
import urllib.request

from e2b import Sandbox

MIB = 1 << 20
# One connection after another: takes bytes until the other side is done, or gives N of them.
PEER = r"""
import socket, sys
listener = socket.create_server(("0.0.0.0", 8200))
buffer = bytearray(1 << 20)
while True:
    peer, _ = listener.accept()
    order = peer.recv(16).decode()
    count = int(order[1:])
    if order[0] == "u":
        while count > 0:
            count -= peer.recv_into(buffer)
        peer.sendall(b"!")
    else:
        while count > 0:
            count -= peer.send(buffer[: min(count, len(buffer))])
    peer.close()
"""
# What the agent does for "true": fork, exec of bash as a login shell, wait.
FORKS = r"""
import os, time
times = []
for _ in range(%d):
    begin = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/bash", ["/bin/bash", "-l", "-c", "true"], os.environ), 0)
    times.append(time.perf_counter() - begin)
times.sort()
print(times[len(times) // 2] * 1000)
"""


def setns(descriptor):
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


def ways_in():
    """Connections to port 8200 of the sandbox that listens there. The edge speaks HTTP, so the plain
    copy takes the engine's own way: out of the sandbox's gateway namespace."""
    for name in os.listdir("/run/netns"):
        if not name.endswith("-gw"):
            continue
        with open(f"/run/netns/{name}") as namespace, open("/proc/self/ns/net") as home:
            try:
                setns(namespace.fileno())
                peer = socket.create_connection(("169.254.0.21", 8200), timeout=0.5)
                peer.settimeout(None)
                yield peer
            except OSError:
                continue
            finally:
                setns(home.fileno())


def plain(direction, size):
    for peer in ways_in():
        begin = time.perf_counter()
        peer.sendall(f"{direction}{size}".encode().ljust(16))
        if direction == "u":
            block, left = bytes(MIB), size
            while left:
                left -= peer.send(block[: min(left, MIB)])
            assert peer.recv(1) == b"!"
        else:
            buffer, left = bytearray(MIB), size
            while left:
                left -= peer.recv_into(buffer)
        return size / MIB / (time.perf_counter() - begin)
    raise SystemExit("no way into the sandbox; run this on the server's host, as root")


def status(text, name):
    line = next(line for line in text.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])


class Blocks:
    """A body of `size` bytes that was never in memory."""

    def __init__(self, size):
        self.left = size
        self.block = bytes(MIB)

    def read(self, count=-1):
        count = min(self.left, MIB if count < 0 else min(count, MIB))
        self.left -= count
        return self.block[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=int, help="process id of the server, for its memory")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    size = options.mib * MIB
    sandbox = Sandbox.create(timeout=1800)
    origin = os.environ["E2B_SANDBOX_URL"]
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token,
    }

    def agent(name):
        return status(sandbox.files.read("/proc/1/status"), name)

    def server(name):
        return status(open(f"/proc/{options.server}/status").read(), name) if options.server else 0

    sandbox.commands.run("true")
    times = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        sandbox.commands.run("true")
        times.append((time.perf_counter() - begin) * 1000)
    inside = float(sandbox.commands.run("python3 -c '%s'" % (FORKS % options.rounds)).stdout)
    through = statistics.median(times)
    print(f"commands.run('true')  median {through:.1f} ms, p90 {sorted(times)[len(times) * 9 // 10]:.1f} ms; "
          f"fork and exec inside {inside:.1f} ms; bound 3 + 2 x that = {3 + 2 * inside:.1f} ms")

    sandbox.files.write("/tmp/peer.py", PEER)
    peer = sandbox.commands.run("python3 /tmp/peer.py", background=True, timeout=0)
    peer.disconnect()
    time.sleep(1)
    before = agent("VmRSS"), server("VmRSS")
    # There is no high-water mark in gVisor.
    peak, done = list(before), threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[:] = max(peak[0], agent("VmRSS")), max(peak[1], server("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    url = f"{origin}/files?path=/home/user/big"
    begin = time.perf_counter()
    upload = {**headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}
    urllib.request.urlopen(urllib.request.Request(url, data=Blocks(size), headers=upload), timeout=600).read()
    up = options.mib / (time.perf_counter() - begin)
    begin, left = time.perf_counter(), size
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=600) as answer:
        while chunk := answer.read(MIB):
            left -= len(chunk)
    assert left == 0, left
    down = options.mib / (time.perf_counter() - begin)
    done.set()
    watcher.join()
    print(f"{options.mib} MiB up {up:.0f} MiB/s (plain TCP {plain('u', size):.0f}), "
          f"down {down:.0f} MiB/s (plain TCP {plain('d', size):.0f})")
    print(f"memory for it: agent +{(peak[0] - before[0]) / 1024:.1f} MiB, "
          f"server +{(peak[1] - before[1]) / 1024:.1f} MiB")
    sandbox.commands.kill(peer.pid)
    sandbox.files.remove("/home/user/big")
    time.sleep(3)

    length = sandbox.files.get_info("/usr/local/bin/sandbase-agent").size
    cpu = lambda: sum(map(int, sandbox.files.read("/proc/1/stat").rsplit(")", 1)[1].split()[11:13]))
    first = cpu()
    time.sleep(20)
    print(f"agent: {length / MIB:.2f} MiB, {agent('VmRSS') / 1024:.1f} MiB resident, "
          f"{cpu() - first} ticks of CPU in 20 idle seconds")
    sandbox.kill()


main()
