"""What the addon knows about each open client connection, beside its passage."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from edgeguard.proxy.clienthello import Hello
from edgeguard.proxy.passages import Passage
from edgeguard.verdict import Verdict


@dataclass(slots=True)
class Exchange:
    """One settled allow under way: a request with its answer, or a tunnel."""

    id: str
    verdict: Verdict
    until: float | None = None
    """Unix seconds at which time alone may change the verdict."""
    sent: int = 0
    """Body bytes from the client."""
    received: int = 0
    """Body bytes from the upstream."""
    close: bool = False
    """The client's connection ends with the answer."""
    answered: bool = False
    """The head of the answer is on its way to the client."""

    charged: int = 0
    """Bytes that the guard was told of."""
    meter: Callable[[int, bool], None] | None = None
    """Told of every count, and whether the client sent it."""

    def count(self, size: int, *, sent: bool) -> None:
        if sent:
            self.sent += size
        else:
            self.received += size
        if self.meter is not None:
            self.meter(size, sent)

    def count_sent(self, data: bytes) -> bytes:
        self.count(len(data), sent=True)
        return data

    def count_received(self, data: bytes) -> bytes:
        self.count(len(data), sent=False)
        return data


@dataclass(slots=True)
class Connection:
    """One client connection in the engine."""

    passage: Passage
    carried: bool = False
    """It came inside of a tunnel of the front door, which counts its bytes."""
    ident: str = ""
    """The engine's `client.id`."""
    exchanges: dict[str, Exchange] = field(default_factory=dict)
    tunnel: Exchange | None = None
    """The CONNECT that the addon itself allowed; None behind the front door."""
    h2: BufferedH2Connection | None = None
    """The client's side, where it speaks HTTP/2."""
    waiting: Callable[[], int] | None = None
    """Bytes of bodies that wait for a verdict or for a connection."""
    hello: Hello | None = None
    """The ClientHello that was just read."""
    untrusted: str | None = None
    """What the engine said about the last failed handshake with an upstream."""
    dialling: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    drain: asyncio.TimerHandle | None = None
    deadline: asyncio.TimerHandle | None = None
    """Of the head or handshake that is being read."""
    ending: str | None = None
    """Why we end it, if we do."""

    def backlog(self) -> int:
        """Bytes of uploads that wait here, over HTTP/1; those of HTTP/2 have windows."""
        return 0 if self.h2 is not None or self.waiting is None else self.waiting()

    def begin(self, ident: str, verdict: Verdict) -> Exchange:
        """Keeps a settled allow."""
        exchange = self.exchanges[ident] = Exchange(ident, verdict, verdict.until)
        return exchange

    def end(self, ident: str) -> Exchange | None:
        return self.exchanges.pop(ident, None)


class Connections:
    """All open connections by the engine's `client.id`. Empty when the proxy is idle."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[str, Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, client_id: str) -> Connection:
        return self._open[client_id]

    def get(self, client_id: str) -> Connection | None:
        return self._open.get(client_id)

    def open(self, client_id: str, connection: Connection) -> None:
        connection.ident = client_id
        self._open[client_id] = connection

    def close(self, client_id: str) -> Connection | None:
        """Forgets a connection and its timers."""
        connection = self._open.pop(client_id, None)
        if connection is not None:
            for timer in (*connection.dialling.values(), connection.drain, connection.deadline):
                if timer is not None:
                    timer.cancel()
        return connection

    def items(self) -> Iterable[tuple[str, Connection]]:
        return list(self._open.items())
