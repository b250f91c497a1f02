"""HTTP/2 on both sides (RFC 9113), with bounds on what a peer can make us keep or do.

The engine acknowledges a body as soon as it has read it, so that a client fills our memory as fast as
it sends while the upstream takes nothing; it waits for a frame of any size; it lets streams be opened
and reset without end (CVE-2023-44487); and it ends a connection without telling anybody. Here a
client's window opens again only when its bytes have gone on, and what is refused is on record.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes
from hyperframe.frame import Frame
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Server, StreamState
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.http1 import MAX_INTERIM_ANSWERS
from edgeguard.proxy.shape import Desk

if TYPE_CHECKING:
    from edgeguard.proxy.layers import EdgeHttpLayer

FRAME_BYTES: Final = 16_384
"""The largest frame that a client may send: the protocol's own default."""
STREAMS: Final = 8
"""The window of a connection, in windows of one stream."""


class BoundedFrames(FrameBuffer):
    """Refuses a frame that is too large by its head, and a header block that does not end."""

    def __init__(self, *, server: bool, block: int) -> None:
        super().__init__(server=server)
        self._block = block

    def __next__(self) -> Frame:
        if len(self._data) >= 3:
            self._validate_frame_length(int.from_bytes(self._data[:3]))
        return super().__next__()

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        kept = sum(len(part.data) for part in self._headers_buffer)
        if f is not None and self._headers_buffer and kept + f.body_len > self._block:
            raise ProtocolError("the header block does not end")
        return super()._update_header_buffer(f)


class ClientSideH2(BufferedH2Connection):
    """The state of a client's connection. What is received is owed, and acknowledged by `pay`.

    Args:
        config: The engine's.
        stream_bytes: The window of one stream.
        head_bytes: The largest header list.
    """

    def __init__(self, config: h2.config.H2Configuration, stream_bytes: int, head_bytes: int) -> None:
        super().__init__(config)
        self.owed: Counter[int] = Counter()
        self._window = stream_bytes * STREAMS
        ours = self.local_settings
        ours.initial_window_size = stream_bytes
        ours.max_frame_size = self.max_inbound_frame_size = FRAME_BYTES
        ours[SettingCodes.MAX_HEADER_LIST_SIZE] = head_bytes
        ours.acknowledge()
        self.decoder.max_header_list_size = head_bytes
        self.incoming_buffer = BoundedFrames(server=True, block=2 * head_bytes)

    def initiate_connection(self) -> None:
        h2.connection.H2Connection.initiate_connection(self)
        self.increment_flow_control_window(self._window - self.inbound_flow_control_window)

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Notes a debt. Where the stream has ended, only the connection's window is paid."""
        self.owed[stream_id] += acknowledged_size

    def pay(self, stuck: Callable[[int], bool]) -> None:
        """Opens the windows of all streams that are not `stuck`."""
        for stream_id in [stream_id for stream_id in self.owed if not stuck(stream_id)]:
            size = self.owed.pop(stream_id)
            if size:
                super().acknowledge_received_data(size, stream_id)


class EdgeHttp2Server(Http2Server):
    """The client's side."""

    h2_conn: ClientSideH2

    def __init__(self, context: Context, desk: Desk) -> None:
        super().__init__(context)
        bounds = desk.bounds
        self.h2_conn = ClientSideH2(self.h2_conf, bounds.stream_bytes, bounds.head_bytes)
        self._desk = desk
        self._begun: set[int] = set()
        self._answered = 0
        self._abandoned = 0

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.ResponseEndOfMessage) and event.stream_id in self._begun:
            self._begun.discard(event.stream_id)
            self._answered += 1
        yield from super()._handle_event(event)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.RequestReceived):
            self._begun.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in self._begun:
            self._begun.discard(event.stream_id)
            # Read together with its request, the engine would take a reset for one of a stream that is over.
            self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
            self._abandoned += 1
            if self._abandoned > self._desk.bounds.resets + self._answered:
                self._desk.unreadable(self.context.client, Reason.CAPACITY_EXCEEDED)
                yield from super().protocol_error("", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        return (yield from super().handle_h2_event(event))

    def protocol_error(
        self, message: str, error_code: int = h2.errors.ErrorCodes.PROTOCOL_ERROR
    ) -> layer.CommandGenerator[None]:
        """Ends the connection, on record and without the engine's words."""
        self._desk.unreadable(self.context.client, Reason.MALFORMED_REQUEST)
        yield from super().protocol_error("", error_code)

    def settle(self, stuck: Callable[[int], bool]) -> layer.CommandGenerator[None]:
        """Opens windows where what came through them has gone on."""
        if self.h2_conn.owed and self.conn.connected:
            self.h2_conn.pay(stuck)
            if data := self.h2_conn.data_to_send():
                yield commands.SendData(self.conn, data)


class EdgeHttp2Client(Http2Client):
    """The upstream's side."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        frames = BoundedFrames(server=False, block=2 * self.h2_conn.decoder.max_header_list_size)
        self.h2_conn.incoming_buffer = frames
        self._interim: Counter[int] = Counter()
        for above in context.layers:
            upstreams = getattr(above, "upstreams", None)
            if upstreams is not None:
                upstreams[context.server] = self

    def holds_back(self, stream_id: int) -> bool:
        """Whether the upstream's windows keep some of a client's stream from going on."""
        if stream_id in self.stream_queue:
            return True
        ours = self.our_stream_id.get(stream_id)
        return ours is not None and bool(self.h2_conn.stream_buffers.get(ours))

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.InformationalResponseReceived):
            self._interim[event.stream_id] += 1
            if self._interim[event.stream_id] > MAX_INTERIM_ANSWERS:
                yield from self.protocol_error("too many interim answers")
                return True
        elif isinstance(event, h2.events.PushedStreamReceived):
            yield from self.protocol_error("a push that nobody asked for")
            return True
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            self._interim.pop(event.stream_id, None)
        return (yield from super().handle_h2_event(event))


def stuck_in(http: "EdgeHttpLayer") -> Callable[[int], bool]:
    """Tells of which streams a part waits here: for a verdict, for a connection, or for an upstream's window."""

    def stuck(stream_id: int) -> bool:
        stream = http.streams.get(stream_id)
        if stream is None:
            return False
        if stream._paused is not None:
            return True
        upstream = http.upstreams.get(stream.context.server)
        return upstream is not None and upstream.holds_back(stream_id)

    return stuck
