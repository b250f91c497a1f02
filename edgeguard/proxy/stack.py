"""Which layer comes next: HTTP to the proxy, a tunnel's TLS, what is inside it, or the end.

The stock choice falls back to HTTP, raw TCP or DNS; this one falls back to refusing.
"""

from typing import Any, cast

from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as engine
from mitmproxy.proxy.layers import modes, tls

from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Protocol
from edgeguard.proxy import failsafe
from edgeguard.proxy.connections import Connection
from edgeguard.proxy.desk import LaneDesk
from edgeguard.proxy.layers import EdgeClientTLS, EdgeHttpLayer
from edgeguard.proxy.relays import Relay
from edgeguard.verdict import Facts, Verdict


class Stack:
    """Chooses the layers of a connection."""

    def __init__(self, desk: LaneDesk) -> None:
        self._desk = desk

    def choose(self, nextlayer: layer.NextLayer) -> None:
        context = nextlayer.context
        connection = self._desk.connections.get(context.client.id)
        if connection is None or context.client.transport_protocol != "tcp":
            nextlayer.layer = failsafe.DenyLayer(context)
            return
        top = context.layers[-1] if context.layers else None
        first = nextlayer.data_client()[:1]
        is_tls = first in {b"", b"\x16"}
        if isinstance(top, modes.HttpProxy):
            if first == b"\x16":
                outer = EdgeClientTLS(context, self._desk)
                outer.child_layer = EdgeHttpLayer(context, engine.HTTPMode.regular, self._desk)
                nextlayer.layer = outer
            else:
                nextlayer.layer = EdgeHttpLayer(context, engine.HTTPMode.regular, self._desk)
        elif isinstance(top, modes.ReverseProxy):
            spec = cast("mode_specs.ReverseMode", context.client.proxy_mode)
            nextlayer.layer = self._reverse_stack(context, spec.scheme, is_tls=first == b"\x16")
        elif isinstance(top, modes.TransparentProxy) and connection.passage.site is not None:
            scheme = "https" if connection.passage.site.origin_tls else "http"
            nextlayer.layer = self._reverse_stack(context, scheme, is_tls=first == b"\x16")
        elif isinstance(top, tls.ClientTLSLayer):
            nextlayer.layer = EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        elif (
            isinstance(top, (engine.HttpStream, modes.TransparentProxy, modes.Socks5Proxy))
            and connection.passage.host is not None
        ):
            if connection.tunnel is not None and connection.tunnel.verdict.facts.protocol == "tcp":
                nextlayer.layer = Relay(context, self._desk, None)
            elif is_tls:
                server_tls = tls.ServerTLSLayer(context)
                server_tls.child_layer = EdgeClientTLS(context, self._desk)
                nextlayer.layer = server_tls
            else:
                nextlayer.layer = self._clear(context, connection)
        elif isinstance(top, modes.TransparentProxy) and connection.passage.original is not None:
            nextlayer.layer = self._redirected(context, connection, first)
        else:
            nextlayer.layer = failsafe.DenyLayer(context)

    def _redirected(self, context: Context, connection: Connection, first: bytes) -> layer.Layer:
        """At a transparent door: TLS and HTTP name where they want to go, other bytes need a rule for the address."""
        if first == b"\x16":
            server_tls = tls.ServerTLSLayer(context)
            server_tls.child_layer = EdgeClientTLS(context, self._desk)
            return server_tls
        if first.isalpha():
            return EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        self._desk.guard.refuse(self._opaque(connection), Reason.OPAQUE_TUNNEL)
        return failsafe.DenyLayer(context)

    def opaque(self, connection: Connection, context: Context) -> bool:
        """Whether a rule lets bytes go unread to the address that the client dialled; then it is settled."""
        verdict = self._opaque(connection)
        if not verdict.allow or verdict.lane is not Lane.TUNNEL:
            return False
        verdict = self._desk.guard.admit(verdict, (verdict.facts.host,))
        if not verdict.allow:
            return False
        verdict = self._desk.guard.settle(verdict)
        if not verdict.allow:
            return False
        passage = connection.passage
        connection.tunnel = self._desk.begin(connection, context.client.id, verdict)
        passage.host = verdict.host
        self._desk.passages.grant(context.client.id, verdict.addresses, verdict.port)
        context.server.address = (verdict.addresses[0], verdict.port)
        return True

    def _opaque(self, connection: Connection) -> Verdict:
        passage = connection.passage
        return self._desk.guard.judge(
            Facts(passage.connection, passage.client, passage.original or "", passage.port or 0, "tcp")
        )

    def _clear(self, context: Context, connection: Connection) -> layer.Layer:
        """A tunnel without TLS: plain HTTP or anything else, each only where a rule allows it."""
        if connection.tunnel is None:
            # The front door let it through as plain HTTP; each request is judged as that.
            return EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        verdict = connection.tunnel.verdict
        if verdict.facts.protocol != "http":
            opaque = self._again(verdict, "tcp")
            if opaque.allow and opaque.lane is Lane.TUNNEL:
                if self._switch(connection, opaque):
                    return Relay(context, self._desk, None)
                return failsafe.DenyLayer(context)
        if self._again(verdict, "http").allow:
            return EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        self._desk.refuse_tunnel(connection, Reason.OPAQUE_TUNNEL)
        return failsafe.DenyLayer(context)

    def _again(self, verdict: Verdict, protocol: Protocol) -> Verdict:
        """The question of a tunnel for another protocol, at the addresses that were admitted."""
        again = self._desk.guard.judge(verdict.facts._replace(protocol=protocol))
        return self._desk.guard.admit(again._replace(aliases=verdict.aliases), verdict.addresses)

    def _switch(self, connection: Connection, verdict: Verdict) -> bool:
        """Settles a tunnel anew for what it turned out to carry, so that a change of policy finds that."""
        tunnel, connection.tunnel = connection.tunnel, None
        if tunnel is None or connection.end(tunnel.id) is None:
            return False
        self._desk.guard.finish(tunnel.verdict, sent=0, received=0, why="protocol_changed")
        verdict = self._desk.guard.settle(verdict, before=tunnel.verdict)
        if verdict.allow:
            connection.tunnel = self._desk.begin(connection, tunnel.id, verdict)
        return verdict.allow

    def _reverse_stack(self, context: Context, scheme: str, *, is_tls: bool) -> layer.Layer:
        """In front of a site: TLS with the visitor and with the origin are each other's business."""
        if scheme not in {"http", "https"}:
            return failsafe.DenyLayer(context)
        outer: Any = None
        top: Any = None
        if scheme == "https":
            outer = top = tls.ServerTLSLayer(context)
        if is_tls:
            inner = EdgeClientTLS(context, self._desk)
            if top is None:
                outer = inner
            else:
                top.child_layer = inner
            top = inner
        http_layer = EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        if top is None:
            return http_layer
        top.child_layer = http_layer
        return outer  # type: ignore[no-any-return]
