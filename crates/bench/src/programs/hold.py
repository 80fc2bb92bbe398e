"""Holds random memory: hold.py MIB FILE. Puts a sum over every page into FILE when all of it is
there, and again after each SIGUSR1: then every page has been touched."""

import os
import random
import signal
import sys

count, path = int(sys.argv[1]), sys.argv[2]
generator = random.Random(os.urandom(16))
held = [generator.randbytes(1 << 20) for _ in range(count)]


def tell(*_):
    total = sum(sum(block[::4096]) for block in held)
    with open(path + ".new", "w") as file:
        file.write(f"{total}\n")
    os.rename(path + ".new", path)


signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    signal.pause()
