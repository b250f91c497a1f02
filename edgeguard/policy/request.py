"""The facts that a decision is made of: who asks, for what, on whose behalf.

Everything here is canonical already (`names.canonical_host`, `addresses`): adapters bring raw
text to `guard.py`, which canonicalises or refuses. NamedTuples, because one is built for every
request and nothing in CPython is cheaper.
"""

from enum import IntEnum
from typing import Final, Literal, NamedTuple

type Protocol = Literal["tls", "http", "tcp", "websocket"]


class Assurance(IntEnum):
    """How well an age is known (the terms of ISO/IEC 27566-1), weakest first."""

    SELF_DECLARED = 1
    GUARDIAN_DECLARED = 2
    ESTIMATED = 3
    INFERRED = 4
    VERIFIED = 5


class Client(NamedTuple):
    """Who owns the connection."""

    name: str | None = None
    """Authenticated name, as rules speak it in `clients:`. None: no name."""
    identified: bool = False
    """False for an unknown client, whom only `clients: any` admits."""
    groups: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    """Claims of the client's token, as rules speak them in `claims:`."""
    address: str | None = None
    """Peer address in canonical text; None for a unix socket. Limits key on it when there is no name."""


UNKNOWN_CLIENT: Final = Client()


class User(NamedTuple):
    """The person behind one request, in the normal form of `identity/age.py`.

    None in a field means unknown, and unknown never satisfies a gate.
    """

    age_at_least: int | None = None
    """Lower bound of the age, whole years, inclusive."""
    age_at_most: int | None = None
    """Upper bound of the age, whole years, inclusive."""
    assurance: Assurance | None = None
    region: str | None = None
    """ISO 3166-1 alpha-2 (`DE`), ISO 3166-2 (`US-TX`), or the name of a region group (`EU`)."""
    expires: float | None = None
    """Unix seconds from which on these facts are no longer true."""
    invalid: bool = False
    """A token was presented and refused."""
    subject: str | None = None
    """Keyed hash of the subject. Never the subject."""


class Request(NamedTuple):
    """One question to the engine.

    `method` and `target` are None when only the destination is known (CONNECT, SOCKS5, a bare
    TLS connection): the engine then answers whether *anything* there could be allowed, and which
    lane has to look further.
    """

    client: Client
    host: str
    """Canonical host: lower-case A-labels without a trailing dot, or an address literal (IPv6 without brackets)."""
    port: int
    protocol: Protocol = "tls"
    method: str | None = None
    """As on the wire; methods are case-sensitive (RFC 9110, 9.1)."""
    target: str | None = None
    """Path and query in origin form, as on the wire."""
    user: User | None = None
    overrides: tuple[str, ...] = ()
    """Values of method-override headers: further readings of the method, which only ever restrict."""
