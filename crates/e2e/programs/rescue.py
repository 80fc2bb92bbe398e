"""Fills a sandbox with files, or looks whether they are there."""

import sys

from e2b import Sandbox

KEPT = "kept"
BIG = bytes(n % 251 for n in range(3_000_000))

what, sandbox_id = sys.argv[1:3]
sandbox = Sandbox.connect(sandbox_id, timeout=600)
home = "/home/user"
if what == "fill":
    sandbox.files.write(f"{home}/kept", KEPT)
    sandbox.files.write(f"{home}/big", BIG)
    sandbox.files.write(f"{home}/lost", "lost")
    for n in range(3):
        sandbox.files.write(f"{home}/folder/{n}", str(n))
    sandbox.commands.run("test -e /etc/motd && rm -f /etc/motd", user="root")
assert sandbox.files.read(f"{home}/kept") == KEPT
assert bytes(sandbox.files.read(f"{home}/big", format="bytes")) == BIG
assert sandbox.files.read(f"{home}/lost") == "lost"
assert len(sandbox.files.list(f"{home}/folder")) == 3
