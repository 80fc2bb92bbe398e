"""Hooks of a sandbox's owner around pause and resume.

    hooks.py ignore|fatal    what the server is configured to do when a pre-pause hook fails
"""

import sys
import time

from e2b import Sandbox
from e2b.exceptions import SandboxException

FATAL = sys.argv[1] == "fatal"
sandbox = Sandbox.create(timeout=300)


def hook(kind, name, script):
    path = f"/etc/sandbase/hooks/{kind}.d/{name}"
    sandbox.files.write(path, f"#!/bin/sh\n{script}\n", user="root")
    sandbox.commands.run(f"chmod 755 {path}", user="root")


def unhook(kind, name):
    sandbox.commands.run(f"rm /etc/sandbase/hooks/{kind}.d/{name}", user="root")


def told():
    """What the hooks told since it was asked for the last time."""
    lines = sandbox.commands.run("cat /told; rm -f /told", user="root").stdout.splitlines()
    return [line for line in lines if line]


def pause_and_connect():
    global sandbox
    begun = time.monotonic()
    assert sandbox.pause()
    took = time.monotonic() - begun
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    return took


sandbox.commands.run("touch /told", user="root")
tell = "echo $(basename $0) $(id -un) $SANDBASE_HOOK $E2B_SANDBOX_ID >> /told"
hook("pre-pause", "20-two", tell)
hook("pre-pause", "10-one", tell)
hook("post-resume", "10-back", tell)
hook("post-fork", "10-fork", tell)
here = sandbox.sandbox_id
sleeper = sandbox.commands.run("sleep 100000", background=True, timeout=0)

pause_and_connect()
# All of them, in order, and done when connect answered.
assert (seen := told()) == [
    f"10-one root pre-pause {here}",
    f"20-two root pre-pause {here}",
    f"10-back root post-resume {here}",
], seen

hook("pre-pause", "15-bad", "echo the database is busy; exit 3")
hook("pre-pause", "30-hangs", "sleep 1000")
if FATAL:
    try:
        sandbox.pause()
        raise AssertionError("paused although a hook failed")
    except SandboxException as error:
        for part in ("15-bad", "exit status 3", "running"):
            assert part in str(error), error
    assert sandbox.get_info().state == "running"
    assert sleeper.pid in [process.pid for process in sandbox.commands.list()]
    # The ones after the failed one did not run; the guest was told that it goes on.
    assert (seen := told()) == [
        f"10-one root pre-pause {here}", f"10-back root post-resume {here}"], seen
    unhook("pre-pause", "15-bad")
    begun = time.monotonic()
    try:
        sandbox.pause()
        raise AssertionError("paused although a hook hung")
    except SandboxException as error:
        assert "30-hangs" in str(error) and "killed after" in str(error), error
    assert time.monotonic() - begun < 10
    assert sandbox.commands.run("pgrep -fc 'sleep 1000$' || true").stdout.strip() == "0"
    told()
    unhook("pre-pause", "30-hangs")
else:
    took = pause_and_connect()
    # The hanging one was killed at its limit of one second.
    assert 1 <= took < 10, took
    assert (seen := told()) == [
        f"10-one root pre-pause {here}",
        f"20-two root pre-pause {here}",
        f"10-back root post-resume {here}",
    ], seen
    unhook("pre-pause", "15-bad")
    unhook("pre-pause", "30-hangs")

# A fork saves the source and goes on with it; the hooks of a clone know whose they are.
[fork] = sandbox.fork(timeout=60, count=1)
seen = fork.commands.run("cat /told", user="root").stdout.splitlines()
assert seen == [
    f"10-one root pre-pause {here}",
    f"20-two root pre-pause {here}",
    f"10-fork root post-fork {fork.sandbox_id}",
], seen
assert fork.kill()
assert (seen := told())[-1] == f"10-back root post-resume {here}", seen

hook("post-resume", "20-bad", "exit 1")
pause_and_connect()
assert told()[-1] == f"10-back root post-resume {here}"
assert sleeper.pid in [process.pid for process in sandbox.commands.list()]

# A boot is no resume, but the pause is a pause.
assert sandbox.pause(keep_memory=False)
sandbox = Sandbox.connect(here, timeout=300)
assert (seen := told()) == [f"10-one root pre-pause {here}", f"20-two root pre-pause {here}"], seen
assert sandbox.kill()
