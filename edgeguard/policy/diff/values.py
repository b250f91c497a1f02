"""What a comparison of two policies says: changes with an example each, what stayed undecided, what time will change."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from edgeguard.policy.request import Client, Request, User


class Effect(StrEnum):
    """Direction of a change, as seen by who wants out."""

    WIDENING = "widening"
    NARROWING = "narrowing"


class Domain(StrEnum):
    """Which part of the policy a change comes from."""

    IDENTITY = "identity"
    EGRESS = "egress"
    AGE = "age"
    LIMITS = "limits"


class Verdict(StrEnum):
    """What became of a domain, or of the whole policy."""

    EQUAL = "equal"
    """The same data."""
    NEUTRAL = "neutral"
    """Other data, the same decisions."""
    NARROWING = "narrowing"
    WIDENING = "widening"
    MIXED = "widening and narrowing"
    UNDECIDED = "undecided, treated as widening"

    @property
    def widens(self) -> bool:
        return self in {Verdict.WIDENING, Verdict.MIXED, Verdict.UNDECIDED}


class Outcome(NamedTuple):
    """What one of the policies answers to the example."""

    allow: bool
    reason: str | None
    rule: str | None
    lane: str

    def __str__(self) -> str:
        by = f" by {self.rule}" if self.rule else ""
        return f"allowed{by}" if self.allow else f"{self.reason}{by}"


class Example(NamedTuple):
    """One concrete request on which the two policies differ."""

    request: Request
    at: float
    """Unix seconds at which it is asked."""
    restricted: bool = False
    """Asked as if the policy could not be proved current."""
    address: str | None = None
    """The resolved address that makes the difference."""

    def __str__(self) -> str:
        request = self.request
        text = f"{describe_client(request.client)} → {describe_target(request)}"
        if request.user is not None:
            text += f" for {describe_user(request.user)}"
        if self.address is not None:
            text += f" at address {self.address}"
        return text + (" while the policy cannot be proved current" if self.restricted else "")

    def as_dict(self) -> dict[str, Any]:
        client, user, request = self.request.client, self.request.user, self.request
        data: dict[str, Any] = {
            "client": client.name,
            "identified": client.identified,
            "groups": sorted(client.groups),
            "claims": sorted(client.claims),
            "client_address": client.address,
            "host": request.host,
            "port": request.port,
            "protocol": request.protocol,
            "method": request.method,
            "path": request.target,
            "overrides": list(request.overrides),
            "time": stamp(self.at),
            "restricted": self.restricted,
            "address": self.address,
        }
        if user is not None:
            data["user"] = {
                "age_at_least": user.age_at_least,
                "assurance": None if user.assurance is None else user.assurance.name.lower(),
                "region": user.region,
            }
        return data


@dataclass(frozen=True, slots=True)
class Change:
    """Requests that are decided otherwise for one and the same pair of causes, by one example."""

    effect: Effect
    domain: Domain
    what: str
    """allowed, denied, inspected, relayed, address, limit, issuer."""
    text: str
    example: Example | None
    before: Outcome | None
    after: Outcome | None
    since: float | None = None
    """Unix seconds at which the change begins; None: at once."""
    count: int = 1
    """Places (destinations, clients, moments that were told apart) where it was found."""
    hosts: tuple[str, ...] = ()
    """The first of the destinations concerned."""

    def __str__(self) -> str:
        when = "" if self.since is None else f" from {stamp(self.since)} on"
        return f"{self.text}{when}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "effect": self.effect.value,
            "domain": self.domain.value,
            "what": self.what,
            "text": str(self),
            "since": None if self.since is None else stamp(self.since),
            "count": self.count,
            "hosts": list(self.hosts),
            "example": None if self.example is None else self.example.as_dict(),
            "before": None if self.before is None else self.before._asdict(),
            "after": None if self.after is None else self.after._asdict(),
        }


class Undecided(NamedTuple):
    """Where a cap ended the comparison. Treated as widening."""

    domain: Domain
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}; undecided, treated as widening"


class Scheduled(NamedTuple):
    """A new or changed statement that begins or ends by itself."""

    rule: str
    kind: str
    at: float
    effect: Effect

    def __str__(self) -> str:
        verb = "widens" if self.effect is Effect.WIDENING else "narrows"
        what = "ends" if (self.kind == "allow") is (self.effect is Effect.NARROWING) else "begins"
        return f"{verb} at {stamp(self.at)}: {self.kind} `{self.rule}` {what}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs between two policies, from `now` on."""

    now: float
    changes: tuple[Change, ...]
    undecided: tuple[Undecided, ...]
    scheduled: tuple[Scheduled, ...]
    domains: Mapping[Domain, Verdict]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    """Ids of statements that differ as data."""
    asked: int
    """Questions that were put to both engines."""

    @property
    def verdict(self) -> Verdict:
        """The sum of the domains. EQUAL means that the two are the same data."""
        found = set(self.domains.values())
        if Verdict.UNDECIDED in found:
            return Verdict.UNDECIDED
        if Verdict.MIXED in found or {Verdict.WIDENING, Verdict.NARROWING} <= found:
            return Verdict.MIXED
        return next(
            (v for v in (Verdict.WIDENING, Verdict.NARROWING, Verdict.NEUTRAL) if v in found), Verdict.EQUAL
        )

    @property
    def widens(self) -> bool:
        return self.verdict.widens

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.value,
            "widens": self.widens,
            "at": stamp(self.now),
            "domains": {domain.value: verdict.value for domain, verdict in self.domains.items()},
            "changes": [change.as_dict() for change in self.changes],
            "undecided": [item._asdict() for item in self.undecided],
            "scheduled": [
                {"rule": s.rule, "kind": s.kind, "at": stamp(s.at), "effect": s.effect.value}
                for s in self.scheduled
            ],
            "statements": {
                "added": list(self.added),
                "removed": list(self.removed),
                "changed": list(self.changed),
            },
            "asked": self.asked,
        }


def stamp(at: float) -> str:
    """RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z")


def describe_client(client: Client) -> str:
    text = client.name or ("an identified client" if client.identified else "an unknown client")
    if client.groups:
        text += f" in {', '.join(sorted(client.groups))}"
    return text + (f" with claim {', '.join(sorted(client.claims))}" if client.claims else "")


_SCHEMES = {"tls": ("https", 443), "http": ("http", 80), "websocket": ("wss", 443)}


def describe_target(request: Request) -> str:
    host = f"[{request.host}]" if ":" in request.host else request.host
    if request.method is None or request.protocol not in _SCHEMES:
        return f"{host}:{request.port} ({request.protocol})"
    scheme, default = _SCHEMES[request.protocol]
    port = "" if request.port == default else f":{request.port}"
    overrides = f" overridden as {', '.join(request.overrides)}" if request.overrides else ""
    return f"{request.method}{overrides} {scheme}://{host}{port}{request.target or '/'}"


def describe_user(user: User) -> str:
    age = "unknown age" if user.age_at_least is None else f"age {user.age_at_least}+"
    sure = "" if user.assurance is None else f" ({user.assurance.name.lower()})"
    return f"a person of {age}{sure}" + ("" if user.region is None else f" in {user.region}")
