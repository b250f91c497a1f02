"""Which layer comes next: HTTP to the proxy, a tunnel's TLS, what is inside it, or the end.

The stock choice falls back to HTTP, raw TCP or DNS; this one falls back to refusing.
"""

from typing import Any, cast

from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as engine
from mitmproxy.proxy.layers import modes, tls

from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Protocol
from edgeguard.proxy import failsafe
from edgeguard.proxy.connections import Connection
from edgeguard.proxy.desk import LaneDesk
from edgeguard.proxy.layers import EdgeClientTLS, EdgeHttpLayer, Relay


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
            nextlayer.layer = self._reverse_stack(context, is_tls=first == b"\x16")
        elif isinstance(top, tls.ClientTLSLayer):
            nextlayer.layer = EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        elif (
            isinstance(top, (engine.HttpStream, modes.TransparentProxy))
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
        else:
            # A door without a claim that could be judged (SOCKS5, transparent): not without the front door.
            nextlayer.layer = failsafe.DenyLayer(context)

    def _clear(self, context: Context, connection: Connection) -> layer.Layer:
        """A tunnel without TLS: plain HTTP or anything else, each only where a rule allows it."""
        if connection.tunnel is None:
            # The front door let it through as plain HTTP; each request is judged as that.
            return EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
        verdict = connection.tunnel.verdict
        protocols: tuple[Protocol, ...] = ("http", "tcp")
        for protocol in protocols:
            again = self._desk.guard.judge(verdict.facts._replace(protocol=protocol))
            if self._desk.guard.admit(again, verdict.addresses).allow:
                if protocol == "http":
                    return EdgeHttpLayer(context, engine.HTTPMode.transparent, self._desk)
                return Relay(context, self._desk, None)
        self._desk.refuse_tunnel(connection, Reason.OPAQUE_TUNNEL)
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
            again = again._replace(aliases=verdict.aliases)
