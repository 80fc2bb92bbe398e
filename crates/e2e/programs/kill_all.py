"""Kills every sandbox of the server and deletes every snapshot.

    kill_all.py [EXPECTED]      EXPECTED "none": there must be no sandbox
"""

import sys

from e2b import Sandbox

paginator = Sandbox.list()
while paginator.has_next:
    for item in paginator.next_items():
        assert sys.argv[1:] != ["none"], f"{item.sandbox_id} is {item.state}, and should be gone"
        Sandbox.kill(item.sandbox_id)
paginator = Sandbox.list_snapshots()
while paginator.has_next:
    for item in paginator.next_items():
        Sandbox.delete_snapshot(item.snapshot_id)
