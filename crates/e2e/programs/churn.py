"""Creates, writes, pauses, connects, snapshots and kills while the server is killed under it, and checks after
every failure that nothing the server confirmed is lost.

    churn.py STOP_FILE      runs until STOP_FILE exists

Memory may be given up when the server is killed while a guest starts, but never without saying so.
"""

import json
import os
import random
import sys
import time
import urllib.request
import uuid

from e2b import NotFoundException, Sandbox, SandboxNotFoundException, SandboxQuery

RECOVERY_LIMIT = 90
# In no file of the disk.
IN_MEMORY = "/dev/shm/mark"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Stopped(Exception):
    """The server did not answer; what was asked for may or may not have happened."""


def ask(call):
    try:
        return call()
    except NotFoundException:
        raise
    except Exception as error:
        raise Stopped(repr(error)) from error


def until_answered(call):
    """Repeats a call until the server is back and answers it."""
    deadline = time.monotonic() + RECOVERY_LIMIT
    while True:
        try:
            return ask(call)
        except Stopped as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"stuck: {error}") from error
            time.sleep(0.1)


class Churn:
    def __init__(self):
        self.sandbox = None
        self.confirmed = {}
        self.remembered = None
        self.rounds = 0
        self.snapshots = 0
        self.forgotten = 0

    def create(self):
        mark = uuid.uuid4().hex
        try:
            self.sandbox = ask(lambda: Sandbox.create(timeout=3600, metadata={"mark": mark}))
        except Stopped:
            # An announced sandbox is kept, an unannounced one may be gone: both are right, but it
            # must be usable if it is there.
            self.kill_marked({"mark": mark})
            return
        self.confirmed = {}
        self.remembered = None

    def kill_marked(self, metadata):
        query = SandboxQuery(metadata=metadata)
        for item in until_answered(lambda: Sandbox.list(query=query).next_items()):
            until_answered(lambda: Sandbox.kill(item.sandbox_id))

    def write(self):
        name, content = f"file-{len(self.confirmed)}", uuid.uuid4().hex
        ask(lambda: self.sandbox.files.write(name, content))
        self.confirmed[name] = content
        if self.remembered is None:
            process = ask(lambda: self.sandbox.commands.run("exec sleep 100000", background=True, timeout=0)).pid
            ask(lambda: self.sandbox.files.write(IN_MEMORY, content, user="root"))
            self.remembered = content, process

    def pause_and_connect(self):
        ask(self.sandbox.pause)
        if random.random() < 0.5:
            self.check_state({"paused"})
        ask(lambda: self.sandbox.connect(timeout=3600))
        self.check_files()
        self.check_memory()

    def snapshot(self):
        """A snapshot that was confirmed has every file, whatever becomes of its source."""
        info = ask(self.sandbox.create_snapshot)
        mark = {"snapshot": info.snapshot_id}
        try:
            child = ask(lambda: Sandbox.create(info.snapshot_id, timeout=3600, metadata=mark))
            for name, content in self.confirmed.items():
                found = ask(lambda: child.files.read(name))
                assert found == content, (name, found, content)
        finally:
            self.kill_marked(mark)
            until_answered(lambda: Sandbox.delete_snapshot(info.snapshot_id))
        self.snapshots += 1

    def check_state(self, allowed):
        state = ask(self.sandbox.get_info).state.value
        assert state in allowed, (state, allowed)

    def check_files(self):
        for name, content in self.confirmed.items():
            found = ask(lambda: self.sandbox.files.read(name))
            assert found == content, (name, found, content)

    def check_memory(self):
        """It is there, or its loss is told; then it is written anew."""
        if self.remembered is None:
            return
        content, process = self.remembered
        try:
            found = ask(lambda: self.sandbox.files.read(IN_MEMORY, user="root"))
        except NotFoundException:
            why = ask(self.memory_lost)
            assert why, "memory is lost, and nobody says so"
            self.remembered = None
            self.forgotten += 1
            return
        assert found == content, (found, content)
        assert process in [each.pid for each in ask(self.sandbox.commands.list)], "the process is gone"

    def memory_lost(self):
        request = urllib.request.Request(
            f"{os.environ['E2B_API_URL']}/sandboxes/{self.sandbox.sandbox_id}",
            headers={"X-API-Key": os.environ["E2B_API_KEY"]})
        with opener.open(request, timeout=60) as answer:
            return json.load(answer).get("memoryLost")

    def kill(self):
        sandbox, self.sandbox = self.sandbox, None
        try:
            ask(sandbox.kill)
        except Stopped:
            until_answered(lambda: Sandbox.kill(sandbox.sandbox_id))
        try:
            until_answered(lambda: Sandbox.connect(sandbox.sandbox_id, timeout=60))
            raise AssertionError("a killed sandbox came back")
        except SandboxNotFoundException:
            pass
        self.check_unconfirmed_snapshots(sandbox.sandbox_id)

    def check_unconfirmed_snapshots(self, source):
        """One whose answer was lost may be there, and must be usable if it is."""
        found = until_answered(lambda: Sandbox.list_snapshots(sandbox_id=source).next_items())
        for item in found:
            mark = {"snapshot": item.snapshot_id}
            until_answered(lambda: Sandbox.create(item.snapshot_id, timeout=3600, metadata=mark))
            # All of them: a create whose answer was lost was repeated.
            self.kill_marked(mark)
            until_answered(lambda: Sandbox.delete_snapshot(item.snapshot_id))

    def step(self):
        if self.sandbox is None:
            self.create()
            return
        try:
            self.write()
            if random.random() < 0.5:
                self.pause_and_connect()
            else:
                self.snapshot()
            if random.random() < 0.25:
                self.kill()
            self.rounds += 1
        except Stopped:
            self.recover()

    def recover(self):
        """The server was killed: the sandbox must be there, running or paused, and whole."""
        info = until_answered(self.sandbox.get_info)
        assert info.state.value in ("running", "paused"), info
        until_answered(lambda: self.sandbox.connect(timeout=3600))
        deadline = time.monotonic() + RECOVERY_LIMIT
        while True:
            try:
                self.check_files()
                self.check_memory()
                return
            except Stopped as error:
                assert time.monotonic() < deadline, f"stuck: {error}"
                until_answered(lambda: self.sandbox.connect(timeout=3600))


churn = Churn()
while not os.path.exists(sys.argv[1]):
    churn.step()
if churn.sandbox is not None:
    churn.recover()
    churn.kill()
print(f"{churn.rounds} rounds, {churn.snapshots} snapshots, memory given up {churn.forgotten} times")
