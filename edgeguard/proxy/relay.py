"""The tunnel lane: two transports, and nothing of Python between their bytes but one call.

Each end of a tunnel is a `Pipe`: what arrives is counted and written to the other end. A full
write buffer there stops reading here. One side may finish while the other goes on (RFC 9110, 9.3.6);
the tunnel ends when both have, when one breaks, when nothing moves for too long, or by order.
"""

import asyncio
from collections.abc import Callable

from edgeguard.guard import Verdict
from edgeguard.policy.reasons import Reason
from edgeguard.proxy.clienthello import HelloError
from edgeguard.proxy.retry import HelloWatch


class Tunnel:
    """An open tunnel.

    Attributes:
        verdict: The settled allow that opened it.
        key: Whose quota of tunnels it takes.
        until: Unix seconds at which time alone may change the verdict, or None.
        charged: Bytes that were charged to the budgets of the verdict already.
        ended_by: What ended it, one word; None while it is open.
    """

    __slots__ = (
        "_alive",
        "_done",
        "_moved",
        "_moved_at",
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
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        now: float,
        done: "Callable[[Tunnel], None]",
    ) -> None:
        self.verdict = verdict
        self.key = key
        self.until = verdict.until
        self.charged = 0
        self.ended_by: str | None = None
        self.client = Pipe(self, client, upstream)
        self.upstream = Pipe(self, upstream, client)
        self._alive = 2
        self._moved = 0
        self._moved_at = now
        self._done = done

    def start(
        self, from_client: bytes, from_upstream: bytes, buffer_bytes: int, watch: HelloWatch | None = None
    ) -> None:
        """Takes both transports over, with what was read from each so far.

        With a `watch`, `from_client` ends with the ClientHello, and the handshake goes on under it.
        """
        client, upstream = self.client.here, self.upstream.here
        client.set_write_buffer_limits(buffer_bytes)
        upstream.set_write_buffer_limits(buffer_bytes)
        if watch is not None:
            self.client = Watched(self, client, upstream, watch)
            self.upstream = Watched(self, upstream, client, watch)
            self.client.count = len(from_client)
            client.set_protocol(self.client)
            upstream.set_protocol(self.upstream)
            upstream.write(from_client)
            return
        client.set_protocol(self.client)
        upstream.set_protocol(self.upstream)
        if from_client:
            self.client.data_received(from_client)
        if from_upstream:
            self.upstream.data_received(from_upstream)
            upstream.resume_reading()

    def shaken(self) -> None:
        """The handshake cannot name anybody else any more: nothing is looked at from here on."""
        client, upstream = Pipe.after(self.client), Pipe.after(self.upstream)
        self.client, self.upstream = client, upstream
        client.here.set_protocol(client)
        upstream.here.set_protocol(upstream)

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

    def finished(self, pipe: "Pipe") -> None:
        """One side has nothing more to say."""
        if self.client.finished and self.upstream.finished:
            if self.ended_by is None:
                self.ended_by = "closed"
            pipe.here.close()
            pipe.there.close()
        elif not pipe.there.is_closing():
            pipe.there.write_eof()

    def lost(self, pipe: "Pipe", error: Exception | None) -> None:
        """One transport is gone; what it had said is still delivered unless it broke."""
        if self.ended_by is None:
            self.ended_by = "client_lost" if pipe.here is self.client.here else "upstream_lost"
        if error is None:
            pipe.there.close()
        else:
            pipe.there.abort()
        self._alive -= 1
        if not self._alive:
            self._done(self)


class Pipe(asyncio.Protocol):
    """One end of a tunnel: bytes that arrive `here` are written `there`."""

    __slots__ = ("count", "finished", "here", "there", "tunnel")

    def __init__(self, tunnel: Tunnel, here: asyncio.Transport, there: asyncio.Transport) -> None:
        self.tunnel = tunnel
        self.here = here
        self.there = there
        self.count = 0
        self.finished = False

    @classmethod
    def after(cls, other: "Pipe") -> "Pipe":
        """A pipe in the place of another."""
        pipe = cls(other.tunnel, other.here, other.there)
        pipe.count = other.count
        pipe.finished = other.finished
        return pipe

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.there.write(data)

    def eof_received(self) -> bool:
        self.finished = True
        self.tunnel.finished(self)
        return True

    def pause_writing(self) -> None:
        """`here` is full: stop reading what is written to it."""
        self.there.pause_reading()

    def resume_writing(self) -> None:
        self.there.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.lost(self, exc)


class Watched(Pipe):
    """One end of a tunnel while its handshake is watched."""

    __slots__ = ("_watch",)

    def __init__(
        self,
        tunnel: Tunnel,
        here: asyncio.Transport,
        there: asyncio.Transport,
        watch: HelloWatch,
    ) -> None:
        super().__init__(tunnel, here, there)
        self._watch = watch

    def data_received(self, data: bytes) -> None:
        watch, tunnel = self._watch, self.tunnel
        self.count += len(data)
        try:
            if self is tunnel.client:
                data = watch.client(data)
                if data:
                    self.there.write(data)
            else:
                self.there.write(data)
                data = watch.server(data)
                if data:
                    self.here.write(data)
        except HelloError:
            tunnel.end(Reason.MISDIRECTED_REQUEST.value)
            return
        if watch.done:
            tunnel.shaken()

    def eof_received(self) -> bool:
        if self is self.tunnel.client and self._watch.holds:
            # What is held could only follow the end; and no handshake is finished by who has left it.
            self.tunnel.end("client_lost")
            return True
        return super().eof_received()
