"""A sandbox whose processes sleep costs nothing, and guards its memory all the same."""

import time

from e2b import CommandExitException, Sandbox

EAT = "head -c 4G /dev/zero | tail"
sandbox = Sandbox.create(timeout=600)
keeper = sandbox.commands.run("sleep 1000", background=True, timeout=0)
time.sleep(40)
# Percent of both CPUs, in samples of five seconds. The quietest says what the sandbox itself does.
samples = sorted(sandbox.get_metrics(), key=lambda sample: sample.timestamp)[2:]
quietest = min(sample.cpu_used_pct for sample in samples)
print("idle CPU, percent:", [sample.cpu_used_pct for sample in samples])
assert len(samples) >= 4, samples
assert quietest <= 0.05, samples

for round in range(20):
    try:
        sandbox.commands.run(EAT, timeout=60)
        raise AssertionError("memory has no end")
    except CommandExitException as error:
        assert "out of memory" in error.error, (round, error.error)
    assert [process.pid for process in sandbox.commands.list()] == [keeper.pid], round
assert sandbox.kill()
