"""The compiled policy as a node holds it: decoded sections, checked once, turned into objects on first use.

Loading checks every field and builds nothing per statement, so that activation stays short; a `Statement` is made when the
first request asks for it, and kept. Anything unexpected is a `TablesError`: a table is right or it is not loaded.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

from edgeguard.policy.conditions import ANYTHING, Condition
from edgeguard.policy.kinds import MAX_LABELS, VERSION, Kind
from edgeguard.policy.paths import PathError
from edgeguard.policy.request import Assurance, Client

FOREVER: Final = float("inf")
ENTRY: Final = 3
"""Numbers per entry of the host index: statement, lowest port, highest port."""


class TablesError(ValueError):
    """The sections are not a policy that this version understands."""


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

    def has(self, host: str, port: int, networks: Iterable[Any]) -> bool:
        """`networks` are the address and what it embeds, as single-address networks; empty for a name."""
        if not self.low <= port <= self.high:
            return False
        if self.kind == "network":
            mine = ip_network(self.host)
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
    end: float


class Limit(NamedTuple):
    """The numbers of a rate limit."""

    unit: str
    quota: int
    period_ns: int
    burst: int
    scope: str
    key: tuple[str, ...]
    rules: frozenset[str] | None


class Gate(NamedTuple):
    """The requirement of an age gate; `regions` are codes, groups expanded."""

    age: int
    assurance: Assurance | None
    legal_ref: str | None
    legal_demand: bool
    regions: frozenset[str] | None


class When(NamedTuple):
    """Conditions on flags and on the UTC day and minute."""

    flags: Mapping[str, bool]
    days: frozenset[int] | None
    hours: tuple[int, int] | None


class Statement:
    """One compiled statement."""

    __slots__ = (
        "claims", "clients", "cond", "end", "excepted", "gate", "id", "index", "kind", "lifts", "limit",
        "networks", "percent", "plain", "resolves", "solo", "start", "survive", "timed", "tls", "when",
    )  # fmt: skip

    def __init__(
        self, index: int, id_: str, kind: Kind, percent: int, clients: ClientSet | None, cond: Condition
    ) -> None:
        self.index, self.id, self.kind, self.percent, self.clients, self.cond = (
            index,
            id_,
            kind,
            percent,
            clients,
            cond,
        )
        self.claims: frozenset[str] = frozenset()
        self.start, self.end = 0.0, FOREVER
        self.when: When | None = None
        self.timed = False
        self.survive = False
        self.tls: str | None = None
        self.resolves: tuple[IPv4Network | IPv6Network, ...] = ()
        self.networks: tuple[str, ...] = ()
        """`resolves` in text."""
        self.excepted: tuple[HostPattern, ...] = ()
        self.limit: Limit | None = None
        self.gate: Gate | None = None
        self.lifts: tuple[Lift, ...] = ()
        self.solo: Any = None
        """The plan of a destination where this statement stands alone; kept by the engine."""
        self.plain = True
        """No field beyond clients and condition is in use."""


class StatementTable:
    """The statements of one section and their host index."""

    __slots__ = (
        "_clients",
        "_conds",
        "_made",
        "_regions",
        "_rows",
        "below",
        "depth",
        "everywhere",
        "exact",
        "lifts",
        "nets",
    )

    def __init__(
        self,
        name: str,
        section: Mapping[str, Any],
        kinds: frozenset[int],
        regions: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._clients = client_sets(name, section)
        self._conds = conditions(name, section)
        self._rows = _list(name, section, "rows")
        self._made: list[Statement | None] = [None] * len(self._rows)
        self._regions = regions
        self.lifts: dict[str, tuple[Lift, ...]] = {}
        _check_rows(name, self._rows, len(self._clients), len(self._conds), kinds)
        self.exact: dict[str, list[int]] = _index(name, section, "exact", len(self._rows))
        self.below: dict[str, list[int]] = _index(name, section, "below", len(self._rows))
        everywhere = _list(name, section, "everywhere")
        if not all(type(i) is int and 0 <= i < len(self._rows) for i in everywhere):
            raise TablesError(f"{name}.everywhere: not a list of statements")
        self.everywhere: list[int] = [n for i in everywhere for n in (i, 1, 65535)]
        depth = section.get("depth")
        if type(depth) is not int or not 0 <= depth <= MAX_LABELS:
            raise TablesError(f"{name}.depth: out of range")
        if any(host.count(".") >= depth for host in self.below):
            raise TablesError(f"{name}.depth: a suffix is deeper")
        self.depth = depth
        self.nets = _networks(name, _index(name, section, "nets", len(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, index: int) -> Statement:
        """The statement at `index`, made on first use. Raises `TablesError` for a malformed one."""
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._make(index)
        return made

    def check_extras(self) -> None:
        """Makes the statements with seldom fields, whose shape is checked nowhere else. Raises `TablesError`."""
        for index, row in enumerate(self._rows):
            if row[5]:
                self.get(index)

    def _make(self, index: int) -> Statement:
        id_, kind, percent, clients, cond, extra = self._rows[index]
        statement = Statement(
            index,
            id_,
            Kind(kind),
            percent,
            None if clients < 0 else self._clients[clients],
            ANYTHING if cond < 0 else self._conds[cond],
        )
        statement.lifts = self.lifts.get(id_, ())
        if extra:
            try:
                self._fill(statement, extra)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise TablesError(f"statement {id_}: {error}") from None
        if (statement.kind is Kind.LIMIT and statement.limit is None) or (
            statement.kind is Kind.GATE and statement.gate is None
        ):
            raise TablesError(f"statement {id_}: incomplete")
        statement.timed = bool(statement.start or statement.end != FOREVER or statement.when)
        statement.plain = percent == 100 and not extra and not statement.lifts
        return statement

    def _fill(self, statement: Statement, extra: Mapping[str, Any]) -> None:
        for name, value in extra.items():
            match name:
                case "claims":
                    statement.claims = frozenset(value)
                case "start":
                    statement.start = value
                case "end":
                    statement.end = value
                case "when":
                    flags, days, hours = value
                    statement.when = When(
                        dict(flags),
                        None if days is None else frozenset(days),
                        None if hours is None else (hours[0], hours[1]),
                    )
                case "survive":
                    statement.survive = value is True
                case "tls":
                    statement.tls = value
                case "resolves":
                    statement.resolves = tuple(ip_network(text) for text in value)
                    statement.networks = tuple(map(str, statement.resolves))
                case "except":
                    statement.excepted = tuple(HostPattern(*item) for item in value)
                case "limit":
                    unit, quota, period, burst, scope, key = value
                    rules = extra.get("rules")
                    statement.limit = Limit(
                        unit,
                        quota,
                        period,
                        burst,
                        scope,
                        tuple(key),
                        None if rules is None else frozenset(rules),
                    )
                case "gate":
                    age, assurance, legal_ref, legal_demand = value
                    statement.gate = Gate(
                        age,
                        Assurance(assurance) if assurance else None,
                        legal_ref,
                        legal_demand,
                        self._expand(extra.get("regions")),
                    )

    def _expand(self, regions: Iterable[str] | None) -> frozenset[str] | None:
        if regions is None:
            return None
        return frozenset(code for region in regions for code in self._regions.get(region, (region,)))


class Tables:
    """A whole compiled policy. Treated as immutable once loaded."""

    __slots__ = (
        "actions",
        "flags",
        "gates",
        "issuers",
        "member_of",
        "region_groups",
        "resources",
        "rules",
        "salt",
    )

    def __init__(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        rules, age, identity, exceptions = (
            sections[name] for name in ("rules", "age", "identity", "exceptions")
        )
        self.region_groups: dict[str, tuple[str, ...]] = {
            n: tuple(_texts("age.groups", c)) for n, c in _map("age", age, "groups").items()
        }
        self.rules = StatementTable("rules", rules, frozenset({0, 1, 2, 4, 5}), {})
        self.gates = StatementTable("age", age, frozenset({3}), self.region_groups)
        self.rules.lifts = _lifts(exceptions)
        self.rules.check_extras()
        self.gates.check_extras()
        self.salt: str = rules.get("salt", "")
        self.flags: dict[str, bool] = _map("rules", rules, "flags")
        self.resources: dict[str, Any] = _map("rules", rules, "resources")
        self.actions: dict[str, Any] = _map("rules", rules, "actions")
        members: dict[str, set[str]] = {}
        for group, names in _map("identity", identity, "groups").items():
            for name in _texts("identity.groups", names):
                members.setdefault(name, set()).add(group)
        self.member_of = {name: frozenset(groups) for name, groups in members.items()}
        self.issuers: tuple[Mapping[str, object], ...] = tuple(_list("identity", identity, "issuers"))
        if not all(type(issuer) is dict for issuer in self.issuers):
            raise TablesError("identity.issuers: not a list of maps")

    @classmethod
    def load(cls, sections: Mapping[str, object]) -> "Tables":
        """Checks decoded sections. Raises `TablesError`."""
        for name in ("rules", "age", "identity", "exceptions"):
            section = sections.get(name)
            if not isinstance(section, dict):
                raise TablesError(f"{name}: the section is missing")
            if section.get("v") != VERSION:
                raise TablesError(f"{name}: version {section.get('v')!r} is not understood, {VERSION} is")
        try:
            return cls(sections)  # type: ignore[arg-type]
        except TablesError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TablesError(f"malformed: {type(error).__name__}: {error}") from None


def _list(name: str, section: Mapping[str, Any], field: str) -> list[Any]:
    value = section.get(field)
    if type(value) is not list:
        raise TablesError(f"{name}.{field}: not a list")
    return value


def _map(name: str, section: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = section.get(field)
    if type(value) is not dict:
        raise TablesError(f"{name}.{field}: not a map")
    return value


def _texts(name: str, value: object) -> list[str]:
    if type(value) is not list or not all(type(text) is str for text in value):
        raise TablesError(f"{name}: not a list of texts")
    return value


def client_sets(name: str, section: Mapping[str, Any]) -> list[ClientSet]:
    """The pool of client sets. Raises `TablesError`."""
    out = []
    for anybody, names, groups in _list(name, section, "clients"):
        if type(anybody) is not bool:
            raise TablesError(f"{name}.clients: malformed")
        out.append(ClientSet(anybody, frozenset(_texts(name, names)), frozenset(_texts(name, groups))))
    return out


def conditions(name: str, section: Mapping[str, Any]) -> list[Condition]:
    """The pool of conditions. Raises `TablesError`."""
    out = []
    for protocols, methods, paths, query in _list(name, section, "conds"):
        for part in (protocols, methods, paths):
            if part is not None:
                _texts(f"{name}.conds", part)
        fields = None if query is None else [(key, frozenset(_texts(name, values))) for key, values in query]
        try:
            out.append(Condition(protocols, methods, paths, fields))
        except PathError as error:
            raise TablesError(f"{name}.conds: {error}") from None
    return out


def _check_rows(name: str, rows: list[Any], clients: int, conds: int, kinds: frozenset[int]) -> None:
    for row in rows:
        if type(row) is not list or len(row) != 6:
            raise TablesError(f"{name}.rows: a statement is malformed")
        id_, kind, percent, client_set, cond, extra = row
        if (
            type(id_) is not str
            or kind not in kinds
            or type(percent) is not int
            or not 0 <= percent <= 100
            or type(client_set) is not int
            or not -1 <= client_set < clients
            or type(cond) is not int
            or not -1 <= cond < conds
            or (extra is not None and not (type(extra) is dict and extra.keys() <= _EXTRA))
        ):
            raise TablesError(f"{name}.rows: statement {id_!r} is malformed")


_EXTRA: Final = frozenset(
    {
        "claims",
        "start",
        "end",
        "when",
        "survive",
        "tls",
        "resolves",
        "except",
        "limit",
        "rules",
        "gate",
        "regions",
    }
)


def _index(name: str, section: Mapping[str, Any], field: str, rows: int) -> dict[str, list[int]]:
    index = _map(name, section, field)
    for host, entries in index.items():
        if type(entries) is not list or not entries or len(entries) % ENTRY:
            raise TablesError(f"{name}.{field}: entry {host!r} is malformed")
        if len(entries) == ENTRY:
            statement, low, high = entries
            if (
                type(statement) is type(low) is type(high) is int
                and 0 <= statement < rows
                and 0 < low <= high < 65536
            ):
                continue
        elif all(type(n) is int for n in entries) and all(
            0 <= s < rows and 0 < low <= high < 65536
            for s, low, high in zip(*[iter(entries)] * ENTRY, strict=True)
        ):
            continue
        raise TablesError(f"{name}.{field}: entry {host!r} is out of range")
    return index


type Networks = dict[int, list[tuple[int, dict[int, list[int]]]]]
"""By IP version: (host bits, network number to entries), longest prefix first."""


def _networks(name: str, nets: dict[str, list[int]]) -> Networks:
    found: dict[int, dict[int, dict[int, list[int]]]] = {4: {}, 6: {}}
    for text, entries in nets.items():
        try:
            network = ip_network(text)
        except ValueError:
            raise TablesError(f"{name}.nets: {text!r} is not a network") from None
        bits = network.max_prefixlen - network.prefixlen
        found[network.version].setdefault(bits, {})[int(network.network_address) >> bits] = entries
    return {version: sorted(by_bits.items()) for version, by_bits in found.items()}


def _lifts(section: Mapping[str, Any]) -> dict[str, tuple[Lift, ...]]:
    sets, conds = client_sets("exceptions", section), conditions("exceptions", section)
    found: dict[str, list[Lift]] = {}
    for id_, lifted, clients, cond, targets, start, end in _list("exceptions", section, "rows"):
        if type(start) is not int or type(end) is not int or type(id_) is not str or type(lifted) is not str:
            raise TablesError("exceptions.rows: malformed")
        if not -1 <= clients < len(sets) or not -1 <= cond < len(conds):
            raise TablesError("exceptions.rows: out of range")
        hosts = None if targets is None else tuple(HostPattern(*target) for target in targets)
        lift = Lift(
            id_,
            None if clients < 0 else sets[clients],
            ANYTHING if cond < 0 else conds[cond],
            hosts,
            start,
            end,
        )
        found.setdefault(lifted, []).append(lift)
    return {lifted: tuple(lifts) for lifted, lifts in found.items()}
