"""Timers of every kind, armed before a pause."""

import ctypes
import os
import struct
import subprocess
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
CLOCKS = {"timerfd (monotonic)": 1, "timerfd (realtime)": 0}
fired = {}
state = {"round": 0}


def timer(clock, seconds, interval=0.0):
    descriptor = libc.timerfd_create(clock, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    parts = [int(interval), int(interval % 1 * 1e9), int(seconds), int(seconds % 1 * 1e9)]
    if libc.timerfd_settime(descriptor, 0, struct.pack("4q", *parts), None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")
    return descriptor


def wait(name, number, block):
    block()
    if state["round"] == number:
        fired[name] = time.time() - state["armed"]


def start():
    """A periodic timer that goes on through all rounds."""
    state["periodic"] = timer(1, 0.02, 0.02)


def arm(seconds):
    fired.clear()
    state["round"] += 1
    blocks = {"sleep": lambda: time.sleep(seconds)}
    event = threading.Event()
    blocks["futex with a limit"] = lambda: event.wait(seconds)
    state["armed"] = time.time()
    for name, clock in CLOCKS.items():
        descriptor = timer(clock, seconds)
        blocks[name] = lambda descriptor=descriptor: (os.read(descriptor, 8), os.close(descriptor))
    child = subprocess.Popen(["sleep", str(seconds)])
    blocks["sleep of a child"] = child.wait
    for name, block in blocks.items():
        arguments = (name, state["round"], block)
        threading.Thread(target=wait, args=arguments, daemon=True).start()
    state["armed_count"] = len(blocks)


def results(limit):
    """Seconds after which each fired, by this guest's clock, once all of them did."""
    deadline = time.monotonic() + limit
    while len(fired) < state["armed_count"] and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"fired": dict(fired), "armed": state["armed_count"]}


def periodic():
    """Whether the periodic timer still ticks: the ticks of two readings one after the other."""
    ticks = [struct.unpack("Q", os.read(state["periodic"], 8))[0] for _ in range(2)]
    return ticks
