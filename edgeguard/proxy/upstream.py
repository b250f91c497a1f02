"""An upstream connection: while its tunnel is being set up, and then as the tunnel's other end."""

import asyncio
from typing import Protocol, cast

from edgeguard.proxy.dial import Announcing, Connecting
from edgeguard.proxy.relay import End


class Watcher(Protocol):
    """Who wants to know what the upstream does."""

    def upstream_spoke(self) -> None: ...

    def upstream_left(self) -> None: ...


class Upstream(End, Announcing):
    """An upstream connection from the moment it is made."""

    __slots__ = ("connecting", "early", "gone", "watcher")

    def __init__(self) -> None:
        super().__init__()
        self.connecting: Connecting[Upstream] | None = None
        self.watcher: Watcher | None = None
        self.early = b""
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.here = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it
        if self.connecting is not None:
            self.connecting.made()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.connecting is not None:
            self.connecting.release()
        super().connection_lost(exc)

    def received(self, data: bytes) -> None:
        self.early += data
        if self.watcher is not None:
            self.watcher.upstream_spoke()
        else:
            self.here.pause_reading()

    def lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self.watcher is not None:
            self.watcher.upstream_left()

    def abandon(self) -> None:
        """The client's side is done with it."""
        self.watcher = None
        self.here.abort()
