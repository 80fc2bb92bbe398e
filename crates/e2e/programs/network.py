"""Private ranges, the host and other sandboxes are out of reach; the sandbox itself is not.

    network.py PORT         a port on which something listens on every address of the host
"""

import re
import subprocess
import sys

from e2b import Sandbox

PROBE = """
import concurrent.futures, socket, sys

def probe(target):
    host, port = target.rsplit(":", 1)
    connection = socket.socket()
    connection.settimeout(3)
    try:
        connection.connect((host, int(port)))
        return f"{target} reached"
    except OSError as error:
        return f"{target} denied {error}"

# All at once: a denial may be a silence of three seconds, and a host can have many addresses.
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print("\\n".join(pool.map(probe, sys.argv[1:])))
"""
first, second = Sandbox.create(timeout=300), Sandbox.create(timeout=300)
second.commands.run("python3 -m http.server 8000 --bind 0.0.0.0", background=True, timeout=0)
second.commands.run("curl -sS --retry 20 --retry-connrefused --retry-delay 1 localhost:8000", timeout=30)
first.files.write("probe.py", PROBE)
# All addresses of the host, the ends of the sandboxes' uplinks included, and their other ends.
addresses = re.findall(r"inet (\d+\.\d+\.\d+)\.(\d+)/", subprocess.check_output(["ip", "-4", "addr"], text=True))
uplinks = [f"{net}.{int(last) + 1}:8000" for net, last in addresses if net.startswith("10.219.")]
assert len(uplinks) >= 2, addresses
hosts = [f"{net}.{last}:{sys.argv[1]}" for net, last in addresses if not net.startswith("127.")]
metadata = ["169.254.169.254:80", f"169.254.0.22:{sys.argv[1]}"]
targets = " ".join(hosts + uplinks + metadata)
found = first.commands.run(f"python3 probe.py {targets}", timeout=60).stdout
assert "reached" not in found, found
assert found.count("denied") == len(targets.split()), found
second.files.write("probe.py", PROBE)
own = second.commands.run("python3 probe.py 127.0.0.1:8000 169.254.0.21:8000").stdout
assert own.count("reached") == 2, own
first.kill()
second.kill()
