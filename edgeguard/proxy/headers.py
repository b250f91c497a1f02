"""What must not pass through: hop-by-hop fields, credentials for us, and every alias of their names.

Many origins read `X_Api_Key` and `X.Api.Key` as `X-Api-Key`, so names are compared folded: lower
case, with `_` and `.` as `-`. Sources: RFC 9110, 7.6.1 and 11.7 (hop-by-hop, proxy credentials),
RFC 9112, 3.2 and 5.2 (one Host, no folding), RFC 7838 (Alt-Svc leads around the proxy). Pure.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from edgeguard.policy.paths import PathError, query_readings

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
_REWRITES: Final = frozenset({
    b"x-backend-host",
    b"x-forwarded-host",
    b"x-forwarded-path",
    b"x-forwarded-prefix",
    b"x-forwarded-server",
    b"x-forwarded-uri",
    b"x-host",
    b"x-http-destinationurl",
    b"x-http-host-override",
    b"x-original-host",
    b"x-original-uri",
    b"x-original-url",
    b"x-override-url",
    b"x-rewrite-url",
})  # fmt: skip
"""Some origins serve this host or path instead of the one that was judged."""
_EXTENSIONS: Final = b"sec-websocket-extensions"
"""Frames are read only as RFC 6455 has them, so no extension is negotiated."""
_OVERRIDES: Final = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
_QUERY_OVERRIDES: Final = frozenset(
    {"-method", "-httpmethod", "x-http-method", "x-http-method-override", "x-method-override", "http-method"}
)
_FRAMING: Final = frozenset({b"content-length", b"host", b"transfer-encoding"})
_AROUND: Final = frozenset({b"alt-svc", b"alternate-protocol"})
_CACHING: Final = frozenset({b"age", b"cache-control", b"expires", b"pragma", b"surrogate-control"})
_TARGETED: Final = b"cdn-cache-control"
"""RFC 9213: fields for one kind of cache, like `CDN-Cache-Control`."""
_LISTS: Final = frozenset({b"connection", b"upgrade"})
_VISITOR: Final = frozenset({
    b"cf-connecting-ip",
    b"client-ip",
    b"fastly-client-ip",
    b"forwarded",
    b"forwarded-for",
    b"front-end-https",
    b"true-client-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-forwarded",
    b"x-forwarded-for",
    b"x-forwarded-port",
    b"x-forwarded-proto",
    b"x-forwarded-protocol",
    b"x-forwarded-scheme",
    b"x-forwarded-ssl",
    b"x-original-forwarded-for",
    b"x-originating-ip",
    b"x-real-ip",
    b"x-remote-addr",
    b"x-remote-ip",
    b"x-url-scheme",
})  # fmt: skip
"""Origins take these for the visitor's address and scheme, so nobody but us may say them."""
_READ: Final = _FRAMING | _OVERRIDES | _LISTS | {b"proxy-authorization", b"accept"}
_PARENTS: Final = frozenset({b"x-upstream-https-proxy"})
"""Ask a proxy to go through another one: here nobody but the configuration names a parent."""
_DROPPED: Final = _HOP_BY_HOP | _REWRITES | _PARENTS | {_EXTENSIONS}
_NEVER_TRAILERS: Final = frozenset({
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"date",
    b"expires",
    b"location",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"warning",
    b"www-authenticate",
})  # fmt: skip
"""What is read from the head, and never from behind a body (RFC 9110, 6.5.1)."""
_OURS: Final = b"edgeguard-"
_UPGRADING: Final = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
_LONGEST_CACHED_NAME: Final = 64
_LONGEST_LENGTH: Final = 18
"""Digits. A longer one overflows in some servers, and means another body there."""


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
    plain: tuple[tuple[str, str], ...] = ()
    """(name, value) of the fields that may say who the person is, under their exact names, in lower case."""
    close: bool = False
    """The client asks that its connection end with the answer (RFC 9112, 9.6)."""


def fold(name: bytes) -> bytes:
    """The spelling that all aliases of a field name share."""
    return _fold_cached(name) if len(name) <= _LONGEST_CACHED_NAME else _fold(name)


def _fold(name: bytes) -> bytes:
    return name.lower().translate(_DASHES)


_DASHES: Final = bytes.maketrans(b"_.", b"--")
_fold_cached = lru_cache(maxsize=4096)(_fold)


def scan_request(fields: Fields, user_header: bytes, plain: Collection[bytes] = ()) -> Scan:
    """Reads and cleans the fields of a request.

    Args:
        fields: (name, value) pairs as received.
        user_header: Lower-case name of the field that carries the user's token.
        plain: Lower-case names of fields that may say who the person is.
    """
    found: dict[bytes, list[bytes]] = {}
    kept: list[tuple[bytes, bytes]] = []
    said: list[tuple[str, str]] = []
    fault: str | None = None
    for field in fields:
        name, value = field
        lower = name.lower()
        folded = fold(name)
        if folded in _READ or folded == user_header:
            # An alias of a field that frames or routes the message is read by some, and not by others.
            if lower == folded or folded in _OVERRIDES or folded in _LISTS:
                found.setdefault(folded, []).append(value)
            elif folded in _FRAMING:
                fault = "a field name is an alias of one that frames or routes the message"
        if folded == b"content-length" and len(value) > _LONGEST_LENGTH:
            fault = "a length beyond 64 bits"
        if b"\r" in value or b"\n" in value or b"\0" in value:
            fault = "a field value is folded or holds a control character"
        if folded in plain:
            if lower == folded:
                said.append((text(lower), text(value)))
        elif folded not in _DROPPED and folded != user_header and not folded.startswith(_OURS):
            kept.append(field)
    hosts = found.get(b"host", ())
    connection = {token for value in found.get(b"connection", ()) for token in tokens_of(value)}
    listed = {fold(token) for token in connection}
    if len(hosts) > 1:
        fault = fault or "more than one Host"
    if listed & _FRAMING:
        fault = fault or "Connection lists a field that frames or routes the message"
    if listed:
        kept = [field for field in kept if fold(field[0]) not in listed]
    upgrades = [token for value in found.get(b"upgrade", ()) for token in tokens_of(value)]
    upgrade = upgrades == [b"websocket"] and b"upgrade" in connection
    if upgrade:
        kept += _UPGRADING
    lengths = found.get(b"content-length", ())
    return Scan(
        fault=fault,
        hosts=_texts(hosts),
        tokens=_texts(found.get(user_header, ())),
        overrides=tuple(text(value) for name in sorted(_OVERRIDES) for value in found.get(name, ())),
        credentials=_texts(found.get(b"proxy-authorization", ())),
        accept=", ".join(_texts(found.get(b"accept", ()))),
        upgrade=upgrade,
        declares_body=b"transfer-encoding" in found or any(value.strip() != b"0" for value in lengths),
        fields=tuple(kept),
        plain=tuple(said),
        close=b"close" in connection,
    )


def overrides_in(target: str) -> tuple[str, ...]:
    """Methods that some frameworks would take from the query instead of the request's own, like `?_method=DELETE`."""
    query = target.partition("?")[2]
    if not query or ("%" not in query and "method" not in query.lower()):
        return ()
    try:
        found = [field for reading in query_readings(target) for field in reading]
    except PathError:
        return ()  # the engine refuses it where it matters
    return tuple(
        dict.fromkeys(
            value for key, value in found if value and key.lower().replace("_", "-") in _QUERY_OVERRIDES
        )
    )


def take_cookie(scan: Scan, name: bytes) -> Scan:
    """The scan with the tokens of a cookie among its tokens, and without that cookie, in any spelling, in its fields.

    For people at browsers, which send no field of ours (RFC 6265, 5.4). A token in a cookie and one in the field
    are two tokens.
    """
    wanted = fold(name)
    tokens: list[str] = []
    kept: list[tuple[bytes, bytes]] = []
    for field in scan.fields:
        if fold(field[0]) != b"cookie":
            kept.append(field)
            continue
        pairs: list[bytes] = []
        for part in field[1].split(b";"):
            pair = part.strip(b" \t")
            key, _, value = pair.partition(b"=")
            if fold(key.rstrip(b" \t")) != wanted:
                pairs.append(pair)
            elif key == name:
                tokens.append(text(value))
        if len(pairs) == field[1].count(b";") + 1:
            kept.append(field)
        elif pairs:
            kept.append((field[0], b"; ".join(pairs)))
    if len(kept) == len(scan.fields) and tuple(kept) == scan.fields:
        return scan
    return scan._replace(tokens=(*scan.tokens, *tokens), fields=tuple(kept))


def clean_response(fields: Fields, status: int) -> Fields:
    """The fields of a response that may reach the client.

    Args:
        fields: (name, value) pairs as received.
        status: Of the response. A 101 that was asked for keeps `Connection: Upgrade`; a 204 loses its length
            and a 304 its coding, since some clients would wait for a body (RFC 9110, 15.3.5 and 8.6).
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
    if status == 101:
        kept += _UPGRADING
    elif status in _BODILESS:
        kept = [field for field in kept if fold(field[0]) != _BODILESS[status]]
    return tuple(kept)


_BODILESS: Final = {204: b"content-length", 304: b"transfer-encoding"}


def clean_trailers(fields: Fields) -> Fields:
    """The trailers of an answer that may reach the client: nothing that frames, routes, controls or authenticates."""
    never = _HOP_BY_HOP | _AROUND | _FRAMING | _NEVER_TRAILERS
    return tuple(
        field for field in fields if (folded := fold(field[0])) not in never and not folded.startswith(_OURS)
    )


def unshared(fields: Fields) -> Fields:
    """The fields of a response that no cache may keep: what one person was old enough for, the next may not be.

    RFC 9111, 5.2.2; the other fields are what caches of delivery networks look at first.
    """
    kept = [
        field for field in fields if fold(field[0]) not in _CACHING and not fold(field[0]).endswith(_TARGETED)
    ]
    return (*kept, (b"Cache-Control", b"private, no-store"))


def forwarded(fields: Fields, field: str, address: str | None, secure: bool) -> Fields:
    """What the origin of one's own site is told of a visitor: nothing that the visitor said, and ours where it is asked for.

    Args:
        fields: (name, value) pairs of a request.
        field: `off`, `forwarded` (RFC 7239) or `x-forwarded-for`.
        address: The visitor's; None if nobody knows.
        secure: Whether the visitor speaks TLS.
    """
    kept = tuple(pair for pair in fields if fold(pair[0]) not in _VISITOR)
    proto = b"https" if secure else b"http"
    text = (address or "").encode()
    if field == "forwarded":
        node = b'"[%s]"' % text if b":" in text else text or b"unknown"
        return (*kept, (b"Forwarded", b"for=%s;proto=%s" % (node, proto)))
    if field == "x-forwarded-for" and text:
        return (*kept, (b"X-Forwarded-For", text), (b"X-Forwarded-Proto", proto))
    return kept


def with_host(fields: Fields, host: str, port: int, default_port: int) -> Fields:
    """The fields with exactly the judged authority in `Host`, first if there was none (RFC 9112, 3.2.2)."""
    found = False
    kept: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if name.lower() == b"host":
            found = True
            kept.append((name, authority(value, host, port, default_port)))
        else:
            kept.append((name, value))
    if not found:
        kept.insert(0, (b"Host", authority(b"", host, port, default_port)))
    return tuple(kept)


def authority(value: bytes, host: str, port: int, default_port: int) -> bytes:
    """The judged authority. A value that already says it, with or without the port, is left as it is: clients sign it."""
    bare = f"[{host}]" if ":" in host else host
    full = f"{bare}:{port}"
    if value == full.encode() or (port == default_port and value == bare.encode()):
        return value
    return (bare if port == default_port else full).encode()


def tokens_of(value: bytes) -> Iterable[bytes]:
    """The members of a comma-separated list, lower case, without empty ones."""
    return [token for part in value.lower().split(b",") if (token := part.strip(b" \t"))]


def text(value: bytes) -> str:
    """One character per byte, so that nothing is lost and nothing fails."""
    return value.decode("latin-1")


def _texts(values: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(text, values))
