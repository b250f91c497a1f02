"""Back-pressure towards upstreams where HTTP/2 breaks it.

A client of HTTP/2 opens a window for each stream and may leave it shut. The engine reads on from the upstream
and keeps what the window does not let through, without end. So reading from any upstream of that client
pauses while too much of it waits. What the client sends is read all the same: it may be what opens the window.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

MAX_WAITING_BYTES: Final = 8_388_608
"""Of all streams of one client connection together. A stalled stream holds up the others only from here on."""
PAUSE_S: Final = 0.05


def waiting(h2: BufferedH2Connection) -> int:
    """Bytes that a peer's flow-control windows hold back."""
    return sum(len(part.data) for parts in h2.stream_buffers.values() for part in parts)


class PacedReader:
    """A stream reader that waits for its consumer.

    Args:
        reader: The upstream's.
        pending: Bytes that the consumer has not taken yet.
    """

    def __init__(self, reader: asyncio.StreamReader, pending: Callable[[], int]) -> None:
        self._reader = reader
        self._pending = pending

    async def read(self, n: int) -> bytes:
        while self._pending() > MAX_WAITING_BYTES:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(PAUSE_S)
        return await self._reader.read(n)
