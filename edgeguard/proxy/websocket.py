"""WebSocket as RFC 6455 has it: the handshake (4), and the framing while it passes (5 and 7.4).

Frames are checked by their heads and relayed as they are; payloads of any size stream through, and
nothing but an incomplete head or control frame is ever kept. No extension is let through the
handshake, so no reserved bit has a meaning. Pure: bytes in, the same bytes out, or `FrameError`.
"""

import base64
import hashlib
import re
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")
"""Sixteen bytes in base64."""
VERSION: Final = "13"
CLOSE: Final = 8
_DATA: Final = frozenset({0, 1, 2})
_CONTROL: Final = frozenset({8, 9, 10})
_LARGEST_CONTROL: Final = 125
PROTOCOL_ERROR: Final = 1002
GOING_AWAY: Final = 1001
_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})
"""What an endpoint may send (RFC 6455, 7.4, and the registry that it made)."""


def asks_well(method: str, version: str, keys: list[str], versions: list[str]) -> bool:
    """Whether a request for an upgrade is one that RFC 6455, 4.1 knows.

    Args:
        method: The request's.
        version: `HTTP/1.1`.
        keys: Every value of Sec-WebSocket-Key.
        versions: Every value of Sec-WebSocket-Version.
    """
    return (
        method == "GET"
        and version == "HTTP/1.1"
        and len(keys) == 1
        and _KEY.fullmatch(keys[0]) is not None
        and versions == [VERSION]
    )


def answers_well(key: str, accepts: list[str], offered: list[str], chosen: list[str]) -> bool:
    """Whether a 101 answers the request that was asked (RFC 6455, 4.1).

    Args:
        key: The request's Sec-WebSocket-Key.
        accepts: Every Sec-WebSocket-Accept of the answer.
        offered: Every Sec-WebSocket-Protocol of the request.
        chosen: Every Sec-WebSocket-Protocol of the answer.
    """
    if accepts != [accept_of(key)] or len(chosen) > 1:
        return False
    names = {name.strip() for value in offered for name in value.split(",")}
    return not chosen or chosen[0] in names - {""}


def accept_of(key: str) -> str:
    """The Sec-WebSocket-Accept for a key."""
    digest = hashlib.sha1(key.encode("latin-1", "replace") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class FrameError(Exception):
    """The framing is broken.

    Attributes:
        good: The bytes before the broken frame, which may still be relayed.
    """

    def __init__(self, message: str, good: bytes = b"") -> None:
        super().__init__(message)
        self.good = good


class Frames:
    """One direction of a connection after its 101.

    Args:
        masked: These are the client's frames.

    Attributes:
        closed: A Close frame has passed; nothing may follow it.
    """

    __slots__ = ("_head", "_left", "_masked", "_message", "closed")

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._head = b""
        self._left = 0
        self._message = False
        self.closed = False

    @property
    def between(self) -> bool:
        """Whether what was relayed so far ends with a whole frame."""
        return not self._left

    def feed(self, data: bytes) -> bytes:
        """Takes what was received; returns what may be relayed. Raises FrameError."""
        if len(data) <= self._left:
            self._left -= len(data)
            return data
        data, self._head = self._head + data, b""
        at, self._left = self._left, 0
        while at < len(data):
            if self.closed:
                raise FrameError("bytes after a Close frame", data[:at])
            try:
                head, payload, control = self._read_head(data, at)
            except FrameError as error:
                raise FrameError(str(error), data[:at]) from None
            if head < 0 or (control and at + head + payload > len(data)):
                self._head = data[at:]
                return data[:at]
            at += head + payload
        if at > len(data):
            self._left = at - len(data)
        return data

    def _read_head(self, data: bytes, at: int) -> tuple[int, int, bool]:
        """Bytes of the head (-1: incomplete) and of the payload, and whether it is a control frame."""
        if len(data) - at < 2:
            return -1, 0, False
        first, second = data[at], data[at + 1]
        opcode, final, length = first & 0x0F, bool(first & 0x80), second & 0x7F
        if first & 0x70:
            raise FrameError("a reserved bit without an extension")
        if bool(second & 0x80) is not self._masked:
            raise FrameError("a frame that is masked the wrong way")
        head = 2
        if length >= 126:
            size, least = (2, 126) if length == 126 else (8, 65_536)
            if opcode in _CONTROL:
                raise FrameError("a control frame over 125 bytes")
            head += size
            if len(data) - at < head:
                return -1, 0, False
            length = int.from_bytes(data[at + 2 : at + head])
            if not least <= length < 1 << 63:
                raise FrameError("a length that is not in its shortest form")
        head += 4 if self._masked else 0
        if opcode in _CONTROL:
            if not final:
                raise FrameError("a control frame in fragments")
            if opcode == CLOSE and len(data) - at >= head + length:
                self._check_close(data[at + head - 4 : at + head], data[at + head : at + head + length])
            return head, length, True
        if opcode not in _DATA:
            raise FrameError("a reserved opcode")
        if self._message is not (opcode == 0):
            raise FrameError("a continuation of nothing, or a message inside a message")
        if len(data) - at < head:
            return -1, 0, False
        self._message = not final
        return head, length, False

    def _check_close(self, mask: bytes, payload: bytes) -> None:
        if self._masked:
            payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        if payload:
            if len(payload) == 1 or int.from_bytes(payload[:2]) not in _CODES:
                raise FrameError("a Close frame without a code that may be sent")
            try:
                payload[2:].decode()
            except UnicodeDecodeError:
                raise FrameError("a Close frame whose reason is not UTF-8") from None
        self.closed = True


def close_frame(code: int, mask: bytes = b"") -> bytes:
    """A Close frame; with a `mask` of four bytes it is a client's."""
    payload = code.to_bytes(2)
    if not mask:
        return bytes([0x80 | CLOSE, len(payload)]) + payload
    masked = bytes(byte ^ mask[place] for place, byte in enumerate(payload))
    return bytes([0x80 | CLOSE, 0x80 | len(payload)]) + mask + masked
