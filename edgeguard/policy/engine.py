"""The engine: one question in, one decision out.

    allowed = some allow matches, no deny matches, every matching gate passes, every address is permitted

for every reading of the request (order never matters). `Engine` is immutable apart from a bounded memo of plans
(`plan.py`), so it may be shared, and a decision depends on nothing but its arguments.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from edgeguard.policy.addresses import (
    METADATA_NAMES,
    WELL_KNOWN,
    Address,
    AddressClass,
    classify,
    embedded,
    parse_address,
)
from edgeguard.policy.conditions import METHOD, OK, PATH, PROTOCOL
from edgeguard.policy.decision import Admission, Decision, Lane, LimitHit, Required
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import canonical_ipv6
from edgeguard.policy.paths import PathError, Query, Segments, check_target, fold, query_readings, readings
from edgeguard.policy.plan import STAGE_REASON, Plan, Planner
from edgeguard.policy.reasons import Reason
from edgeguard.policy.regions import overlap
from edgeguard.policy.request import Client, Request, User
from edgeguard.policy.tables import ENTRY, FOREVER, Gate, Statement, Tables

if TYPE_CHECKING:
    from edgeguard.policy.trace import Trace

MEMO: Final = 8192
"""Plans kept per generation; two generations live at most."""
MAX_OVERRIDES: Final = 4
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}\Z")
_LADDER: Final = {reason: place for place, reason in enumerate(Reason)}
_NO_QUERY: Final[tuple[Query, ...]] = ((),)
_STAGES: Final = {
    PROTOCOL: Reason.PROTOCOL_NOT_ALLOWED,
    METHOD: Reason.METHOD_NOT_ALLOWED,
    PATH: Reason.PATH_NOT_ALLOWED,
}


class Refused(NamedTuple):
    """Why, and which rule; `near` is the allow that got furthest."""

    reason: Reason
    rule: str | None = None
    near: str | None = None
    required: Required | None = None


class Known(NamedTuple):
    """A resolved address on a port, as far as it does not depend on the request."""

    address: Address
    kind: AddressClass
    text: str
    """Canonical."""
    restrictive: tuple[Statement, ...]
    """Denies and gates whose networks hold it."""


_MALFORMED: Final = Refused(Reason.MALFORMED_REQUEST)
_NO_PATHS: Final[tuple[Segments, ...]] = ((),)


class Asked:
    """A request as the conditions see it: every method and every path that it may mean."""

    __slots__ = ("_folded", "methods", "paths", "protocol", "queries")

    def __init__(
        self, protocol: str, methods: tuple[str, ...], paths: tuple[Segments, ...], queries: tuple[Query, ...]
    ) -> None:
        self.protocol, self.methods, self.paths, self.queries = protocol, methods, paths, queries
        self._folded: tuple[tuple[str, Segments], ...] | None = None

    @property
    def folded(self) -> tuple[tuple[str, Segments], ...]:
        """(method, folded path) of every reading, for the loose matchers."""
        if self._folded is None:
            self._folded = tuple((m, fold(p)) for p in self.paths for m in self.methods)
        return self._folded


class Engine:
    """Decides. `tables` are loaded and checked; `nat64` are the NAT64 prefixes of the network."""

    __slots__ = ("_known", "_memo", "_old", "planner", "tables")

    def __init__(self, tables: Tables, *, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> None:
        self.tables = tables
        self.planner = Planner(tables, nat64)
        self._memo: dict[tuple[Client, str, int, bool], Plan] = {}
        self._old: dict[tuple[Client, str, int, bool], Plan] = {}
        self._known: dict[tuple[str, int], Known] = {}

    @property
    def rule_count(self) -> int:
        """How many statements are in force, gates included."""
        return len(self.tables.rules) + len(self.tables.gates)

    def decide(self, request: Request, now: float, *, restricted: bool = False) -> Decision:
        """The verdict at `now` (Unix seconds). `restricted`: only allows that survive offline count.

        Raises nothing for any canonical request; a malformed method or target is a refusal.
        """
        client, host, port, protocol, method, target, user, _ = request
        key = (client, host, port, restricted)
        plan = self._memo.get(key)
        if plan is None or not plan.start <= now < plan.end:
            plan = self._plan(key, now)
        if method is None and target is None:
            decision = plan.connect.get(protocol)
            if decision is None:
                decision = self._connect(plan, protocol)
            if not plan.gates:
                return decision
            return self._gated_tunnel(plan, decision, protocol, user, now)
        return self._request(plan, request, now)

    def plan(self, request: Request, now: float, *, restricted: bool = False) -> Plan:
        """The residual policy for the request's destination."""
        key = (request.client, request.host, request.port, restricted)
        plan = self._memo.get(key)
        return plan if plan is not None and plan.start <= now < plan.end else self._plan(key, now)

    def _plan(self, key: tuple[Client, str, int, bool], now: float) -> Plan:
        plan = self._old.get(key)
        if plan is None or not plan.start <= now < plan.end:
            client, host, port, restricted = key
            plan = self._solo(client, host, port, now) if not restricted else None
            if plan is None:
                plan = self.planner.build(client, host, port, now, restricted)
        if len(self._memo) >= MEMO:
            self._old, self._memo = self._memo, {}
        self._memo[key] = plan
        return plan

    def _solo(self, client: Client, host: str, port: int, now: float) -> Plan | None:
        """The plan where one plain allow stands alone on an exact host: the same for every client that it means."""
        rules, gates = self.tables.rules, self.tables.gates
        found = rules.exact.get(host)
        if (
            found is None
            or len(found) != ENTRY
            or rules.everywhere
            or gates.everywhere
            or host in METADATA_NAMES
        ):
            return None
        below, gated = rules.below, gates.below
        if host in gates.exact:
            return None
        place = len(host)
        for _ in range(max(rules.depth, gates.depth)):
            place = host.rfind(".", 0, place)
            if place < 0:
                break
            suffix = host[place + 1 :]
            if suffix in below or suffix in gated:
                return None
        index, low, high = found
        statement = rules.get(index)
        if statement.kind is not Kind.ALLOW or not statement.plain or not low <= port <= high:
            return None
        clients = statement.clients
        if not (client.identified if clients is None else client.name in clients.names):
            return None
        plan: Plan | None = statement.solo
        if plan is None or plan.port != port:
            plan = statement.solo = self.planner.build(client, host, port, now, False)
        return plan

    def explain(self, request: Request, now: float, *, restricted: bool = False) -> "Trace":
        """The ordered trace of the decision, computed on these tables."""
        from edgeguard.policy.trace import trace

        return trace(self, request, now, restricted=restricted)

    # a connection of which only the destination is known

    def _connect(self, plan: Plan, protocol: str) -> Decision:
        """Whether anything on such a connection could be allowed, and which lane has to look further."""
        until = plan.end if plan.end != FOREVER else None
        allows = [a for a in plan.allows if a.cond.opens(protocol, plan.port)]
        refused = (
            self._early(plan)
            or self._offline(plan, protocol, allows)
            or self._denied(plan, protocol)
            or self._no_allow(plan, protocol, allows)
            or self._opaque(plan, protocol)
            or self._address(plan, [a.id for a in allows])
        )
        if refused is not None:
            would = [("would_allow", a.id) for a in plan.report_allows if a.cond.opens(protocol, plan.port)]
            decision = _refusal(refused, self._lane(plan, protocol, allows), tuple(would), until)
        else:
            names = [a.id for a in allows]
            would = [("would_deny", d.id) for d in plan.report_denies if d.cond.certain(protocol, plan.port)]
            if not allows and plan.learn is not None:
                would.append(("would_deny", plan.learn))
            free = next((a for a in allows if a.cond.free(protocol, plan.port)), None)
            rule = free.id if free is not None else names[0] if names else plan.learn
            decision = Decision(
                True,
                None,
                rule,
                self._lane(plan, protocol, allows),
                None,
                tuple(would),
                self._limits(plan, protocol, rule or "", names, None),
                None,
                _networks(allows),
                until,
            )
        plan.connect[protocol] = decision
        return decision

    @staticmethod
    def _early(plan: Plan) -> Refused | None:
        if plan.quarantine is not None:
            return Refused(Reason.QUARANTINED, plan.quarantine)
        if plan.unknown:
            return Refused(Reason.CLIENT_UNKNOWN, None, plan.near)
        if plan.hard is not None and not plan.lost:
            return Refused(Reason.DENIED_BY_RULE, plan.hard)
        return None

    @staticmethod
    def _offline(plan: Plan, protocol: str, allows: list[Statement]) -> Refused | None:
        """Whether it is the freshness ladder that refuses: only an allow that does not survive offline leads there."""
        lost = next((a.id for a in plan.lost if a.cond.opens(protocol, plan.port)), None)
        return Refused(Reason.POLICY_RESTRICTED, None, lost) if lost is not None and not allows else None

    @staticmethod
    def _denied(plan: Plan, protocol: str) -> Refused | None:
        """A deny that nothing inside can escape."""
        for deny in plan.denies:
            if deny.cond.certain(protocol, plan.port) and deny.id not in plan.lifts:
                return Refused(Reason.DENIED_BY_RULE, deny.id)
        return None

    @staticmethod
    def _opaque(plan: Plan, protocol: str) -> Refused | None:
        """Opaque bytes cannot be looked into: there, every deny that looks inside may be meant."""
        if protocol == "tcp":
            for deny in plan.denies:
                if deny.cond.may_touch(protocol, plan.port):
                    return Refused(Reason.DENIED_BY_RULE, deny.id)
        return None

    @staticmethod
    def _no_allow(plan: Plan, protocol: str, allows: list[Statement]) -> Refused | None:
        if allows or plan.learn is not None:
            return None
        if not plan.allows:
            return Refused(STAGE_REASON[plan.stage], None, plan.near)
        reason = Reason.OPAQUE_TUNNEL if protocol == "tcp" else Reason.PROTOCOL_NOT_ALLOWED
        return Refused(reason, None, plan.allows[0].id)

    @staticmethod
    def _address(plan: Plan, granting: Sequence[str]) -> Refused | None:
        if plan.never or (plan.address is not None and not plan.address.intersection(granting)):
            return Refused(Reason.ADDRESS_NOT_ALLOWED)
        return None

    @staticmethod
    def _lane(plan: Plan, protocol: str, allows: list[Statement]) -> Lane:
        if protocol == "tcp":
            return Lane.TUNNEL
        named = [
            s.tls
            for group in (allows, plan.denies, plan.report_allows, plan.report_denies)
            for s in group
            if s.tls is not None
        ]
        if "inspect" in named:
            return Lane.INSPECT
        if "passthrough" in named and any(a.tls == "passthrough" for a in allows):
            return Lane.TUNNEL
        port = plan.port
        if plan.learn is None and not any(a.cond.free(protocol, port) for a in allows):
            return Lane.INSPECT
        if any(d.cond.may_touch(protocol, port) for d in plan.denies) or any(
            g.cond.may_touch(protocol, port) for g in plan.gates
        ):
            return Lane.INSPECT
        names = {a.id for a in allows}
        for statement, hit in plan.limits:
            if not hit.enforced or hit.unit != "requests" or not statement.cond.may_touch(protocol, port):
                continue
            rules = statement.limit.rules if statement.limit is not None else None
            if rules is None or rules & names:
                return Lane.INSPECT
        return Lane.TUNNEL

    def _gated_tunnel(
        self, plan: Plan, decision: Decision, protocol: str, user: User | None, now: float
    ) -> Decision:
        """Gates on a connection that stays closed are judged once, here, method and path taken as matching."""
        if not decision.allow or decision.lane is Lane.INSPECT or not plan.gates:
            return decision
        gates = [g for g in plan.gates if g.cond.may_touch(protocol, plan.port)]
        refused = self._gates(gates, user, now)
        if refused is not None:
            return _refusal(refused, decision.lane, (), _until(plan, user, now))
        return decision._replace(until=_until(plan, user, now)) if gates else decision

    # a request of which everything is known

    def _request(self, plan: Plan, request: Request, now: float) -> Decision:
        _, _, port, protocol, method, target, user, overrides = request
        until = plan.end if plan.end != FOREVER else None
        if (
            method is None
            or target is None
            or (method not in _METHODS and not _TOKEN.match(method))
            or len(overrides) > MAX_OVERRIDES
        ):
            return _refusal(_MALFORMED, Lane.INSPECT, (), until)
        try:
            check_target(target)
            paths: tuple[Segments, ...] = readings(target) if plan.looks else _NO_PATHS
            queries = query_readings(target) if plan.looks and "?" in target else _NO_QUERY
        except PathError:
            return _refusal(_MALFORMED, Lane.INSPECT, (), until)
        methods = (method,) if not overrides else (method, *(o.strip().upper() for o in overrides))
        asked = Asked(protocol, methods, paths, queries)
        names: Sequence[str] = ()
        every: Sequence[str] = ()
        refused = self._early(plan)
        if refused is None:
            refused, names, every = self._readings(plan, asked)
        if refused is None:
            refused = self._address(plan, every)
        if refused is None and plan.gates:
            gates = [
                g
                for g in plan.gates
                if any(g.cond.hits(protocol, port, m, p, queries) for m, p in asked.folded)
            ]
            if gates:
                refused, until = self._gates(gates, user, now), _until(plan, user, now)
        if refused is not None:
            return _refusal(refused, Lane.INSPECT, self._would_allow(plan, asked), until)
        granted = min(names) if names else plan.learn or ""
        if not plan.varies and len(names) == 1:
            kept = plan.grants.get(granted)
            if kept is None:
                resolves = _networks([a for a in plan.allows if a.id in every])
                kept = plan.grants[granted] = Decision(
                    True, None, granted, Lane.INSPECT, None, (), (), None, resolves, until
                )
            return kept
        limits = self._limits(plan, protocol, granted, names, asked)
        resolves = _networks([a for a in plan.allows if a.id in every])
        return Decision(
            True,
            None,
            granted,
            Lane.INSPECT,
            None,
            self._would_deny(plan, asked, names, user, now),
            limits,
            None,
            resolves,
            until,
        )

    def _readings(self, plan: Plan, asked: Asked) -> tuple[Refused | None, Sequence[str], Sequence[str]]:
        """AND over all readings.

        Returns the refusal that comes first on the ladder, the allows that matched some reading, and those that matched every one.
        """
        protocol, methods, paths, queries = asked.protocol, asked.methods, asked.paths, asked.queries
        names: Sequence[str]
        every: Sequence[str]
        if len(plan.allows) == 1 and len(paths) == 1 and len(methods) == 1 and plan.learn is None:
            allow = plan.allows[0]
            reach = allow.cond.reach(protocol, plan.port, methods[0], paths[0], queries)
            worst = None if reach == OK else Refused(_stage_reason(reach, protocol), None, allow.id)
            names = every = (allow.id,)
        else:
            worst, names, every = self._all_readings(plan, asked)
        if worst is not None and plan.lost and (restricted := self._restricted(plan, asked)) is not None:
            return restricted, (), ()
        for deny in plan.denies:
            if self._hits(plan, deny, asked):
                return Refused(Reason.DENIED_BY_RULE, deny.id), (), ()
        return worst, names, every

    @staticmethod
    def _all_readings(plan: Plan, asked: Asked) -> tuple[Refused | None, Sequence[str], Sequence[str]]:
        names: dict[str, None] = {}
        every = {a.id for a in plan.allows}
        worst: Refused | None = None
        for method in asked.methods:
            for path in asked.paths:
                reached, near, matched = -1, None, []
                for allow in plan.allows:
                    reach = allow.cond.reach(asked.protocol, plan.port, method, path, asked.queries)
                    if reach == OK:
                        matched.append(allow.id)
                    elif reach > reached:
                        reached, near = reach, allow.id
                names.update(dict.fromkeys(matched))
                every.intersection_update(matched)
                if matched or plan.learn is not None:
                    continue
                reason = _stage_reason(reached, asked.protocol) if plan.allows else STAGE_REASON[plan.stage]
                if worst is None or _LADDER[reason] < _LADDER[worst.reason]:
                    worst = Refused(reason, None, near if plan.allows else plan.near)
        return worst, tuple(names), tuple(every)

    def _would_deny(
        self, plan: Plan, asked: Asked, names: Sequence[str], user: User | None, now: float
    ) -> tuple[tuple[str, str], ...]:
        would = [("would_deny", s.id) for s in plan.report_denies if self._hits(plan, s, asked)]
        for statement in plan.report_gates:
            meant = any(
                statement.cond.hits(asked.protocol, plan.port, m, p, asked.queries) for m, p in asked.folded
            )
            if meant and self._gates([statement], user, now) is not None:
                would.append(("would_deny", statement.id))
        if not names and plan.learn is not None:
            would.append(("would_deny", plan.learn))
        return tuple(would)

    @staticmethod
    def _restricted(plan: Plan, asked: Asked) -> Refused | None:
        """Whether it is the freshness ladder that refuses: an allow matched that does not survive offline."""
        for allow in plan.lost:
            if _reaches(allow, plan.port, asked):
                return Refused(Reason.POLICY_RESTRICTED, None, allow.id)
        return None

    @staticmethod
    def _hits(plan: Plan, statement: Statement, asked: Asked) -> bool:
        """A restrictive statement matches some reading, and no exception matches every one."""
        cond, queries = statement.cond, asked.queries
        for method, path in asked.folded:
            if cond.hits(asked.protocol, plan.port, method, path, queries):
                break
        else:
            return False
        lifts = plan.lifts.get(statement.id)
        return lifts is None or not any(
            all(lift.lifts(m, p, queries) for m in asked.methods for p in asked.paths) for lift in lifts
        )

    @staticmethod
    def _would_allow(plan: Plan, asked: Asked) -> tuple[tuple[str, str], ...]:
        return tuple(("would_allow", a.id) for a in plan.report_allows if _reaches(a, plan.port, asked))

    def _gates(self, gates: Sequence[Statement], user: User | None, now: float) -> Refused | None:
        """The refusal of the gates that match, first on the ladder, then by id."""
        worst: Refused | None = None
        for statement in gates:
            gate = statement.gate
            assert gate is not None  # noqa: S101 - checked when the statement was made
            reason = self._gate(gate, user, now)
            if reason is not None and (worst is None or _LADDER[reason] < _LADDER[worst.reason]):
                worst = Refused(
                    reason,
                    statement.id,
                    None,
                    Required(statement.id, gate.age, gate.assurance, gate.legal_ref, gate.legal_demand),
                )
        return worst

    def _gate(self, gate: Gate, user: User | None, now: float) -> Reason | None:
        if user is not None and not user.invalid and user.expires is not None and user.expires <= now:
            user = None
        region = None if user is None or user.invalid else user.region
        if gate.regions is not None and not overlap(region, gate.regions, self.tables.region_groups):
            return None
        if user is None:
            return Reason.AGE_VERIFICATION_REQUIRED
        if user.invalid:
            return Reason.AGE_TOKEN_INVALID
        if user.assurance is None or (gate.assurance is not None and user.assurance < gate.assurance):
            return Reason.AGE_VERIFICATION_REQUIRED
        if user.age_at_most is not None and user.age_at_most < gate.age:
            return Reason.AGE_BELOW_MINIMUM
        if user.age_at_least is None or user.age_at_least < gate.age:
            return Reason.AGE_VERIFICATION_REQUIRED
        return None

    def _limits(
        self, plan: Plan, protocol: str, rule: str, names: Sequence[str], asked: Asked | None
    ) -> tuple[LimitHit, ...]:
        """The limits that count this request, or (without `asked`) this connection."""
        hits: list[LimitHit] = []
        for statement, hit in plan.limits:
            limit = statement.limit
            if limit is None or (limit.rules is not None and limit.rules.isdisjoint(names)):
                continue
            if asked is None:
                if limit.unit == "requests" or not statement.cond.may_touch(protocol, plan.port):
                    continue
            elif limit.unit == "requests":
                if not self._hits(plan, statement, asked):
                    continue
            elif (
                limit.unit != "bytes" or protocol != "http" or not statement.cond.touches(protocol, plan.port)
            ):
                continue  # connections are counted once, when they open; plain HTTP has no CONNECT to count its bytes
            hits.append(_keyed(hit, rule, asked))
        return tuple(hits)

    # the addresses behind the name

    def admit(
        self, request: Request, addresses: Sequence[str], now: float, *, restricted: bool = False
    ) -> Admission:
        """Which of the resolved `addresses` (text) may be dialled for a request that `decide` allows.

        Metadata never; other special-purpose space only inside a granting allow's `resolves_to`; never what a deny names.
        """
        decision = self.decide(request, now, restricted=restricted)
        if not decision.allow:
            return Admission((), decision.reason, decision.rule)
        networks = [_network(text) for text in decision.resolves_to]
        local = request.host == "localhost" or request.host.endswith(".localhost")
        kept: dict[str, None] = {}
        rule: str | None = None
        for text in addresses:
            known = self._known.get((text, request.port)) or self._look(text, request.port)
            if known is None:
                continue
            address, kind, canonical, restrictive = known
            rule = None
            if kind is AddressClass.METADATA or (local and kind is not AddressClass.LOOPBACK):
                continue
            if kind is not AddressClass.PUBLIC and not any(
                address in n for n in networks if n.version == address.version
            ):
                continue
            if restrictive:
                rule = self._network_refusal(request, address, restrictive, now, restricted)
            if rule is None:
                kept[canonical] = None
        if kept:
            return Admission(tuple(kept))
        return Admission((), Reason.ADDRESS_NOT_ALLOWED, rule)

    def _look(self, text: str, port: int) -> "Known | None":
        """What is known of a resolved address on a port, whoever asks; None if it is not one. Kept."""
        try:
            address = parse_address(text)
            kind = classify(str(address), self.planner.nat64)
        except ValueError:
            return None
        canonical = canonical_ipv6(address) if isinstance(address, IPv6Address) else str(address)
        known = Known(address, kind, canonical, tuple(self._restrictive(address, port)))
        if len(self._known) >= MEMO:
            self._known.clear()
        self._known[text, port] = known
        return known

    def _restrictive(self, address: Address, port: int) -> Iterator[Statement]:
        """Denies and gates whose network holds the address, or what it embeds."""
        planner = self.planner
        for table in (self.tables.rules, self.tables.gates):
            if not table.nets[4] and not table.nets[6]:
                continue
            for candidate in (address, *embedded(address, planner.nat64)):
                for entries, _ in planner.networks(table, candidate, True):
                    for place in range(0, len(entries), ENTRY):
                        statement = table.get(entries[place])
                        if entries[place + 1] <= port <= entries[place + 2] and statement.kind in {
                            Kind.DENY,
                            Kind.GATE,
                        }:
                            yield statement

    def _network_refusal(
        self,
        request: Request,
        address: Address,
        restrictive: tuple[Statement, ...],
        now: float,
        restricted: bool,
    ) -> str | None:
        """The deny or unsatisfied gate that refuses the address. What is not known yet counts as matching."""
        planner = self.planner
        scratch = Plan(request.port)
        groups = planner.groups_of(request.client)
        for statement in restrictive:
            planner.restrict(
                scratch, statement, request.client, groups, request.host, address, now, restricted
            )
        known = request.method is not None and request.target is not None
        for deny in sorted(scratch.denies, key=lambda s: s.id):
            if not known and deny.cond.may_touch(request.protocol, request.port):
                return deny.id
            if known and self._hits(scratch, deny, _asked(request)):
                return deny.id
        gates = [g for g in scratch.gates if g.cond.may_touch(request.protocol, request.port)]
        refused = self._gates(gates, request.user, now)
        return None if refused is None else refused.rule


_network = lru_cache(maxsize=4096)(ip_network)


def _asked(request: Request) -> Asked:
    """The readings of a request that `decide` has already found well-formed."""
    target = request.target or "/"
    methods = (request.method or "", *(o.strip().upper() for o in request.overrides))
    return Asked(request.protocol, methods, readings(target), query_readings(target))


def _reaches(allow: Statement, port: int, asked: Asked) -> bool:
    """Strict match of every reading."""
    return all(
        allow.cond.reach(asked.protocol, port, m, p, asked.queries) == OK
        for m in asked.methods
        for p in asked.paths
    )


def _keyed(hit: LimitHit, rule: str, asked: Asked | None) -> LimitHit:
    """Fills in what only the request knows; methods outside the standard ones share a quota."""
    if "\x00" not in hit.key:
        return hit
    method = "other" if asked is None or asked.methods[0] not in _METHODS else asked.methods[0]
    return hit._replace(key=hit.key.replace("\x00rule", rule).replace("\x00method", method))


def _stage_reason(reach: int, protocol: str) -> Reason:
    if reach == PROTOCOL and protocol == "tcp":
        return Reason.OPAQUE_TUNNEL
    return _STAGES[reach]


def _refusal(
    refused: Refused, lane: Lane, would: tuple[tuple[str, str], ...], until: float | None
) -> Decision:
    return Decision(
        False, refused.reason, refused.rule, lane, refused.near, would, (), refused.required, (), until
    )


def _networks(allows: Sequence[Statement]) -> tuple[str, ...]:
    named = [a.networks for a in allows if a.networks]
    if len(named) < 2:
        return named[0] if named else ()
    return tuple(dict.fromkeys(network for networks in named for network in networks))


def _until(plan: Plan, user: User | None, now: float) -> float | None:
    moments = [plan.end] if plan.end != FOREVER else []
    if user is not None and user.expires is not None and user.expires > now:
        moments.append(user.expires)
    return min(moments, default=None)


__all__ = ["Engine", "Refused"]
