"""Makes what the file work works on: work.py prepare DIRECTORY; and does one kind of it:
work.py sqlite DIRECTORY. Everything is made from packages that the root file system has."""

import base64
import hashlib
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
import zipfile

PYTHON = "/usr/lib/python3/dist-packages"
NODE = "/usr/share/nodejs"
NODE_PACKAGES = 120
FILES = 2000
ROWS = 300


def tree(directory):
    """Sources as they are: many small files, some large ones."""
    letters = random.Random(1)
    for number in range(FILES):
        folder = f"{directory}/d{number % 40:02}/e{number % 7}"
        os.makedirs(folder, exist_ok=True)
        size = 40_000 if number % 100 == 0 else letters.randrange(200, 8000)
        with open(f"{folder}/f{number:04}.txt", "w") as file:
            file.write("".join(letters.choices("abcdefghij \n", k=size)))


def wheel(package, target):
    """A wheel of an installed package."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        record = []

        def add(name, content):
            archive.writestr(name, content)
            record.append(f"{name},,")

        for folder, _, names in os.walk(f"{PYTHON}/{package}"):
            for name in names:
                if not name.endswith(".pyc"):
                    path = f"{folder}/{name}"
                    with open(path, "rb") as file:
                        add(os.path.relpath(path, PYTHON), file.read())
        info = f"{package}_bench-1.0.dist-info"
        add(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}-bench\nVersion: 1.0\n")
        add(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "\n".join(record) + "\n")


def node_packages(directory):
    """A project whose dependencies are archives of installed packages."""
    os.makedirs(f"{directory}/packages")
    chosen = []
    for name in sorted(os.listdir(NODE)):
        path = f"{NODE}/{name}/package.json"
        if not name.startswith("@") and os.path.isfile(path) and len(chosen) < NODE_PACKAGES:
            with open(path) as file:
                manifest = json.load(file)
            # Of each its files alone: they are all there is.
            kept = {key: manifest[key] for key in ("name", "main") if key in manifest}
            kept["version"] = "1.0.0"
            if kept.get("name") == name:
                chosen.append((name, kept))
    entries = {}
    for name, manifest in chosen:
        file = f"packages/{name}.tgz"
        with tarfile.open(f"{directory}/{file}", "w:gz") as archive:
            text = json.dumps(manifest).encode()
            head = tarfile.TarInfo("package/package.json")
            head.size, head.mode = len(text), 0o644
            archive.addfile(head, io.BytesIO(text))
            for folder, _, names in os.walk(f"{NODE}/{name}"):
                for entry in names:
                    path = f"{folder}/{entry}"
                    inside = os.path.relpath(path, f"{NODE}/{name}")
                    if inside != "package.json" and os.path.isfile(path):
                        archive.add(os.path.realpath(path), f"package/{inside}")
        with open(f"{directory}/{file}", "rb") as archive:
            digest = hashlib.sha512(archive.read()).digest()
        integrity = "sha512-" + base64.b64encode(digest).decode()
        entries[name] = {"file": f"file:{file}", "integrity": integrity}
    wanted = {name: entry["file"] for name, entry in entries.items()}
    project = {"name": "bench", "version": "1.0.0", "dependencies": wanted}
    packages = {"": project}
    for name, entry in entries.items():
        packages[f"node_modules/{name}"] = {
            "version": "1.0.0", "resolved": entry["file"], "integrity": entry["integrity"]}
    lock = {"name": "bench", "version": "1.0.0", "lockfileVersion": 3, "requires": True,
            "packages": packages}
    for name, value in (("package.json", project), ("package-lock.json", lock)):
        with open(f"{directory}/{name}", "w") as file:
            json.dump(value, file)


def prepare(directory):
    os.makedirs(directory)
    os.chdir(directory)
    tree("tree")
    with tarfile.open("tree.tar", "w") as archive:
        archive.add("tree")
    run = lambda *command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run("git", "init", "-q", "tree")
    run("git", "-C", "tree", "add", ".")
    run("git", "-C", "tree", "-c", "user.name=b", "-c", "user.email=b@localhost",
        "commit", "-q", "-m", "files")
    for package in ("pip", "setuptools"):
        wheel(package, f"{package}_bench-1.0-py3-none-any.whl")
    node_packages("project")


def sqlite(directory):
    """Rows one by one, each made durable."""
    path = f"{directory}/rows.db"
    if os.path.exists(path):
        os.remove(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
    for number in range(ROWS):
        connection.execute("INSERT INTO rows (text) VALUES (?)", (f"row {number}" * 10,))
    assert connection.execute("SELECT count(*) FROM rows").fetchone()[0] == ROWS


{"prepare": prepare, "sqlite": sqlite}[sys.argv[1]](sys.argv[2])
