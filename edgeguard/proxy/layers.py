"""The engine's HTTP and TLS layers, with the bounds and the early replies that they lack.

Stock layers buffer the whole body of a request that is already refused, have no bound on a
request head or a ClientHello, answer errors in the engine's own words, fail on HTTP/1 trailers and
take a 103 for the answer. These subclasses are put into the stack by the addon's `next_layer`;
they decide nothing, and ask a `Desk` for every reply.
"""

from typing import Final, cast

from mitmproxy import connection, http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as engine
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._hooks import (
    HttpConnectHook,
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpResponseHook,
)

from edgeguard.policy.reasons import Reason
from edgeguard.proxy import headers
from edgeguard.proxy.clienthello import ACCESS_DENIED, HelloError, read_hello
from edgeguard.proxy.http1 import EdgeHttp1Client, EdgeHttp1Server
from edgeguard.proxy.http2 import EdgeHttp2Client, EdgeHttp2Server, stuck_in
from edgeguard.proxy.relays import FrameRelay, Relay
from edgeguard.proxy.retry import HelloWatch, first_hello
from edgeguard.proxy.shape import CLIENT_LEFT, REPLY, SHAPE, Desk, Shape
from edgeguard.proxy.websocket import answers_well


class EdgeStream(engine.HttpStream):
    """One request and its answer."""

    def __init__(self, context: Context, stream_id: int, desk: Desk) -> None:
        super().__init__(context, stream_id)
        self._desk = desk
        self._answered = False
        self._takes_trailers = False
        self._shape = Shape(forward=False, absolute=False, body=False, scheme=b"")

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.RequestHeaders):
            data = event.request.data
            self._takes_trailers = event.request.headers.get("te", "").strip().lower() == "trailers"
            self._shape = Shape(
                self.mode is engine.HTTPMode.regular,
                bool(data.authority),
                not event.end_stream,
                data.scheme.lower(),
            )
        elif isinstance(event, http_events.ResponseHeaders) and not self._may_switch(event.response):
            yield commands.CloseConnection(self.context.server)
            event = http_events.ResponseProtocolError(
                self.stream_id, "unsolicited 101", http_events.ErrorCode.GENERIC_SERVER_ERROR
            )
        elif isinstance(event, http_events.ResponseTrailers):
            event.trailers.fields = headers.clean_trailers(event.trailers.fields)
            if not event.trailers.fields or self.context.client.alpn != b"h2":
                return
        inner = super()._handle_event(event)
        reply = None
        while True:
            try:
                command = inner.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(command, engine.SendHttp):
                sent = command.event
                if isinstance(sent, http_events.ResponseProtocolError):
                    if not self._answered and (response := self._own_reply(sent)) is not None:
                        yield from self._send_reply(response)
                        if self._shape.body and sent.code in _UNFRAMED:
                            yield command  # the rest cannot be told from a next request: close
                        continue
                elif isinstance(sent, http_events.ResponseHeaders):
                    self._answered = sent.response.status_code != 100
                elif isinstance(sent, http_events.RequestHeaders):
                    self._frame(sent)
            elif isinstance(command, commands.StartHook):
                self._tell(command, event)
            reply = yield command

    def _tell(self, hook: commands.StartHook, event: events.Event) -> None:
        """What the hooks cannot see otherwise."""
        if isinstance(hook, (HttpRequestHeadersHook, HttpConnectHook)):
            hook.flow.metadata[SHAPE] = self._shape
        elif isinstance(hook, HttpErrorHook):
            hook.flow.metadata[CLIENT_LEFT] = self._client_left(event)

    def _client_left(self, event: events.Event) -> bool:
        return isinstance(event, http_events.RequestProtocolError) or any(
            isinstance(waiting, http_events.RequestProtocolError) for waiting in self._paused_event_queue
        )

    def _may_switch(self, response: http.Response) -> bool:
        """Whether a 101, if it is one, answers the upgrade to WebSocket that was let through (RFC 6455, 4.1)."""
        if response.status_code != 101:
            return True
        asked, given = self.flow.request.headers, response.headers
        return (
            asked.get("upgrade", "").lower() == given.get("upgrade", "").strip().lower() == "websocket"
            and b"upgrade" in headers.tokens_of(given.get("connection", "").encode("latin-1", "replace"))
            and "sec-websocket-extensions" not in given
            and answers_well(
                asked.get("sec-websocket-key", ""),
                given.get_all("sec-websocket-accept"),
                asked.get_all("sec-websocket-protocol"),
                given.get_all("sec-websocket-protocol"),
            )
        )

    def _own_reply(self, error: http_events.ResponseProtocolError) -> http.Response | None:
        status = error.code.http_status_code()
        if status is None:
            return None  # killed, or nobody is left to read it
        flow = getattr(self, "flow", None)
        reply = None if flow is None else flow.metadata.get(REPLY)
        if reply is None:
            reason = Reason.UPSTREAM_UNREACHABLE if status >= 500 else Reason.MALFORMED_REQUEST
            reply = self._desk.unreadable(self.context.client, reason)
        return cast("http.Response", reply)

    def _send_reply(self, response: http.Response) -> layer.CommandGenerator[None]:
        self._answered = True
        content = response.raw_content
        client = self.context.client
        yield engine.SendHttp(http_events.ResponseHeaders(self.stream_id, response, not content), client)
        if content:
            yield engine.SendHttp(http_events.ResponseData(self.stream_id, content), client)
        yield engine.SendHttp(http_events.ResponseEndOfMessage(self.stream_id), client)
        self._desk.draining(client)

    def handle_connect_finish(self) -> layer.CommandGenerator[None]:
        if self.flow.response is None and self._desk.opaque(self.context.client):
            # Its server may be the one to speak first: nothing is waited for.
            self.child_layer = Relay(self.context, self._desk, None)
        yield from super().handle_connect_finish()  # type: ignore[no-untyped-call]

    def start_request_stream(self) -> layer.CommandGenerator[None]:
        """Begins to pass a body on, or, when the request is refused already, replies and drops it."""
        if self.flow.response is None:
            yield from super().start_request_stream()
            return
        self.client_state = self.state_errored
        self.flow.live = False
        yield HttpResponseHook(self.flow)
        yield from self._send_reply(self.flow.response)
        yield engine.DropStream(self.stream_id)

    def flow_done(self) -> layer.CommandGenerator[None]:
        """After a 101 frames are relayed as they are, once their heads were read; nothing piles up."""
        if self.flow.response is None or self.flow.response.status_code != 101:
            yield from super().flow_done()
            return
        self.flow.live = False
        self.child_layer = FrameRelay(self.context, self._desk, self.flow)
        self._handle_event = self.passthrough  # type: ignore[method-assign]
        yield from self.child_layer.handle_event(events.Start())
        yield engine.SendHttp(http_events.ResponseEndOfMessage(self.stream_id), self.context.client)

    def _frame(self, sent: http_events.RequestHeaders) -> None:
        """HTTP/2 needs no length, HTTP/1.1 does: without one the body would read as the next request."""
        request = sent.request
        if self._takes_trailers and self.context.client.alpn == self.context.server.alpn == b"h2":
            # Not hop-by-hop in HTTP/2 (RFC 9113, 8.2.2), and gRPC does not go without it.
            request.headers["te"] = "trailers"
        if (
            not sent.end_stream
            and request.is_http2
            and self.context.server.alpn != b"h2"
            and "content-length" not in request.headers
            and "transfer-encoding" not in request.headers
        ):
            request.headers["transfer-encoding"] = "chunked"


_UNFRAMED: Final = frozenset({
    http_events.ErrorCode.GENERIC_CLIENT_ERROR,
    http_events.ErrorCode.REQUEST_VALIDATION_FAILED,
    http_events.ErrorCode.DESTINATION_UNKNOWN,
})  # fmt: skip


class EdgeHttpLayer(engine.HttpLayer):
    """The HTTP layer with the parts above.

    Attributes:
        upstreams: Connections to upstreams that speak HTTP/2.
        answer_head_bytes: The bound that the upstream's side keeps.
    """

    def __init__(self, context: Context, mode: engine.HTTPMode, desk: Desk) -> None:
        super().__init__(context, mode)
        self._desk = desk
        self._server: EdgeHttp2Server | None = None
        self.upstreams: dict[Connection, EdgeHttp2Client] = {}
        self.answer_head_bytes = desk.bounds.answer_head_bytes
        self._stuck = stuck_in(self)
        desk.carries(context.client, self.waiting)

    def waiting(self) -> int:
        """Bytes of bodies that wait here for a verdict or for a connection."""
        return sum(
            len(event.data)
            for stream in self.streams.values()
            for event in stream._paused_event_queue
            if isinstance(event, http_events.RequestData)
        )

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            client = self.context.client
            if client.alpn == b"h2":
                server = self._server = EdgeHttp2Server(self.context.fork(), self._desk)
                self.connections[client] = server
                self._desk.multiplexed(client, server.h2_conn)
            else:
                self.connections[client] = EdgeHttp1Server(self.context.fork(), self._desk)
        yield from super()._handle_event(event)
        if self._server is not None:
            yield from self._server.settle(self._stuck)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = EdgeStream(self.context.fork(), stream_id, self._desk)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


class EdgeClientTLS(tls.ClientTLSLayer):
    """TLS with the client: one strictly read, bounded ClientHello, then the decision about it."""

    def __init__(self, context: Context, desk: Desk) -> None:
        super().__init__(context)
        self._desk = desk
        self._hello = bytearray()
        self._begun = False

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if not self._begun:
            self._begun = True
            self._desk.within(self.context.client, self._desk.bounds.hello_s)
        done, error = yield from self._receive(data)
        if done:
            self._desk.within(self.context.client, None)
        return done, error

    def _receive(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if self.client_hello_parsed:
            return (yield from super().receive_handshake_data(data))
        self._hello += data
        try:
            hello = read_hello(bytes(self._hello), self._desk.bounds.hello_bytes)
        except HelloError:
            self._desk.unreadable_hello(self.context.client)
            return (yield from self._denied())
        if hello is None:
            return False, None
        self._desk.hello(self.context.client, hello)
        inner = super().receive_handshake_data(bytes(self._hello))
        reply = None
        while True:
            try:
                command = inner.send(reply)
            except StopIteration as stopped:
                return cast("tuple[bool, str | None]", stopped.value)
            reply = yield command
            if isinstance(command, tls.TlsClienthelloHook):
                if self.context.client.error:
                    inner.close()
                    return (yield from self._denied())
                if command.data.ignore_connection:
                    inner.close()
                    return (yield from self._pass_through())

    def _denied(self) -> layer.CommandGenerator[tuple[bool, str | None]]:
        yield commands.SendData(self.context.client, ACCESS_DENIED)
        return False, "refused"

    def _pass_through(self) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """The bytes go through untouched: both TLS layers get a connection that is nobody's."""
        self.conn = self.tunnel_connection = connection.Client(
            peername=("ignore-conn", 0), sockname=("ignore-conn", 0)
        )
        parent = self.context.layers[self.context.layers.index(self) - 1]
        if isinstance(parent, tls.ServerTLSLayer):
            parent.conn = parent.tunnel_connection = connection.Server(address=None)
        data = bytes(self._hello)
        hello = read_hello(data, self._desk.bounds.hello_bytes)
        assert hello is not None  # noqa: S101 - it was read a moment ago
        watch = HelloWatch(hello.sni, self._desk.bounds.hello_bytes)
        self.child_layer = Relay(self.context, self._desk, None, watch, first_hello(data))
        yield from self.event_to_child(events.DataReceived(self.context.client, data))
        self._hello.clear()
        return True, None


# The layers that talk to an upstream are chosen deep inside the engine, with no seam for a subclass.
engine.Http1Client = EdgeHttp1Client  # type: ignore[attr-defined]
engine.Http2Client = EdgeHttp2Client  # type: ignore[attr-defined]


def _unchecked(self: http.MessageData) -> None:
    """In place of a type check by introspection, of what the engine itself has parsed, in every message."""


http.MessageData.__post_init__ = _unchecked  # type: ignore[method-assign]
