"""What "refused" means for each hook of the engine, so that a failure can always be turned into it.

mitmproxy swallows an exception in a hook and lets the flow go on; `AddonHalt` does the same, and
`flow.kill()` does nothing on raw TCP and WebSocket messages. So each hook gets the one refusal
that holds there. Hooks that come too late for a veto end the client's connection instead.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

from mitmproxy import ctx, dns, exceptions, http
from mitmproxy.connection import Client
from mitmproxy.net.dns import response_codes
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from edgeguard.proxy.clienthello import ACCESS_DENIED

logger = logging.getLogger(__name__)

type HookData = Any
"""The argument of a hook: a flow, a client, hook data. The engine has no common type for them."""

REFUSED: Final = "refused"
"""The only text that the engine ever gets as an error: it may show it to the client."""


class DenyLayer(layer.Layer):
    """Ends a connection whose bytes nobody may see: a TLS alert, then the end."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield commands.SendData(self.context.client, ACCESS_DENIED)
            yield commands.CloseConnection(self.context.client)


def disconnect(client_id: str) -> None:
    """Ends a client's connection and everything behind it at once. Unknown ids are ignored."""
    proxyserver = ctx.master.addons.get("proxyserver")
    handler = None if proxyserver is None else proxyserver.connections.get(client_id)
    if handler is None:
        return
    for io in list(handler.transports.values()):
        transport = getattr(io.writer, "transport", None)
        if transport is not None:
            transport.abort()
        elif io.handler is not None:
            io.handler.cancel()


def closed[**P](hook: Callable[P, object]) -> Callable[P, object]:
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
                refuse(name, args[1])

        return asynchronous

    @functools.wraps(hook)
    def synchronous(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            # Fail closed.
            logger.exception("%s failed; refused", name)
            refuse(name, args[1])

    return synchronous


def failure_response() -> http.Response:
    """The reply when not even a verdict can be made."""
    body = b'{"type":"about:blank","title":"Internal Server Error","status":500,"reason":"internal_error"}\n'
    return http.Response.make(
        500,
        body,
        {
            "Content-Type": "application/problem+json",
            "Cache-Control": "no-store",
            "Proxy-Status": 'edgeguard; error=proxy_internal_error; details="internal_error"',
            "edgeguard-reason": "internal_error",
            "Connection": "close",
        },
    )


def refuse(name: str, data: HookData) -> None:
    """Turns the hook `name` on `data` into a refusal. Never raises."""
    try:
        _REFUSALS.get(name, _disconnect_owner)(data)
    except Exception:
        # Fail closed: what cannot be refused politely is cut off.
        logger.exception("refusing in the hook %s failed", name)
        with contextlib.suppress(Exception):
            _disconnect_owner(data)


def _answer(flow: http.HTTPFlow) -> None:
    flow.response = failure_response()
    flow.request.headers.pop("expect", None)
    flow.request.stream = True  # our stream replies at once; a stock one stops here


def _kill(flow: http.HTTPFlow) -> None:
    with contextlib.suppress(exceptions.ControlException):
        flow.kill()


def _client_connected(client: Client) -> None:
    client.error = REFUSED


def _server_connect(data: HookData) -> None:
    data.server.error = REFUSED


def _next_layer(data: layer.NextLayer) -> None:
    data.layer = DenyLayer(data.context)


def _clienthello(data: HookData) -> None:
    data.ignore_connection = False
    data.context.client.error = REFUSED


def _no_tls(data: HookData) -> None:
    data.ssl_conn = None
    data.context.client.error = REFUSED
    _disconnect_owner(data)  # a stock manager goes on to the addon that makes one


def _socks5(data: HookData) -> None:
    data.valid = False


def _dns(flow: dns.DNSFlow) -> None:
    flow.response = flow.request.fail(response_codes.REFUSED)


def _message(flow: HookData) -> None:
    flow.messages[-1].content = b""
    _disconnect_owner(flow)


def _websocket_message(flow: http.HTTPFlow) -> None:
    if flow.websocket is not None and flow.websocket.messages:
        flow.websocket.messages[-1].drop()
    _disconnect_owner(flow)


def _nothing(data: HookData) -> None:
    """The connection or flow is over: there is nothing left to refuse."""


def _disconnect_owner(data: HookData) -> None:
    client = client_of(data)
    if client is not None:
        disconnect(client.id)


def client_of(data: HookData) -> Client | None:
    """Whose connection the argument of a hook belongs to; None when it belongs to none."""
    if isinstance(data, Client):
        return data
    for name in ("client_conn", "client"):
        client = getattr(data, name, None)
        if isinstance(client, Client):
            return client
    context = getattr(data, "context", None)
    return context.client if isinstance(context, Context) else None


_REFUSALS: Final[dict[str, Callable[[Any], None]]] = {
    "client_connected": _client_connected,
    "client_disconnected": _nothing,
    "next_layer": _next_layer,
    "http_connect": _answer,
    "http_connect_upstream": _answer,
    "http_connected": _disconnect_owner,
    "http_connect_error": _nothing,
    "requestheaders": _answer,
    "request": _kill,
    "responseheaders": _kill,
    "response": _kill,
    "error": _nothing,
    "server_connect": _server_connect,
    "server_connect_error": _nothing,
    "server_disconnected": _nothing,
    "tls_clienthello": _clienthello,
    "tls_start_client": _no_tls,
    "tls_start_server": _no_tls,
    "tls_failed_client": _nothing,
    "tls_failed_server": _nothing,
    "quic_start_client": _disconnect_owner,
    "quic_start_server": _disconnect_owner,
    "socks5_auth": _socks5,
    "dns_request": _dns,
    "dns_response": _dns,
    "dns_error": _nothing,
    "tcp_message": _message,
    "udp_message": _message,
    "tcp_end": _nothing,
    "tcp_error": _nothing,
    "udp_end": _nothing,
    "udp_error": _nothing,
    "websocket_message": _websocket_message,
    "websocket_end": _nothing,
}
"""Every other hook (`server_connected`, `tls_established_*`, `tcp_start` and so on) has no veto."""
