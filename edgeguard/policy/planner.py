"""Building plans: which statements of the tables can still matter for one client on one destination, now.

Pure: the same arguments give an equal plan.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from operator import attrgetter
from typing import Final

from edgeguard.policy.addresses import (
    METADATA_NAMES,
    WELL_KNOWN,
    Address,
    AddressClass,
    classify,
    embedded,
    parse_address,
)
from edgeguard.policy.conditions import Condition
from edgeguard.policy.decision import LimitHit
from edgeguard.policy.keys import bucket, hit_of, limit_key
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import is_address
from edgeguard.policy.plan import Plan
from edgeguard.policy.reasons import Reason
from edgeguard.policy.refusal import CLAIM, CLIENT, PORT, Refused
from edgeguard.policy.request import Client
from edgeguard.policy.statements import Lift, Statement
from edgeguard.policy.tables import ENTRY, StatementTable, Tables
from edgeguard.policy.windows import Span, active

MAX_HITS: Final = 8192
"""Limit hits kept, so that the same limit and key are the same object."""
_NOTHING: Final[list[Statement]] = []
"""Shared by all finished plans: most of their lists are empty."""


class Planner:
    """Builds plans from tables. Pure: the same arguments give an equal plan."""

    __slots__ = ("_flags", "_gates", "_groups", "_hits", "_rules", "_salt", "nat64")

    def __init__(self, tables: Tables, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> None:
        self._rules, self._gates, self._groups = tables.rules, tables.gates, tables.member_of
        self._salt, self._flags, self.nat64 = tables.salt, tables.flags, tuple(nat64)
        self._hits: dict[tuple[int, str, bool], LimitHit] = {}

    def build(self, client: Client, host: str, port: int, now: float, restricted: bool) -> Plan:
        plan = Plan(port)
        groups = self.groups_of(client)
        literal = parse_address(host) if is_address(host) else None
        for table in (self._rules, self._gates) if len(self._gates) else (self._rules,):
            self._collect(plan, table, client, groups, host, literal, now, restricted)
        self._finish(plan, client, host, literal)
        return plan

    def groups_of(self, client: Client) -> frozenset[str]:
        if client.name is not None and (more := self._groups.get(client.name)) is not None:
            return client.groups | more
        return client.groups

    # finding the statements that meet the host

    def entries(
        self, table: StatementTable, host: str, literal: Address | None
    ) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Entries of the index that meet the host; the flag is set where only restrictive statements count."""
        if literal is None:
            found = table.exact.get(host)
            if found is not None:
                yield found, False
            if table.depth:
                yield from suffixes(table, host)
        else:
            yield from self.networks(table, literal, False)
            for inner in embedded(literal, self.nat64):
                yield from self.networks(table, inner, True)
        if table.everywhere:
            yield table.everywhere, False

    @staticmethod
    def networks(
        table: StatementTable, address: Address, only_restrictive: bool
    ) -> Iterator[tuple[tuple[int, ...], bool]]:
        number = int(address)
        for bits, networks in table.nets[address.version]:
            found = networks.get(number >> bits)
            if found is not None:
                yield found, only_restrictive

    def _collect(
        self, plan: Plan, table: StatementTable, client: Client, groups: frozenset[str], host: str,
        literal: Address | None, now: float, restricted: bool,
    ) -> None:  # fmt: skip
        seen: set[int] = set()
        port = plan.port
        for entries, only_restrictive in self.entries(table, host, literal):
            for place in range(0, len(entries), ENTRY):
                index = entries[place]
                statement = table.get(index)
                kind = statement.kind
                if only_restrictive and kind is Kind.ALLOW:
                    continue
                if not entries[place + 1] <= port <= entries[place + 2]:
                    if kind is Kind.ALLOW and (statement.survive or not restricted):
                        self._near(plan, PORT, statement, client, now)
                    continue
                if index in seen:
                    continue
                seen.add(index)
                if kind is Kind.ALLOW:
                    self._allow(plan, statement, client, groups, now, restricted)
                else:
                    self.restrict(plan, statement, client, groups, host, literal, now, restricted)

    # what a statement comes to for this client

    def active(self, span: Span, statement: Statement, now: float) -> bool:
        """Whether it holds at `now`; narrows `span` to the time for which that is so."""
        return active(span, statement, self._flags, now)

    def enforced(self, statement: Statement, client: Client) -> bool:
        percent = statement.percent
        return percent == 100 or (percent > 0 and self.bucket(client) < percent)

    def bucket(self, client: Client) -> int:
        """The client's place among 100, by this bundle's salt."""
        return bucket(self._salt, client)

    def _near(self, plan: Plan, stage: int, statement: Statement, client: Client, now: float) -> None:
        """Notes an allow that failed at `stage`, if none got further."""
        if plan.stage > stage or (plan.stage == stage and statement.id >= (plan.near or "")):
            return
        if stage == PORT:
            counts = statement.percent > 0 and self.active(plan, statement, now)
        else:
            counts = self.enforced(statement, client)
        if counts:
            plan.stage, plan.near = stage, statement.id

    def _allow(
        self, plan: Plan, statement: Statement, client: Client, groups: frozenset[str], now: float, restricted: bool,
    ) -> None:  # fmt: skip
        if statement.timed and not self.active(plan, statement, now):
            return
        survives = statement.survive or not restricted
        clients = statement.clients
        if not (client.identified if clients is None else clients.has(client, groups)):
            stage = CLIENT
        elif not statement.claims <= client.claims:
            stage = CLAIM
        else:
            if not self.enforced(statement, client):
                plan.report_allows.append(statement)
            elif survives:
                plan.allows.append(statement)
            else:
                plan.lost.append(statement)
            return
        if survives:
            self._near(plan, stage, statement, client, now)

    def restrict(
        self, plan: Plan, statement: Statement, client: Client, groups: frozenset[str], host: str,
        literal: Address | None, now: float, restricted: bool,
    ) -> None:  # fmt: skip
        """Adds a deny, gate, limit, learning or quarantine, if it means this client now."""
        if statement.timed and not self.active(plan, statement, now):
            return
        if statement.clients is not None and not statement.clients.has(client, groups):
            return
        if not statement.claims <= client.claims:
            return
        if (
            statement.lifts
            and not restricted
            and self._lifted(plan, statement, client, groups, host, literal, now)
        ):
            return
        enforced = self.enforced(statement, client)
        match statement.kind:
            case Kind.DENY:
                (plan.denies if enforced else plan.report_denies).append(statement)
            case Kind.GATE:
                (plan.gates if enforced else plan.report_gates).append(statement)
            case Kind.LIMIT:
                plan.limits.append((statement, self._hit(statement, client, host, enforced)))
            case Kind.LEARN:
                if not restricted and (plan.learn is None or statement.id < plan.learn):
                    plan.learn = statement.id
            case Kind.QUARANTINE:
                inside = single(literal)
                if not any(pattern.has(host, plan.port, inside) for pattern in statement.excepted) and (
                    plan.quarantine is None or statement.id < plan.quarantine
                ):
                    plan.quarantine = statement.id

    def _lifted(
        self, plan: Plan, statement: Statement, client: Client, groups: frozenset[str], host: str,
        literal: Address | None, now: float,
    ) -> bool:  # fmt: skip
        """Whether an exception lifts the statement outright; conditional ones are noted in the plan."""
        conditional: list[Condition] = []
        for lift in statement.lifts:
            plan.narrow(lift.start, now)
            plan.narrow(lift.end, now)
            if not _lift_meets(lift, client, groups, host, plan.port, literal, now):
                continue
            if not lift.cond.residual:
                return True
            conditional.append(lift.cond)
        if conditional:
            plan.lifts[statement.id] = tuple(conditional)
        return False

    def _hit(self, statement: Statement, client: Client, host: str, enforced: bool) -> LimitHit:
        """The same object for the same limit and key: the limiter knows it again."""
        key = limit_key(statement.limit.key if statement.limit is not None else (), client, host)
        known = self._hits.get((statement.index, key, enforced))
        if known is None:
            if len(self._hits) >= MAX_HITS:
                self._hits.clear()
            known = self._hits[statement.index, key, enforced] = hit_of(statement, key, enforced)
        return known

    # what follows from all of them together

    def _finish(self, plan: Plan, client: Client, host: str, literal: Address | None) -> None:
        plan.limits.sort(key=lambda pair: pair[0].id)
        for name in _GROUPS:
            group: list[Statement] = getattr(plan, name)
            if len(group) > 1:
                group.sort(key=attrgetter("id"))
            elif not group:
                setattr(plan, name, _NOTHING)
        if literal is not None:
            kind = classify(host, self.nat64)
            if kind is AddressClass.METADATA:
                plan.never = True
            elif kind is not AddressClass.PUBLIC:
                plan.address = frozenset(
                    a.id
                    for a in plan.allows
                    if any(literal in n for n in a.resolves if n.version == literal.version)
                )
        elif host in METADATA_NAMES:
            plan.never = True
        plan.early = _early(plan, client)
        plan.looks = any(map(_looks, _conditions(plan)))
        plan.peeks = any(map(_looks, _reporting(plan)))


_GROUPS: Final = ("allows", "denies", "gates", "report_allows", "report_denies", "report_gates", "lost")


def _conditions(plan: Plan) -> Iterator[Condition]:
    """What can change a verdict."""
    for name in ("allows", "denies", "gates", "lost"):
        for statement in getattr(plan, name):
            yield statement.cond
            yield from plan.lifts.get(statement.id, ())
    for statement, hit in plan.limits:
        if hit.enforced:
            yield statement.cond
            yield from plan.lifts.get(statement.id, ())


def _reporting(plan: Plan) -> Iterator[Condition]:
    """What is only reported."""
    for name in ("report_allows", "report_denies", "report_gates"):
        for statement in getattr(plan, name):
            yield statement.cond
    for statement, hit in plan.limits:
        if not hit.enforced:
            yield statement.cond


def _looks(cond: Condition) -> bool:
    return cond.templates is not None or cond.query is not None


def _early(plan: Plan, client: Client) -> Refused | None:
    """Quarantine, an unknown client where none is admitted, or a deny that matches whatever is inside."""
    if plan.quarantine is not None:
        return Refused(Reason.QUARANTINED, plan.quarantine)
    if not (client.identified or plan.allows or plan.lost or plan.learn is not None):
        return Refused(Reason.CLIENT_UNKNOWN, None, plan.near)
    if not plan.lost:
        for deny in plan.denies:
            if not deny.cond.residual and deny.cond.protocols is None and deny.id not in plan.lifts:
                return Refused(Reason.DENIED_BY_RULE, deny.id)
    return None


def suffixes(table: StatementTable, host: str) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Probes `*.` suffixes from the shortest to the longest, only as deep as the deepest rule."""
    below = table.below
    place = len(host)
    for _ in range(table.depth):
        place = host.rfind(".", 0, place)
        if place < 0:
            return
        found = below.get(host[place + 1 :])
        if found is not None:
            yield found, False


def single(address: Address | None) -> Iterable[IPv4Network | IPv6Network]:
    """The address as a network of its own."""
    return () if address is None else (ip_network(address),)


def _lift_meets(
    lift: Lift, client: Client, groups: frozenset[str], host: str, port: int, literal: Address | None, now: float,
) -> bool:  # fmt: skip
    """Whether an exception holds for the destination at this moment."""
    if not lift.start <= now < lift.end:
        return False
    if lift.clients is not None and not lift.clients.has(client, groups):
        return False
    return lift.hosts is None or any(pattern.has(host, port, single(literal)) for pattern in lift.hosts)
