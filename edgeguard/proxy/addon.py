"""The engine's hooks, as an adapter to the guard: foreign objects in, facts out; verdicts in, replies out.

Every decision is made before the first byte goes upstream: at CONNECT and at each request's head.
Behind the front door the connection brings its `Passage`; under plain `mitmdump` the addon opens
one itself. Nothing is dialled without a grant in it. Decides nothing.
"""

import asyncio
import logging
from functools import partial

from mitmproxy import ctx, http
from mitmproxy.connection import Client as ClientConnection
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import ClientHelloData, TlsData

from edgeguard.guard import Guard
from edgeguard.identity.clients import CredentialsInvalid
from edgeguard.policy.decision import Lane
from edgeguard.policy.names import canonical_host
from edgeguard.policy.reasons import Reason
from edgeguard.proxy import failsafe, headers, replies
from edgeguard.proxy.claims import facts_of, shape_refusal, sni_names, streams
from edgeguard.proxy.connections import Connection
from edgeguard.proxy.desk import LaneDesk, Resolves, peer_of
from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.failsafe import closed
from edgeguard.proxy.pace import PacedReader, waiting
from edgeguard.proxy.passages import Passage, Passages
from edgeguard.proxy.shape import CLIENT_LEFT, REPLY, SHAPE, Shape
from edgeguard.proxy.stack import Stack
from edgeguard.settings import Settings
from edgeguard.verdict import Facts

logger = logging.getLogger(__name__)


class EdgeguardAddon:
    """Enforces the policy on everything that goes through the engine.

    Args:
        guard: The policy decision point, already `start`ed or started later on the same loop.
        resolver: Names to addresses.
        passages: What was granted to each connection; shared with the front door.
        settings: This node's configuration.
        dialer: What upstreams are reached with; shared with the front door.
    """

    name = "edgeguard"

    def __init__(
        self,
        guard: Guard,
        resolver: Resolves,
        passages: Passages,
        settings: Settings,
        dialer: Dialer | None = None,
    ) -> None:
        self._desk = LaneDesk(guard, resolver, passages, settings, dialer)
        self._stack = Stack(self._desk)

    # Connections

    @closed
    def client_connected(self, client: ClientConnection) -> None:
        passage = self._desk.passages.get(client.id)
        carried = passage is not None and passage.host is not None and passage.site is None
        if passage is None:
            owner = self._desk.guard.identify(peer_of(client), ())
            passage = Passage(connection=client.id, client=owner)
            if isinstance(client.proxy_mode, mode_specs.ReverseMode):
                host, port = client.proxy_mode.address
                passage.host, passage.port = canonical_host(host), port
            self._desk.passages.open(client.id, passage)
        connection = Connection(passage, carried=carried)
        self._desk.connections.open(client.id, connection)
        proxyserver = ctx.master.addons.get("proxyserver")
        handler = None if proxyserver is None else proxyserver.connections.get(client.id)
        if handler is not None:
            io = handler.transports[client]
            io.reader = PacedReader(io.reader, connection.backlog, self._desk.bounds.stream_bytes)

    @closed
    def client_disconnected(self, client: ClientConnection) -> None:
        connection = self._desk.connections.close(client.id)
        self._desk.passages.close(client.id)
        if connection is not None:
            for exchange in list(connection.exchanges.values()):
                self._desk.finish(connection, exchange, connection.ending or "client_closed")
        self._close_leftover(client.id)

    def _close_leftover(self, client_id: str) -> None:
        """The engine forgets the socket of a client that it cut off in the middle of a body."""
        proxyserver = ctx.master.addons.get("proxyserver")
        handler = None if proxyserver is None else proxyserver.connections.get(client_id)
        io = None if handler is None else handler.transports.get(handler.client)
        writer = None if io is None else io.writer
        if isinstance(writer, asyncio.StreamWriter):
            writer.close()
            asyncio.get_running_loop().call_later(self._desk.bounds.half_closed_s, writer.transport.abort)

    # Which layer comes next

    @closed
    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        self._stack.choose(nextlayer)

    # CONNECT, under plain mitmdump (the front door answers it itself)

    @closed
    async def http_connect(self, flow: http.HTTPFlow) -> None:
        connection = self._desk.connections[flow.client_conn.id]
        passage = connection.passage
        request = flow.request
        scan = self._desk.scan(request)
        try:
            client = self._desk.owner(flow.client_conn, passage, scan)
        except CredentialsInvalid:
            self._desk.reply(
                flow, self._desk.unidentified(passage, request.data.host, request.data.port), scan, status=407
            )
            return
        facts = Facts(
            passage.connection,
            client,
            request.data.host,
            request.data.port,
            "tls",
            scan.hosts,
            tokens=scan.tokens,
            plain=scan.plain,
        )
        verdict = self._desk.judge_tunnel(facts)
        if scan.fault or scan.declares_body or request.data.method != b"CONNECT":
            self._desk.reply(flow, self._desk.guard.refuse(verdict, Reason.MALFORMED_REQUEST), scan)
            return
        verdict = await self._desk.resolve(verdict)
        if self._desk.left(flow.client_conn, connection):
            self._desk.guard.forgo(verdict)
            return
        settled = await self._desk.settle(flow.client_conn, connection, verdict)
        if settled is None:
            return
        verdict = settled
        if verdict.allow:
            connection.tunnel = self._desk.begin(connection, flow.id, verdict)
            verdict = await self._desk.reach(connection, connection.tunnel)
        if not verdict.allow:
            self._desk.reply(flow, verdict, scan)
            return
        passage.client, passage.host, passage.port = client, verdict.host, verdict.port
        passage.aliases = verdict.aliases
        self._desk.pin(flow, verdict)
        flow.server_conn.sni = verdict.host

    # TLS

    @closed
    def tls_clienthello(self, data: ClientHelloData) -> None:
        client = data.context.client
        connection = self._desk.connections[client.id]
        passage = connection.passage
        if passage.host is None or isinstance(client.proxy_mode, mode_specs.ReverseMode):
            return  # TLS to the proxy itself: its name is not a destination
        if connection.hello is None:
            raise RuntimeError("a ClientHello that was not read strictly")
        sni = connection.hello.sni
        connection.hello = None
        if connection.tunnel is not None and connection.tunnel.verdict.facts.protocol != "tls":
            self._desk.refuse_tunnel(connection, Reason.PROTOCOL_NOT_ALLOWED)
            client.error = failsafe.REFUSED
            return
        if not sni_names(sni, passage.host):
            self._desk.refuse_tunnel(connection, Reason.MISDIRECTED_REQUEST)
            client.error = failsafe.REFUSED
            return
        passage.sni = None if sni is None else passage.host
        if connection.tunnel is not None and connection.tunnel.verdict.lane is Lane.TUNNEL:
            data.ignore_connection = True

    @closed
    def tls_start_server(self, data: TlsData) -> None:
        """The name that was judged is the name that the certificate must have."""
        passage = self._desk.connections[data.context.client.id].passage
        if passage.host is not None:
            data.conn.sni = passage.host if passage.site is None else passage.site.origin_name

    @closed
    def tls_start_client(self, data: TlsData) -> None:
        """A site of one's own shows its own certificate; elsewhere the engine makes one."""
        site = self._desk.connections[data.context.client.id].passage.site
        if site is not None:
            if site.tls is None:
                raise RuntimeError("TLS with a site that has no certificate")
            data.ssl_conn = site.tls.connection()

    @closed
    def tls_failed_server(self, data: TlsData) -> None:
        connection = self._desk.connections.get(data.context.client.id)
        if connection is not None:
            connection.untrusted = data.conn.error

    # Requests

    @closed
    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.error is not None:
            return  # the engine refuses it itself; `error` records that, and nothing is charged
        shape: Shape = flow.metadata[SHAPE]
        connection = self._desk.connections[flow.client_conn.id]
        request = flow.request
        scan = self._desk.scan(request)
        try:
            owner = connection.passage.client
            if shape.forward:
                owner = self._desk.owner(flow.client_conn, connection.passage, scan)
            facts = facts_of(flow, shape, connection.passage, owner, scan)
        except CredentialsInvalid:
            self._desk.reply(
                flow,
                self._desk.unidentified(connection.passage, request.data.host, request.data.port),
                scan,
                status=407,
            )
            return
        verdict = self._desk.guard.judge(facts)
        refusal = shape_refusal(flow, shape, scan, self._desk.bounds.headers)
        if refusal is Reason.MALFORMED_REQUEST or (refusal is not None and verdict.allow):
            verdict = self._desk.guard.refuse(verdict, refusal)
        else:
            passage = connection.passage
            site = passage.site
            reverse = site is not None or isinstance(flow.client_conn.proxy_mode, mode_specs.ReverseMode)
            pinned = passage.host is not None and not shape.forward and not reverse
            if pinned:
                verdict = verdict._replace(aliases=passage.aliases)
                verdict = self._desk.guard.admit(verdict, (request.data.host,))
            else:
                verdict = await self._desk.resolve(verdict, passage.original, site)
                if self._desk.left(flow.client_conn, connection):
                    self._desk.guard.forgo(verdict)
                    return
            settled = await self._desk.settle(flow.client_conn, connection, verdict)
            if settled is None:
                return
            verdict = settled
        if verdict.allow:
            exchange = self._desk.begin(connection, flow.id, verdict)
            verdict = await self._desk.reach(connection, exchange)
        if not verdict.allow:
            self._desk.reply(flow, verdict, scan)
            return
        default_port = 80 if request.scheme == "http" else 443
        exchange.close = scan.close
        if request.is_http2 and request.data.authority:
            request.headers.fields = scan.fields
            request.data.authority = headers.authority(
                request.data.authority, verdict.host, verdict.port, default_port
            )
        else:
            request.headers.fields = headers.with_host(scan.fields, verdict.host, verdict.port, default_port)
            request.authority = ""
        if not pinned:
            self._desk.pin(flow, verdict)
        if site is not None:
            request.headers.fields = headers.forwarded(
                request.headers.fields,
                site.forwarded,
                passage.origin and passage.origin.address,
                site.tls is not None,
            )
        if shape.body:
            request.stream = exchange.count_sent

    @closed
    def request(self, flow: http.HTTPFlow) -> None:
        """Trailers of a request do not go on (RFC 9110, 6.5.1)."""
        flow.request.trailers = None

    @closed
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        exchange = self._desk.exchange(flow)
        if response is None or exchange is None:
            return  # our own reply
        switching = response.status_code == 101
        response.headers.fields = headers.clean_response(response.headers.fields, response.status_code)
        if exchange.verdict.decision.gated and not switching:
            response.headers.fields = headers.unshared(response.headers.fields)
        for name, value in replies.limit_headers(exchange.verdict.limit_states):
            response.headers.add(name, value)
        if exchange.close and not switching:
            response.headers.add("Connection", "close")
        exchange.answered = True
        if not switching and streams(response):
            response.stream = exchange.count_received

    @closed
    def response(self, flow: http.HTTPFlow) -> None:
        exchange = self._desk.exchange(flow)
        if exchange is None or flow.response is None:
            return
        if flow.response.status_code == 101:
            return  # the relay goes on; `ended` closes the account
        if not flow.response.stream:
            exchange.count(len(flow.response.raw_content or b""), sent=False)
        self._desk.finish(self._desk.connections[flow.client_conn.id], exchange, "done")

    @closed
    def error(self, flow: http.HTTPFlow) -> None:
        connection = self._desk.connections.get(flow.client_conn.id)
        if connection is None:
            return
        exchange = connection.exchanges.get(flow.id)
        left = flow.metadata.get(CLIENT_LEFT, False)
        if exchange is not None and (left or exchange.answered or connection.ending is not None):
            why = "client_closed" if left else "upstream_closed"
            self._desk.finish(connection, exchange, connection.ending or why)
        elif exchange is not None:
            connection.end(flow.id)
            untrusted = flow.error is not None and flow.error.msg == connection.untrusted
            reason = Reason.UPSTREAM_UNTRUSTED if untrusted else Reason.UPSTREAM_UNREACHABLE
            verdict = self._desk.guard.refuse(exchange.verdict, reason)
            flow.metadata[REPLY] = self._desk.render(verdict, flow, close=True)
        elif not left and flow.response is None and REPLY not in flow.metadata:
            flow.metadata[REPLY] = self._desk.unreadable(flow.client_conn, Reason.MALFORMED_REQUEST)

    # Upstream

    @closed
    def server_connect(self, data: ServerConnectionHookData) -> None:
        """The gate: forbidden unless an allow of this very connection granted address and port."""
        address = data.server.address
        granted = (
            address is not None
            and data.server.via is None
            and data.server.transport_protocol == "tcp"
            and self._desk.passages.holds(data.client.id, address[0], address[1])
        )
        if not granted:
            data.server.error = failsafe.REFUSED
            return
        connection = self._desk.connections[data.client.id]
        connection.dialling[data.server.id] = asyncio.get_running_loop().call_later(
            self._desk.bounds.dial_s, self._give_up, data
        )

    def _give_up(self, data: ServerConnectionHookData) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(data.client.id)
        io = None if handler is None else handler.transports.get(data.server)
        if io is not None and io.handler is not None:
            io.handler.cancel("dial timeout")

    @closed
    def server_connected(self, data: ServerConnectionHookData) -> None:
        self._dialled(data)
        h2 = self._desk.connections[data.client.id].h2
        if h2 is not None:
            io = ctx.master.addons.get("proxyserver").connections[data.client.id].transports[data.server]
            io.reader = PacedReader(io.reader, partial(waiting, h2), self._desk.bounds.waiting_bytes)

    @closed
    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """The engine forgets the socket of an upstream whose task was cancelled while it ended."""
        handler = ctx.master.addons.get("proxyserver").connections.get(data.client.id)
        io = None if handler is None else handler.transports.get(data.server)
        if io is not None and io.writer is not None:
            io.writer.transport.abort()

    @closed
    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._dialled(data)

    def _dialled(self, data: ServerConnectionHookData) -> None:
        connection = self._desk.connections.get(data.client.id)
        timer = None if connection is None else connection.dialling.pop(data.server.id, None)
        if timer is not None:
            timer.cancel()

    # What is refused whole. These layers are never put into the stack; should another addon do so:

    @closed
    def tcp_start(self, flow: failsafe.HookData) -> None:
        self._desk.passages.close(flow.client_conn.id)  # so that nothing is dialled meanwhile
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
