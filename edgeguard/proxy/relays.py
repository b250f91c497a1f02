"""Bytes both ways, counted and not kept: tunnels that nobody reads, and WebSocket after its handshake."""

import secrets

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tcp

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.clienthello import HelloError
from edgeguard.proxy.retry import HelloWatch
from edgeguard.proxy.shape import Desk
from edgeguard.proxy.websocket import GOING_AWAY, PROTOCOL_ERROR, FrameError, Frames, close_frame


class Relay(tcp.TCPLayer):
    """Bytes both ways.

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
            yield from self._end()
            return
        if onward:
            yield commands.SendData(server, onward)
        if watch.done:
            self._watch = None

    def _end(self) -> layer.CommandGenerator[None]:
        yield commands.CloseConnection(self.context.server)
        yield commands.CloseConnection(self.context.client)
        self._handle_event = self.done


class FrameRelay(Relay):
    """WebSocket frames both ways, each checked before it goes on; what breaks the framing ends the connection."""

    def __init__(self, context: Context, desk: Desk, flow: http.HTTPFlow) -> None:
        super().__init__(context, desk, flow)
        self._from_client = Frames(masked=True)
        self._from_server = Frames(masked=False)

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from super().relay_messages(event)
            return
        sent = event.connection == self.context.client
        try:
            onward = (self._from_client if sent else self._from_server).feed(event.data)
        except FrameError as error:
            if error.good:
                yield from super().relay_messages(events.DataReceived(event.connection, error.good))
            yield from self._fail(sent=sent)
            return
        if onward:
            yield from super().relay_messages(events.DataReceived(event.connection, onward))

    def _fail(self, *, sent: bool) -> layer.CommandGenerator[None]:
        """Says why to both sides, where a Close frame would not land inside of another frame."""
        client, server = self.context.client, self.context.server
        why = Reason.MALFORMED_REQUEST if sent else Reason.UPSTREAM_UNREACHABLE
        self._desk.ended(self._http_flow, client, why.value)
        if self._from_server.between and not self._from_server.closed:
            yield commands.SendData(client, close_frame(PROTOCOL_ERROR))
        if self._from_client.between and not self._from_client.closed:
            code = GOING_AWAY if sent else PROTOCOL_ERROR
            yield commands.SendData(server, close_frame(code, secrets.token_bytes(4)))
        yield from self._end()
