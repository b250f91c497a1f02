"""One of the two policies under comparison: its engine, its host index, and a number for every distinct statement.

Two statements have the same number exactly if they mean the same in their policies: what they refer to (members of groups, flag
states, region groups, the salt) is part of it. This is the only module of the comparison that knows how tables are laid out.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from edgeguard.policy.addresses import Address
from edgeguard.policy.conditions import Condition
from edgeguard.policy.engine import Engine
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import is_address
from edgeguard.policy.tables import ENTRY, HostPattern, Lift, Statement, StatementTable, Tables

type Network = IPv4Network | IPv6Network
type Numbers = dict[object, int]


class Met(NamedTuple):
    """A statement that meets a host, on a range of ports."""

    statement: Statement
    low: int
    high: int
    number: int


class Side:
    """One policy. `numbers` is shared by both sides."""

    def __init__(self, sections: Mapping[str, object], numbers: Numbers) -> None:
        self.tables = Tables.load(sections)
        self.engine = Engine(self.tables)
        self.planner = self.engine.planner
        self._numbers = numbers
        self._known: dict[int, int] = {}
        members: dict[str, set[str]] = {}
        for name, groups in self.tables.member_of.items():
            for group in groups:
                members.setdefault(group, set()).add(name)
        self.members = {group: frozenset(names) for group, names in members.items()}
        self._regions = self._number(tuple(sorted(self.tables.region_groups.items())))
        self.by_address = tuple(self._restrictive_by_address())

    @property
    def parts(self) -> tuple[StatementTable, StatementTable]:
        return self.tables.rules, self.tables.gates

    def statements(self) -> Iterator[Statement]:
        for table in self.parts:
            for index in range(len(table)):
                yield table.get(index)

    def meets(self, host: str, literal: Address | None) -> list[Met]:
        """Every statement that can matter on the host; with the ports on which it does."""
        found = []
        for table in self.parts:
            for entries, only_restrictive in self.planner.entries(table, host, literal):
                for place in range(0, len(entries), ENTRY):
                    statement = table.get(entries[place])
                    if only_restrictive and statement.kind is Kind.ALLOW:
                        continue
                    found.append(
                        Met(statement, entries[place + 1], entries[place + 2], self.number(statement))
                    )
        return found

    def names(self) -> tuple[set[str], set[str]]:
        """Hosts that are named exactly, and suffixes below which everything is named."""
        exact: set[str] = set()
        below: set[str] = set()
        for table in self.parts:
            exact.update(table.exact)
            below.update(table.below)
        for pattern in self.patterns():
            if pattern.kind in {"exact", "tree"}:
                exact.add(pattern.host)
            if pattern.kind in {"below", "tree"}:
                below.add(pattern.host)
        return exact, below

    def patterns(self) -> Iterator[HostPattern]:
        """Destinations outside the index: of exceptions and quarantines."""
        for lifts in self.tables.rules.lifts.values():
            for lift in lifts:
                yield from lift.hosts or ()
        for statement in self.everywhere():
            yield from statement.excepted

    def everywhere(self) -> Iterator[Statement]:
        for table in self.parts:
            for place in range(0, len(table.everywhere), ENTRY):
                yield table.get(table.everywhere[place])

    def networks(self) -> Iterator[tuple[Network, list[Statement]]]:
        """Networks of the index, with the statements that name them."""
        for table in self.parts:
            for network, entries in _networks(table):
                yield network, [table.get(entries[place]) for place in range(0, len(entries), ENTRY)]

    def _restrictive_by_address(self) -> Iterator[tuple[Network, Met]]:
        """Denies and gates on networks: they also test the addresses that a name resolves to."""
        for table in self.parts:
            for network, entries in _networks(table):
                for place in range(0, len(entries), ENTRY):
                    statement = table.get(entries[place])
                    if statement.kind in {Kind.DENY, Kind.GATE}:
                        number = self._number((network, self.number(statement)))
                        yield network, Met(statement, entries[place + 1], entries[place + 2], number)

    def destinations(self) -> dict[str, frozenset[tuple[str, int, int]]]:
        """Where each statement of the index leads, by id: for telling which statements differ as data."""
        found: dict[str, set[tuple[str, int, int]]] = {}
        for table in self.parts:
            indexes: list[tuple[str, tuple[int, ...]]] = [*table.exact.items()]
            indexes += [(f"*.{host}", entries) for host, entries in table.below.items()]
            indexes += [(str(network), entries) for network, entries in _networks(table)]
            for host, entries in indexes:
                for place in range(0, len(entries), ENTRY):
                    id_ = table.get(entries[place]).id
                    found.setdefault(id_, set()).add((host, entries[place + 1], entries[place + 2]))
        return {id_: frozenset(where) for id_, where in found.items()}

    def number(self, statement: Statement) -> int:
        key = id(statement)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._number(self.content(statement))
        return known

    def _number(self, content: object) -> int:
        return self._numbers.setdefault(content, len(self._numbers))

    def content(self, statement: Statement, *, anonymous: bool = False, lifted: bool = True) -> object:
        """Everything that a statement means, as one hashable value; without its id or without its exceptions on demand."""
        when = statement.when
        conditions = None
        if when is not None:
            states = tuple(
                (flag, wanted, self.tables.flags.get(flag)) for flag, wanted in sorted(when.flags.items())
            )
            conditions = (states, when.days, when.hours)
        gate = statement.gate
        return (
            None if anonymous else statement.id,
            int(statement.kind),
            statement.percent,
            self.tables.salt if 0 < statement.percent < 100 else None,
            self._clients(statement.clients),
            condition(statement.cond),
            statement.claims,
            statement.start,
            statement.end,
            conditions,
            statement.survive,
            statement.tls,
            statement.resolves,
            statement.excepted,
            statement.limit,
            None if gate is None else (gate, self._regions if gate.regions is not None else None),
            tuple(sorted(map(self.lift, statement.lifts), key=repr)) if lifted else None,
        )

    def lift(self, lift: Lift) -> object:
        hosts = None if lift.hosts is None else frozenset(lift.hosts)
        return self._clients(lift.clients), condition(lift.cond), hosts, lift.start, lift.end

    def _clients(self, clients: object) -> object:
        groups: frozenset[str] = getattr(clients, "groups", frozenset())
        if not groups:
            return clients
        return clients, frozenset((group, self.members.get(group, frozenset())) for group in groups)


def condition(cond: Condition) -> object:
    """A condition as one hashable value."""
    return cond.protocols, cond.methods, cond.templates, cond.query


def _networks(table: StatementTable) -> Iterator[tuple[Network, tuple[int, ...]]]:
    """The networks of the index, with their entries."""
    for version, by_bits in table.nets.items():
        for bits, numbers in by_bits:
            for number, entries in numbers.items():
                if version == 4:
                    yield IPv4Network((number << bits, 32 - bits)), entries
                else:
                    yield IPv6Network((number << bits, 128 - bits)), entries


def pattern_networks(patterns: Iterator[HostPattern]) -> Iterator[Network]:
    for pattern in patterns:
        if pattern.kind == "network" or is_address(pattern.host):
            yield ip_network(pattern.host)
