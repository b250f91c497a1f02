"""The channel between the supervisor and one worker: JSON documents over a socket pair, each behind its length.

Both ends are this program, started by one another, so nothing here is checked against malice. What matters
is the end of it: when either process dies, the other one reads the end of the stream at once.
"""

import asyncio
import contextlib
import json
import socket
import struct
from typing import Any, Final

type Message = dict[str, Any]

_LENGTH: Final = struct.Struct("!I")
MAX_BYTES: Final = 64 * 1024 * 1024


class Channel:
    """One end. Messages have a field `kind`; the rest depends on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> "Channel":
        """Takes the socket over."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, kind: str, **fields: object) -> None:
        """Sends without waiting. What can no longer be sent is dropped: the reader finds out why."""
        if self._writer.is_closing():
            return
        body = json.dumps({"kind": kind, **fields}).encode()
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def receive(self) -> Message | None:
        """The next message; None when the other end is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_BYTES:
                return None
            message: Message = json.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return message

    async def finish(self) -> None:
        """Closes once everything has left that was sent. Never raises: the other end may be gone."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def close(self) -> None:
        self._writer.close()
