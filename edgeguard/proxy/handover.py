"""The way into the mitmproxy lane: an accepted connection, with what was read of it, changes hands.

mitmproxy gets a stream reader and writer over the same transport, a destination that is an
address already (so it never resolves), and a passage with the grants that an allow wrote down.
Whatever happens then, the way out is one: passage closed, grants gone, the transport ended.
"""

import asyncio
import logging
from typing import Any, NamedTuple

from mitmproxy import ctx
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.mode_servers import ServerInstance

from edgeguard.proxy.door import Door
from edgeguard.proxy.passages import Passage
from edgeguard.proxy.reaching import ReachingHandler
from edgeguard.verdict import Verdict

logger = logging.getLogger(__name__)


class Handed(NamedTuple):
    """What changes hands."""

    passage: Passage
    verdict: Verdict | None
    """The settled allow of a CONNECT; None when each request is judged on its own."""
    destination: tuple[str, int] | None
    """(address, port) that the connection is pinned to; None on a plain forward connection."""
    key: str
    """The tunnel's place that the connection takes."""


class Handover:
    """One client connection in the mitmproxy lane."""

    def __init__(
        self,
        door: Door,
        instance: ServerInstance[Any],
        transport: asyncio.Transport,
        data: bytes,
        handed: Handed,
    ) -> None:
        self.verdict = handed.verdict
        self.until = None if handed.verdict is None else handed.verdict.until
        self.deadline = float("inf")
        self.ended_by: str | None = None
        self.lingering = False
        self.client_finished = False
        self.received = 0
        self.sent = 0
        self.charged = 0
        self._door = door
        self._key = handed.key
        self._transport = transport
        reader = asyncio.StreamReader(limit=door.bounds.relay_bytes, loop=door.loop)
        protocol = _Reading(self, reader, door.loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = _Writer(self, transport, protocol, reader, door.loop)
        handler = ReachingHandler(
            door.dialer, door.passages, ctx.master, reader, writer, ctx.options, instance.mode
        )
        context = handler.layer.context
        site = handed.passage.site
        if site is not None:
            # Dialled only once a request was allowed: until then there is no grant.
            context.server.address = (site.origin_host, site.origin_port)
            context.server.sni = site.origin_name
            handler.layer = modes.TransparentProxy(context)
        elif handed.destination is None:
            handler.layer = modes.HttpProxy(context)
        else:
            context.server.address = handed.destination
            context.server.sni = handed.passage.host
            handler.layer = modes.TransparentProxy(context)
        self._handler = handler
        self._instance = instance
        self._client_id = context.client.id
        door.passages.open(self._client_id, handed.passage)
        if handed.destination is not None:
            door.passages.grant(self._client_id, (handed.destination[0],), handed.destination[1])
        door.opened(self)
        if handed.verdict is not None:
            door.meter(self, handed.verdict)
        if data:
            protocol.data_received(data)
        transport.resume_reading()
        self._task = door.loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            with self._instance.manager.register_connection(self._client_id, self._handler):
                await self._handler.handle_client()
        except Exception:
            # Fail closed: the connection ends below, and with it its grants.
            logger.exception("a connection in the mitmproxy lane failed")
        finally:
            self._door.passages.close(self._client_id)
            self.linger()

    def linger(self) -> None:
        """Delivers what is buffered, then ends; what the client still sends is discarded until a deadline.

        Closing at once while the client is sending would reset the connection and could take a
        refusal away from under its reader (RFC 9112, 9.6).
        """
        if self.lingering or self._transport.is_closing():
            return
        self.lingering = True
        # Also of a client that has finished: it may never read what is still to be delivered.
        self.deadline = self._door.now + self._door.linger_s
        self._door.phases.add(self)
        if self.client_finished or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.set_protocol(_Discarding(self))
        self._transport.resume_reading()
        self._transport.write_eof()

    def expire(self) -> None:
        self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    def end(self, why: str) -> None:
        """Ends the connection at once."""
        if self.ended_by is None:
            self.ended_by = why
        self._door.passages.close(self._client_id)
        self._transport.abort()

    @property
    def moved(self) -> int:
        """Bytes in both directions, on the client's side."""
        return self.received + self.sent

    def lost(self) -> None:
        """The client's transport is gone."""
        door = self._door
        door.phases.discard(self)
        door.open.discard(self)
        door.metered.discard(self)
        door.connections -= 1
        door.release(self._key)
        if self.verdict is not None:
            door.guard.finish(
                self.verdict,
                sent=self.received,
                received=self.sent,
                why=self.ended_by or "closed",
                charged=self.charged,
            )


class _Reading(asyncio.StreamReaderProtocol):
    """Feeds mitmproxy, and counts."""

    def __init__(
        self, handover: Handover, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(reader, loop=loop)
        self._handover = handover

    def data_received(self, data: bytes) -> None:
        self._handover.received += len(data)
        super().data_received(data)

    def eof_received(self) -> bool | None:
        self._handover.client_finished = True
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._handover.lost()


class _Discarding(asyncio.Protocol):
    """Reads what a client still sends after its last answer; an end of stream closes."""

    def __init__(self, handover: Handover) -> None:
        self._handover = handover

    def connection_lost(self, exc: Exception | None) -> None:
        self._handover.lost()


class _Writer(asyncio.StreamWriter):
    """A stream writer whose close lingers."""

    def __init__(
        self,
        handover: Handover,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._handover = handover

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._handover.sent += len(data)
        super().write(data)

    def write_eof(self) -> None:
        if self.can_write_eof():
            super().write_eof()
        else:
            # TLS to the proxy cannot be closed by halves: what is buffered is delivered, then it ends.
            self._handover.linger()

    def get_extra_info(self, name: str, default: object = None) -> object:
        found = super().get_extra_info(name, default)
        if name in {"peername", "sockname"} and not isinstance(found, tuple):
            return ("unix", 0)  # the engine knows of addresses and ports only
        return found

    def is_closing(self) -> bool:
        return self._handover.lingering or super().is_closing()

    def close(self) -> None:
        self._handover.linger()

    def __del__(self) -> None:
        """A collected writer of the standard library closes its transport; here `Handover` does that."""
