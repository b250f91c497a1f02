"""HTTP/1 on both sides: every head is read strictly before the engine reads it, and nothing grows without end.

The engine's own parts have no bound on a head, on chunk framing or on what is pipelined, copy what
they wait for with every packet, fail on trailers, and take a 103 for the answer.
"""

from collections.abc import Iterator
from typing import Final, cast

from h11._receivebuffer import ReceiveBuffer
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.answers import AnswerError, check_answer, interim
from edgeguard.proxy.heads import HeadError, head_end, parse_head
from edgeguard.proxy.shape import Desk
from edgeguard.settings import Bounds

DEFAULTS: Final = Bounds()
MAX_PIPELINED_BYTES: Final = 65_536
MAX_CHUNK_LINE_BYTES: Final = 16_384
MAX_INTERIM_ANSWERS: Final = 32
"""Before one answer. Servers send one or two."""


class _Bodies(_http1.Http1Connection):
    """Bodies whose framing is bounded, and whose trailers are dropped (RFC 9110, 6.5.1 lets a proxy)."""

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """What the reader leaves is the beginning of a chunk's size line or of trailers, which it would gather."""
        try:
            yield from super().read_body(event)
        except NotImplementedError:
            is_request = isinstance(self, _http1.Http1Server)
            yield ReceiveHttp(self.ReceiveEndOfMessage(cast("int", self.stream_id)))
            yield from self.mark_done(request=is_request, response=not is_request)
            return
        if self.state == self.read_body and len(self.buf) > MAX_CHUNK_LINE_BYTES:
            self.buf = ReceiveBuffer()
            self.state = self.done
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                self.ReceiveProtocolError(
                    cast("int", self.stream_id), "chunk framing too long", self.ReceiveProtocolError.code
                )
            )


class EdgeHttp1Server(_Bodies, _http1.Http1Server):
    """The client's side."""

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
                end = head_end(data, 0, self._desk.bounds.head_bytes)
                if end < 0:
                    if not self._begun:
                        self._begun = True
                        self._desk.within(self.context.client, self._desk.bounds.head_s)
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


class EdgeHttp1Client(_Bodies, _http1.Http1Client):
    """The upstream's side. Interim answers (RFC 9110, 15.2) are skipped: the engine sends its own 100."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._max_head = next(
            (above.answer_head_bytes for above in context.layers if hasattr(above, "answer_head_bytes")),
            DEFAULTS.answer_head_bytes,
        )
        self._scanned = 0
        self._interim = 0
        self._passed = 0

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and self.request is not None:
            try:
                for head in self._heads():
                    if not interim(head):
                        check_answer(bytes(head))
                        break
                else:
                    return
            except AnswerError as error:
                self.buf = ReceiveBuffer()
                self.state = self.done
                yield commands.CloseConnection(self.conn)
                if self.stream_id is not None:
                    yield ReceiveHttp(
                        http_events.ResponseProtocolError(
                            self.stream_id, str(error), http_events.ErrorCode.GENERIC_SERVER_ERROR
                        )
                    )
                return
            self._scanned = self._interim = self._passed = 0
        yield from super().read_headers(event)

    def _heads(self) -> Iterator[bytearray]:
        """The heads in the buffer; an interim one is taken out. Each byte is looked at once. Raises AnswerError."""
        while True:
            data = self.buf._data
            end = data.find(b"\r\n\r\n", max(0, self._scanned - 3), self._max_head)
            if end < 0:
                self._scanned = len(data)
                if self._passed + len(data) > self._max_head:
                    raise AnswerError("the head of the answer is too large")
                return
            self._scanned = 0
            head = data[: end + 4]
            yield head
            self.buf.maybe_extract_at_most(len(head))
            self._interim += 1
            self._passed += len(head)
            if self._interim > MAX_INTERIM_ANSWERS or self._passed > self._max_head:
                raise AnswerError("too many interim answers")
