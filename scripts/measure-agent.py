#!/usr/bin/env python3
"""Measures the agent in a running server's sandbox, each figure beside what bounds it in the same run.

    E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=… python3 scripts/measure-agent.py [--server PID]

To be run on the server's host, as root, with the `e2b` package.

- commands.run("true") through the published SDK, and the parts it is made of;
- 1 GiB up and down through edge and agent, beside plain TCP copies into and out of the same sandbox:
  from memory to memory, and between memory and a file as the agent does. The sender on the host is
  the same code for all, copies take turns, and the medians are compared. With each, the CPU time that
  the sandbox took for a GiB, which says more than the speed when the host has other work to do;
- how much memory server (with --server) and agent take for a transfer;
- the agent's size, its memory before and after, and the CPU time of a sandbox whose one process sleeps.
"""

import argparse
import ctypes
import json
import os
import socket
import statistics
import threading
import time
import urllib.parse
from pathlib import Path

from e2b import Sandbox

MIB = 1 << 20
BLOCK = bytes(MIB)
# One connection after another: takes bytes until the other side is done, or gives N of them; with a
# capital letter, to and from a file.
PEER = r"""
import os, socket
listener = socket.create_server(("0.0.0.0", 8200))
buffer = bytearray(1 << 20)
view = memoryview(buffer)
while True:
    peer, _ = listener.accept()
    order = peer.recv(16).decode()
    left = int(order[1:])
    flags = os.O_RDONLY if order[0] == "D" else os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    file = os.open("/home/user/plain", flags) if order[0] in "UD" else None
    while left > 0:
        if order[0] in "uU":
            count = peer.recv_into(buffer)
            if file is not None:
                os.write(file, view[:count])
        else:
            count = min(left, len(buffer)) if file is None else os.readv(file, [buffer])
            peer.sendall(view[:count])
        left -= count
    if file is not None:
        os.close(file)
    if order[0] in "uU":
        peer.sendall(b"!")
    peer.close()
"""
# What the agent does for a command: starts a program and waits for it.
SPAWNS = r"""
import os, time
for argv in (["/bin/bash", "-l", "-c", "true"], ["/bin/bash", "-c", "true"], ["/bin/true"]):
    times = []
    for _ in range(%d):
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)
        times.append(time.perf_counter() - begin)
    times.sort()
    print(times[len(times) // 2] * 1000)
"""


class Inside:
    """The ways to a sandbox that its host has: the engine's namespace and cgroup."""

    def __init__(self, sandbox_id):
        for spec in Path("/run/sandbase").glob("*/executions/*/spec.json"):
            if json.loads(spec.read_text())["hostname"] == sandbox_id:
                directory = spec.parent
                break
        else:
            raise SystemExit("the sandbox is not on this host, or this is not root")
        tag, slot = directory.parent.parent.name, (directory / "slot").read_text().strip()
        self.namespace = f"/run/netns/sb-{tag}-{slot}-gw"
        self.group = f"sandbase-{tag}/{directory.name}"

    def cpu_seconds(self):
        """CPU time of everything the sandbox consists of."""
        root = Path("/sys/fs/cgroup")
        if (root / "cgroup.controllers").exists():
            text = (root / self.group / "cpu.stat").read_text()
            return int(text.split("usage_usec ")[1].split()[0]) / 1e6
        return int((root / "cpuacct" / self.group / "cpuacct.usage").read_text()) / 1e9

    def connect(self, port):
        """A connection that goes around the edge."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(self.namespace) as there, open("/proc/self/ns/net") as home:
            for namespace in (there, home):
                if libc.setns(namespace.fileno(), 0x40000000):
                    raise OSError(ctypes.get_errno(), "setns")
                if namespace is there:
                    peer = socket.create_connection(("169.254.0.21", port))
        return peer


def give(peer, size):
    left = size
    while left:
        left -= peer.send(BLOCK[: min(left, MIB)])


def take(peer, size):
    buffer, left = bytearray(MIB), size
    while left:
        count = peer.recv_into(buffer)
        assert count, f"{left} bytes are missing"
        left -= count


def plain(inside, direction, size):
    with inside.connect(8200) as peer:
        peer.sendall(f"{direction}{size}".encode().ljust(16))
        if direction in "uU":
            give(peer, size)
            assert peer.recv(1) == b"!"
        else:
            take(peer, size)


def head_of(peer):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = peer.recv(1)
        assert byte, head
        head += byte
    assert b" 200 " in head.splitlines()[0], head
    return head.decode()


def request(peer, method, path, headers, body=b"", length=None):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    peer.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def transfer(edge, headers, direction, size):
    path = "/files?path=/home/user/big"
    with socket.create_connection(edge) as peer:
        if direction == "u":
            kind = {"Content-Type": "application/octet-stream"}
            request(peer, "POST", path, {**headers, **kind}, length=size)
            give(peer, size)
            head_of(peer)
        else:
            request(peer, "GET", path, headers)
            head_of(peer)
            take(peer, size)


def run_true(peer, headers):
    """`true` as the SDK runs it, without the SDK: one request, read to the end of its stream."""
    command = {"cmd": "/bin/bash", "args": ["-l", "-c", "true"]}
    message = json.dumps({"process": command, "stdin": False}).encode()
    kind = {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
    body = b"\0" + len(message).to_bytes(4, "big") + message
    request(peer, "POST", "/process.Process/Start", {**headers, **kind}, body)
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        piece = peer.recv(65536)
        assert piece, answer
        answer += piece
    assert b'"end"' in answer, answer


def median_ms(rounds, work):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


def measure_run(sandbox, inside, edge, headers, rounds):
    # In turns, so that all meet the same load.
    figures = {"sdk": [], "edge": [], "agent": [], "login": [], "bash": [], "true": []}
    with socket.create_connection(edge) as through, inside.connect(49983) as direct:
        for _ in range(5):
            few = max(rounds // 5, 1)
            figures["sdk"].append(median_ms(few, lambda: sandbox.commands.run("true")))
            figures["edge"].append(median_ms(few, lambda: run_true(through, headers)))
            figures["agent"].append(median_ms(few, lambda: run_true(direct, headers)))
            spawns = sandbox.commands.run("python3 -c '%s'" % (SPAWNS % few)).stdout.split()
            for name, value in zip(("login", "bash", "true"), spawns):
                figures[name].append(float(value))
    ms = {name: statistics.median(values) for name, values in figures.items()}
    print(f"commands.run('true')    {ms['sdk']:5.1f} ms, of which")
    print(f"  the SDK               {ms['sdk'] - ms['edge']:5.1f} ms")
    print(f"  the edge              {ms['edge'] - ms['agent']:5.1f} ms")
    print(f"  the agent             {ms['agent'] - ms['login']:5.1f} ms")
    print(f"  start of a program    {ms['true']:5.1f} ms (/bin/true by posix_spawn)")
    print(f"  bash                  {ms['bash'] - ms['true']:5.1f} ms")
    print(f"  profile of the login  {ms['login'] - ms['bash']:5.1f} ms")


def measure_transfers(inside, edge, headers, mib, rounds):
    size = mib * MIB
    ways = {
        "memory to memory up": lambda: plain(inside, "u", size),
        "memory to file up": lambda: plain(inside, "U", size),
        "edge and agent up": lambda: transfer(edge, headers, "u", size),
        "memory to memory down": lambda: plain(inside, "d", size),
        "file to memory down": lambda: plain(inside, "D", size),
        "edge and agent down": lambda: transfer(edge, headers, "d", size),
    }
    speed, cpu = {}, {}
    for _ in range(rounds):
        for name, copy in ways.items():
            begin, used = time.perf_counter(), inside.cpu_seconds()
            copy()
            speed.setdefault(name, []).append(mib / (time.perf_counter() - begin))
            cpu.setdefault(name, []).append((inside.cpu_seconds() - used) * 1024 / mib)
    for name in ways:
        print(f"{name:22} {statistics.median(speed[name]):6.0f} MiB/s, "
              f"{statistics.median(cpu[name]):.2f} CPU seconds of the sandbox per GiB")
    for way, file in (("up", "memory to file up"), ("down", "file to memory down")):
        through = statistics.median(speed[f"edge and agent {way}"])
        print(f"{way}: {through / statistics.median(speed[f'memory to memory {way}']):.2f} of plain TCP, "
              f"{through / statistics.median(speed[file]):.2f} of plain TCP with a file")


def status(text, name):
    line = next(line for line in text.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=int, help="process id of the server, for its memory")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5, help="of the transfers")
    parser.add_argument("--runs", type=int, default=100, help="of the command")
    options = parser.parse_args()
    sandbox = Sandbox.create(timeout=3600)
    inside = Inside(sandbox.sandbox_id)
    url = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    edge = (url.hostname, url.port or 80)
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token,
    }

    def agent(name):
        return status(sandbox.files.read("/proc/1/status"), name)

    def server(name):
        return status(open(f"/proc/{options.server}/status").read(), name) if options.server else 0

    fresh = agent("VmRSS")
    sandbox.commands.run("true")
    measure_run(sandbox, inside, edge, headers, options.runs)

    sandbox.files.write("/tmp/peer.py", PEER)
    peer = sandbox.commands.run("python3 /tmp/peer.py", background=True, timeout=0)
    peer.disconnect()
    time.sleep(1)
    # Apart from the speed: looking takes time, and there is no high-water mark in gVisor.
    before = agent("VmRSS"), server("VmRSS")
    peak, done = list(before), threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[:] = max(peak[0], agent("VmRSS")), max(peak[1], server("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for direction in "ud":
        transfer(edge, headers, direction, options.mib * MIB)
    done.set()
    watcher.join()
    print(f"memory for {options.mib} MiB: agent +{(peak[0] - before[0]) / 1024:.1f} MiB, "
          f"server +{(peak[1] - before[1]) / 1024:.1f} MiB")
    measure_transfers(inside, edge, headers, options.mib, options.rounds)
    sandbox.commands.kill(peer.pid)
    sandbox.commands.run("rm big plain")

    sandbox.commands.run("sleep 1000", background=True, timeout=0).disconnect()
    length = sandbox.files.get_info("/usr/local/bin/sandbase-agent").size
    # Idle helper threads end, and the server has looked.
    time.sleep(5)
    print(f"agent: {length / MIB:.2f} MiB, resident {fresh / 1024:.1f} MiB at first, "
          f"{agent('VmRSS') / 1024:.1f} MiB afterwards")
    time.sleep(5)
    used = inside.cpu_seconds()
    time.sleep(60)
    used = inside.cpu_seconds() - used
    print(f"one sleeping process: {used / 60 * 100:.3f} % of a core")
    sandbox.kill()


main()
