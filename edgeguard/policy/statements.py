"""One compiled statement, and how it is read from a row of the tables.

A row is `[id, kind, percent, clients, condition, extra]`; `extra` maps the fields that few statements have. Every value is checked
here, once, so that nothing malformed can surface while a decision is made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

from edgeguard.policy.conditions import Condition
from edgeguard.policy.decision import Required
from edgeguard.policy.kinds import Kind
from edgeguard.policy.request import Assurance, Client

FOREVER: Final = float("inf")
UNITS: Final = frozenset({"requests", "tunnels", "concurrent_tunnels", "bytes"})
SCOPES: Final = frozenset({"process", "host", "fleet"})
KEYS: Final = frozenset({"client", "client_ip", "rule", "method", "domain"})
STORE_ERROR: Final = frozenset({"local_share", "local_full", "deny", "allow"})
_PATTERNS: Final = frozenset({"exact", "below", "tree", "network"})


class ClientSet(NamedTuple):
    """Whom a statement means."""

    anybody: bool
    names: frozenset[str]
    groups: frozenset[str]

    def has(self, client: Client, groups: frozenset[str]) -> bool:
        return self.anybody or client.name in self.names or not self.groups.isdisjoint(groups)


class HostPattern(NamedTuple):
    """A destination outside the index: of an exception, or of a quarantine's fixed list."""

    kind: str
    host: str
    low: int
    high: int
    network: IPv4Network | IPv6Network | None = None

    @classmethod
    def read(cls, item: Sequence[Any]) -> "HostPattern":
        """Raises ValueError."""
        kind, host, low, high = item
        if kind not in _PATTERNS or type(host) is not str or not 0 < _int(low) <= _int(high) < 65536:
            raise ValueError("a destination is malformed")
        return cls(kind, host, low, high, ip_network(host) if kind == "network" else None)

    def has(self, host: str, port: int, networks: Iterable[Any]) -> bool:
        """`networks` hold the address as a single-address network; empty for a name."""
        if not self.low <= port <= self.high:
            return False
        mine = self.network
        if mine is not None:
            return any(n.version == mine.version and n.subnet_of(mine) for n in networks)
        if self.kind != "below" and host == self.host:
            return True
        return self.kind != "exact" and host.endswith("." + self.host)


class Lift(NamedTuple):
    """An exception, attached to what it lifts."""

    id: str
    clients: ClientSet | None
    cond: Condition
    hosts: tuple[HostPattern, ...] | None
    start: float
    """Unix seconds, as all times here."""
    end: float


class Limit(NamedTuple):
    """The numbers of a rate limit."""

    unit: str
    quota: int
    """Units per period."""
    period_ns: int
    burst: int
    scope: str
    key: tuple[str, ...]
    rules: frozenset[str] | None
    """Only requests that these allows match."""
    exact: bool = False
    """Scope fleet: no leases."""
    on_store_error: str = "local_share"


class Gate(NamedTuple):
    """The requirement of an age gate; `regions` are codes, groups expanded."""

    age: int
    assurance: Assurance | None
    legal_ref: str | None
    legal_demand: bool
    regions: frozenset[str] | None
    required: Required
    """The same as an answer carries it."""


class When(NamedTuple):
    """Conditions on flags and on the UTC day and minute."""

    flags: Mapping[str, bool]
    days: frozenset[int] | None
    """0 is Monday."""
    hours: tuple[int, int] | None
    """Minutes since midnight, [first, last)."""


class Statement:
    """One compiled statement."""

    __slots__ = (
        "claims", "clients", "cond", "end", "excepted", "gate", "id", "index", "kind", "lifts", "limit",
        "networks", "percent", "plain", "resolves", "start", "survive", "timed", "tls", "when",
    )  # fmt: skip

    def __init__(
        self, index: int, id_: str, kind: Kind, percent: int, clients: ClientSet | None, cond: Condition
    ) -> None:
        self.index, self.id, self.kind, self.percent = index, id_, kind, percent
        self.clients, self.cond = clients, cond
        self.claims: frozenset[str] = frozenset()
        self.start, self.end = 0.0, FOREVER
        self.when: When | None = None
        self.timed = False
        """Whether it holds at some times only."""
        self.survive = False
        self.tls: str | None = None
        self.resolves: tuple[IPv4Network | IPv6Network, ...] = ()
        self.networks: tuple[str, ...] = ()
        """`resolves` in text."""
        self.excepted: tuple[HostPattern, ...] = ()
        self.limit: Limit | None = None
        self.gate: Gate | None = None
        self.lifts: tuple[Lift, ...] = ()
        self.plain = True
        """No field beyond clients and condition is in use."""

    def fill(self, extra: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]]) -> None:
        """Takes over the seldom fields. `groups` are the region groups. Raises ValueError."""
        for name, value in extra.items():
            if (reader := _READERS.get(name)) is not None:
                reader(self, value)
        if "limit" in extra:
            self.limit = _limit(extra["limit"], extra.get("rules"))
        if "gate" in extra:
            self.gate = _gate(self.id, extra["gate"], extra.get("regions"), groups)
        self.timed = bool(self.start or self.end != FOREVER or self.when)
        self.plain = False

    def complete(self) -> bool:
        """Whether a limit has its numbers and a gate its requirement."""
        return (self.limit is not None) == (self.kind is Kind.LIMIT) and (self.gate is not None) == (
            self.kind is Kind.GATE
        )


def _int(value: object) -> int:
    if type(value) is not int:
        raise ValueError("a number is expected")
    return value


def _texts(value: object) -> list[str]:
    if type(value) is not list or not all(type(text) is str for text in value):
        raise ValueError("a list of texts is expected")
    return value


def _one_of(value: object, known: Iterable[str]) -> str:
    if type(value) is not str or value not in known:
        raise ValueError(f"{value!r} is not known")
    return value


def _start(statement: Statement, value: object) -> None:
    statement.start = _int(value)


def _end(statement: Statement, value: object) -> None:
    statement.end = _int(value)


def _claims(statement: Statement, value: object) -> None:
    statement.claims = frozenset(_texts(value))


def _survive(statement: Statement, value: object) -> None:
    statement.survive = value is True


def _tls(statement: Statement, value: object) -> None:
    statement.tls = _one_of(value, ("passthrough", "inspect"))


def _resolves(statement: Statement, value: object) -> None:
    statement.resolves = tuple(map(ip_network, _texts(value)))
    statement.networks = tuple(map(str, statement.resolves))


def _excepted(statement: Statement, value: list[Any]) -> None:
    statement.excepted = tuple(map(HostPattern.read, value))


def _when(statement: Statement, value: list[Any]) -> None:
    flags, days, hours = value
    if type(flags) is not dict or not all(type(k) is str and type(v) is bool for k, v in flags.items()):
        raise ValueError("flags are true or false")
    if days is not None and not all(0 <= _int(day) < 7 for day in days):
        raise ValueError("a day is out of range")
    if hours is not None and not (len(hours) == 2 and all(0 <= _int(m) <= 1440 for m in hours)):
        raise ValueError("hours are out of range")
    statement.when = When(
        flags,
        None if days is None else frozenset(days),
        None if hours is None else (hours[0], hours[1]),
    )


_READERS: Final[Mapping[str, Callable[[Statement, Any], None]]] = {
    "claims": _claims,
    "start": _start,
    "end": _end,
    "when": _when,
    "survive": _survive,
    "tls": _tls,
    "resolves": _resolves,
    "except": _excepted,
}
EXTRA: Final = frozenset({*_READERS, "limit", "rules", "gate", "regions"})
"""Fields that `extra` may have."""


def _limit(value: list[Any], rules: object) -> Limit:
    unit, quota, period_ns, burst, scope, key, *shared = value
    exact, on_store_error = shared or (False, "local_share")
    if type(exact) is not bool or (shared and scope == "process"):
        raise ValueError("the limit is malformed")
    if _int(quota) < 1 or _int(period_ns) < 0 or _int(burst) < 1 or not KEYS.issuperset(_texts(key)):
        raise ValueError("the limit is out of range")
    if (unit == "concurrent_tunnels") != (period_ns == 0):
        raise ValueError("the period does not suit the unit")
    return Limit(
        _one_of(unit, UNITS),
        quota,
        period_ns,
        burst,
        _one_of(scope, SCOPES),
        tuple(key),
        None if rules is None else frozenset(_texts(rules)),
        exact,
        _one_of(on_store_error, STORE_ERROR),
    )


def _gate(id_: str, value: list[Any], regions: object, groups: Mapping[str, tuple[str, ...]]) -> Gate:
    age, assurance, legal_ref, legal_demand = value
    if type(legal_demand) is not bool or not (legal_ref is None or type(legal_ref) is str):
        raise ValueError("the gate is malformed")
    level = Assurance(assurance) if _int(assurance) else None
    codes = (
        None
        if regions is None
        else frozenset(code for region in _texts(regions) for code in groups.get(region, (region,)))
    )
    required = Required(id_, _int(age), level, legal_ref, legal_demand)
    return Gate(age, level, legal_ref, legal_demand, codes, required)
