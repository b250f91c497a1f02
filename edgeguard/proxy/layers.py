"""The engine's HTTP and TLS layers, with the bounds and the early replies that they lack.

Stock layers buffer the whole body of a request that is already refused, have no bound on a
request head or a ClientHello, answer errors in the engine's own words, fail on HTTP/1 trailers and
take a 103 for the answer. These subclasses are put into the stack by the addon's `next_layer`;
they decide nothing, and ask a `Desk` for every reply.
"""

from typing import Final, NamedTuple, Protocol, cast

from h11._receivebuffer import ReceiveBuffer
from mitmproxy import connection, http
from mitmproxy.connection import Client
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as engine
from mitmproxy.proxy.layers import tcp, tls
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._hooks import (
    HttpConnectHook,
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpResponseHook,
)
from mitmproxy.proxy.layers.http._http2 import Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.clienthello import ACCESS_DENIED, Hello, HelloError, read_hello
from edgeguard.proxy.heads import HeadError, head_end, parse_head
from edgeguard.proxy.retry import HelloWatch, first_hello

SHAPE: Final = "edgeguard.shape"
REPLY: Final = "edgeguard.reply"
CLIENT_LEFT: Final = "edgeguard.client_left"
"""Keys of `flow.metadata`."""


class Shape(NamedTuple):
    """What the engine forgets about a request before the hooks see it."""

    forward: bool
    """It came to an explicit proxy, outside of any tunnel."""
    absolute: bool
    """Its target was in absolute form, or it has an `:authority`."""
    body: bool
    """More than the head follows."""


class Desk(Protocol):
    """Where the layers get their replies and report what they see."""

    head_bytes: int
    hello_bytes: int
    head_s: float
    hello_s: float

    def unreadable(self, client: Client, reason: Reason) -> http.Response: ...
    def hello(self, client: Client, hello: Hello | None) -> None: ...
    def opaque(self, client: Client) -> bool: ...
    def misdirected(self, client: Client) -> None: ...
    def multiplexed(self, client: Client, h2: BufferedH2Connection) -> None: ...
    def within(self, client: Client, seconds: float | None) -> None: ...
    def draining(self, client: Client) -> None: ...
    def moved(self, flow: http.HTTPFlow | None, client: Client, size: int, *, sent: bool) -> None: ...
    def ended(self, flow: http.HTTPFlow | None, client: Client) -> None: ...


class EdgeStream(engine.HttpStream):
    """One request and its answer."""

    def __init__(self, context: Context, stream_id: int, desk: Desk) -> None:
        super().__init__(context, stream_id)
        self._desk = desk
        self._answered = False
        self._shape = Shape(forward=False, absolute=False, body=False)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.RequestHeaders):
            self._shape = Shape(
                self.mode is engine.HTTPMode.regular, bool(event.request.data.authority), not event.end_stream
            )
        elif isinstance(event, http_events.ResponseHeaders) and not self._may_switch(event.response):
            yield commands.CloseConnection(self.context.server)
            event = http_events.ResponseProtocolError(
                self.stream_id, "unsolicited 101", http_events.ErrorCode.GENERIC_SERVER_ERROR
            )
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
                elif isinstance(sent, http_events.RequestHeaders) and not sent.end_stream:
                    self._frame(sent.request)
            elif isinstance(command, (HttpRequestHeadersHook, HttpConnectHook)):
                command.flow.metadata[SHAPE] = self._shape
            elif isinstance(command, HttpErrorHook):
                command.flow.metadata[CLIENT_LEFT] = self._client_left(event)
            reply = yield command

    def _client_left(self, event: events.Event) -> bool:
        return isinstance(event, http_events.RequestProtocolError) or any(
            isinstance(waiting, http_events.RequestProtocolError) for waiting in self._paused_event_queue
        )

    def _may_switch(self, response: http.Response) -> bool:
        """Whether a 101, if it is one, answers an upgrade to WebSocket that was let through."""
        if response.status_code != 101:
            return True
        asked: str = self.flow.request.headers.get("upgrade", "")
        given: str = response.headers.get("upgrade", "")
        return asked.lower() == given.strip().lower() == "websocket"

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
        """After a 101 both sides are relayed as they are: nothing is decoded, so nothing piles up."""
        if self.flow.response is None or self.flow.response.status_code != 101:
            yield from super().flow_done()
            return
        self.flow.live = False
        self.child_layer = Relay(self.context, self._desk, self.flow)
        self._handle_event = self.passthrough  # type: ignore[method-assign]
        yield from self.child_layer.handle_event(events.Start())
        yield engine.SendHttp(http_events.ResponseEndOfMessage(self.stream_id), self.context.client)

    def _frame(self, request: http.Request) -> None:
        """HTTP/2 needs no length, HTTP/1.1 does: without one the body would read as the next request."""
        if (
            request.is_http2
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


class EdgeHttp1Server(_http1.Http1Server):
    """The HTTP/1 side of a client: every head is read strictly before the engine reads it."""

    def __init__(self, context: Context, desk: Desk) -> None:
        super().__init__(context)
        self._desk = desk
        self._begun = False

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            data = bytes(self.buf)
            if data.startswith(b"\r\n"):  # RFC 9112, 2.2: an empty line before the request line
                self.buf.maybe_extract_at_most(2)
                data = data[2:]
            try:
                if data in {b"", b"\r"}:
                    return
                end = head_end(data, 0, self._desk.head_bytes)
                if end < 0:
                    if not self._begun:
                        self._begun = True
                        self._desk.within(self.context.client, self._desk.head_s)
                    return
                if self._begun:
                    self._begun = False
                    self._desk.within(self.context.client, None)
                parse_head(data[:end])
            except HeadError as error:
                yield from self._unreadable(error.reason)
                return
        inner = super().read_headers(event)
        command = next(inner, None)
        if command is None:
            return
        if isinstance(command, commands.SendData):
            # The engine could not read the target or the framing: its words are not for the client.
            inner.close()
            yield from self._unreadable(Reason.MALFORMED_REQUEST)
            return
        yield command
        yield from inner

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        """While an answer is on its way, some of a next request may wait, but not without end."""
        if isinstance(event, events.DataReceived) and len(self.buf) > MAX_PIPELINED_BYTES:
            self.buf = ReceiveBuffer()
            self.state = self.done
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                http_events.RequestProtocolError(
                    self.stream_id, "too much is pipelined", http_events.ErrorCode.CLIENT_DISCONNECTED
                )
            )
            return
        yield from super().wait(event)

    def _unreadable(self, reason: Reason) -> layer.CommandGenerator[None]:
        response = self._desk.unreadable(self.context.client, reason)
        yield commands.SendData(self.conn, http1.assemble_response(response))
        yield commands.CloseConnection(self.conn)
        self.state = self.done


class EdgeHttpLayer(engine.HttpLayer):
    """The HTTP layer with the parts above."""

    def __init__(self, context: Context, mode: engine.HTTPMode, desk: Desk) -> None:
        super().__init__(context, mode)
        self._desk = desk

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            client = self.context.client
            if client.alpn == b"h2":
                server = Http2Server(self.context.fork())
                self.connections[client] = server
                self._desk.multiplexed(client, server.h2_conn)
            else:
                self.connections[client] = EdgeHttp1Server(self.context.fork(), self._desk)
        yield from super()._handle_event(event)

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
            self._desk.within(self.context.client, self._desk.hello_s)
        done, error = yield from self._receive(data)
        if done:
            self._desk.within(self.context.client, None)
        return done, error

    def _receive(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if self.client_hello_parsed:
            return (yield from super().receive_handshake_data(data))
        self._hello += data
        try:
            hello = read_hello(bytes(self._hello), self._desk.hello_bytes)
        except HelloError:
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
        hello = read_hello(data, self._desk.hello_bytes)
        assert hello is not None  # noqa: S101 - it was read a moment ago
        watch = HelloWatch(hello.sni, self._desk.hello_bytes)
        self.child_layer = Relay(self.context, self._desk, None, watch, first_hello(data))
        yield from self.event_to_child(events.DataReceived(self.context.client, data))
        self._hello.clear()
        return True, None


class Relay(tcp.TCPLayer):
    """Bytes both ways, counted and not kept.

    With a `watch`, the first `hello` bytes of the client are its ClientHello.
    """

    def __init__(
        self,
        context: Context,
        desk: Desk,
        flow: http.HTTPFlow | None,
        watch: HelloWatch | None = None,
        hello: int = 0,
    ) -> None:
        super().__init__(context, ignore=True)
        self._desk = desk
        self._http_flow = flow
        self._watch = watch
        self._hello = hello

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        if isinstance(event, events.DataReceived):
            self._desk.moved(self._http_flow, client, len(event.data), sent=event.connection == client)
            if self._watch is not None:
                yield from self._watched(event, self._watch)
                return
        yield from super().relay_messages(event)
        if isinstance(event, events.ConnectionClosed) and self._handle_event == self.done:
            self._desk.ended(self._http_flow, client)

    def _watched(self, event: events.DataReceived, watch: HelloWatch) -> layer.CommandGenerator[None]:
        """Relays a handshake that must not go on with another name."""
        client, server = self.context.client, self.context.server
        try:
            if event.connection == client:
                hello, self._hello = event.data[: self._hello], 0
                onward = hello + watch.client(event.data[len(hello) :])
            else:
                yield commands.SendData(client, event.data)
                onward = watch.server(event.data)
        except HelloError:
            self._desk.misdirected(client)
            yield commands.CloseConnection(server)
            yield commands.CloseConnection(client)
            self._handle_event = self.done
            return
        if onward:
            yield commands.SendData(server, onward)
        if watch.done:
            self._watch = None


def _read_body(self: _http1.Http1Connection, event: events.Event) -> layer.CommandGenerator[None]:
    """`Http1Connection.read_body` that drops trailers (RFC 9110, 6.5.1 lets a proxy) instead of failing.

    What the reader leaves is the beginning of a chunk's size line or of trailers, which it would gather without end.
    """
    try:
        yield from _stock_read_body(self, event)
        if self.state == self.read_body and len(self.buf) > MAX_CHUNK_LINE_BYTES:
            self.buf = ReceiveBuffer()
            self.state = self.done
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                self.ReceiveProtocolError(
                    cast("int", self.stream_id), "chunk framing too long", self.ReceiveProtocolError.code
                )
            )
    except NotImplementedError:
        is_request = isinstance(self, _http1.Http1Server)
        yield ReceiveHttp(self.ReceiveEndOfMessage(cast("int", self.stream_id)))
        yield from self.mark_done(request=is_request, response=not is_request)


def _read_response_headers(
    self: _http1.Http1Client, event: events.ConnectionEvent
) -> layer.CommandGenerator[None]:
    """`Http1Client.read_headers` that skips interim responses (RFC 9110, 15.2) and bounds the head."""
    if isinstance(event, events.DataReceived):
        data = bytes(self.buf)
        while self.request is not None and _is_interim(data) and self.buf.maybe_extract_lines() is not None:
            data = bytes(self.buf)
        if len(data) > MAX_RESPONSE_HEAD_BYTES and b"\r\n\r\n" not in data[:MAX_RESPONSE_HEAD_BYTES]:
            yield commands.CloseConnection(self.conn)
            if self.stream_id is not None:
                yield ReceiveHttp(
                    http_events.ResponseProtocolError(
                        self.stream_id, "response head too large", http_events.ErrorCode.GENERIC_SERVER_ERROR
                    )
                )
            return
        if _is_interim(data):
            return  # incomplete, or there is nothing behind it yet
    yield from _stock_read_response_headers(self, event)


def _is_interim(data: bytes) -> bool:
    return data.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")) and data[9:12] != b"101"


MAX_RESPONSE_HEAD_BYTES: Final = 262_144
MAX_PIPELINED_BYTES: Final = 65_536
MAX_CHUNK_LINE_BYTES: Final = 16_384

_stock_read_body = _http1.Http1Connection.read_body
_stock_read_response_headers = _http1.Http1Client.read_headers
# The layer that talks to the upstream is chosen deep inside the engine, with no seam for a subclass.
_http1.Http1Connection.read_body = _read_body  # type: ignore[method-assign]
_http1.Http1Client.read_headers = _read_response_headers  # type: ignore[method-assign]


def _unchecked(self: http.MessageData) -> None:
    """In place of a type check by introspection, of what the engine itself has parsed, in every message."""


http.MessageData.__post_init__ = _unchecked  # type: ignore[method-assign]
