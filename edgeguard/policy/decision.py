"""What the engine answers."""

from enum import StrEnum
from typing import NamedTuple

from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance


class Lane(StrEnum):
    """Which lane has to carry the connection. A lane never changes a verdict."""

    TUNNEL = "tunnel"
    """Client, host and port settle it; TLS is not touched."""
    INSPECT = "inspect"
    """Something inside the connection can still change the verdict."""


class LimitHit(NamedTuple):
    """A rate limit that matches the request; `guard.py` checks all of them, then charges all of them."""

    limit: str
    """Id of the limit."""
    key: str
    """Whose quota: the bounded parts of the rule's `key`, joined."""
    unit: str
    """requests, tunnels, concurrent_tunnels or bytes."""
    quota: int
    """How many units per `period_ns`."""
    period_ns: int
    burst: int
    """How many units may come at once."""
    scope: str
    """process, host or fleet."""
    enforced: bool
    """False: report mode, only counted."""
    exact: bool = False
    """Scope fleet: every request asks the store, none is served from a lease."""
    on_store_error: str = "local_share"
    """Scopes that others share: what holds while what they share cannot be reached."""


class Required(NamedTuple):
    """What an age gate asks for."""

    gate: str
    age: int
    assurance: Assurance | None
    legal_ref: str | None
    legal_demand: bool


class Decision(NamedTuple):
    """The verdict on one `Request` under one set of tables."""

    allow: bool
    reason: Reason | None = None
    """None exactly if allowed."""
    rule: str | None = None
    """Id of the rule that decided: the allow that granted, the deny or gate that refused."""
    lane: Lane = Lane.INSPECT
    near: str | None = None
    """Near miss of a refusal: the allow that got furthest along host, port, client, claim, protocol, method, path."""
    would: tuple[tuple[str, str], ...] = ()
    """Report-mode verdicts, as (`would_deny` | `would_allow`, rule id)."""
    limits: tuple[LimitHit, ...] = ()
    required: Required | None = None
    resolves_to: tuple[str, ...] = ()
    """CIDRs of special-purpose space that the granting allows name."""
    until: float | None = None
    """Unix seconds at which time alone may change this verdict (expiry, window, token)."""
    gated: bool = False
    """An age gate matched, whoever asked and from wherever: what is answered may differ from person to person."""


class Admission(NamedTuple):
    """Which resolved addresses may be dialled."""

    addresses: tuple[str, ...]
    """Canonical text, in the given order; empty exactly if refused."""
    reason: Reason | None = None
    rule: str | None = None
    """The rule that dropped the last candidate, or None when a built-in check did."""
