"""Each limit ends in an error inside its sandbox and harms nobody else."""

import time

from e2b import CommandExitException, Sandbox
from e2b.exceptions import SandboxException, TimeoutException

bystander = Sandbox.create(timeout=600)


def others_are_well():
    assert bystander.commands.run("echo well").stdout == "well\n"


# Disk: ENOSPC, a true df, and a sandbox that goes on.
full = Sandbox.create(timeout=600)
size = int(full.commands.run("df --output=size -B1 / | tail -1").stdout)
assert 0.9 * (1 << 30) < size <= 1 << 30, size
try:
    full.commands.run("dd if=/dev/zero of=/home/user/fill bs=1M", timeout=120)
    raise AssertionError("the disk has no end")
except CommandExitException as error:
    assert "No space left on device" in error.stderr, error.stderr
full.commands.run("rm fill && echo space > back && sync")
assert full.files.read("back") == "space\n"
assert full.pause()
full.connect(timeout=600)
assert full.files.read("back") == "space\n"
full.kill()
others_are_well()

# Processes: a fork bomb ends in errors, not in the host.
bomb = Sandbox.create(timeout=600)
try:
    bomb.commands.run("bomb() { bomb | bomb & }; bomb; sleep 5", timeout=20)
except (CommandExitException, SandboxException, TimeoutException):
    pass
others_are_well()
assert bomb.kill()

# Memory: the hog is stopped; its sandbox is either running or paused with its files.
hog = Sandbox.create(timeout=600)
hog.files.write("precious.txt", "kept")
hog.commands.run("sync")
try:
    hog.commands.run("python3 -c 'x = bytearray(1 << 20)\nh = []\nwhile True: h.append(bytearray(1 << 24))'", timeout=60)
    raise AssertionError("memory has no end")
except (CommandExitException, SandboxException, TimeoutException):
    pass
others_are_well()
deadline = time.time() + 20
while True:
    try:
        back = Sandbox.connect(hog.sandbox_id, timeout=600)
        assert back.files.read("precious.txt") == "kept"
        break
    except (SandboxException, TimeoutException):
        assert time.time() < deadline, "the sandbox did not come back"
assert back.kill()
assert bystander.kill()
