"""The tunnel lane: two transports, and nothing of Python between their bytes but one call.

Each end of a tunnel is an `End`: what arrives is counted and written to the other end. The two
protocols that opened the way are the ends themselves, since telling a transport of another protocol
makes it stop and start reading. What cannot be written at once stops reading on the other side.
One side may finish while the other goes on (RFC 9110, 9.3.6); the tunnel ends when both have, when
one breaks, when nothing moves for too long, or by order.
"""

import asyncio
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.clienthello import HelloError
from edgeguard.proxy.retry import HelloWatch
from edgeguard.verdict import Verdict

MUCH: Final = 32_768
"""A piece that is larger announces more."""


class End(asyncio.Protocol):
    """One end of a connection through this proxy: its own work until a tunnel joins it to the other end.

    Attributes:
        here: The transport of this end.
        there: The transport of the other end, once there is a tunnel.
        tunnel: What this is an end of; None before.
        count: Bytes that arrived here for the tunnel.
        finished: This end has nothing more to say.
    """

    __slots__ = ("_write", "count", "finished", "here", "there", "tunnel")

    def __init__(self) -> None:
        # Nothing here may raise: the event loop would leave the client hanging.
        self.here: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self.there: asyncio.Transport = None  # type: ignore[assignment]  # set with the tunnel
        self.tunnel: Tunnel | None = None
        self.count = 0
        self.finished = False
        self._write: Callable[[bytes], None] | None = None

    # What an end does before there is a tunnel

    def received(self, data: bytes) -> None:
        """Bytes before there is a tunnel."""
        raise NotImplementedError

    def ended(self) -> bool:
        """The end of the stream before there is a tunnel. True keeps the transport open."""
        return False

    def lost(self, exc: Exception | None) -> None:
        """The transport is gone before there is a tunnel."""
        raise NotImplementedError

    # What it does afterwards

    def join(self, there: asyncio.Transport) -> None:
        """From now on bytes go straight to the other end."""
        self._write = there.write

    def data_received(self, data: bytes) -> None:
        write = self._write
        if write is not None:
            size = len(data)
            self.count += size
            write(data)
            if size > MUCH:
                self._read_by_the_buffer()
        elif self.tunnel is not None:
            self.tunnel.watched(self, data)
        else:
            self.received(data)

    def eof_received(self) -> bool:
        if self.tunnel is None:
            return self.ended()
        self.tunnel.finished(self)
        return self.here.can_write_eof()  # TLS ends with it, whatever is answered

    def connection_lost(self, exc: Exception | None) -> None:
        if self.tunnel is None:
            self.lost(exc)
        else:
            self.tunnel.lost(self, exc)

    def _read_by_the_buffer(self) -> None:
        """Much is coming: from now on it is read in pieces of a bounded size, so that little waits if nobody takes it."""
        if self.tunnel is not None and self._write is not None and not self.here.is_closing():
            self.here.set_protocol(Bulk(self, self._write, self.tunnel.buffer_bytes))

    def pause_writing(self) -> None:
        """`here` is full: stop reading what is written to it."""
        if self.tunnel is not None:
            self.there.pause_reading()

    def resume_writing(self) -> None:
        if self.tunnel is not None:
            self.there.resume_reading()


class Bulk(asyncio.BufferedProtocol):
    """Reads for an end through a buffer that all ends of a loop share, since each takes it for one call only."""

    __slots__ = ("_buffer", "_end", "_write")

    def __init__(self, end: End, write: Callable[[bytes], None], size: int) -> None:
        self._end = end
        self._write = write
        self._buffer = _buffer(asyncio.get_running_loop(), size)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._end.count += nbytes
        self._write(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        return self._end.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.connection_lost(exc)

    def pause_writing(self) -> None:
        self._end.pause_writing()

    def resume_writing(self) -> None:
        self._end.resume_writing()


_buffers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview]] = WeakKeyDictionary()


def _buffer(loop: asyncio.AbstractEventLoop, size: int) -> memoryview:
    buffer = _buffers.get(loop)
    if buffer is None or len(buffer) != size:
        buffer = _buffers[loop] = memoryview(bytearray(size))
    return buffer


class Tunnel:
    """An open tunnel.

    Attributes:
        verdict: The settled allow that opened it.
        key: Whose quota of tunnels it takes.
        until: Unix seconds at which time alone may change the verdict, or None.
        buffer_bytes: What may wait in one direction for a reader that stalls, once much has come.
        charged: Bytes that were charged to the budgets of the verdict already.
        ended_by: What ended it, one word; None while it is open.
    """

    __slots__ = (
        "_alive",
        "_done",
        "_moved",
        "_moved_at",
        "_watch",
        "buffer_bytes",
        "charged",
        "client",
        "ended_by",
        "key",
        "until",
        "upstream",
        "verdict",
    )

    def __init__(
        self,
        verdict: Verdict,
        key: str,
        client: End,
        upstream: End,
        now: float,
        done: "Callable[[Tunnel], None]",
    ) -> None:
        self.verdict = verdict
        self.key = key
        self.until = verdict.decision.until
        self.buffer_bytes = 0
        self.charged = 0
        self.ended_by: str | None = None
        self.client = client
        self.upstream = upstream
        self._watch: HelloWatch | None = None
        self._alive = 2
        self._moved = 0
        self._moved_at = now
        self._done = done
        client.tunnel = upstream.tunnel = self
        client.there = upstream.here
        upstream.there = client.here

    def start(
        self, from_client: bytes, from_upstream: bytes, buffer_bytes: int, watch: HelloWatch | None = None
    ) -> None:
        """Takes both ends over, with what was read from each so far.

        With a `watch`, `from_client` ends with the ClientHello, and the handshake goes on under it.
        """
        client, upstream = self.client, self.upstream
        self.buffer_bytes = buffer_bytes
        # Reading stops while this much cannot be written; one more piece may have been read by then. Stopping at
        # the first byte would hold less, and took a third of the speed of one bulk tunnel.
        waiting = buffer_bytes * 3 // 4
        client.here.set_write_buffer_limits(waiting)
        upstream.here.set_write_buffer_limits(waiting)
        if watch is not None:
            self._watch = watch
            client.count = len(from_client)
            upstream.here.write(from_client)
            return
        self._join()
        if from_client:
            client.data_received(from_client)
        if from_upstream:
            upstream.data_received(from_upstream)
            upstream.here.resume_reading()

    def watched(self, end: End, data: bytes) -> None:
        """Bytes of a handshake that could still name somebody else."""
        watch = self._watch
        if watch is None:
            return
        client, upstream = self.client, self.upstream
        end.count += len(data)
        try:
            if end is client:
                data = watch.client(data)
            else:
                client.here.write(data)
                data = watch.server(data)
        except HelloError:
            self.end(Reason.MISDIRECTED_REQUEST.value)
            return
        if data:
            upstream.here.write(data)
        if watch.done:
            self._join()

    def _join(self) -> None:
        """The handshake cannot name anybody else any more: nothing is looked at from here on."""
        self._watch = None
        self.client.join(self.upstream.here)
        self.upstream.join(self.client.here)

    @property
    def sent(self) -> int:
        """Bytes from the client to the upstream."""
        return self.client.count

    @property
    def received(self) -> int:
        """Bytes from the upstream to the client."""
        return self.upstream.count

    @property
    def moved(self) -> int:
        """Bytes in both directions."""
        return self.client.count + self.upstream.count

    def sweep(self, now: float, idle_s: float, half_closed_s: float) -> None:
        """Ends the tunnel if nothing has moved for too long. `now` in seconds of the loop's clock."""
        moved = self.moved
        if moved != self._moved:
            self._moved = moved
            self._moved_at = now
            return
        half = self.client.finished or self.upstream.finished or self.ended_by is not None
        if now - self._moved_at >= (half_closed_s if half else idle_s):
            self.end("half_closed" if half else "idle")

    def end(self, why: str) -> None:
        """Ends the tunnel at once; what is still buffered is lost."""
        if self.ended_by is None:
            self.ended_by = why
        self.client.here.abort()
        self.upstream.here.abort()

    def finished(self, end: End) -> None:
        """One side has nothing more to say."""
        end.finished = True
        if self._watch is not None and end is self.client and self._watch.holds:
            # What is held could only follow the end; and no handshake is finished by who has left it.
            self.end("client_lost")
        elif self.client.finished and self.upstream.finished:
            if self.ended_by is None:
                self.ended_by = "closed"
            end.here.close()
            end.there.close()
        elif end.there.can_write_eof():
            if not end.there.is_closing():
                end.there.write_eof()
        else:
            # TLS cannot be closed by halves: what is buffered is delivered, then it ends.
            end.there.close()

    def lost(self, end: End, error: Exception | None) -> None:
        """One transport is gone; what it had said is still delivered unless it broke."""
        self._alive -= 1
        if self._alive:
            if self.ended_by is None:
                self.ended_by = "client_lost" if end is self.client else "upstream_lost"
            if error is None:
                end.there.close()
            else:
                end.there.abort()
        else:
            self._done(self)
            # Nothing calls an end any more; without the circle they are gone at once.
            self.client.tunnel = self.upstream.tunnel = None
