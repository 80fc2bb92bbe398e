"""Walks through faults: arms one, asks for something, mends what broke, and looks whether everything is right.

    faults.py sample|all [CASE]

Beside the variables of the SDK it takes FOLDER (where faults are armed), DATA_DIR, RUN_DIR (of the engine), FILL and FREE (commands that
fill the data directory's file system and free it), BREAK and MEND (that make its device refuse new blocks, and take them again). It
prints "look", and reads a line, whenever all sandboxes are killed and nothing may be left on the host.
"""

import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

from e2b import CommandExitException, Sandbox, SandboxNotFoundException, SandboxQuery

SETTLE_LIMIT = 90
FOLDER, DATA_DIR = pathlib.Path(os.environ["FOLDER"]), pathlib.Path(os.environ["DATA_DIR"])
EXECUTIONS = pathlib.Path(os.environ["RUN_DIR"]) / "executions"
STEP_FAULT, RUNSC_FAULT = FOLDER / "fault", FOLDER / "runsc-fault"
# Kept by the guest's kernel alone: in no file of the disk.
IN_MEMORY, ON_DISK = "/dev/shm/mark", "/home/user/mark"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def patiently(call):
    """The answer of a server that may be starting."""
    deadline = time.monotonic() + SETTLE_LIMIT
    while True:
        try:
            return call()
        except SandboxNotFoundException:
            raise
        except Exception as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"stuck: {error!r}") from error
            time.sleep(0.05)


def journaled(sandbox_id):
    """The state in the journal, None without a record."""
    journal = sqlite3.connect(f"file:{DATA_DIR}/sandbase.db?mode=ro", uri=True)
    try:
        row = journal.execute("SELECT state FROM sandboxes WHERE id = ?", [sandbox_id]).fetchone()
    finally:
        journal.close()
    return row and json.loads(row[0])["state"]


def told(sandbox_id):
    """The state that the API tells, None without a sandbox."""
    try:
        return patiently(lambda: Sandbox.get_info(sandbox_id)).state.value
    except SandboxNotFoundException:
        return None


def settled(sandbox_id):
    """The state once no transition is under way: the same in the journal and to callers."""
    deadline = time.monotonic() + SETTLE_LIMIT
    while True:
        state = journaled(sandbox_id)
        if state in (None, "running", "paused") and told(sandbox_id) == state == journaled(sandbox_id):
            return state
        assert time.monotonic() < deadline, f"stuck in {state}, told is {told(sandbox_id)}"
        time.sleep(0.05)


def made_by(mark):
    """Ids of the sandboxes with this mark in their metadata."""
    listed = patiently(lambda: Sandbox.list(query=SandboxQuery(metadata={"mark": mark})).next_items())
    return [item.sandbox_id for item in listed]


class Marked:
    """A sandbox with marks in memory and on its disk."""

    def __init__(self, origin=None):
        self.name = uuid.uuid4().hex
        self.sandbox = patiently(lambda: Sandbox.create(origin, timeout=3600, metadata={"mark": self.name}))
        self.id = self.sandbox.sandbox_id
        self.mark(uuid.uuid4().hex)
        self.process = self.sandbox.commands.run("exec sleep 100000", background=True, timeout=0).pid

    def mark(self, text):
        self.text = text
        self.sandbox.files.write(IN_MEMORY, text, user="root")
        self.sandbox.files.write(ON_DISK, text)

    def paused(self, memory=True):
        self.memory = memory
        self.sandbox.pause() if memory else self.sandbox.pause(keep_memory=False)
        return self

    def check(self, texts, memory=True):
        """It runs, with one of these texts in its memory and on its disk."""
        sandbox = patiently(lambda: Sandbox.connect(self.id, timeout=3600))
        on_disk = patiently(lambda: sandbox.files.read(ON_DISK))
        assert on_disk in texts, (on_disk, texts)
        if memory:
            in_memory = patiently(lambda: sandbox.files.read(IN_MEMORY, user="root"))
            assert in_memory == on_disk, f"memory {in_memory} over the disk {on_disk}"
            assert self.process in [process.pid for process in sandbox.commands.list()]
        return on_disk

    def can_write(self):
        """Durably, to its disk."""
        return patiently(lambda: ended(self.sandbox, "echo more > more && sync more")) == 0

    def cannot_execute(self):
        try:
            self.sandbox.commands.run("true")
        except Exception:
            pass
        else:
            raise AssertionError("a paused sandbox executed a command")
        assert told(self.id) == "paused"
        # It is frozen, and goes on its own.
        deadline = time.monotonic() + SETTLE_LIMIT
        while alive := list(EXECUTIONS.iterdir()):
            assert time.monotonic() < deadline, f"executions of a paused sandbox: {alive}"
            time.sleep(0.02)


def ended(sandbox, command):
    try:
        return sandbox.commands.run(command).exit_code
    except CommandExitException as error:
        return error.exit_code


def rest(path, body):
    request = urllib.request.Request(
        os.environ["E2B_API_URL"] + path, json.dumps(body).encode(),
        {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"})
    return opener.open(request, timeout=120).read()


# --- what is asked for: a preparation, the call, the states it may end in


class Create:
    """Of a template. An end that the caller was not told of is none."""

    steps = ["CreateDirectory", "CreateDisk", "CreateStart", "CreateAgent", "CreatePublish"]
    origin = None

    def __init__(self):
        self.name = uuid.uuid4().hex

    def call(self):
        self.sandbox = Sandbox.create(self.origin, timeout=3600, metadata={"mark": self.name}, request_timeout=300)

    def check(self, step, how, done):
        found = made_by(self.name)
        if done:
            assert found == [self.sandbox.sandbox_id], found
            assert settled(found[0]) == "running"
            assert patiently(lambda: ended(self.sandbox, "echo more > more && sync more")) == 0
        else:
            deadline = time.monotonic() + SETTLE_LIMIT
            while made_by(self.name) or list(DATA_DIR.glob("sandboxes/*")):
                assert time.monotonic() < deadline, "a create that failed left something"
                time.sleep(0.05)


class OfOne:
    """Something that is asked of one sandbox."""

    def __init__(self):
        self.marked = Marked()

    def states(self, step, how, done):
        raise NotImplementedError

    def texts(self, step, how, done):
        return [self.marked.text]

    memory = True

    def check(self, step, how, done):
        state = settled(self.marked.id)
        allowed = self.states(step, how, done)
        assert state in allowed, f"{state}, not one of {allowed}"
        if state == "paused":
            self.marked.cannot_execute()
        if state is None:
            return
        memory = self.memory if state == "paused" else self.memory_while_running(step)
        try:
            found = self.marked.check(self.texts(step, how, done), memory)
            assert self.marked.can_write(), "Read-only file system"
        except AssertionError as error:
            # Its disk is a file on what was full or failed. When that meets the journal of its file
            # system, this goes read-only for as long as the sandbox runs: README says so.
            if how not in BREAKS or state != "running" or "Read-only file system" not in str(error):
                raise
            print(f"{named((type(self), step, how))}: its disk is read-only from now on", flush=True)
            return
        # Nothing of the fault is left in it: it goes through another pause.
        patiently(lambda: Sandbox.pause(self.marked.id))
        assert settled(self.marked.id) == "paused"
        self.marked.cannot_execute()
        self.marked.check([found], memory)

    def memory_while_running(self, step):
        return True


class Pause(OfOne):
    steps = ["PausePrepare", "PauseFreeze", "PauseCheckpoint", "PauseSync", "PauseCommit", "PauseCommitted", "PauseDestroy",
             "PausePublish"]
    committed = ["PauseCommitted", "PauseDestroy", "PausePublish"]

    def call(self):
        self.marked.sandbox.pause(request_timeout=300)

    def states(self, step, how, done):
        if how == "kill" and step in self.steps:
            return ["paused" if step in self.committed else "running"]
        return ["paused"] if done else ["running"]


class PauseFiles(Pause):
    steps = ["PausePrepare", "PauseFreeze", "PauseSync", "PauseDestroy", "PausePublish"]
    # By the entry in the journal that comes after all of them.
    committed = []
    memory = False

    def call(self):
        self.marked.sandbox.pause(keep_memory=False, request_timeout=300)


class Connect(OfOne):
    steps = ["ResumeCheck", "ResumeStart", "ResumeAgent", "ResumePublish"]

    def __init__(self):
        super().__init__()
        self.marked.paused(self.memory)

    def call(self):
        self.marked.sandbox.connect(timeout=3600, request_timeout=300)

    def states(self, step, how, done):
        if how == "kill":
            return ["running", "paused"]
        return ["running"] if done else ["paused"]


class Boot(Connect):
    memory = False

    def memory_while_running(self, step):
        return False


class Snapshot(OfOne):
    steps = [*Pause.steps, "SnapshotLink", "SnapshotDisk", "SnapshotFinish", "SnapshotCommit", *Connect.steps]

    def call(self):
        self.marked.sandbox.create_snapshot(request_timeout=300)

    def states(self, step, how, done):
        return ["running"]

    def check(self, step, how, done):
        settled(self.marked.id)
        listed = patiently(lambda: Sandbox.list_snapshots(sandbox_id=self.marked.id).next_items())
        assert len(listed) == 1 if done else len(listed) <= 1, listed
        for item in listed:
            child = patiently(lambda: Sandbox.create(item.snapshot_id, timeout=3600))
            assert child.files.read(ON_DISK) == self.marked.text
            assert child.files.read(IN_MEMORY, user="root") == self.marked.text
            patiently(child.kill)
            patiently(lambda: Sandbox.delete_snapshot(item.snapshot_id))
        super().check(step, how, done)


class SnapshotOfPaused(Snapshot):
    steps = ["SnapshotLink", "SnapshotDisk", "SnapshotFinish", "SnapshotCommit"]

    def __init__(self):
        super().__init__()
        self.marked.paused()

    def states(self, step, how, done):
        return ["paused"]


class Fork(OfOne):
    steps = [*Pause.steps, *SnapshotOfPaused.steps, *Create.steps, *Connect.steps]

    def call(self):
        self.forks = self.marked.sandbox.fork(timeout=3600, request_timeout=300)
        failed = [fork for fork in self.forks if not isinstance(fork, Sandbox)]
        assert not failed, failed

    def states(self, step, how, done):
        return ["running"]

    def check(self, step, how, done):
        settled(self.marked.id)
        deadline = time.monotonic() + SETTLE_LIMIT
        while True:
            others = [name for name in made_by(self.marked.name) if name != self.marked.id]
            if len(others) == (1 if done else 0):
                break
            assert time.monotonic() < deadline, f"forks after one that failed: {others}"
            time.sleep(0.05)
        for fork in others:
            assert Sandbox.connect(fork, timeout=3600).files.read(IN_MEMORY, user="root") == self.marked.text
            patiently(lambda: Sandbox.kill(fork))
        super().check(step, how, done)


class Rollback(OfOne):
    steps = ["RollbackLink", "RollbackCommit", "RollbackDestroy", "RollbackSweep", *Connect.steps]
    uncommitted = ["RollbackLink", "RollbackCommit"]

    def __init__(self):
        super().__init__()
        self.snapshot = self.marked.sandbox.create_snapshot().snapshot_id
        self.before = self.marked.text
        self.marked.mark(uuid.uuid4().hex)

    def call(self):
        rest(f"/sandboxes/{self.marked.id}/rollback", {"snapshotID": self.snapshot})

    def states(self, step, how, done):
        return ["running"]

    def texts(self, step, how, done):
        if how == "kill" and step in self.steps:
            return [self.marked.text if step in self.uncommitted else self.before]
        return [self.before] if done else [self.marked.text, self.before]

    def check(self, step, how, done):
        super().check(step, how, done)
        patiently(lambda: Sandbox.delete_snapshot(self.snapshot))


class RollbackOfPaused(Rollback):
    steps = ["RollbackLink", "RollbackCommit", "RollbackDestroy", "RollbackSweep"]

    def __init__(self):
        super().__init__()
        self.marked.paused()

    def states(self, step, how, done):
        return ["paused"]


class Kill(OfOne):
    steps = ["KillDestroy", "KillFiles", "KillForget"]

    def call(self):
        self.marked.sandbox.kill(request_timeout=300)

    def states(self, step, how, done):
        return [None]


class KillOfPaused(Kill):
    def __init__(self):
        super().__init__()
        self.marked.paused()


# --- the walk


def until_over(call, armed, mend):
    """Makes the call; answers whether it worked, and what it raised. What is broken is mended once the call has ended,
    or hangs on it: ends that cannot be journaled are tried until they can."""
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(error)

    calling = threading.Thread(target=run)
    calling.start()
    deadline = time.monotonic() + SETTLE_LIMIT
    while calling.is_alive() and armed.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    calling.join(timeout=5)
    mend()
    calling.join(timeout=300)
    assert not calling.is_alive(), "the call never ends"
    return not raised, raised


# What breaks the file system of the data directory, and what mends it.
BREAKS = {"full": ("FILL", "FREE"), "broken": ("BREAK", "MEND")}


def mend(how):
    if how in BREAKS:
        subprocess.run(["sh", "-c", os.environ[BREAKS[how][1]]], check=True)


def walk(operation, where, how):
    begin = time.monotonic()
    work = operation()
    if where in operation.steps:
        file, line = STEP_FAULT, f"{where} {how}"
        if how in BREAKS:
            line = f"{where} run {os.environ[BREAKS[how][0]]}"
    else:
        file, line = RUNSC_FAULT, f"{where} {how}"
    staged = file.with_suffix(".new")
    staged.write_text(line + "\n")
    staged.rename(file)
    done, raised = until_over(work.call, file, lambda: mend(how))
    assert not file.exists(), f"the fault was not reached; the call raised {raised}"
    if how == "kill" and file == STEP_FAULT:
        assert not done, "the server was killed, and answered"
    work.check(where, how, done)
    for sandbox in patiently(lambda: Sandbox.list().next_items()):
        patiently(lambda: Sandbox.kill(sandbox.sandbox_id))
    told = "done" if done else f"{type(raised[0]).__name__}: {str(raised[0])[:110]}"
    print(f"{named((operation, where, how))}: {told} ({time.monotonic() - begin:.1f} s)", flush=True)
    print("look", flush=True)
    assert sys.stdin.readline() == "clean\n", "left on the host"


ALL = [Create, Pause, PauseFiles, Connect, Boot, Snapshot, SnapshotOfPaused, Fork, Rollback, RollbackOfPaused, Kill,
       KillOfPaused]
RUNSC = [
    (Create, ["restore"]),
    (Pause, ["checkpoint"]),
    (Connect, ["restore"]),
    (Boot, ["run"]),
    (Snapshot, ["checkpoint", "restore"]),
    (Rollback, ["restore"]),
]
SAMPLE = [
    (Create, "CreateAgent", "kill"),
    (Pause, "PauseCommit", "kill"),
    (Pause, "PauseDestroy", "kill"),
    (Connect, "ResumeAgent", "kill"),
    (Snapshot, "SnapshotCommit", "kill"),
    (Rollback, "RollbackSweep", "kill"),
    (Kill, "KillFiles", "kill"),
    (Pause, "checkpoint", "fail"),
    (Pause, "checkpoint", "killed"),
    (Connect, "restore", "fail"),
    (Create, "CreateDisk", "full"),
    (Pause, "PauseCommit", "full"),
    (Connect, "ResumeStart", "full"),
    (Pause, "PauseCommit", "broken"),
    (Snapshot, "SnapshotDisk", "broken"),
]


def everything():
    # A step that only says that it failed is the fake engine's business.
    for how in ("kill", "full", "broken", "io"):
        for operation in ALL:
            for step in operation.steps:
                yield operation, step, how
    for how in ("fail", "after", "killed", "hang"):
        for operation, verbs in RUNSC:
            for verb in verbs:
                yield operation, verb, how


def named(case):
    operation, where, how = case
    return f"{operation.__name__} {where} {how}"


def start_afresh():
    for file in (STEP_FAULT, RUNSC_FAULT):
        file.unlink(missing_ok=True)
    for how in BREAKS:
        mend(how)
    for sandbox in patiently(lambda: Sandbox.list().next_items()):
        patiently(lambda: Sandbox.kill(sandbox.sandbox_id))
    for snapshot in patiently(lambda: Sandbox.list_snapshots().next_items()):
        patiently(lambda: Sandbox.delete_snapshot(snapshot.snapshot_id))


cases = list(everything()) if sys.argv[1] == "all" else SAMPLE
# One that is looked for, as it is named when it fails.
if len(sys.argv) > 2:
    cases = [case for case in everything() if sys.argv[2] in named(case)]
failed = []
for case in cases:
    try:
        walk(*case)
    except Exception as error:
        # The rest is wanted, too.
        failed.append(case)
        print(f"{named(case)}: FAILED {error!r}", flush=True)
        start_afresh()
assert not failed, f"{len(failed)} of {len(cases)} failed"
print(f"{len(cases)} faults, and nothing was lost")
