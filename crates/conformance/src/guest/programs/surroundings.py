"""What surrounds this process, and who and when it thinks it is."""

import os
import resource
import socket
import time


def environment():
    return dict(os.environ)


def directory():
    return os.getcwd()


def mask():
    mask = os.umask(0)
    os.umask(mask)
    with open("made with the mask", "w"):
        pass
    mode = os.stat("made with the mask").st_mode & 0o777
    os.unlink("made with the mask")
    return {"umask": f"{mask:03o}", "new file": f"{mode:03o}"}


def limits():
    kinds = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {kind: resource.getrlimit(getattr(resource, kind)) for kind in kinds}


def clock():
    return time.time()


def entropy():
    """Random bytes from every source that the kernel has."""
    with open("/dev/urandom", "rb") as file:
        device = file.read(32).hex()
    with open("/proc/sys/kernel/random/uuid") as file:
        uuid = file.read().strip()
    return {"getrandom": os.getrandom(32).hex(), "/dev/urandom": device, "uuid": uuid}


def hostname():
    return socket.gethostname()
