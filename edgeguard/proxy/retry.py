"""The second ClientHello of one handshake, which could name somebody else (RFC 8446, 4.1.2 and 4.1.4).

A TLS 1.3 server may ask for another hello. It must be the first one with few changes, and the name is
none of them; but a server takes the name from the last hello it got. A client could so show us one name
and talk to another tenant of the same server. Hence what a client sends after its first hello waits for
the first handshake message of the server, which tells, in clear, whether a second hello is asked for; if so, that
one is read as strictly as the first, and its name must be the same. The one thing that waits in an honest
handshake is early data, for one round trip. Pure: bytes in, bytes out, or `HelloError`.
"""

from typing import Final

from edgeguard.proxy.clienthello import HelloError, read_hello

RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""What a HelloRetryRequest has in place of a random (RFC 8446, 4.1.3)."""
HELD_BYTES: Final = 65_536
"""What a client may send before the server has answered its hello: more than any early data. A server's first message fits, too."""
ANSWER_RECORDS: Final = 64
"""Records up to the end of what has to be read of a server's first message: an answer is read anew with every segment."""
_ALERT: Final = 0x15
_HANDSHAKE: Final = 0x16
_BETWEEN: Final = frozenset({0x14, 0x17})
"""Records that may stand before the second hello: the compatibility change_cipher_spec, and early data."""
_SERVER_HELLO: Final = 2
_RANDOM_AT: Final = 6
_TOLD_AT: Final = _RANDOM_AT + 32


class HelloWatch:
    """Watches one relayed handshake until a second ClientHello is out of the question.

    Args:
        sni: The name in the first hello, as sent; None if it had none.
        limit: The largest handshake message that is taken, in bytes.

    Attributes:
        done: Nothing needs to be watched any more; everything held has been handed out.
    """

    __slots__ = ("_answer", "_asked", "_at", "_held", "_limit", "_sni", "done")

    def __init__(self, sni: str | None, limit: int) -> None:
        self._sni = sni
        self._limit = limit
        self._held = b""
        self._answer = b""
        self._asked = False
        self._at = 0
        """Where the records end that stand before the second hello, as far as they were read."""
        self.done = False

    @property
    def holds(self) -> bool:
        """Whether something waits."""
        return bool(self._held)

    def client(self, data: bytes) -> bytes:
        """What the client sent; returns what may go to the server now. Raises HelloError."""
        if self.done:
            return data
        self._held += data
        if self._asked:
            return self._second()
        if len(self._held) > HELD_BYTES:
            raise HelloError("too much follows the ClientHello before its answer")
        return b""

    def server(self, data: bytes) -> bytes:
        """What the server sent, which may go to the client; returns what was held for the server. Raises HelloError."""
        if self.done or self._asked:
            return b""
        self._answer += data
        asked = asks_again(self._answer)
        if asked is None:
            if len(self._answer) > HELD_BYTES:
                raise HelloError("the server's first message does not come")
            return b""
        self._answer = b""
        if asked:
            self._asked = True
            return self._second()
        self.done = True
        held, self._held = self._held, b""
        return held

    def _second(self) -> bytes:
        """Reads the second hello out of what is held; returns everything once it is known to name the same."""
        held, at = self._held, self._at
        while at < len(held) and held[at] in _BETWEEN:
            if at + 5 > len(held):
                return b""
            at += 5 + int.from_bytes(held[at + 3 : at + 5])
            self._at = at
        if at >= len(held):
            if at > HELD_BYTES:
                raise HelloError("too much stands before the second ClientHello")
            return b""
        hello = read_hello(held[at:], self._limit)
        if hello is None:
            return b""
        if hello.sni != self._sni:
            raise HelloError("the second ClientHello names another server")
        self.done = True
        self._held = b""
        return held


def asks_again(answer: bytes) -> bool | None:
    """Whether a server's first bytes are a HelloRetryRequest; None while that cannot be told.

    An answer that is not TLS asks for nothing. Raises HelloError where the message is cut into too many records.
    """
    at = 0
    message = b""
    for _ in range(ANSWER_RECORDS):
        if at + 5 > len(answer):
            return None if at == len(answer) or answer[at] in {_ALERT, _HANDSHAKE} else False
        kind, length = answer[at], int.from_bytes(answer[at + 3 : at + 5])
        if kind == _HANDSHAKE:
            message += answer[at + 5 : at + 5 + length]
            if message and message[0] != _SERVER_HELLO:
                return False
        elif kind != _ALERT or message:
            return False
        at += 5 + length
        if len(message) >= _TOLD_AT:
            return message[_RANDOM_AT:_TOLD_AT] == RETRY_RANDOM
        if at > len(answer):
            return None
    raise HelloError("the server's first message is cut into too many records")


def first_hello(data: bytes) -> int:
    """Where the records of a ClientHello end that `read_hello` has read from the start of `data`."""
    whole = 5 + (data[3] << 8 | data[4])
    if len(data) > 8 and whole == 9 + int.from_bytes(data[6:9]):
        return whole  # one record, as nearly always
    at = 0
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        length = int.from_bytes(data[at + 3 : at + 5])
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
    return at
