"""leave_running.py create: makes a sandbox with a counting process and prints its id.
leave_running.py check ID STATE: it is in this state; connected to, the same process goes on counting.
Kills the sandbox."""

import sys
import time

from e2b import Sandbox

if sys.argv[1] == "create":
    sandbox = Sandbox.create(timeout=600)
    sandbox.commands.run(
        "i=0; while true; do i=$((i+1)); echo $i > count; sleep 0.05; done", background=True, timeout=0)
    while not sandbox.files.exists("count"):
        time.sleep(0.05)
    print(sandbox.sandbox_id)
else:
    info = Sandbox.get_info(sys.argv[2])
    assert info.state.value == sys.argv[3], info
    sandbox = Sandbox.connect(sys.argv[2], timeout=600)
    # The file is empty for a moment whenever the process writes it.
    count = lambda: int(sandbox.files.read("count") or 0)
    deadline = time.time() + 10
    while (before := count()) == 0:
        assert time.time() < deadline, "nothing is counted"
    while count() <= before:
        assert time.time() < deadline, "the process does not count any more"
    assert len(sandbox.commands.list()) == 1
    assert sandbox.kill()
