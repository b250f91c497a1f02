"""An upstream connection while its tunnel is being set up."""

import asyncio
from typing import Protocol, cast


class Watcher(Protocol):
    """Who wants to know what the upstream does."""

    def upstream_spoke(self) -> None: ...

    def upstream_left(self) -> None: ...


class Upstream(asyncio.Protocol):
    """An upstream connection from the moment it is made until the relay takes it over."""

    __slots__ = ("early", "gone", "transport", "watcher")

    def __init__(self) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self.watcher: Watcher | None = None
        self.early = b""
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.early += data
        if self.watcher is not None:
            self.watcher.upstream_spoke()
        else:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self.watcher is not None:
            self.watcher.upstream_left()

    def abandon(self) -> None:
        """The client's side is done with it."""
        self.watcher = None
        self.transport.abort()
