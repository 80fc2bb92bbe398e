"""A counter in memory and a file of numbers, each written before it is acknowledged."""

import os
import threading

PATH = os.path.abspath("acknowledged")
lock = threading.Lock()
counter = 0


def add(number):
    """Appends without any fsync: the answer is the promise."""
    global counter
    with lock:
        with open(PATH, "a") as file:
            file.write(f"{number}\n")
        counter += 1
        return counter


def state():
    with lock:
        with open(PATH) as file:
            return {"counter": counter, "numbers": [int(line) for line in file]}
