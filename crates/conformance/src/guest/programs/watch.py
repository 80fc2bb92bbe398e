"""An inotify watch, with events that wait to be read."""

import ctypes
import os
import select
import struct

libc = ctypes.CDLL(None, use_errno=True)
DIRECTORY = os.path.abspath("watched")
IN_CREATE = 0x100
state = {}


def start():
    os.makedirs(DIRECTORY)
    state["inotify"] = libc.inotify_init1(0)
    if libc.inotify_add_watch(state["inotify"], DIRECTORY.encode(), IN_CREATE) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")


def create(name):
    open(os.path.join(DIRECTORY, name), "x").close()


def events(count):
    """The names that the watch tells, until there are `count` of them."""
    names = []
    while len(names) < count:
        ready, _, _ = select.select([state["inotify"]], [], [], 10)
        if not ready:
            break
        data = os.read(state["inotify"], 65536)
        while data:
            _, _, _, length = struct.unpack("iIII", data[:16])
            names.append(data[16:16 + length].rstrip(b"\0").decode())
            data = data[16 + length:]
    return names
