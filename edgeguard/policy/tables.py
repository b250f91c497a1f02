"""The compiled policy as a node holds it: decoded sections, checked once, turned into objects on first use.

Loading checks every field and makes hardly an object, so that activation is short and gives the collector nothing to walk; a
`Statement` is made when the first request asks for it, and kept. Anything unexpected is a `TablesError`: a table is right or it is
not loaded.
"""

from collections.abc import Mapping
from ipaddress import ip_network
from itertools import batched
from typing import Any, Final

from edgeguard.policy.kinds import MAX_LABELS, VERSION, Kind
from edgeguard.policy.pools import Pools, TablesError, list_of, map_of, texts_of
from edgeguard.policy.statements import (
    EXTRA,
    FOREVER,
    ClientSet,
    Gate,
    HostPattern,
    Lift,
    Limit,
    Statement,
    When,
)

ENTRY: Final = 3
"""Numbers per entry of the host index: statement, lowest port, highest port."""


class StatementTable:
    """The statements of one section and their host index."""

    __slots__ = (
        "_made",
        "_pools",
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
        # Tuples of plain values: the garbage collector sees them once and never again.
        self._pools = Pools(name, section)
        rows = list_of(name, section, "rows")
        self._made: list[Statement | None] = [None] * len(rows)
        self._regions = regions
        self.lifts: dict[str, tuple[Lift, ...]] = {}
        _check_rows(name, rows, self._pools, kinds)
        self._rows = list(map(tuple, rows))
        self.exact = _index(name, section, "exact", len(self._rows))
        self.below = _index(name, section, "below", len(self._rows))
        everywhere = list_of(name, section, "everywhere")
        if not all(type(i) is int and 0 <= i < len(self._rows) for i in everywhere):
            raise TablesError(f"{name}.everywhere: not a list of statements")
        self.everywhere = tuple([n for i in everywhere for n in (i, 1, 65535)])
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
        """The statement at `index`, made on first use."""
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._make(index)
        return made

    def check_extras(self) -> None:
        """Makes the statements with seldom fields, whose shape is checked nowhere else. Raises `TablesError`."""
        for index, row in enumerate(self._rows):
            if row[5] or row[1] in _NEEDY:
                self.get(index)

    def _make(self, index: int) -> Statement:
        id_, kind, percent, clients, cond, extra = self._rows[index]
        statement = Statement(
            index, id_, Kind(kind), percent, self._pools.clients(clients), self._pools.cond(cond)
        )
        if extra:
            try:
                statement.fill(extra, self._regions)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise TablesError(f"statement {id_}: {error}") from None
        if not statement.complete():
            raise TablesError(f"statement {id_}: incomplete")
        if statement.kind in _LIFTABLE:
            statement.lifts = self.lifts.get(id_, ())
        statement.plain = statement.plain and percent == 100 and not statement.lifts
        return statement


_NEEDY: Final = frozenset({Kind.LIMIT, Kind.GATE})
"""Kinds that are nothing without their seldom fields."""
_LIFTABLE: Final = frozenset({Kind.DENY, Kind.LIMIT})


class Tables:
    """A whole compiled policy. Treated as immutable once loaded."""

    __slots__ = (
        "actions", "flags", "gates", "issuers", "member_of", "region_groups", "resources", "rules", "salt",
    )  # fmt: skip

    def __init__(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        rules, age, identity, exceptions = (
            sections[name] for name in ("rules", "age", "identity", "exceptions")
        )
        self.region_groups: dict[str, tuple[str, ...]] = {
            n: tuple(texts_of("age.groups", c)) for n, c in map_of("age", age, "groups").items()
        }
        self.rules = StatementTable("rules", rules, frozenset({0, 1, 2, 4, 5}), {})
        self.gates = StatementTable("age", age, frozenset({3}), self.region_groups)
        self.rules.lifts = _lifts(exceptions)
        self.rules.check_extras()
        self.gates.check_extras()
        self.salt: str = rules.get("salt", "")
        self.flags: dict[str, bool] = map_of("rules", rules, "flags")
        if type(self.salt) is not str or not set(map(type, self.flags.values())) <= {bool}:
            raise TablesError("rules: the salt is a text, and flags are true or false")
        self.resources: dict[str, Any] = map_of("rules", rules, "resources")
        self.actions: dict[str, Any] = map_of("rules", rules, "actions")
        members: dict[str, set[str]] = {}
        for group, names in map_of("identity", identity, "groups").items():
            for name in texts_of("identity.groups", names):
                members.setdefault(name, set()).add(group)
        self.member_of = {name: frozenset(groups) for name, groups in members.items()}
        self.issuers: tuple[Mapping[str, object], ...] = tuple(list_of("identity", identity, "issuers"))
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


def _check_rows(name: str, rows: list[Any], pools: Pools, kinds: frozenset[int]) -> None:
    clients, conds = pools.sizes
    for row in rows:
        if type(row) is not list or len(row) != 6:
            raise TablesError(f"{name}.rows: a statement is malformed")
        id_, kind, percent, client_set, cond, extra = row
        if (
            type(id_) is not str
            or type(kind) is not int
            or kind not in kinds
            or type(percent) is not int
            or not 0 <= percent <= 100
            or type(client_set) is not int
            or not -1 <= client_set < clients
            or type(cond) is not int
            or not -1 <= cond < conds
            or (extra is not None and not (type(extra) is dict and extra.keys() <= EXTRA))
        ):
            raise TablesError(f"{name}.rows: statement {id_!r} is malformed")


def _index(name: str, section: Mapping[str, Any], field: str, rows: int) -> dict[str, tuple[int, ...]]:
    index = map_of(name, section, field)
    for host, entries in index.items():
        if type(entries) is list and len(entries) == ENTRY:  # nearly all; told apart for speed only
            statement, low, high = entries
            if (
                type(statement) is type(low) is type(high) is int
                and 0 <= statement < rows
                and 0 < low <= high < 65536
            ):
                continue
        elif (
            type(entries) is list
            and entries
            and len(entries) % ENTRY == 0
            and all(type(n) is int for n in entries)
            and all(0 <= s < rows and 0 < low <= high < 65536 for s, low, high in batched(entries, ENTRY))
        ):
            continue
        raise TablesError(f"{name}.{field}: entry {host!r} is malformed or out of range")
    return dict(zip(index, map(tuple, index.values()), strict=True))


type Networks = dict[int, list[tuple[int, dict[int, tuple[int, ...]]]]]
"""By IP version: (host bits, network number to entries), longest prefix first."""


def _networks(name: str, nets: dict[str, tuple[int, ...]]) -> Networks:
    found: dict[int, dict[int, dict[int, tuple[int, ...]]]] = {4: {}, 6: {}}
    for text, entries in nets.items():
        try:
            network = ip_network(text)
        except ValueError:
            raise TablesError(f"{name}.nets: {text!r} is not a network") from None
        bits = network.max_prefixlen - network.prefixlen
        number, known = int(network.network_address) >> bits, found[network.version].setdefault(bits, {})
        if number in known:
            raise TablesError(f"{name}.nets: {text!r} stands twice")
        known[number] = entries
    return {version: sorted(by_bits.items()) for version, by_bits in found.items()}


def _lifts(section: Mapping[str, Any]) -> dict[str, tuple[Lift, ...]]:
    pools = Pools("exceptions", section)
    found: dict[str, list[Lift]] = {}
    for id_, lifted, clients, cond, targets, start, end in list_of("exceptions", section, "rows"):
        if set(map(type, (start, end))) != {int} or set(map(type, (id_, lifted))) != {str}:
            raise TablesError("exceptions.rows: malformed")
        sets, conds = pools.sizes
        if (
            type(clients) is not int
            or type(cond) is not int
            or not -1 <= clients < sets
            or not -1 <= cond < conds
        ):
            raise TablesError("exceptions.rows: out of range")
        hosts = None if targets is None else tuple(map(HostPattern.read, targets))
        lift = Lift(id_, pools.clients(clients), pools.cond(cond), hosts, start, end)
        found.setdefault(lifted, []).append(lift)
    return {lifted: tuple(lifts) for lifted, lifts in found.items()}


__all__ = [
    "ENTRY",
    "FOREVER",
    "ClientSet",
    "Gate",
    "HostPattern",
    "Lift",
    "Limit",
    "Statement",
    "StatementTable",
    "Tables",
    "TablesError",
    "When",
]
