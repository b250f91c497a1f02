"""`edgeguard run`, with a window on what it keeps: one line of JSON for each connection to a local port.

Only for the soak run: what is in memory (passages, seats, tasks) is nothing that a node tells.
"""

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

import uvloop

from edgeguard.proxy.node import Node
from edgeguard.settings import load_settings


def census(node: Node) -> dict[str, int]:
    """What the process holds at this moment."""
    door = None if node._servers is None else node._servers.door
    counts = {
        "rss_kb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "tasks": len(asyncio.all_tasks()),
        "objects": len(gc.get_objects()),
        "written": node.log.written,
        "waiting": node.log.waiting,
        "refused": node.log.refused,
    }
    if door is not None and node._servers is not None and node._master is not None:
        addon = node._master.addons.get("edgeguard")
        counts |= {
            "connections": door.connections,
            "seats": door.held,
            "tunnels": len(door.tunnels),
            "phases": len(door.phases),
            "open": len(door.open),
            "passages": len(node._servers.services.passages),
            "engine": len(node._servers.connections),
            "lane": len(addon._desk.connections),
        }
    return counts


async def main() -> None:
    node = Node(load_settings(Path(sys.argv[1]), os.environ))

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(census(node)).encode())
        writer.close()

    window = await asyncio.start_server(tell, "127.0.0.1", int(sys.argv[2]))
    async with window:
        await node.run()


if __name__ == "__main__":
    uvloop.run(main())
