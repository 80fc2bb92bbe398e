"""The story of the README, by the asynchronous Python SDK."""

import asyncio
import os

from e2b import AsyncSandbox, SandboxNotFoundException


async def main():
    sandbox = await AsyncSandbox.create(envs={"COLOUR": "green"}, metadata={"kind": "async"})
    assert (await sandbox.commands.run("echo $COLOUR")).stdout == "green\n"
    clock = await sandbox.commands.run("sleep 1000", background=True, timeout=0)
    await sandbox.files.write("note.txt", "hello")
    assert await sandbox.pause()
    same = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
    assert await same.files.read("note.txt") == "hello"
    assert [process.pid for process in await same.commands.list()] == [clock.pid]
    assert (await same.commands.run("echo $COLOUR")).stdout == "green\n"
    assert (await same.get_info()).metadata == {"kind": "async"}
    assert await same.kill()
    try:
        await AsyncSandbox.connect(sandbox.sandbox_id)
        raise AssertionError("a killed sandbox must not come back")
    except SandboxNotFoundException:
        pass


asyncio.run(main())
# Everything above has passed. A thread of the SDK's HTTP client that wakes the event loop while the
# interpreter shuts down makes Python 3.11 abort, about once in ten runs: end without a shutdown.
os._exit(0)
