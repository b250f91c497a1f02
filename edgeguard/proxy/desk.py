"""What all hooks and layers of the lane share: replies, the steps of a verdict, the account of each connection."""

import asyncio
import logging
import math
import typing
from collections.abc import Callable, Sequence
from functools import partial

from mitmproxy import http
from mitmproxy.connection import Client as ClientConnection
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from edgeguard.guard import DEADLINE_TICK_S, Guard
from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT, Client, Protocol
from edgeguard.proxy import failsafe, headers, replies
from edgeguard.proxy.clienthello import Hello
from edgeguard.proxy.connections import Connection, Connections, Exchange
from edgeguard.proxy.dial import Dialer, DialError
from edgeguard.proxy.page import Links
from edgeguard.proxy.passages import Passage, Passages
from edgeguard.proxy.shape import SHAPE, Shape
from edgeguard.proxy.sites import Site
from edgeguard.settings import Settings
from edgeguard.verdict import Facts, Verdict

logger = logging.getLogger(__name__)


class Resolves(typing.Protocol):
    """`resolver.Resolver`."""

    async def resolve(self, host: str) -> Sequence[str]: ...


class LaneDesk:
    """The lane's state and its common steps; the `Desk` of `layers`."""

    def __init__(
        self,
        guard: Guard,
        resolver: Resolves,
        passages: Passages,
        settings: Settings,
        dialer: Dialer | None = None,
    ) -> None:
        self.guard = guard
        self.passages = passages
        self.bounds = settings.bounds
        self.connections = Connections()
        self._generation = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_until = math.inf
        self._user_header = settings.user.header.encode()
        self._cookie = settings.user.cookie.encode()
        self._plain = frozenset(name.encode() for name in settings.user.plain.headers)
        self.head_bytes = settings.bounds.head_bytes
        self.hello_bytes = settings.bounds.hello_bytes
        self.head_s = settings.bounds.head_s
        self.hello_s = settings.bounds.hello_s
        self._resolver = resolver
        self._links = Links(*settings.replies.model_dump().values())
        self._dialer = dialer or Dialer()
        self.credentials = bool(settings.identity.secret)
        self._challenge = 'Basic realm="edgeguard"' if self.credentials else None
        guard.subscribe(self._rejudge)

    def scan(self, request: http.Request) -> headers.Scan:
        """The fields of a request, read and cleaned."""
        scan = headers.scan_request(request.headers.fields, self._user_header, self._plain)
        return headers.take_cookie(scan, self._cookie) if self._cookie else scan

    def unreadable(self, client: ClientConnection, reason: Reason) -> http.Response:
        """Records and renders the refusal of what could not be read as a request."""
        connection = self.connections.get(client.id)
        owner = UNKNOWN_CLIENT if connection is None else connection.passage.client
        ident = client.id if connection is None else connection.passage.connection
        verdict = self.guard.refuse(self.guard.judge(Facts(ident, owner, "", 0)), reason)
        status = 431 if reason is Reason.REQUEST_TOO_LARGE else None
        code, fields, body = replies.render(verdict, links=self._links, status=status)
        return _response(code, fields, body)

    def hello(self, client: ClientConnection, hello: Hello | None) -> None:
        """Told by the layer: the strictly read ClientHello."""
        connection = self.connections.get(client.id)
        if connection is not None:
            connection.hello = hello

    def unreadable_hello(self, client: ClientConnection) -> None:
        """Told by the layer: no ClientHello that can be read with certainty; the connection ends."""
        connection = self.connections.get(client.id)
        if connection is not None:
            self.refuse_tunnel(connection, Reason.MALFORMED_REQUEST)

    def multiplexed(self, client: ClientConnection, h2: BufferedH2Connection) -> None:
        """Told by the layer: this client speaks HTTP/2."""
        connection = self.connections.get(client.id)
        if connection is not None:
            connection.h2 = h2

    def carries(self, client: ClientConnection, waiting: Callable[[], int]) -> None:
        """Told by the layer: how to learn what waits for this client's bodies to go on."""
        connection = self.connections.get(client.id)
        if connection is not None:
            connection.waiting = waiting

    def opaque(self, client: ClientConnection) -> bool:
        """Whether the tunnel that was just allowed is one of bytes that nobody reads."""
        connection = self.connections.get(client.id)
        tunnel = None if connection is None else connection.tunnel
        return tunnel is not None and tunnel.verdict.facts.protocol == "tcp"

    def misdirected(self, client: ClientConnection) -> None:
        """Told by the relay: the handshake of a tunnel went on with another name."""
        connection = self.connections.get(client.id)
        if connection is not None:
            self.refuse_tunnel(connection, Reason.MISDIRECTED_REQUEST)

    def within(self, client: ClientConnection, seconds: float | None) -> None:
        """What the client has begun has to be whole in time, or its connection ends; None: it is whole."""
        connection = self.connections.get(client.id)
        if connection is None:
            return
        if connection.deadline is not None:
            connection.deadline.cancel()
            connection.deadline = None
        if seconds is not None:
            loop = asyncio.get_running_loop()
            connection.deadline = loop.call_later(seconds, failsafe.disconnect, client.id)

    def draining(self, client: ClientConnection) -> None:
        """A refusal was sent: what still uploads is dropped, but not for ever."""
        connection = self.connections.get(client.id)
        if connection is not None and client.alpn != b"h2" and connection.drain is None:
            loop = asyncio.get_running_loop()
            connection.drain = loop.call_later(self.bounds.half_closed_s, failsafe.disconnect, client.id)

    def moved(self, flow: http.HTTPFlow | None, client: ClientConnection, size: int, *, sent: bool) -> None:
        exchange = self._relayed(flow, client)
        if exchange is not None:
            exchange.count(size, sent=sent)

    def ended(self, flow: http.HTTPFlow | None, client: ClientConnection, why: str = "done") -> None:
        connection = self.connections.get(client.id)
        exchange = self._relayed(flow, client)
        if connection is not None and exchange is not None:
            self.finish(connection, exchange, why)

    def owner(self, client: ClientConnection, passage: Passage, scan: headers.Scan) -> Client:
        """Who asks: each request says so itself (RFC 9110, 11.7.2). Raises CredentialsInvalid.

        What one request of a connection has shown counts for no other, so that nobody gains by sharing it.
        """
        origin = passage.origin
        if origin is not None:
            return self.guard.identify(origin.address, scan.credentials, origin.proof)
        return self.guard.identify(peer_of(client), scan.credentials)

    def unidentified(self, passage: Passage, host: str, port: int) -> Verdict:
        verdict = self.guard.judge(Facts(passage.connection, UNKNOWN_CLIENT, host, port))
        return self.guard.refuse(verdict, Reason.CLIENT_UNKNOWN)

    def begin(self, connection: Connection, ident: str, verdict: Verdict) -> Exchange:
        """Opens the account of a settled allow, and watches its time."""
        exchange = connection.begin(ident, verdict)
        if connection.tunnel is not None or connection.carried:
            exchange.meter = partial(_counted_outside, connection.tunnel, exchange)
        elif any(hit.unit == "bytes" for hit in verdict.decision.limits):
            exchange.meter = partial(self._charge, connection, exchange)
        if exchange.until is not None and exchange.until < self._next_until:
            self._next_until = exchange.until
            self._watch(verdict.now)
        return exchange

    def _charge(self, connection: Connection, exchange: Exchange, size: int, sent: bool) -> None:
        """Charges bytes to their budgets while they move; a budget that is used up ends the connection."""
        exchange.charged += size
        if not self.guard.spend(exchange.verdict, size) and connection.ending is None:
            connection.ending = Reason.RATE_LIMITED.value
            failsafe.disconnect(connection.ident)

    def refuse_tunnel(self, connection: Connection, reason: Reason) -> None:
        """Refuses the tunnel of a connection after all; its account is closed by that, once."""
        tunnel, passage = connection.tunnel, connection.passage
        if tunnel is not None and connection.end(tunnel.id) is not None:
            verdict = tunnel.verdict
        else:
            verdict = self.guard.judge(
                Facts(passage.connection, passage.client, passage.host or "", passage.port or 0)
            )
        self.guard.refuse(verdict, reason)

    def judge_tunnel(self, facts: Facts) -> Verdict:
        """TLS is what a tunnel means, unless bytes may pass unread there, or only another protocol is allowed."""
        verdict = self.guard.judge(facts)
        if verdict.allow and verdict.lane is Lane.TUNNEL:
            unread = self.guard.judge(facts._replace(protocol="tcp"))
            return unread if unread.allow and unread.lane is Lane.TUNNEL else verdict
        if verdict.reason is Reason.PROTOCOL_NOT_ALLOWED:
            others: tuple[Protocol, ...] = ("http", "tcp")
            judged = (self.guard.judge(facts._replace(protocol=protocol)) for protocol in others)
            verdict = next((other for other in judged if other.allow), verdict)
        return verdict

    async def resolve(
        self, verdict: Verdict, original: str | None = None, site: Site | None = None
    ) -> Verdict:
        """Resolves and admits an allow; a refusal stays as it is, and nothing is resolved.

        With an `original`, the address that the client dialled, a name that does not lead there is refused.
        With a `site`, its origin is resolved, which must not be ourselves.
        """
        if not verdict.allow:
            return verdict
        generation = self._generation
        try:
            addresses = await self._resolver.resolve(verdict.host if site is None else site.origin_host)
            if site is not None and any(self._dialer.is_own(a, site.origin_port) for a in addresses):
                addresses = ()
        except Exception as error:  # noqa: BLE001 - fail closed
            # Whatever the resolver failed with, there is no address to judge.
            logger.debug("resolving failed: %r", error)
            decision = verdict.decision._replace(allow=False, reason=Reason.UPSTREAM_UNREACHABLE)
            return verdict._replace(decision=decision)
        if self._generation != generation:
            # The policy changed, or a deadline passed, while the name was resolved.
            verdict = self.guard.judge(verdict.facts)
        verdict = self.guard.admit(verdict, addresses)
        if original is None or not verdict.allow:
            return verdict
        if original not in verdict.resolved:
            decision = verdict.decision._replace(allow=False, reason=Reason.MISDIRECTED_REQUEST)
            return verdict._replace(decision=decision, addresses=())
        # Where the client wanted to go, if that is admitted, and in any case nowhere that is not.
        return verdict._replace(addresses=tuple(sorted(verdict.addresses, key=lambda a: a != original)))

    async def settle(
        self, client: ClientConnection, connection: Connection, verdict: Verdict
    ) -> Verdict | None:
        """The final word on a verdict, after waiting for limits that are counted elsewhere; None: the client left."""
        waiting = self.guard.reserve(verdict)
        if waiting is not None:
            verdict = await waiting
            if self.left(client, connection):
                self.guard.forgo(verdict)
                return None
        return self.guard.settle(verdict)

    def left(self, client: ClientConnection, connection: Connection) -> bool:
        """Whether the client left while a name was resolved: then nothing is charged, and nothing is granted."""
        return self.connections.get(client.id) is not connection

    async def reach(self, connection: Connection, exchange: Exchange) -> Verdict:
        """Narrows a begun exchange to the one address that is dialled: of several the first that answers.

        The engine dials one address and has no other to turn to. Ends the exchange, with a recorded
        refusal, when none answers.
        """
        verdict = exchange.verdict
        if len(verdict.addresses) == 1:
            return verdict
        try:
            async with asyncio.timeout(self.bounds.dial_s):
                host, port = _towards(connection.passage, verdict)
                address = await self._dialer.towards(host).preferred(verdict.addresses, port)
        except (DialError, TimeoutError):
            if connection.end(exchange.id) is None:
                return verdict._replace(decision=verdict.decision._replace(allow=False), addresses=())
            return self.guard.refuse(verdict, Reason.UPSTREAM_UNREACHABLE)
        exchange.verdict = verdict = exchange.verdict._replace(addresses=(address,))
        if connection.exchanges.get(exchange.id) is not exchange:
            # The client left, or the policy took the allow back: that was recorded as its end.
            return verdict._replace(decision=verdict.decision._replace(allow=False), addresses=())
        return verdict

    def pin(self, flow: http.HTTPFlow, verdict: Verdict) -> None:
        """Dials the address that was judged; `.data` leaves the Host field alone."""
        address = verdict.addresses[0]
        host, port = _towards(self.connections[flow.client_conn.id].passage, verdict)
        self.passages.grant(flow.client_conn.id, (address,), port, host)
        flow.request.data.host = address
        flow.request.data.port = port

    def reply(
        self, flow: http.HTTPFlow, verdict: Verdict, scan: headers.Scan, *, status: int | None = None
    ) -> None:
        if status is None and verdict.reason is Reason.REQUEST_TOO_LARGE:
            status = 431  # only heads have a limit here
        shape: Shape | None = flow.metadata.get(SHAPE)
        body = shape is None or shape.body
        # Clients of WebSocket wait for the end of a connection that was not upgraded.
        close = body or scan.upgrade or flow.request.method == "CONNECT"
        close = close or verdict.reason is Reason.MALFORMED_REQUEST
        flow.response = self.render(verdict, flow, close=close, status=status, accept=scan.accept)
        flow.request.headers.pop("expect", None)
        if shape is not None and shape.body:
            flow.request.stream = True  # replies at once and drops the rest

    def render(
        self,
        verdict: Verdict,
        flow: http.HTTPFlow,
        *,
        close: bool,
        status: int | None = None,
        accept: str | None = None,
    ) -> http.Response:
        shape: Shape | None = flow.metadata.get(SHAPE)
        code, fields, body = replies.render(
            verdict,
            accept=flow.request.headers.get("accept", "") if accept is None else accept,
            http_version="2" if flow.request.is_http2 else "1.1",
            links=self._links,
            challenge=self._challenge if shape is not None and shape.forward else None,
            status=status,
            close=close,
        )
        return _response(code, fields, body)

    def exchange(self, flow: http.HTTPFlow) -> Exchange | None:
        connection = self.connections.get(flow.client_conn.id)
        return None if connection is None else connection.exchanges.get(flow.id)

    def _relayed(self, flow: http.HTTPFlow | None, client: ClientConnection) -> Exchange | None:
        connection = self.connections.get(client.id)
        if connection is None:
            return None
        return connection.tunnel if flow is None else connection.exchanges.get(flow.id)

    def finish(self, connection: Connection, exchange: Exchange, why: str) -> None:
        if connection.end(exchange.id) is not None:
            self.guard.finish(
                exchange.verdict,
                sent=exchange.sent,
                received=exchange.received,
                why=why,
                charged=exchange.charged,
            )

    def _rejudge(self) -> None:
        """The policy changed or a deadline passed: ends what is no longer allowed."""
        self._generation += 1
        self._rejudge_until(math.inf)

    def _rejudge_until(self, now: float) -> None:
        """Judges again what time alone may have changed by `now`; at infinity everything."""
        self._next_until = math.inf
        for client_id, connection in self.connections.items():
            for exchange in list(connection.exchanges.values()):
                if now == math.inf or (exchange.until is not None and exchange.until <= now):
                    again = self.guard.rejudge(exchange.verdict)
                    closed = exchange is connection.tunnel and exchange.verdict.lane is Lane.TUNNEL
                    if not again.allow or (closed and again.lane is Lane.INSPECT):
                        if not again.allow:
                            self.guard.settle(again)
                        connection.ending = str(again.reason or "policy_changed")
                        failsafe.disconnect(client_id)
                        break
                    exchange.until = again.until
                if exchange.until is not None and exchange.until < self._next_until:
                    self._next_until = exchange.until
        self._watch(self.guard.now())

    def _watch(self, now: float) -> None:
        """Waits for the next moment, in short steps: the loop's clock stands still in suspend."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._next_until < math.inf:
            delay = min(DEADLINE_TICK_S, max(0.0, self._next_until - now))
            self._timer = asyncio.get_running_loop().call_later(delay, self._time_passed)

    def _time_passed(self) -> None:
        now = self.guard.now()
        if now >= self._next_until:
            self._rejudge_until(now)
        else:
            self._watch(now)


def _towards(passage: Passage, verdict: Verdict) -> tuple[str, int]:
    """Host and port that are dialled: what was judged, or the origin of one's own site."""
    site = passage.site
    return (verdict.host, verdict.port) if site is None else (site.origin_host, site.origin_port)


def _counted_outside(tunnel: Exchange | None, exchange: Exchange, size: int, sent: bool) -> None:
    """What moves inside of a tunnel counts for the tunnel: there it is charged, once."""
    exchange.charged += size
    if tunnel is not None:
        tunnel.count(size, sent=sent)


def _response(code: int, fields: list[tuple[str, str]], body: bytes) -> http.Response:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
    return http.Response(b"HTTP/1.1", code, b"", http.Headers(raw), body, None, 0.0, 0.0)


def peer_of(client: ClientConnection) -> str | None:
    return client.peername[0] if client.peername else None  # type: ignore[redundant-expr]
