"""Private ranges, the host and other sandboxes are out of reach; the sandbox itself is not."""

import sys

from e2b import Sandbox

PROBE = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    probe = socket.socket()
    probe.settimeout(2)
    try:
        probe.connect((host, int(port)))
        print(target, "reached")
    except OSError as error:
        print(target, "denied", error)
"""
first, second = Sandbox.create(timeout=300), Sandbox.create(timeout=300)
second.commands.run("python3 -m http.server 8000 --bind 0.0.0.0", background=True, timeout=0)
first.files.write("probe.py", PROBE)
targets = " ".join(sys.argv[1:] + ["169.254.169.254:80", "169.254.0.22:3000", "10.0.0.1:80"])
found = first.commands.run(f"python3 probe.py {targets}", timeout=60).stdout
assert "reached" not in found, found
own = first.commands.run(
    "python3 -m http.server 8000 >/dev/null 2>&1 & sleep 1; python3 probe.py 127.0.0.1:8000 169.254.0.21:8000").stdout
assert "denied" not in own, own
first.kill()
second.kill()
