"""Partial evaluation: what is left of the policy once client, host, port and the time are known.

A `Plan` holds the statements that can still matter on one destination. Most requests then need nothing but a look-up;
the rest evaluate a handful of conditions. A plan is valid on [start, end): no statement begins, expires or changes its hour in between.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
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
from edgeguard.policy.decision import Decision, LimitHit
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import is_address
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.policy.tables import ENTRY, FOREVER, Lift, Statement, StatementTable, Tables, When

HOST, PORT, CLIENT, CLAIM = 0, 1, 2, 3
"""Stages at which an allow can fail before the connection is looked into; `conditions` continues the count."""
STAGE_REASON: Final = {
    HOST: Reason.HOST_NOT_ALLOWED,
    PORT: Reason.PORT_NOT_ALLOWED,
    CLIENT: Reason.CLIENT_NOT_ALLOWED,
    CLAIM: Reason.CLAIM_MISSING,
}
_NO_LIFTS: Final[tuple[Condition, ...]] = ()
_DAY: Final = 86400


class Plan:
    """The residual policy for one (client, host, port). Lists are ordered by id."""

    __slots__ = (
        "address", "allows", "connect", "denies", "end", "gates", "grants", "hard", "learn", "lifts", "limits",
        "looks", "lost", "near", "never", "port", "quarantine", "report_allows", "report_denies", "report_gates", "stage",
        "start", "unknown", "varies",
    )  # fmt: skip

    def __init__(self, port: int) -> None:
        self.port = port
        self.start, self.end = -FOREVER, FOREVER
        self.allows: list[Statement] = []
        self.lost: list[Statement] = []
        """Allows that would hold if the policy could be proved current."""
        self.denies: list[Statement] = []
        self.gates: list[Statement] = []
        self.limits: list[tuple[Statement, LimitHit]] = []
        """With the hit, where the key is known already."""
        self.report_allows: list[Statement] = []
        self.report_denies: list[Statement] = []
        self.report_gates: list[Statement] = []
        self.lifts: dict[str, tuple[Condition, ...]] = {}
        """Conditional exceptions, by the id of what they lift."""
        self.hard: str | None = None
        """The deny that matches whatever is inside."""
        self.quarantine: str | None = None
        self.learn: str | None = None
        self.stage = HOST
        self.near: str | None = None
        self.unknown = False
        """The client is unknown and nothing here admits unknown clients."""
        self.never = False
        """A metadata service."""
        self.address: frozenset[str] | None = None
        """For a special-purpose literal: the allows whose `resolves_to` holds it."""
        self.looks = False
        """Some condition here reads the path or the query."""
        self.varies = False
        """An allowed request may differ from the next one in more than the rule that granted it."""
        self.connect: dict[str, Decision] = {}
        self.grants: dict[str, Decision] = {}


class Planner:
    """Builds plans from tables. Pure: the same arguments give an equal plan."""

    __slots__ = ("_bits", "_flags", "_gates", "_groups", "_rules", "_salt", "nat64")

    def __init__(self, tables: Tables, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> None:
        self._rules, self._gates, self._groups = tables.rules, tables.gates, tables.member_of
        self._salt, self._flags, self.nat64 = tables.salt, tables.flags, tuple(nat64)
        self._bits = bool(
            tables.rules.nets[4] or tables.rules.nets[6] or tables.gates.nets[4] or tables.gates.nets[6]
        )

    def build(self, client: Client, host: str, port: int, now: float, restricted: bool) -> Plan:
        plan = Plan(port)
        groups = self.groups_of(client)
        literal = parse_address(host) if host[-1:].isdigit() or ":" in host else None
        if literal is not None and not is_address(host):
            literal = None
        for table in (self._rules, self._gates) if len(self._gates) else (self._rules,):
            self._collect(plan, table, client, groups, host, literal, port, now, restricted)
        self._finish(plan, client, host, literal)
        return plan

    def groups_of(self, client: Client) -> frozenset[str]:
        if client.name is not None and (more := self._groups.get(client.name)) is not None:
            return client.groups | more
        return client.groups

    def _collect(
        self, plan: Plan, table: StatementTable, client: Client, groups: frozenset[str], host: str,
        literal: Address | None, port: int, now: float, restricted: bool,
    ) -> None:  # fmt: skip
        seen: set[int] = set()
        for entries, only_restrictive in self.entries(table, host, literal):
            for place in range(0, len(entries), ENTRY):
                index = entries[place]
                statement = table.get(index)
                kind = statement.kind
                if only_restrictive and kind is Kind.ALLOW:
                    continue
                if not entries[place + 1] <= port <= entries[place + 2]:
                    if kind is Kind.ALLOW and plan.stage <= PORT and (statement.survive or not restricted):
                        self._miss_port(plan, statement, now)
                    continue
                if index in seen:
                    continue
                seen.add(index)
                if kind is Kind.ALLOW:
                    self._allow(plan, statement, client, groups, now, restricted)
                else:
                    self.restrict(plan, statement, client, groups, host, literal, now, restricted)

    def _miss_port(self, plan: Plan, statement: Statement, now: float) -> None:
        if (
            statement.percent
            and (plan.stage < PORT or statement.id < (plan.near or ""))
            and self.active(plan, statement, now)
        ):
            plan.stage, plan.near = PORT, statement.id

    def entries(
        self, table: StatementTable, host: str, literal: Address | None
    ) -> Iterator[tuple[list[int], bool]]:
        """Entries of the index that meet the host; the flag is set where only restrictive statements count."""
        if literal is None:
            found = table.exact.get(host)
            if found is not None:
                yield found, False
            if table.depth:
                yield from self._suffixes(table, host)
        else:
            yield from self.networks(table, literal, False)
            for inner in embedded(literal, self.nat64):
                yield from self.networks(table, inner, True)
        if table.everywhere:
            yield table.everywhere, False

    @staticmethod
    def _suffixes(table: StatementTable, host: str) -> Iterator[tuple[list[int], bool]]:
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

    @staticmethod
    def networks(
        table: StatementTable, address: Address, only_restrictive: bool
    ) -> Iterator[tuple[list[int], bool]]:
        number = int(address)
        for bits, networks in table.nets[address.version]:
            found = networks.get(number >> bits)
            if found is not None:
                yield found, only_restrictive

    def _allow(
        self,
        plan: Plan,
        statement: Statement,
        client: Client,
        groups: frozenset[str],
        now: float,
        restricted: bool,
    ) -> None:
        if not statement.plain and not self.active(plan, statement, now):
            return
        survives = statement.survive or not restricted
        clients = statement.clients
        if not (client.identified if clients is None else clients.has(client, groups)):
            stage = CLIENT
        elif statement.claims and not statement.claims <= client.claims:
            stage = CLAIM
        else:
            if not self.enforced(statement, client):
                plan.report_allows.append(statement)
            elif not survives:
                plan.lost.append(statement)
            else:
                plan.allows.append(statement)
            return
        if (
            survives
            and self.enforced(statement, client)
            and (plan.stage < stage or (plan.stage == stage and statement.id < (plan.near or "")))
        ):
            plan.stage, plan.near = stage, statement.id

    def restrict(
        self, plan: Plan, statement: Statement, client: Client, groups: frozenset[str], host: str,
        literal: Address | None, now: float, restricted: bool,
    ) -> None:  # fmt: skip
        if not self.active(plan, statement, now):
            return
        if statement.clients is not None and not statement.clients.has(client, groups):
            return
        if statement.claims and not statement.claims <= client.claims:
            return
        enforced = self.enforced(statement, client)
        match statement.kind:
            case Kind.DENY:
                if (
                    statement.lifts
                    and not restricted
                    and self._lifted(plan, statement, client, groups, host, literal, now)
                ):
                    return
                (plan.denies if enforced else plan.report_denies).append(statement)
            case Kind.GATE:
                (plan.gates if enforced else plan.report_gates).append(statement)
            case Kind.LIMIT:
                if (
                    statement.lifts
                    and not restricted
                    and self._lifted(plan, statement, client, groups, host, literal, now)
                ):
                    return
                plan.limits.append((statement, self._hit(statement, client, enforced)))
            case Kind.LEARN:
                if not restricted and (plan.learn is None or statement.id < plan.learn):
                    plan.learn = statement.id
            case Kind.QUARANTINE:
                inside = singles(literal, self.nat64)
                if not any(pattern.has(host, plan.port, inside) for pattern in statement.excepted) and (
                    plan.quarantine is None or statement.id < plan.quarantine
                ):
                    plan.quarantine = statement.id

    def _lifted(
        self,
        plan: Plan,
        statement: Statement,
        client: Client,
        groups: frozenset[str],
        host: str,
        literal: Address | None,
        now: float,
    ) -> bool:
        """Whether an exception lifts the statement outright; conditional ones are noted in the plan."""
        conditional: list[Condition] = []
        for lift in statement.lifts:
            _narrow(plan, lift.start, now)
            _narrow(plan, lift.end, now)
            if not lift_meets(lift, client, groups, host, plan.port, literal, now):
                continue
            if not lift.cond.residual:
                return True
            conditional.append(lift.cond)
        if conditional:
            plan.lifts[statement.id] = tuple(conditional)
        return False

    def active(self, plan: Plan, statement: Statement, now: float) -> bool:
        if not statement.timed:
            return True
        _narrow(plan, statement.start, now)
        _narrow(plan, statement.end, now)
        if not statement.start <= now < statement.end:
            return False
        return statement.when is None or self._when(
            plan, statement.when, statement.kind is not Kind.ALLOW and statement.kind is not Kind.LEARN, now
        )

    def _when(self, plan: Plan, when: When, restrictive: bool, now: float) -> bool:
        """Flags, days and hours; an unknown flag counts as what restricts."""
        for flag, wanted in when.flags.items():
            state = self._flags.get(flag)
            if (not restrictive) if state is None else state is not wanted:
                return False
        if when.days is None and when.hours is None:
            return True
        day = int(now // _DAY)
        midnight = day * _DAY
        first, last = when.hours or (0, 1440)
        for edge in (midnight, midnight + first * 60, midnight + last * 60, midnight + _DAY):
            _narrow(plan, edge, now)
        minute = (now - midnight) / 60
        weekday = (day + 3) % 7  # the epoch was a Thursday
        today = when.days is None or weekday in when.days
        if first < last:
            return today and first <= minute < last
        yesterday = when.days is None or (weekday - 1) % 7 in when.days
        return (today and minute >= first) or (yesterday and minute < last)

    def enforced(self, statement: Statement, client: Client) -> bool:
        percent = statement.percent
        return percent == 100 or (percent > 0 and self.bucket(client) < percent)

    def bucket(self, client: Client) -> int:
        """The client's place among 100, the same for every statement of a bundle."""
        digest = blake2b(f"{self._salt}\x00{client_key(client)}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) % 100

    @staticmethod
    def _hit(statement: Statement, client: Client, enforced: bool) -> LimitHit:
        limit = statement.limit
        assert limit is not None  # noqa: S101 - checked when the statement was made
        parts: list[str] = []
        for part in limit.key:
            if part == "client":
                parts.append(client_key(client))
            elif part == "client_ip":
                parts.append(network_of(client.address))
            else:
                parts.append("\x00" + part)  # known only with the request
        key = "|".join(parts)
        return LimitHit(
            statement.id, key, limit.unit, limit.quota, limit.period_ns, limit.burst, limit.scope, enforced
        )

    def _finish(self, plan: Plan, client: Client, host: str, literal: Address | None) -> None:
        for group in (
            plan.allows,
            plan.denies,
            plan.gates,
            plan.report_allows,
            plan.report_denies,
            plan.report_gates,
            plan.lost,
        ):
            if len(group) > 1:
                group.sort(key=_by_id)
        if len(plan.limits) > 1:
            plan.limits.sort(key=lambda pair: pair[0].id)
        for deny in plan.denies:
            if not deny.cond.residual and deny.cond.protocols is None and deny.id not in plan.lifts:
                plan.hard = deny.id
                break
        plan.unknown = not client.identified and not plan.allows and not plan.lost and plan.learn is None
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
        plan.varies = bool(plan.limits or plan.report_denies or plan.report_gates or plan.gates or plan.learn)
        everything = (
            plan.allows,
            plan.denies,
            plan.gates,
            plan.report_allows,
            plan.report_denies,
            plan.report_gates,
            plan.lost,
        )
        plan.looks = any(
            s.cond.templates is not None or s.cond.query is not None for group in everything for s in group
        ) or any(s.cond.templates is not None or s.cond.query is not None for s, _ in plan.limits)
        plan.looks = plan.looks or any(
            c.templates is not None or c.query is not None for cs in plan.lifts.values() for c in cs
        )


def _by_id(statement: Statement) -> str:
    return statement.id


def _narrow(plan: Plan, moment: float, now: float) -> None:
    if moment <= now:
        plan.start = max(plan.start, moment)
    else:
        plan.end = min(plan.end, moment)


def singles(
    address: Address | None, nat64: Iterable[IPv6Network] = (WELL_KNOWN,)
) -> list[IPv4Network | IPv6Network]:
    """The address as a network of its own."""
    return [] if address is None else [ip_network(address)]


def lift_meets(
    lift: Lift,
    client: Client,
    groups: frozenset[str],
    host: str,
    port: int,
    literal: Address | None,
    now: float,
) -> bool:
    """Whether an exception holds for the destination at this moment."""
    if not lift.start <= now < lift.end:
        return False
    if lift.clients is not None and not lift.clients.has(client, groups):
        return False
    return lift.hosts is None or any(pattern.has(host, port, singles(literal)) for pattern in lift.hosts)


def client_key(client: Client) -> str:
    """Whose quota and bucket: the name, or the network of the address where there is none."""
    return f"name:{client.name}" if client.name is not None else network_of(client.address)


def network_of(address: str | None) -> str:
    """An IPv4 address, or the /64 of an IPv6 one."""
    if address is None:
        return "addr:-"
    try:
        parsed = parse_address(address)
    except ValueError:
        return "addr:-"
    if isinstance(parsed, IPv4Address):
        return f"addr:{parsed}"
    if parsed.ipv4_mapped is not None:
        return f"addr:{parsed.ipv4_mapped}"
    return f"addr:{IPv6Address(int(parsed) >> 64 << 64)}/64"
