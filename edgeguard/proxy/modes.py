"""The doors of a stock mitmproxy that bring no CONNECT: SOCKS5 (RFC 1928, 1929) and transparent.

Stock layers ask no hook about their destination. These ask one, `edge_destination`, before anything
is dialled, and take no answer for a refusal. SOCKS names a destination, which is judged like that of
a CONNECT. A transparent door has only the address that the client dialled: the name stands in the
ClientHello or in each Host field, has to be allowed, and has to resolve, for us, to that address.
Behind `edgeguard run` none of this is used: its front door has doors of its own.
"""

import base64
import ipaddress
import logging
from dataclasses import dataclass
from typing import Final

from mitmproxy import ctx
from mitmproxy.connection import Client as ClientConnection
from mitmproxy.proxy import commands, events, layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.tls import ClientHelloData

from edgeguard.identity.clients import CredentialsInvalid
from edgeguard.policy.reasons import Reason
from edgeguard.proxy import failsafe
from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.connections import Connection
from edgeguard.proxy.desk import LaneDesk, peer_of
from edgeguard.proxy.failsafe import closed
from edgeguard.proxy.relays import Relay
from edgeguard.verdict import Facts, Verdict

logger = logging.getLogger(__name__)

SOCKS_REFUSED: Final = 0x02
"""RFC 1928, 6: connection not allowed by ruleset."""
_SOCKS_REPLIES: Final = {Reason.UPSTREAM_UNREACHABLE: 0x04, Reason.INTERNAL_ERROR: 0x01}
_SOCKS_NO_METHOD: Final = 0xFF


@dataclass
class Destination:
    """Where a client wants to go. Forbidden unless the hook says otherwise."""

    context: Context
    granted: bool = False
    relayed: bool = False
    """Bytes as they are, from the first one on: a rule says `protocol: tcp`."""
    refused_as: int = SOCKS_REFUSED


@dataclass
class EdgeDestinationHook(commands.StartHook):
    """A client of a SOCKS5 or transparent door has a destination; nothing has been dialled."""

    data: Destination


class EdgeSocks5(modes.Socks5Proxy):
    """SOCKS5 with a decision, and with the credentials that the configuration knows."""

    def __init__(self, context: Context, desk: LaneDesk) -> None:
        super().__init__(context)
        self._desk = desk

    def state_greet(self) -> layer.CommandGenerator[None]:
        if len(self.buf) < 2 or self.buf[0] != modes.SOCKS5_VERSION or len(self.buf) < 2 + self.buf[1]:
            yield from super().state_greet()
            return
        count = self.buf[1]
        offered, self.buf = self.buf[2 : 2 + count], self.buf[2 + count :]
        if self._desk.credentials and modes.SOCKS5_METHOD_USER_PASSWORD_AUTHENTICATION in offered:
            method = modes.SOCKS5_METHOD_USER_PASSWORD_AUTHENTICATION
            self.state = self.state_auth  # type: ignore[method-assign]
        elif modes.SOCKS5_METHOD_NO_AUTHENTICATION_REQUIRED in offered:
            method = modes.SOCKS5_METHOD_NO_AUTHENTICATION_REQUIRED
            self.state = self.state_connect  # type: ignore[method-assign]
        else:
            yield from self.socks_err("no method in common", _SOCKS_NO_METHOD)
            return
        yield commands.SendData(self.context.client, bytes([modes.SOCKS5_VERSION, method]))
        yield from self.state()

    state = state_greet

    def finish_start(self) -> layer.CommandGenerator[str | None]:
        self._desk.within(self.context.client, None)
        data = Destination(self.context)
        yield EdgeDestinationHook(data)
        if not data.granted:
            # What the stock layer says after this goes to a connection that is closed.
            yield from self.socks_err("refused", data.refused_as)
            return "refused"
        if data.relayed:
            self.child_layer = Relay(self.context, self._desk, None)
        return (yield from super().finish_start())


class EdgeTransparent(modes.TransparentProxy):
    """A redirected connection: the address is known, the name is not yet."""

    def __init__(self, context: Context, desk: LaneDesk) -> None:
        super().__init__(context)
        self._desk = desk

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        data = Destination(self.context)
        yield EdgeDestinationHook(data)
        if not data.granted:
            yield commands.CloseConnection(self.context.client)
            self._handle_event = self.done  # type: ignore[method-assign]
            return
        child = Relay(self.context, self._desk, None) if data.relayed else layer.NextLayer(self.context)
        self.child_layer = child
        yield from self.finish_start()


class PlainAddon(EdgeguardAddon):
    """The enforcement under a stock mitmproxy, with its other doors."""

    @closed
    def client_connected(self, client: ClientConnection) -> None:
        if client.transport_protocol != "tcp":
            client.error = failsafe.REFUSED  # QUIC and whatever else comes in datagrams
            return
        super().client_connected(client)
        if client.error is not None:
            return
        mode = client.proxy_mode
        if isinstance(mode, (mode_specs.Socks5Mode, mode_specs.TransparentMode)):
            handler = ctx.master.addons.get("proxyserver").connections[client.id]
            context = handler.layer.context
            if isinstance(mode, mode_specs.TransparentMode):
                host, port = context.server.address
                passage = self._desk.connections[client.id].passage
                passage.original, passage.port = _canonical(host), port
            context.layers.clear()
            top = EdgeSocks5 if isinstance(mode, mode_specs.Socks5Mode) else EdgeTransparent
            handler.layer = top(context, self._desk)
            if top is EdgeSocks5:
                self._desk.within(client, self._desk.head_s)

    @closed
    def socks5_auth(self, data: failsafe.HookData) -> None:
        """User and password are credentials of `[identity]`, as in `Proxy-Authorization: Basic`."""
        data.valid = False
        connection = self._desk.connections[data.client_conn.id]
        token = base64.b64encode(f"{data.username}:{data.password}".encode()).decode()
        try:
            owner = self._desk.guard.identify(peer_of(data.client_conn), (f"Basic {token}",))
        except CredentialsInvalid:
            self._desk.unidentified(connection.passage, "", 0)
            return
        connection.passage.client = owner
        data.valid = True

    @closed
    async def edge_destination(self, data: Destination) -> None:
        context = data.context
        connection = self._desk.connections[context.client.id]
        if connection.passage.original is not None:
            data.relayed = self._stack.opaque(connection, context)
            data.granted = True
            return
        address = context.server.address
        if address is None:
            return
        verdict = self._desk.judge_tunnel(
            Facts(connection.passage.connection, connection.passage.client, address[0], address[1])
        )
        entered = await self._enter(context, connection, verdict)
        if entered is not None:
            data.granted = entered.allow
            data.relayed = entered.facts.protocol == "tcp"
            if entered.reason is not None:
                data.refused_as = _SOCKS_REPLIES.get(entered.reason, SOCKS_REFUSED)

    @closed
    async def tls_clienthello(self, data: ClientHelloData) -> None:
        client = data.context.client
        connection = self._desk.connections[client.id]
        passage = connection.passage
        if passage.original is not None and passage.host is None:
            if connection.hello is None or passage.port is None:
                raise RuntimeError("a ClientHello that was not read strictly")
            # RFC 6066, 3: addresses are not sent as names, so without a name the address is what is meant.
            host = connection.hello.sni or passage.original
            verdict = self._desk.guard.judge(Facts(passage.connection, passage.client, host, passage.port))
            entered = await self._enter(data.context, connection, verdict)
            if entered is None or not entered.allow:
                client.error = failsafe.REFUSED
                return
        super().tls_clienthello(data)

    async def _enter(self, context: Context, connection: Connection, verdict: Verdict) -> Verdict | None:
        """From a judged destination to a tunnel that may be dialled; refusals are recorded. None: the client left."""
        passage = connection.passage
        verdict = await self._desk.resolve(verdict, passage.original)
        if self._desk.left(context.client, connection):
            return None
        settled = await self._desk.settle(context.client, connection, verdict)
        if settled is None or not settled.allow:
            return settled
        verdict = settled
        exchange = self._desk.begin(connection, context.client.id, verdict)
        verdict = await self._desk.reach(connection, exchange)
        if verdict.allow:
            connection.tunnel = exchange
            passage.host, passage.port = verdict.host, verdict.port
            self._desk.passages.grant(context.client.id, verdict.addresses, verdict.port)
            context.server.address = (verdict.addresses[0], verdict.port)
            context.server.sni = verdict.host
        return verdict


def _canonical(address: str) -> str:
    """Raises ValueError for what is not an address."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)
