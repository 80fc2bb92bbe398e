"""Each limit ends in an error inside its sandbox and harms nobody else."""

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

# Memory: the biggest process is killed and its end says why; everything else in the sandbox goes on.
home = Sandbox.create(timeout=600)
keeper = home.commands.run("echo kept > /dev/shm/kept; sleep 1000", background=True, timeout=0)
EAT = "python3 -c 'h = []\nwhile True: h.append(bytearray(1) * (1 << 24))'"
HOGS = {
    "the command itself": (EAT, -1, "signal: killed: out of memory"),
    "below a shell": (f"true; {EAT}; exit 7", 7, "exit status 7: out of memory"),
    "two at once": (f"{EAT} & {EAT} & wait -n; wait; exit 3", 3, "exit status 3: out of memory"),
}
for what, (command, code, reason) in HOGS.items():
    try:
        home.commands.run(command, timeout=60)
        raise AssertionError(f"memory has no end for {what}")
    except CommandExitException as error:
        assert error.exit_code == code, (what, error.exit_code, error.error)
        assert error.error.startswith(reason), (what, error.error)
        assert "was killed" in error.error, (what, error.error)
    assert home.is_running(), what
    assert [process.pid for process in home.commands.list()] == [keeper.pid], what
    assert home.commands.run("cat /dev/shm/kept").stdout == "kept\n", what
    others_are_well()
# Files that are read fill the cache, which is no reason to kill.
home.commands.run("head -c 700M /dev/zero > big && cat big big > /dev/null && rm big", timeout=120)
# Also after a restore there is a guard.
assert home.pause()
home.connect(timeout=600)
try:
    home.commands.run(EAT, timeout=60)
    raise AssertionError("memory has no end after a resume")
except CommandExitException as error:
    assert "out of memory" in error.error, error.error
assert [process.pid for process in home.commands.list()] == [keeper.pid]
assert home.kill()
assert bystander.kill()
