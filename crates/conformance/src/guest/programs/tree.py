"""A file tree with everything that a tree can have, and a description of all of it."""

import hashlib
import os
import random
import shutil
import stat

ROOT = os.path.abspath("tree")
names = iter(range(1 << 30))


def add(directory):
    path = os.path.join(directory, f"file {next(names)} é")
    with open(path, "wb") as file:
        file.write(os.urandom(random.randrange(0, 32768)))
    os.chmod(path, random.choice([0o600, 0o644, 0o755, 0o4755]))
    os.utime(path, ns=(random.randrange(1 << 60), random.randrange(1 << 60)))
    return path


def start(files):
    for number in range(10):
        directory = os.path.join(ROOT, f"directory {number}", "deep")
        os.makedirs(directory)
        for _ in range(files // 10):
            path = add(directory)
        os.symlink("file not there", os.path.join(directory, "dangling"))
        os.symlink(path, os.path.join(directory, "link"))
        os.link(path, os.path.join(directory, "second name"))
        os.mkfifo(os.path.join(directory, "fifo"))
        os.mkdir(os.path.join(directory, "empty"), 0o2700)
    with open(os.path.join(ROOT, "sparse"), "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    return describe()


def files():
    found = [os.path.join(directory, name)
             for directory, _, names in os.walk(ROOT) for name in names if name.startswith("file ")]
    return sorted(found)


def change():
    """Adds, rewrites, appends, renames, deletes; tells everything."""
    present = files()
    for _ in range(8):
        add(os.path.dirname(random.choice(present)))
    first, second, third, fourth = random.sample(present, 4)
    with open(first, "r+b") as file:
        file.write(os.urandom(1000))
    with open(second, "ab") as file:
        file.write(os.urandom(1000))
    os.rename(third, os.path.join(ROOT, os.path.basename(third)))
    os.unlink(fourth)
    shutil.rmtree(os.path.join(ROOT, "made"), ignore_errors=True)
    os.makedirs(os.path.join(ROOT, "made", str(next(names))))
    return describe()


def content(path):
    """Of a huge file only the end, so that a gigabyte of nothing is not read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > 1 << 24:
            file.seek(-65536, os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def describe():
    """What each entry is, by path."""
    entries = {}
    for directory, directories, files in os.walk(ROOT):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            entry = {"mode": f"{status.st_mode:o}", "owner": [status.st_uid, status.st_gid],
                     "size": status.st_size, "mtime": status.st_mtime_ns}
            if os.path.islink(path):
                entry["target"] = os.readlink(path)
            elif os.path.isfile(path):
                entry["links"] = status.st_nlink
                entry["sha256"] = content(path)
            elif stat.S_ISFIFO(status.st_mode):
                entry["fifo"] = True
            entries[os.path.relpath(path, ROOT)] = entry
    return entries
