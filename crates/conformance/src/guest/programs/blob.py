"""Random memory that changes a little every round."""

import hashlib
import os
import random

blob = bytearray()


def start(mib):
    blob[:] = os.urandom(mib << 20)
    return digest()


def change():
    """Writes a few pages and tells the digest of everything."""
    for _ in range(64):
        at = random.randrange(0, len(blob) - 4096)
        blob[at:at + 4096] = os.urandom(4096)
    return digest()


def digest():
    return {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
