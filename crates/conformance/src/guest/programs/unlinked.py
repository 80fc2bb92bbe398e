"""An open file that has no name any more."""

import hashlib
import os

state = {}


def start():
    state["file"] = open("unlinked", "w+b", buffering=0)
    os.unlink("unlinked")
    return change()


def change():
    """Appends a little, moves the offset; tells both."""
    file = state["file"]
    file.seek(0, os.SEEK_END)
    file.write(os.urandom(100000))
    file.seek(-int.from_bytes(os.urandom(2), "big"), os.SEEK_END)
    return digest()


def digest():
    file = state["file"]
    size = os.fstat(file.fileno()).st_size
    whole = os.pread(file.fileno(), size, 0)
    return {"bytes": len(whole), "offset": file.tell(), "links": os.fstat(file.fileno()).st_nlink,
            "sha256": hashlib.sha256(whole).hexdigest()}
