"""What must not pass through: hop-by-hop fields, credentials for us, and every alias of their names.

Many origins read `X_Api_Key` and `X.Api.Key` as `X-Api-Key`, so names are compared folded: lower
case, with `_` and `.` as `-`. Sources: RFC 9110, 7.6.1 and 11.7 (hop-by-hop, proxy credentials),
RFC 9112, 3.2 and 5.2 (one Host, no folding), RFC 7838 (Alt-Svc leads around the proxy). Pure.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

type Fields = tuple[tuple[bytes, bytes], ...]

_HOP_BY_HOP: Final = frozenset({
    b"connection",
    b"http2-settings",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authentication-info",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
})  # fmt: skip
_REWRITES: Final = frozenset({b"x-original-url", b"x-rewrite-url"})
"""Some origins serve this path instead of the one that was judged."""
_OVERRIDES: Final = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
_FRAMING: Final = frozenset({b"content-length", b"host", b"transfer-encoding"})
_AROUND: Final = frozenset({b"alt-svc", b"alternate-protocol"})
_OURS: Final = b"edgeguard-"
_UNSAFE_IN_VALUE: Final = b"\r\n\0"
_LONGEST_CACHED_NAME: Final = 64


class Scan(NamedTuple):
    """What one pass over a request's fields found."""

    fault: str | None
    """Why the fields have no single reading; None when they have."""
    hosts: tuple[str, ...]
    """Every value of `Host`."""
    tokens: tuple[str, ...]
    """Every value of the user header, under its exact name."""
    overrides: tuple[str, ...]
    """Values of method-override fields, under any alias."""
    credentials: tuple[str, ...]
    """Values of `Proxy-Authorization`, under its exact name."""
    accept: str
    upgrade: bool
    """An upgrade to WebSocket is asked for (RFC 6455, 4.1), in `Upgrade` and `Connection` both."""
    declares_body: bool
    """A length above zero or a transfer coding is declared."""
    fields: Fields
    """What may go upstream."""


def fold(name: bytes) -> bytes:
    """The spelling that all aliases of a field name share."""
    return _fold_cached(name) if len(name) <= _LONGEST_CACHED_NAME else _fold(name)


def _fold(name: bytes) -> bytes:
    return name.lower().translate(_DASHES)


_DASHES: Final = bytes.maketrans(b"_.", b"--")
_fold_cached = lru_cache(maxsize=4096)(_fold)


def scan_request(fields: Fields, user_header: bytes) -> Scan:
    """Reads and cleans the fields of a request.

    Args:
        fields: (name, value) pairs as received.
        user_header: Lower-case name of the field that carries the user's token.
    """
    fault: str | None = None
    hosts: list[str] = []
    tokens: list[str] = []
    overrides: list[str] = []
    credentials: list[str] = []
    accept: list[str] = []
    connection: set[bytes] = set()
    upgrades: list[bytes] = []
    declares_body = False
    kept: list[tuple[bytes, bytes]] = []
    for field in fields:
        name, value = field
        lower = name.lower()
        folded = fold(name)
        if b"\r" in value or b"\n" in value or b"\0" in value:
            fault = fault or "a field value is folded or holds a control character"
        if folded in _FRAMING and lower != folded:
            fault = fault or "a field name is an alias of one that frames or routes the message"
        if folded == b"host":
            hosts.append(text(value))
        elif folded == b"connection":
            connection.update(tokens_of(value))
        elif folded == b"upgrade":
            upgrades.extend(tokens_of(value))
        elif folded == b"proxy-authorization":
            if lower == folded:
                credentials.append(text(value))
        elif folded == user_header:
            if lower == user_header:
                tokens.append(text(value))
        elif folded == b"content-length":
            declares_body = declares_body or value.strip() != b"0"
        elif folded == b"transfer-encoding":
            declares_body = True
        elif folded in _OVERRIDES:
            overrides.append(text(value))
        elif folded == b"accept":
            accept.append(text(value))
        if folded not in _HOP_BY_HOP and folded not in _REWRITES and folded != user_header:
            if not folded.startswith(_OURS):
                kept.append(field)
    if len(hosts) > 1:
        fault = fault or "more than one Host"
    listed = {fold(token) for token in connection}
    if listed & _FRAMING:
        fault = fault or "Connection lists a field that frames or routes the message"
    upgrade = upgrades == [b"websocket"] and b"upgrade" in connection
    if listed:
        kept = [field for field in kept if fold(field[0]) not in listed]
    if upgrade:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return Scan(
        fault,
        tuple(hosts),
        tuple(tokens),
        tuple(overrides),
        tuple(credentials),
        ", ".join(accept),
        upgrade,
        declares_body,
        tuple(kept),
    )


def clean_response(fields: Fields, *, switching: bool = False) -> Fields:
    """The fields of a response that may reach the client.

    Args:
        fields: (name, value) pairs as received.
        switching: A 101 that was asked for keeps `Connection: Upgrade`.
    """
    listed: set[bytes] = set()
    for name, value in fields:
        if fold(name) == b"connection":
            listed.update(fold(token) for token in tokens_of(value))
    listed -= _FRAMING
    kept = [
        field
        for field in fields
        if (folded := fold(field[0])) not in _HOP_BY_HOP
        and folded not in _AROUND
        and folded not in listed
        and not folded.startswith(_OURS)
    ]
    if switching:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return tuple(kept)


def with_host(fields: Fields, host: str, port: int, default_port: int) -> Fields:
    """The fields with exactly the judged authority in `Host`.

    A value that already says it, with or without the port, is left as it is: clients sign it.
    """
    bare = f"[{host}]" if ":" in host else host
    full = f"{bare}:{port}"
    accepted = {full.encode()} | ({bare.encode()} if port == default_port else set())
    wanted = (bare if port == default_port else full).encode()
    return tuple(
        (name, wanted) if name.lower() == b"host" and value not in accepted else (name, value)
        for name, value in fields
    )


def tokens_of(value: bytes) -> Iterable[bytes]:
    """The members of a comma-separated list, lower case, without empty ones."""
    return [token for part in value.lower().split(b",") if (token := part.strip(b" \t"))]


def text(value: bytes) -> str:
    """One character per byte, so that nothing is lost and nothing fails."""
    return value.decode("latin-1")
