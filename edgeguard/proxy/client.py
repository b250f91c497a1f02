"""A client's side of a connection: what it holds, its deadlines, and how it is refused.

Before the 200 a refusal is an HTTP reply; after it, a TLS alert. Either way the connection is
half-closed then, what still arrives is discarded, and a deadline ends it. Whatever was taken (a
tunnel's place, an upstream connection, a task) is given back on every way out.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

from mitmproxy.proxy.mode_servers import ServerInstance

from edgeguard.identity.clients import CredentialsInvalid
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT, Client
from edgeguard.proxy.clienthello import ACCESS_DENIED
from edgeguard.proxy.door import Door
from edgeguard.proxy.origin import Origin
from edgeguard.proxy.relay import End
from edgeguard.proxy.replies import render
from edgeguard.proxy.upstream import Upstream
from edgeguard.verdict import Facts, Verdict

HEAD: Final = 0
"""The claim is being read."""
OPENING: Final = 1
"""Allowed so far; resolving and dialling."""
HELLO: Final = 2
"""Answered with 200; the first bytes of the tunnel are being read."""
REFUSED: Final = 3
"""The last words were said."""
GONE: Final = 4
"""A lane took over, or the client left."""


class Way(Protocol):
    """Something under way that can be called off: a lookup, a connection being made."""

    def cancel(self) -> object: ...


class ClientSide(End):
    """A client connection until a lane takes it over, or its refusal has been read.

    With an `origin` the connection was accepted, and counted, in our own loop (`accepting.py`).
    """

    __slots__ = (
        "_accept",
        "_address",
        "_back",
        "_buffer",
        "_door",
        "_generation",
        "_id",
        "_instance",
        "_key",
        "_origin",
        "_peer",
        "_phase",
        "_scanned",
        "_settled",
        "_version",
        "_way",
        "deadline",
        "until",
        "verdict",
    )

    def __init__(self, door: Door, instance: ServerInstance[Any], origin: Origin | None = None) -> None:
        # Nothing here may raise: the event loop would leave the client hanging.
        super().__init__()
        self._door = door
        self._instance = instance
        self._origin = origin
        self._phase = HEAD
        self._buffer = b""
        self._scanned = 0
        self._way: Way | None = None
        self._back: Upstream | None = None
        self._key: str | None = None
        self._settled = False
        self._accept = ""
        self._version = "1.1"
        self._id = ""
        self._peer: str | None = None
        self._address: str | None = None
        self._generation = 0
        self.verdict: Verdict | None = None
        self.until: float | None = None
        self.deadline = 0.0

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it
        door = self._door
        self.here = transport
        if self._origin is None:
            door.connections += 1
            peer = transport.get_extra_info("peername")
            self._peer = peer[0] if isinstance(peer, tuple) else None
        else:
            self._peer = self._origin.address
        if door.draining or door.connections > door.bounds.connections:
            door.turned_away += 1
            transport.abort()
            return
        self._id = door.connection_id()
        self.deadline = door.now + door.head_s
        door.phases.add(self)

    def received(self, data: bytes) -> None:
        phase = self._phase
        if phase == REFUSED:
            return
        self._buffer = data = self._buffer + data if self._buffer else data
        if phase == HEAD:
            self._read_claim(data)
        elif phase == HELLO and self._way is None:
            self._read_hello()
        elif len(data) > self._door.bounds.hello_bytes:
            self.here.pause_reading()

    def lost(self, exc: Exception | None) -> None:
        settled, opening, verdict = self._settled, self._phase == OPENING, self.verdict
        self._leave()
        self._door.connections -= 1
        if settled and verdict is not None:
            self._door.guard.finish(verdict, sent=0, received=0, why="client_lost")
        elif opening and verdict is not None:
            self._door.guard.forgo(verdict)

    def _leave(self) -> None:
        """Gives back everything that this connection holds."""
        self._phase = GONE
        self._settled = False
        self._buffer = b""
        door = self._door
        door.phases.discard(self)
        door.open.discard(self)
        if self._way is not None or self._back is not None or self._key is not None:
            self._let_go()

    def _let_go(self) -> None:
        """Gives back what a tunnel would have needed."""
        door = self._door
        door.open.discard(self)
        if self._way is not None:
            self._way.cancel()
            self._way = None
        if self._back is not None:
            self._back.abandon()
            self._back = None
        if self._key is not None:
            door.release(self._key)
            self._key = None

    def _identify(self, credentials: Sequence[str] = ()) -> Client | None:
        """Who asks; None for credentials that are wrong."""
        origin = self._origin
        proof = None if origin is None else origin.proof
        try:
            return self._door.guard.identify(self._peer, credentials, proof)
        except CredentialsInvalid:
            return None

    # What the phases do

    def _read_claim(self, data: bytes) -> None:
        """Takes all bytes received so far, in phase HEAD."""
        raise NotImplementedError

    def _read_hello(self) -> None:
        """Looks at the buffer, in phase HELLO."""
        raise NotImplementedError

    # Refusing

    def expire(self) -> None:
        """The deadline of the present phase has passed."""
        if self._phase == HEAD and self._buffer:
            self._refuse_unread(Reason.MALFORMED_REQUEST, 408)
        elif self._phase == OPENING:
            self._fail(Reason.UPSTREAM_UNREACHABLE, 504)
        elif self._phase == HELLO:
            self._finish("hello_deadline")
        else:
            self.here.abort()

    def end(self, why: str) -> None:
        """The policy no longer allows what is being opened, or the door closes."""
        if why in Reason:
            self._fail(Reason(why))
        else:
            self._finish(why)

    def abort(self) -> None:
        self.here.abort()

    def _fail(self, reason: Reason, status: int | None = None) -> None:
        """Refuses what had been allowed."""
        if self.verdict is None or self._phase not in {OPENING, HELLO}:
            return
        verdict = self._door.guard.refuse(self.verdict, reason)
        self._settled = False
        if self._phase == OPENING:
            self._reply(verdict, status)
        else:
            self._close_refused(verdict)

    def _close_refused(self, verdict: Verdict) -> None:
        """After the 200 no status can follow: an alert, where the client speaks TLS."""
        self._wind_up(ACCESS_DENIED if self._buffer[:1] == b"\x16" else b"")
        self.verdict = verdict

    def _finish(self, why: str) -> None:
        """Ends what was allowed, without a refusal."""
        if self._settled and self.verdict is not None:
            self._settled = False
            self._door.guard.finish(self.verdict, sent=0, received=0, why=why)
        self.here.abort()

    def _refuse_unread(self, reason: Reason, status: int | None = None) -> None:
        """Refuses a head that could not be read, or not to its end."""
        guard = self._door.guard
        self._reply(guard.refuse(guard.judge(Facts(self._id, UNKNOWN_CLIENT, "", 0)), reason), status)

    def _reply(self, verdict: Verdict, status: int | None = None) -> None:
        """Sends a refusal that is on record."""
        code, headers, body = render(
            verdict,
            accept=self._accept,
            http_version=self._version,
            links=self._door.links,
            challenge=self._door.challenge,
            status=status,
        )
        # Of a refused CONNECT most clients show the status line and nothing else.
        why = verdict.reason or Reason.INTERNAL_ERROR
        lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}: edgeguard {why.value}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._wind_up("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)

    def _wind_up(self, last: bytes) -> None:
        """Says the last words and half-closes; what the client still sends is discarded until a deadline."""
        door, transport = self._door, self.here
        self._phase = REFUSED
        self._buffer = b""
        self._let_go()
        if transport.is_closing():
            return
        self.deadline = door.now + door.linger_s
        door.phases.add(self)
        transport.write(last)
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
