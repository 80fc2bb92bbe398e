"""Times create, first command, pause and connect of a running server, each beside the bare runsc
commands that do the same work, in turns within one run.

    E2B_API_URL=… E2B_SANDBOX_URL=… E2B_API_KEY=… \
        python3 scripts/measure.py --runsc RUNSC --rootfs DIR [--rounds 10] [--mib 0,256,1024]

Needs root, the package `e2b`, and a server whose sandboxes have memory enough for the largest size.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time

from e2b import Sandbox

# Fills memory with random bytes, says so, and stays.
HOLD = (
    "import os,time\n"
    "n=int(os.environ['MIB'])\n"
    "held=[os.urandom(1<<20) for _ in range(n)]\n"
    "open('held','w').write('yes')\n"
    "time.sleep(1e6)\n"
)


class Bare:
    """One container driven by runsc alone: overlay on the same tree, no network."""

    def __init__(self, runsc, rootfs, mib, memory_mib):
        self.base = tempfile.mkdtemp(prefix="bare-", dir="/var/tmp")
        self.runsc = [runsc, f"--root={self.base}/state", "--network=none", "--overlay2=none",
                      "--allow-suid", "--ignore-cgroups"]
        self.image = f"{self.base}/image"
        self.count = 0
        for name in ("upper", "work", "root", "state"):
            os.mkdir(f"{self.base}/{name}")
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o",
             f"redirect_dir=on,lowerdir={rootfs},upperdir={self.base}/upper,"
             f"workdir={self.base}/work", f"{self.base}/root"], check=True)
        spec = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["python3", "-c", HOLD],
                "env": ["PATH=/usr/bin:/bin", f"MIB={mib}"],
            },
            "root": {"path": f"{self.base}/root"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": t} for t in
                                     ("pid", "ipc", "uts", "mount", "network")]},
        }
        with open(f"{self.base}/config.json", "w") as file:
            json.dump(spec, file)

    def call(self, *arguments):
        subprocess.run([*self.runsc, *arguments], check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=open(f"{self.base}/log", "a"))

    def name(self):
        return f"bare{self.count:04}"

    def start(self):
        self.call("run", "-detach", "-bundle", self.base, self.name())

    def wait_held(self):
        while not os.path.exists(f"{self.base}/upper/held"):
            time.sleep(0.01)

    def checkpoint(self):
        shutil.rmtree(self.image, ignore_errors=True)
        os.mkdir(self.image)
        self.call("pause", self.name())
        self.call("checkpoint", "-leave-running", "-compression", "none", "-direct",
                  "-image-path", self.image, self.name())
        self.call("delete", "-force", self.name())

    def restore(self):
        self.count += 1
        self.call("restore", "-detach", "-background", "-bundle", self.base,
                  "-image-path", self.image, self.name())

    def loaded(self):
        self.call("wait", "-restore", self.name())

    def close(self):
        self.call("delete", "-force", self.name())
        netns = f"{self.base}/state/null-netns"
        if os.path.ismount(netns):
            subprocess.run(["umount", netns], check=True)
        subprocess.run(["umount", f"{self.base}/root"], check=True)
        shutil.rmtree(self.base)


def timed(call):
    begin = time.perf_counter()
    result = call()
    return (time.perf_counter() - begin) * 1000, result


def held_sandbox(mib):
    sandbox = Sandbox.create(timeout=3600)
    if mib:
        sandbox.files.write("/home/user/hold.py", HOLD)
        sandbox.commands.run("python3 hold.py", background=True, timeout=0, envs={"MIB": str(mib)})
        sandbox.commands.run("while [ ! -e /home/user/held ]; do sleep 0.1; done", timeout=120)
    return sandbox


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runsc", required=True)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--mib", default="0,256,1024")
    options = parser.parse_args()
    figures = {}

    def note(name, milliseconds):
        figures.setdefault(name, []).append(milliseconds)

    # Create and first command, beside a restore of an idle interpreter by hand.
    idle = Bare(options.runsc, options.rootfs, 0, 512)
    idle.start()
    idle.wait_held()
    idle.checkpoint()
    for _ in range(options.rounds):
        took, sandbox = timed(lambda: Sandbox.create(timeout=300))
        note("create", took)
        note("first command (true)", timed(lambda: sandbox.commands.run("true"))[0])
        note("kill", timed(sandbox.kill)[0])
        note("runsc restore, idle", timed(idle.restore)[0])
        idle.loaded()
        note("runsc delete", timed(lambda: idle.call("delete", "-force", idle.name()))[0])
    idle.close()

    for mib in [int(size) for size in options.mib.split(",")]:
        sandbox = held_sandbox(mib)
        bare = Bare(options.runsc, options.rootfs, mib, 4096)
        bare.start()
        bare.wait_held()
        for _ in range(options.rounds):
            note(f"pause, {mib} MiB", timed(sandbox.pause)[0])
            note(f"runsc pause+checkpoint+delete, {mib} MiB", timed(bare.checkpoint)[0])
            note(f"connect, {mib} MiB", timed(lambda: sandbox.connect(timeout=3600))[0])
            note(f"first command after connect, {mib} MiB",
                 timed(lambda: sandbox.commands.run("true"))[0])
            note(f"runsc restore, {mib} MiB", timed(bare.restore)[0])
            # The next round starts with everything loaded, as a user's would after a while.
            bare.loaded()
        sandbox.kill()
        bare.close()

    print(f"{'medians of ' + str(options.rounds) + ', ms':48}{'median':>10}{'min':>10}{'max':>10}")
    for name, values in figures.items():
        print(f"{name:48}{statistics.median(values):10.0f}{min(values):10.0f}{max(values):10.0f}")


if __name__ == "__main__":
    main()
