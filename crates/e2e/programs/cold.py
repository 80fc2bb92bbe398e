"""A sandbox that has been paused for long is stored compressed, and comes back all the same."""

import json
import os
import time
import urllib.request

from e2b import Sandbox

# Memory that compresses well, with something in it that does not.
HOLD = """
import hashlib, os
held = b"".join(b"%d bottles of beer on the wall\\n" % n for n in range(1_500_000)) + os.urandom(1 << 20)
print(hashlib.sha256(held).hexdigest(), flush=True)
while True:
    input()
    print(hashlib.sha256(held).hexdigest(), flush=True)
"""
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def stored(sandbox):
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}/storage",
        headers={"Authorization": f"Bearer {os.environ['E2B_API_KEY']}"})
    return json.loads(opener.open(request, timeout=60).read())["ownBytes"]


class Holder:
    """The program in a sandbox, and what it said of its memory at first."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.said = []
        sandbox.files.write("hold.py", HOLD)
        self.process = sandbox.commands.run(
            "python3 -u hold.py", background=True, stdin=True, timeout=0)
        for stdout, _, _ in self.process:
            if stdout:
                self.hash = stdout.strip()
                return

    def check(self, sandbox):
        process = sandbox.commands.connect(self.process.pid, timeout=0)
        sandbox.commands.send_stdin(self.process.pid, "\n")
        for stdout, _, _ in process:
            if stdout:
                assert stdout.strip() == self.hash, stdout
                process.disconnect()
                return


def wait_packed(sandbox, before):
    for _ in range(300):
        now = stored(sandbox)
        if now < before / 2:
            return now
        time.sleep(0.1)
    raise AssertionError(f"{before} bytes stored are still {now}")


sandbox = Sandbox.create(timeout=600)
holder = Holder(sandbox)
sandbox.pause()
before = stored(sandbox)
assert before > 40 << 20, before
after = wait_packed(sandbox, before)
print(f"stored {before >> 20} MiB, packed {after >> 20} MiB")

# A snapshot of it is as small, and a sandbox made from that has the memory, too.
snapshot = sandbox.create_snapshot()
sandbox = sandbox.connect(timeout=600)
holder.check(sandbox)
copy = Sandbox.create(snapshot.snapshot_id, timeout=600)
holder.check(copy)
copy.kill()

# Connects around the moment at which the image is packed.
for wait in (0.9, 0.95, 1.0, 1.02, 1.05, 1.1, 1.2):
    sandbox.pause()
    time.sleep(wait)
    sandbox = sandbox.connect(timeout=600)
    holder.check(sandbox)

# A pause right after an unpacked image was restored.
sandbox.pause()
wait_packed(sandbox, before)
sandbox = sandbox.connect(timeout=600)
sandbox.pause()
sandbox = sandbox.connect(timeout=600)
holder.check(sandbox)
sandbox.kill()
assert Sandbox.delete_snapshot(snapshot.snapshot_id)
