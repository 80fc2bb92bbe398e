"""Kills every sandbox of the server."""

from e2b import Sandbox

paginator = Sandbox.list()
while paginator.has_next:
    for item in paginator.next_items():
        Sandbox.kill(item.sandbox_id)
