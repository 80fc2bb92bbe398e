"""Kills every sandbox of the server and deletes every snapshot."""

from e2b import Sandbox

paginator = Sandbox.list()
while paginator.has_next:
    for item in paginator.next_items():
        Sandbox.kill(item.sandbox_id)
paginator = Sandbox.list_snapshots()
while paginator.has_next:
    for item in paginator.next_items():
        Sandbox.delete_snapshot(item.snapshot_id)
