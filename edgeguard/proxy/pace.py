"""Back-pressure where the engine has none.

A client of HTTP/2 opens a window for each stream and may leave it shut. The engine reads on from the upstream
and keeps what the window does not let through, without end. So reading from any upstream of that client
pauses while too much of it waits. What such a client sends is read all the same: it may be what opens the window.
The other way the engine reads on from a client whose request still waits for its verdict; there reading from
the client pauses.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

PAUSE_S: Final = 0.05


def waiting(h2: BufferedH2Connection) -> int:
    """Bytes that a peer's flow-control windows hold back."""
    return sum(len(part.data) for parts in h2.stream_buffers.values() for part in parts)


class PacedReader:
    """A stream reader that waits for its consumer.

    Args:
        reader: The upstream's.
        pending: Bytes that the consumer has not taken yet.
        limit: How many of them may wait. A stalled stream holds up its neighbours only from here on.
    """

    def __init__(self, reader: asyncio.StreamReader, pending: Callable[[], int], limit: int) -> None:
        self._reader = reader
        self._pending = pending
        self._limit = limit

    async def read(self, n: int) -> bytes:
        while self._pending() > self._limit:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(PAUSE_S)
        return await self._reader.read(n)
