"""HTTP/2 frames by hand: a client that may say whatever it likes, over a blocking socket."""

import contextlib
import ssl

import h2.config
import h2.connection
import h2.events
import hpack


class Talk:
    """One connection that speaks HTTP/2. Nothing that is sent is checked."""

    def __init__(self, link: ssl.SSLSocket) -> None:
        self.link = link
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.state = h2.connection.H2Connection(config)
        self.state.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.link.sendall(self.state.data_to_send())

    def ask(self, *fields: tuple[str, str], body: bytes | None = None) -> "Answer":
        """One stream, to its end or to the end of the connection."""
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, list(fields), end_stream=body is None)
        if body is not None:
            self.state.send_data(stream, body, end_stream=True)
        with contextlib.suppress(OSError):
            self.flush()
        answer = Answer()
        with contextlib.suppress(OSError):
            while data := self.link.recv(65536):
                for event in self.state.receive_data(data):
                    if answer.take(stream, event):
                        return answer
                self.flush()
        answer.gone = True
        return answer


class Answer:
    """What came for one stream."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.reason: str | None = None
        self.reset = False
        self.gone = False
        """The connection ended, or was told to."""
        self.code: int | None = None

    def take(self, stream: int, event: h2.events.Event) -> bool:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.gone, self.code = True, int(event.error_code)
            return True
        if getattr(event, "stream_id", None) != stream:
            return False
        if isinstance(event, h2.events.ResponseReceived):
            fields = dict(event.headers)
            self.status = int(fields[b":status"])
            reason = fields.get(b"edgeguard-reason")
            self.reason = None if reason is None else reason.decode()
        self.reset = isinstance(event, h2.events.StreamReset)
        return self.reset or isinstance(event, h2.events.StreamEnded)


def request(authority: str, path: str, *more: tuple[str, str], method: str = "GET") -> list[tuple[str, str]]:
    """The fields of an honest request, and `more`."""
    return [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *more]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def block(fields: list[tuple[str, str]]) -> bytes:
    """A header block."""
    return hpack.Encoder().encode(fields)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
