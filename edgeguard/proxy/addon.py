"""The engine's hooks, as an adapter to the guard: foreign objects in, facts out; verdicts in, replies out.

Every decision is made before the first byte goes upstream: at CONNECT and at each request's head.
Behind the front door the connection brings its `Passage`; under plain `mitmdump` the addon opens
one itself. Nothing is dialled without a grant in it. Decides nothing.
"""

import asyncio
import functools
import inspect
import logging
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from mitmproxy import ctx, http
from mitmproxy.connection import Client as ClientConnection
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as engine
from mitmproxy.proxy.layers import modes, tls
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import ClientHelloData, TlsData

from edgeguard.guard import Facts, Guard, Verdict
from edgeguard.identity.clients import CredentialsInvalid
from edgeguard.policy.decision import Lane
from edgeguard.policy.names import HostError, canonical_host, is_address
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT, Client, Protocol
from edgeguard.proxy import failsafe, headers, replies
from edgeguard.proxy.clienthello import Hello
from edgeguard.proxy.connections import Connection, Connections, Exchange
from edgeguard.proxy.layers import CLIENT_LEFT, REPLY, SHAPE, EdgeClientTLS, EdgeHttpLayer, Relay, Shape
from edgeguard.proxy.passages import Passage, Passages
from edgeguard.settings import Settings

logger = logging.getLogger(__name__)

STREAM_ABOVE_BYTES: Final = 65_536
"""Larger bodies, and those of unknown length, are passed on piece by piece."""
_NEVER: Final = frozenset({"TRACE", "TRACK"})
"""An echo of the request would hand out what was added on the way (RFC 9110, 9.3.8)."""
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Resolves(typing.Protocol):
    """`resolver.Resolver`."""

    async def resolve(self, host: str) -> Sequence[str]: ...


def closed[**P](hook: Callable[P, Any]) -> Callable[P, Any]:
    """Makes a hook refuse when it raises, whoever dispatches it: the stock manager lets such a flow go on."""
    name = hook.__name__

    if inspect.iscoroutinefunction(hook):

        @functools.wraps(hook)
        async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                await hook(*args, **kwargs)
            except Exception:
                # Fail closed.
                logger.exception("%s failed; refused", name)
                failsafe.refuse(name, args[1])

        return asynchronous

    @functools.wraps(hook)
    def synchronous(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            # Fail closed.
            logger.exception("%s failed; refused", name)
            failsafe.refuse(name, args[1])

    return synchronous


class EdgeguardAddon:
    """Enforces the policy on everything that goes through the engine.

    Args:
        guard: The policy decision point, already `start`ed or started later on the same loop.
        resolver: Names to addresses.
        passages: What was granted to each connection; shared with the front door.
        settings: This node's configuration.
        help_url: Where people find help; shown in refusals.
    """

    name = "edgeguard"

    def __init__(
        self,
        guard: Guard,
        resolver: Resolves,
        passages: Passages,
        settings: Settings,
        *,
        help_url: str | None = None,
    ) -> None:
        self._guard = guard
        self._resolver = resolver
        self._passages = passages
        self._settings = settings
        self._bounds = settings.bounds
        self._help_url = help_url
        self._user_header = settings.user.header.encode()
        self._challenge = 'Basic realm="edgeguard"' if settings.identity.secret else None
        self._connections = Connections()
        self.head_bytes = settings.bounds.head_bytes
        self.hello_bytes = settings.bounds.hello_bytes
        guard.subscribe(self._rejudge)

    # Connections

    @closed
    def client_connected(self, client: ClientConnection) -> None:
        passage = self._passages.get(client.id)
        if passage is None:
            owner = self._guard.identify(_peer(client), ())
            passage = Passage(connection=client.id, client=owner)
            if isinstance(client.proxy_mode, mode_specs.ReverseMode):
                host, port = client.proxy_mode.address
                passage.host, passage.port = canonical_host(host), port
            self._passages.open(client.id, passage)
        self._connections.open(client.id, Connection(passage))

    @closed
    def client_disconnected(self, client: ClientConnection) -> None:
        connection = self._connections.close(client.id)
        self._passages.close(client.id)
        if connection is not None:
            for exchange in list(connection.exchanges.values()):
                self._finish(connection, exchange, connection.ending or "client_closed")
        self._close_leftover(client.id)

    def _close_leftover(self, client_id: str) -> None:
        """The engine forgets the socket of a client that it cut off in the middle of a body."""
        proxyserver = ctx.master.addons.get("proxyserver")
        handler = None if proxyserver is None else proxyserver.connections.get(client_id)
        io = None if handler is None else handler.transports.get(handler.client)
        writer = None if io is None else io.writer
        if isinstance(writer, asyncio.StreamWriter):
            writer.close()
            asyncio.get_running_loop().call_later(self._bounds.half_closed_s, writer.transport.abort)

    # Which layer comes next

    @closed
    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        context = nextlayer.context
        connection = self._connections.get(context.client.id)
        if connection is None or context.client.transport_protocol != "tcp":
            nextlayer.layer = failsafe.DenyLayer(context)
            return
        top = context.layers[-1] if context.layers else None
        first = nextlayer.data_client()[:1]
        is_tls = first in {b"", b"\x16"}
        if isinstance(top, modes.HttpProxy):
            if first == b"\x16":
                outer = EdgeClientTLS(context, self)
                outer.child_layer = EdgeHttpLayer(context, engine.HTTPMode.regular, self)
                nextlayer.layer = outer
            else:
                nextlayer.layer = EdgeHttpLayer(context, engine.HTTPMode.regular, self)
        elif isinstance(top, modes.ReverseProxy):
            nextlayer.layer = self._reverse_stack(context, is_tls=first == b"\x16")
        elif isinstance(top, tls.ClientTLSLayer):
            nextlayer.layer = EdgeHttpLayer(context, engine.HTTPMode.transparent, self)
        elif (
            isinstance(top, (engine.HttpStream, modes.TransparentProxy))
            and connection.passage.host is not None
        ):
            if connection.tunnel is not None and connection.tunnel.verdict.facts.protocol == "tcp":
                nextlayer.layer = Relay(context, self, None)
            elif is_tls:
                server_tls = tls.ServerTLSLayer(context)
                server_tls.child_layer = EdgeClientTLS(context, self)
                nextlayer.layer = server_tls
            else:
                nextlayer.layer = self._clear(context, connection)
        else:
            # A door without a claim that could be judged (SOCKS5, transparent): not without the front door.
            nextlayer.layer = failsafe.DenyLayer(context)

    def _clear(self, context: Context, connection: Connection) -> layer.Layer:
        """A tunnel without TLS: plain HTTP or anything else, each only where a rule allows it."""
        if connection.tunnel is None:
            # The front door let it through as plain HTTP; each request is judged as that.
            return EdgeHttpLayer(context, engine.HTTPMode.transparent, self)
        verdict = connection.tunnel.verdict
        protocols: tuple[Protocol, ...] = ("http", "tcp")
        for protocol in protocols:
            again = self._guard.judge(verdict.facts._replace(protocol=protocol))
            if self._guard.admit(again, verdict.addresses).allow:
                if protocol == "http":
                    return EdgeHttpLayer(context, engine.HTTPMode.transparent, self)
                return Relay(context, self, None)
        self._guard.refuse(verdict, Reason.OPAQUE_TUNNEL)
        return failsafe.DenyLayer(context)

    def _reverse_stack(self, context: Context, *, is_tls: bool) -> layer.Layer:
        spec = cast("mode_specs.ReverseMode", context.client.proxy_mode)
        if spec.scheme not in {"http", "https"}:
            return failsafe.DenyLayer(context)
        outer: Any = None
        top: Any = None
        if spec.scheme == "https":
            outer = top = tls.ServerTLSLayer(context)
        if is_tls:
            inner = EdgeClientTLS(context, self)
            if top is None:
                outer = inner
            else:
                top.child_layer = inner
            top = inner
        http_layer = EdgeHttpLayer(context, engine.HTTPMode.transparent, self)
        if top is None:
            return http_layer
        top.child_layer = http_layer
        return outer  # type: ignore[no-any-return]

    # CONNECT, under plain mitmdump (the front door answers it itself)

    @closed
    async def http_connect(self, flow: http.HTTPFlow) -> None:
        connection = self._connections[flow.client_conn.id]
        passage = connection.passage
        request = flow.request
        scan = headers.scan_request(request.headers.fields, self._user_header)
        try:
            client = self._owner(flow.client_conn, passage, scan)
        except CredentialsInvalid:
            self._reply(
                flow, self._unidentified(passage, request.data.host, request.data.port), scan, status=407
            )
            return
        facts = Facts(passage.connection, client, request.data.host, request.data.port, "tls", scan.hosts)
        verdict = self._guard.judge(facts)
        if verdict.reason is Reason.PROTOCOL_NOT_ALLOWED:
            others: tuple[Protocol, ...] = ("http", "tcp")
            judged = (self._guard.judge(facts._replace(protocol=protocol)) for protocol in others)
            verdict = next((other for other in judged if other.allow), verdict)
        if scan.fault or scan.declares_body or request.data.method != b"CONNECT":
            self._reply(flow, self._guard.refuse(verdict, Reason.MALFORMED_REQUEST), scan)
            return
        verdict = self._guard.settle(await self._resolve(verdict))
        if not verdict.allow:
            self._reply(flow, verdict, scan)
            return
        passage.client, passage.host, passage.port = client, verdict.host, verdict.port
        connection.tunnel = connection.begin(flow.id, verdict)
        self._pin(flow, verdict)
        flow.server_conn.sni = verdict.host

    # TLS

    def hello(self, client: ClientConnection, hello: Hello | None) -> None:
        """Told by the layer: the strictly read ClientHello."""
        connection = self._connections.get(client.id)
        if connection is not None:
            connection.hello = hello

    @closed
    def tls_clienthello(self, data: ClientHelloData) -> None:
        client = data.context.client
        connection = self._connections[client.id]
        passage = connection.passage
        if passage.host is None or isinstance(client.proxy_mode, mode_specs.ReverseMode):
            return  # TLS to the proxy itself: its name is not a destination
        if connection.hello is None:
            raise RuntimeError("a ClientHello that was not read strictly")
        sni = connection.hello.sni
        connection.hello = None
        if connection.tunnel is not None and connection.tunnel.verdict.facts.protocol != "tls":
            self._guard.refuse(connection.tunnel.verdict, Reason.PROTOCOL_NOT_ALLOWED)
            client.error = failsafe.REFUSED
            return
        if not _names(sni, passage.host):
            self._guard.refuse(self._judge_tunnel(connection), Reason.MISDIRECTED_REQUEST)
            client.error = failsafe.REFUSED
            return
        passage.sni = None if sni is None else passage.host
        if connection.tunnel is not None and connection.tunnel.verdict.lane is Lane.TUNNEL:
            data.ignore_connection = True

    @closed
    def tls_start_server(self, data: TlsData) -> None:
        """The name that was judged is the name that the certificate must have."""
        passage = self._connections[data.context.client.id].passage
        if passage.host is not None:
            data.conn.sni = passage.host

    @closed
    def tls_failed_server(self, data: TlsData) -> None:
        connection = self._connections.get(data.context.client.id)
        if connection is not None:
            connection.untrusted = data.conn.error

    # Requests

    @closed
    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.error is not None:
            return  # the engine refuses it itself; `error` records that, and nothing is charged
        shape: Shape = flow.metadata[SHAPE]
        connection = self._connections[flow.client_conn.id]
        request = flow.request
        scan = headers.scan_request(request.headers.fields, self._user_header)
        try:
            facts = self._facts(flow, shape, connection.passage, scan)
        except CredentialsInvalid:
            self._reply(
                flow,
                self._unidentified(connection.passage, request.data.host, request.data.port),
                scan,
                status=407,
            )
            return
        verdict = self._guard.judge(facts)
        refusal = _refusal(flow, shape, scan)
        if refusal is Reason.MALFORMED_REQUEST or (refusal is not None and verdict.allow):
            verdict = self._guard.refuse(verdict, refusal)
        else:
            pinned = not shape.forward and not isinstance(flow.client_conn.proxy_mode, mode_specs.ReverseMode)
            if pinned:
                verdict = self._guard.admit(verdict, (request.data.host,))
            else:
                verdict = await self._resolve(verdict)
            verdict = self._guard.settle(verdict)
        if not verdict.allow:
            self._reply(flow, verdict, scan)
            return
        exchange = connection.begin(flow.id, verdict)
        default_port = 80 if request.scheme == "http" else 443
        request.headers.fields = headers.with_host(scan.fields, verdict.host, verdict.port, default_port)
        if not request.is_http2:
            request.authority = ""
        if not pinned:
            self._pin(flow, verdict)
        if shape.body:
            request.stream = exchange.count_sent

    def _facts(self, flow: http.HTTPFlow, shape: Shape, passage: Passage, scan: headers.Scan) -> Facts:
        request = flow.request
        names = list(scan.hosts)
        if shape.forward:
            client = self._owner(flow.client_conn, passage, scan)
            host, port = request.data.host, request.data.port
            secure = request.scheme == "https"
        else:
            if passage.host is None or passage.port is None:
                raise RuntimeError("a request in a tunnel without a destination")
            client = passage.client
            host, port = passage.host, passage.port
            secure = flow.client_conn.tls_established or request.scheme == "https"
            if request.is_http2 and request.authority:
                names.append(request.authority)
            if passage.sni is not None:
                names.append(passage.sni)
        protocol: Protocol = "websocket" if scan.upgrade else "tls" if secure else "http"
        return Facts(
            passage.connection,
            client,
            host,
            port,
            protocol,
            tuple(names),
            headers.text(request.data.method),
            headers.text(request.data.path),
            scan.tokens,
            scan.overrides,
        )

    @closed
    def request(self, flow: http.HTTPFlow) -> None:
        """Trailers of a request do not go on (RFC 9110, 6.5.1)."""
        flow.request.trailers = None

    @closed
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        exchange = self._exchange(flow)
        if response is None or exchange is None:
            return  # our own reply
        switching = response.status_code == 101
        response.headers.fields = headers.clean_response(response.headers.fields, switching=switching)
        for name, value in replies.limit_headers(exchange.verdict.limit_states):
            response.headers.add(name, value)
        exchange.answered = True
        if not switching and _streams(response):
            response.stream = exchange.count_received

    @closed
    def response(self, flow: http.HTTPFlow) -> None:
        exchange = self._exchange(flow)
        if exchange is None or flow.response is None:
            return
        if flow.response.status_code == 101:
            return  # the relay goes on; `ended` closes the account
        if not flow.response.stream:
            exchange.received += len(flow.response.raw_content or b"")
        self._finish(self._connections[flow.client_conn.id], exchange, "done")

    @closed
    def error(self, flow: http.HTTPFlow) -> None:
        connection = self._connections.get(flow.client_conn.id)
        if connection is None:
            return
        exchange = connection.exchanges.get(flow.id)
        left = flow.metadata.get(CLIENT_LEFT, False)
        if exchange is not None and (left or exchange.answered):
            self._finish(connection, exchange, "client_closed" if left else "upstream_closed")
        elif exchange is not None:
            connection.end(flow.id)
            untrusted = flow.error is not None and flow.error.msg == connection.untrusted
            reason = Reason.UPSTREAM_UNTRUSTED if untrusted else Reason.UPSTREAM_UNREACHABLE
            verdict = self._guard.refuse(exchange.verdict, reason)
            flow.metadata[REPLY] = self._render(verdict, flow, close=True)
        elif not left and flow.response is None and REPLY not in flow.metadata:
            flow.metadata[REPLY] = self.unreadable(flow.client_conn, Reason.MALFORMED_REQUEST)

    # Upstream

    @closed
    def server_connect(self, data: ServerConnectionHookData) -> None:
        """The gate: forbidden unless an allow of this very connection granted address and port."""
        address = data.server.address
        granted = (
            address is not None
            and data.server.via is None
            and data.server.transport_protocol == "tcp"
            and self._passages.holds(data.client.id, address[0], address[1])
        )
        if not granted:
            data.server.error = failsafe.REFUSED
            return
        connection = self._connections[data.client.id]
        connection.dialling[data.server.id] = asyncio.get_running_loop().call_later(
            self._bounds.dial_s, self._give_up, data
        )

    def _give_up(self, data: ServerConnectionHookData) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(data.client.id)
        io = None if handler is None else handler.transports.get(data.server)
        if io is not None and io.handler is not None:
            io.handler.cancel("dial timeout")

    @closed
    def server_connected(self, data: ServerConnectionHookData) -> None:
        self._dialled(data)

    @closed
    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._dialled(data)

    def _dialled(self, data: ServerConnectionHookData) -> None:
        connection = self._connections.get(data.client.id)
        timer = None if connection is None else connection.dialling.pop(data.server.id, None)
        if timer is not None:
            timer.cancel()

    # What is refused whole. These layers are never put into the stack; should another addon do so:

    @closed
    def tcp_start(self, flow: failsafe.HookData) -> None:
        failsafe.disconnect(flow.client_conn.id)

    @closed
    def tcp_message(self, flow: failsafe.HookData) -> None:
        failsafe.refuse("tcp_message", flow)

    udp_start = tcp_start
    quic_start_client = tcp_start

    @closed
    def udp_message(self, flow: failsafe.HookData) -> None:
        failsafe.refuse("udp_message", flow)

    @closed
    def dns_request(self, flow: failsafe.HookData) -> None:
        failsafe.refuse("dns_request", flow)

    @closed
    def socks5_auth(self, data: failsafe.HookData) -> None:
        data.valid = False

    # What the layers ask for

    def unreadable(self, client: ClientConnection, reason: Reason) -> http.Response:
        """Records and renders the refusal of what could not be read as a request."""
        connection = self._connections.get(client.id)
        owner = UNKNOWN_CLIENT if connection is None else connection.passage.client
        ident = client.id if connection is None else connection.passage.connection
        verdict = self._guard.refuse(self._guard.judge(Facts(ident, owner, "", 0)), reason)
        status = 431 if reason is Reason.REQUEST_TOO_LARGE else None
        code, fields, body = replies.render(verdict, help_url=self._help_url, status=status)
        return _response(code, fields, body)

    def draining(self, client: ClientConnection) -> None:
        """A refusal was sent: what still uploads is dropped, but not for ever."""
        connection = self._connections.get(client.id)
        if connection is not None and client.alpn != b"h2" and connection.drain is None:
            loop = asyncio.get_running_loop()
            connection.drain = loop.call_later(self._bounds.half_closed_s, failsafe.disconnect, client.id)

    def moved(self, flow: http.HTTPFlow | None, client: ClientConnection, size: int, *, sent: bool) -> None:
        exchange = self._relayed(flow, client)
        if exchange is not None:
            if sent:
                exchange.sent += size
            else:
                exchange.received += size

    def ended(self, flow: http.HTTPFlow | None, client: ClientConnection) -> None:
        connection = self._connections.get(client.id)
        exchange = self._relayed(flow, client)
        if connection is not None and exchange is not None:
            self._finish(connection, exchange, "done")

    # Shared steps

    def _owner(self, client: ClientConnection, passage: Passage, scan: headers.Scan) -> Client:
        """Who asks. Raises CredentialsInvalid."""
        return self._guard.identify(_peer(client), scan.credentials) if scan.credentials else passage.client

    def _unidentified(self, passage: Passage, host: str, port: int) -> Verdict:
        verdict = self._guard.judge(Facts(passage.connection, UNKNOWN_CLIENT, host, port))
        return self._guard.refuse(verdict, Reason.CLIENT_UNKNOWN)

    def _judge_tunnel(self, connection: Connection) -> Verdict:
        if connection.tunnel is not None:
            return connection.tunnel.verdict
        passage = connection.passage
        return self._guard.judge(
            Facts(passage.connection, passage.client, passage.host or "", passage.port or 0)
        )

    async def _resolve(self, verdict: Verdict) -> Verdict:
        """Resolves and admits an allow; a refusal stays as it is, and nothing is resolved."""
        if not verdict.allow:
            return verdict
        try:
            addresses = await self._resolver.resolve(verdict.host)
        except Exception as error:  # noqa: BLE001 - fail closed
            # Whatever the resolver failed with, there is no address to judge.
            logger.debug("resolving failed: %r", error)
            decision = verdict.decision._replace(allow=False, reason=Reason.UPSTREAM_UNREACHABLE)
            return verdict._replace(decision=decision)
        return self._guard.admit(verdict, addresses)

    def _pin(self, flow: http.HTTPFlow, verdict: Verdict) -> None:
        """Dials the address that was judged; `.data` leaves the Host field alone."""
        address = verdict.addresses[0]
        self._passages.grant(flow.client_conn.id, (address,), verdict.port)
        flow.request.data.host = address
        flow.request.data.port = verdict.port

    def _reply(
        self, flow: http.HTTPFlow, verdict: Verdict, scan: headers.Scan, *, status: int | None = None
    ) -> None:
        shape: Shape | None = flow.metadata.get(SHAPE)
        body = shape is None or shape.body
        close = body or flow.request.method == "CONNECT" or verdict.reason is Reason.MALFORMED_REQUEST
        flow.response = self._render(verdict, flow, close=close, status=status, accept=scan.accept)
        flow.request.headers.pop("expect", None)
        if shape is not None and shape.body:
            flow.request.stream = True  # replies at once and drops the rest

    def _render(
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
            help_url=self._help_url,
            challenge=self._challenge if shape is not None and shape.forward else None,
            status=status,
            close=close,
        )
        return _response(code, fields, body)

    def _exchange(self, flow: http.HTTPFlow) -> Exchange | None:
        connection = self._connections.get(flow.client_conn.id)
        return None if connection is None else connection.exchanges.get(flow.id)

    def _relayed(self, flow: http.HTTPFlow | None, client: ClientConnection) -> Exchange | None:
        connection = self._connections.get(client.id)
        if connection is None:
            return None
        return connection.tunnel if flow is None else connection.exchanges.get(flow.id)

    def _finish(self, connection: Connection, exchange: Exchange, why: str) -> None:
        if connection.end(exchange.id) is not None:
            self._guard.finish(exchange.verdict, sent=exchange.sent, received=exchange.received, why=why)

    def _rejudge(self) -> None:
        """The policy changed or a deadline passed: ends what is no longer allowed."""
        for client_id, connection in self._connections.items():
            for exchange in list(connection.exchanges.values()):
                again = self._guard.rejudge(exchange.verdict)
                if not again.allow:
                    self._guard.settle(again)
                    connection.ending = str(again.reason)
                    failsafe.disconnect(client_id)
                    break


def _refusal(flow: http.HTTPFlow, shape: Shape, scan: headers.Scan) -> Reason | None:
    """What the shape of a request alone refuses."""
    request = flow.request
    method = headers.text(request.data.method).upper()
    hosts = len(scan.hosts)
    if scan.fault is not None:
        return Reason.MALFORMED_REQUEST
    if request.is_http2:
        if not hosts and not request.authority:
            return Reason.MALFORMED_REQUEST
    elif hosts != 1 and not (hosts == 0 and request.http_version == "HTTP/1.0"):
        return Reason.MALFORMED_REQUEST
    elif shape.absolute is not shape.forward:
        # A proxy is asked in absolute form, a server in origin form (RFC 9112, 3.2).
        return Reason.MALFORMED_REQUEST
    if method == "CONNECT" or (method in _BODILESS and (shape.body or scan.declares_body)):
        return Reason.MALFORMED_REQUEST
    if method in _NEVER:
        return Reason.METHOD_NOT_ALLOWED
    if shape.forward and request.scheme != "http":
        return Reason.PROTOCOL_NOT_ALLOWED  # TLS from here on would hide that the client's half was clear
    return None


def _names(sni: str | None, host: str) -> bool:
    """Whether a ClientHello's name is the destination. Addresses never stand in SNI (RFC 6066, 3)."""
    if is_address(host):
        return sni is None
    try:
        return sni is not None and canonical_host(sni) == host
    except HostError:
        return False


def _streams(response: http.Response) -> bool:
    length = response.headers.get("content-length")
    return length is None or not length.isdigit() or int(length) > STREAM_ABOVE_BYTES


def _response(code: int, fields: list[tuple[str, str]], body: bytes) -> http.Response:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
    return http.Response(b"HTTP/1.1", code, b"", http.Headers(raw), body, None, 0.0, 0.0)


def _peer(client: ClientConnection) -> str | None:
    return client.peername[0] if client.peername else None  # type: ignore[redundant-expr]
