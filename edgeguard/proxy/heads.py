"""Reading the first request head of a connection: strictly, or not at all.

RFC 9112 lets a recipient be lenient about line endings, folding and white space. Every leniency
is a second reading, and a second reading is a way past the policy; so none is taken: lines end
in CRLF, a field is never folded, nothing stands between its name and the colon. Pure functions:
bytes in, `Head` out, or `HeadError`; no other exception.
"""

import re
from typing import Final, NamedTuple

from edgeguard.policy.names import HostError, split_authority
from edgeguard.policy.reasons import Reason

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
# Possessive quantifiers (`++`): no input makes these expressions backtrack.
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb"++) ([\x21-\x7e]++) HTTP/(1\.[01])")
_FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)")
_METHOD_START: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

ROUTING: Final = frozenset({"accept", "connection", "host", "proxy-connection", "user-agent"})
CACHED_HEADS: Final = 1024
CACHED_HEAD_BYTES: Final = 1024


class HeadError(Exception):
    """The head is refused.

    Attributes:
        reason: `malformed_request`, or `request_too_large` for a head without an end.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Claim(NamedTuple):
    """What a client asks for before anything is resolved."""

    host: str
    port: int
    names: tuple[str, ...]
    """The Host value, raw, unless it repeats the target to the letter."""
    bare: bool = False
    """Nobody is named in the head: no credentials, no token, nothing about a person."""


class Head(NamedTuple):
    """One request head (RFC 9112, 3 and 5)."""

    method: str
    target: str
    version: str
    """`1.0` or `1.1`."""
    fields: tuple[tuple[str, str], ...]
    """Names in lower case; values without surrounding white space, one character per byte."""
    claim: Claim | None = None
    """The destination, of a CONNECT."""

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a field, in the order received. `name` in lower case."""
        return tuple([value for key, value in self.fields if key == name])


def head_end(data: bytes, scanned: int, limit: int) -> int:
    """Where the head ends (exclusive), or -1 while it is incomplete.

    Args:
        data: All bytes received so far.
        scanned: How many of them an earlier call has seen without finding the end.
        limit: The largest head that is taken, in bytes.

    Raises:
        HeadError: no request begins so, or the head does not end within `limit`.
    """
    if data and data[0] not in _METHOD_START:
        raise HeadError(Reason.MALFORMED_REQUEST, "an HTTP request does not begin with this byte")
    end = data.find(b"\r\n\r\n", max(0, scanned - 3), limit)
    if end >= 0:
        return end + 4
    if len(data) >= limit:
        raise HeadError(Reason.REQUEST_TOO_LARGE, f"the request head does not end within {limit} bytes")
    return -1


def known_head(data: bytes, fields: int) -> Head | None:
    """The head that these bytes are, if they are one CONNECT that names nobody, with at most so many fields, and came before."""
    head = _seen.get(data)
    return None if head is None or len(head.fields) > fields else head


def parse_head(data: bytes) -> Head:
    """Parses one whole head, its empty line included.

    Raises:
        HeadError: not strictly a head; or a CONNECT without `host:port`, with more or fewer than one
            Host on HTTP/1.1, or with a body.
    """
    head = _seen.get(data)
    if head is not None:
        return head
    if not data.endswith(b"\r\n\r\n"):
        raise HeadError(Reason.MALFORMED_REQUEST, "the head has no end")
    first, *lines = data[:-4].split(b"\r\n")
    matched = _REQUEST_LINE.fullmatch(first)
    if matched is None:
        raise HeadError(
            Reason.MALFORMED_REQUEST, "the first line is not an HTTP/1.0 or HTTP/1.1 request line"
        )
    fields: list[tuple[str, str]] = []
    for line in lines:
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            raise HeadError(Reason.MALFORMED_REQUEST, "a header line is not `name: value`")
        fields.append((field[1].decode("ascii").lower(), field[2].decode("latin-1").rstrip(" \t")))
    head = Head(
        matched[1].decode("ascii"), matched[2].decode("ascii"), matched[3].decode("ascii"), tuple(fields)
    )
    if head.method == "CONNECT":
        head = head._replace(claim=_connect_claim(head))
    if (
        head.claim is not None
        and len(data) <= CACHED_HEAD_BYTES
        and ROUTING.issuperset([n for n, _ in fields])
    ):
        head = head._replace(claim=head.claim._replace(bare=True))
        # Clients repeat their CONNECT byte for byte. Nothing that could be a secret is kept.
        if len(_seen) >= CACHED_HEADS:
            _seen.clear()
        _seen[data] = head
    return head


_seen: Final[dict[bytes, Head]] = {}


def _connect_claim(head: Head) -> Claim:
    """The destination of a CONNECT head (RFC 9110, 9.3.6)."""
    try:
        host, port = split_authority(head.target, None)
    except HostError as error:
        raise HeadError(Reason.MALFORMED_REQUEST, f"the target is not host:port: {error}") from error
    hosts: list[str] = []
    for name, value in head.fields:
        if name == "host":
            hosts.append(value)
        elif name == "transfer-encoding" or (name == "content-length" and value != "0"):
            raise HeadError(Reason.MALFORMED_REQUEST, "a CONNECT request has no body")
    if len(hosts) > 1 or (not hosts and head.version == "1.1"):
        raise HeadError(Reason.MALFORMED_REQUEST, "exactly one Host field is expected")
    return Claim(host, port, tuple(name for name in hosts if name != head.target))


def is_absolute(target: str) -> bool:
    """True for the absolute form (RFC 9112, 3.2.2) of a scheme that is proxied: http or https."""
    return target[:8].lower().startswith(("http://", "https://"))
