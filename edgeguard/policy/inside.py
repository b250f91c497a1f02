"""A request of which everything is known: protocol, method, target, person.

`Inside` is what is left of a plan for one protocol: the statements that speak it, with the matchers bound. A request is judged for
every method and path that it may mean (`paths.spellings`): an allow has to match each of them, a deny, gate or limit one. Clean
targets mean one thing and take the short way.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from edgeguard.policy.conditions import NEVER_IMPLIED, OK, PROTOCOL
from edgeguard.policy.connect import networks, until
from edgeguard.policy.decision import Decision, Lane, LimitHit
from edgeguard.policy.gates import Gates
from edgeguard.policy.keys import STANDARD_METHODS, settle, settled
from edgeguard.policy.matching import NO_QUERY, Asked, Hits, Reach, met, quick
from edgeguard.policy.paths import (
    SHORT,
    PathError,
    Query,
    check_target,
    clean_target,
    fold_path,
    query_readings,
    spellings,
)
from edgeguard.policy.plan import Plan
from edgeguard.policy.reasons import Reason
from edgeguard.policy.refusal import Refused, first, stage_reason
from edgeguard.policy.request import User
from edgeguard.policy.statements import Statement

MAX_OVERRIDES: Final = 4
MAX_RECENT: Final = 4096
"""Requests that are known again, per engine."""
MAX_GRANTS: Final = 256
"""Decisions kept per plan and protocol."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}\Z").match
_ROOT: Final = ("/",)
_UNTIL: Final = Decision._fields.index("until")
_new = tuple.__new__
_MALFORMED: Final = Refused(Reason.MALFORMED_REQUEST)


type Granted = tuple[Decision, list[Statement]]
"""A grant, and the gates that the person still has to pass."""


class Recent(dict["tuple[Inside, str | None, str | None]", Granted]):
    """What was granted lately, by method and target; shared by all plans of an engine, so that its size is bounded."""

    def keep(self, key: "tuple[Inside, str | None, str | None]", granted: Granted) -> None:
        if len(self) >= MAX_RECENT:
            self.clear()
        self[key] = granted


class Inside:
    """The residual policy for requests of one protocol."""

    __slots__ = (
        "_mute", "_plan", "_protocol", "_quick", "_quick_allows", "_quick_denies", "_quick_gates", "_recent", "allows", "asks", "denies", "gates",
        "grants", "limits", "lost", "methodical", "report_allows", "report_denies", "report_gates", "steady",
    )  # fmt: skip

    def __init__(self, plan: Plan, protocol: str, recent: "Recent") -> None:
        port = plan.port
        self._recent = recent

        def strict(statements: Iterable[Statement]) -> tuple[tuple[str, Reach], ...]:
            return tuple((s.id, s.cond.reach) for s in statements if s.cond.speaks(protocol, port))

        def loose(statements: Iterable[Statement]) -> tuple[tuple[Statement, Hits], ...]:
            return tuple((s, s.cond.hits) for s in statements if s.cond.touches(protocol, port))

        self._plan, self._protocol = plan, protocol
        self.allows, self.lost = strict(plan.allows), strict(plan.lost)
        self.report_allows = strict(plan.report_allows)
        self._mute = next((a.id for a in plan.allows if not a.cond.speaks(protocol, port)), None)
        self.denies, self.report_denies = loose(plan.denies), loose(plan.report_denies)
        self.gates, self.report_gates = loose(plan.gates), loose(plan.report_gates)
        self.limits = tuple(
            (statement, hit)
            for statement, hit in plan.limits
            if statement.cond.touches(protocol, port)
            # Connections are counted when they open; plain HTTP has no CONNECT that could count its bytes.
            and (hit.unit == "requests" or (hit.unit == "bytes" and protocol == "http"))
        )
        self.methodical = any(not settled(hit) for _, hit in self.limits)
        self.steady = (
            not self.report_denies
            and not self.report_gates
            and not any(
                hit.unit == "requests" and (statement.cond.residual or statement.id in plan.lifts)
                for statement, hit in self.limits
            )
        )
        """Which allows match settles everything about a grant."""
        self.asks = any(s.cond.query is not None for s in _everything(plan)) or any(
            c.query is not None for conditions in plan.lifts.values() for c in conditions
        )
        """Some condition reads the query."""
        self.grants: dict[object, Decision] = {}
        self._quick_allows = tuple(
            quick(s, strict=True) for s in plan.allows if s.cond.speaks(protocol, port)
        )
        self._quick_denies = tuple(quick(s, strict=False) for s, _ in self.denies)
        self._quick_gates = tuple(quick(s, strict=False) for s, _ in self.gates)
        self._quick = (
            self.steady
            and not self.report_allows
            and not self.methodical
            and plan.early is None
            and not plan.never
            and plan.address is None
        )
        """The short way can be tried."""

    def judge(
        self, method: str | None, target: str | None, user: User | None, overrides: tuple[str, ...], gates: Gates, now: float,
    ) -> Decision:  # fmt: skip
        """The verdict on a request with method and target."""
        quick = self._quick and not overrides
        key = (self, method, target)
        known = self._recent.get(key) if quick else None
        if known is None:
            if method is None or target is None or (method not in STANDARD_METHODS and not _TOKEN(method)):
                return _MALFORMED.decision(Lane.INSPECT, (), self._plan.until)
            paths, queries = self._read(target)
            if paths is None or len(overrides) > MAX_OVERRIDES:
                return _MALFORMED.decision(Lane.INSPECT, (), self._plan.until)
            known = self._short(method, paths, queries) if quick else None
            if known is None:
                methods = (method, *(o.strip().upper() for o in overrides))
                return self._whole(Asked(methods, paths, queries), gates, user, now)
            if len(target) <= SHORT:
                self._recent.keep(key, known)
        decision, meant = known
        if not meant:
            return decision
        refused = gates.refusal(meant, user, now)
        if refused is not None:
            return refused.decision(Lane.INSPECT, (), until(self._plan, user, now))
        if user is None or user.expires is None:
            return decision
        # A new one for every request, where `_replace` would cost more than all the rest of the gate.
        return _new(Decision, (*decision[:_UNTIL], until(self._plan, user, now), *decision[_UNTIL + 1 :]))

    def _read(self, target: str) -> tuple[tuple[str, ...] | None, tuple[Query, ...]]:
        """Every spelling of the path, None if the target is malformed, and every reading of the query."""
        if len(target) <= SHORT and clean_target(target) is not None:
            path, mark, _ = target.partition("?")
            if "//" not in path and "/." not in path:
                return (path,), query_readings(target) if mark and self.asks else NO_QUERY
        try:
            if self._plan.looks:
                return spellings(target), query_readings(target) if "?" in target else NO_QUERY
            check_target(target)
        except PathError:
            return None, NO_QUERY
        if self._plan.peeks:
            with suppress(PathError):  # what is only reported refuses nothing
                return spellings(target), query_readings(target) if "?" in target else NO_QUERY
        return _ROOT, NO_QUERY

    def _short(self, method: str, paths: tuple[str, ...], queries: tuple[Query, ...]) -> Granted | None:
        """A grant by one allow that matches every path and no deny; None for whatever needs a closer look."""
        granted = ""
        implied = method not in NEVER_IMPLIED
        for path in paths:
            matched = ""
            for name, methods, literals, prefixes, more, _ in self._quick_allows:
                if (implied if methods is None else method in methods) and (
                    literals is None
                    or path in literals
                    or path.startswith(prefixes)
                    or (more is not None and more.reach(method, path, queries) == OK)
                ):
                    if matched:
                        return None
                    matched = name
            if not matched or (granted and granted != matched):
                return None
            granted = matched
        meant: list[Statement] = []
        if self._quick_denies or self._quick_gates:
            folded = tuple(map(fold_path, paths))
            if self._quick_denies and met(self._quick_denies, method, folded, queries):
                return None
            meant = met(self._quick_gates, method, folded, queries)
        decision = self.grants.get(granted)
        if decision is None:
            return None
        return (decision._replace(gated=True), meant) if meant else (decision, meant)

    def _whole(self, asked: Asked, gates: Gates, user: User | None, now: float) -> Decision:
        """The whole ladder."""
        plan = self._plan
        end = plan.until
        names: Sequence[str] = ()
        every: Sequence[str] = ()
        refused = plan.early
        if refused is None:
            refused, names, every = self._allowed(asked)
            if refused is not None and (lost := self._lost(asked)) is not None:
                refused = lost
            else:
                for deny, hits in self.denies:
                    if asked.hits(hits, plan.lifts.get(deny.id, ())):
                        refused = Refused(Reason.DENIED_BY_RULE, deny.id)
                        break
        if refused is None and plan.refused_address(every):
            refused = Refused(Reason.ADDRESS_NOT_ALLOWED)
        meant: list[Statement] = []
        if refused is None and self.gates:
            meant = [gate for gate, hits in self.gates if asked.hits(hits)]
            if meant:
                refused, end = gates.refusal(meant, user, now), until(plan, user, now)
        if refused is not None:
            would = [("would_allow", name) for name, reach in self.report_allows if asked.reaches(reach)]
            return refused.decision(Lane.INSPECT, tuple(would), end)
        decision = self._grant(asked, names, every, gates, user, now, end)
        return decision._replace(gated=True) if meant else decision

    def _allowed(self, asked: Asked) -> tuple[Refused | None, Sequence[str], Sequence[str]]:
        """AND over all readings: a refusal, the allows that match some reading, those that match every one."""
        allows, queries, plan = self.allows, asked.queries, self._plan
        names: Sequence[str] | None = None
        every: Sequence[str] = ()
        worst: Refused | None = None
        for method in asked.methods:
            for path in asked.paths:
                furthest, near = (-1, None) if self._mute is None else (PROTOCOL, self._mute)
                matched: list[str] = []
                for name, reach in allows:
                    reached = reach(method, path, queries)
                    if reached == OK:
                        matched.append(name)
                    elif reached > furthest:
                        furthest, near = reached, name
                if names is None:
                    names = every = matched
                elif matched != every or matched != names:
                    names = sorted({*names, *matched})
                    every = [name for name in every if name in matched]
                if not matched and plan.learn is None:
                    if not plan.allows:
                        furthest, near = plan.stage, plan.near
                    worst = first(worst, Refused(stage_reason(furthest, self._protocol), None, near))
        return worst, names or (), every

    def _lost(self, asked: Asked) -> Refused | None:
        """Whether it is the freshness ladder that refuses: an allow matched that does not survive offline."""
        for name, reach in self.lost:
            if asked.reaches(reach):
                return Refused(Reason.POLICY_RESTRICTED, None, name)
        return None

    def _grant(
        self, asked: Asked, names: Sequence[str], every: Sequence[str], gates: Gates, user: User | None, now: float,
        end: float | None,
    ) -> Decision:  # fmt: skip
        """The decision of an allow. Kept by what can differ from one request to the next."""
        would: tuple[tuple[str, str], ...] = ()
        counted: tuple[int, ...] | None = None
        if not self.steady:
            would = self._would_deny(asked, gates, user, now)
            counted = tuple(i for i, limit in enumerate(self.limits) if self._counts(*limit, asked))
        method = asked.methods[0] if self.methodical else None
        if method not in STANDARD_METHODS:
            method = None
        same = names == every
        if same and len(names) == 1 and counted is None and method is None:
            key: object = names[0]
        else:
            key = (*names, *(() if same else (None, *every)), would, counted, method)
        decision = self.grants.get(key)
        if decision is None:
            decision = self._make(names, every, would, counted, method)
            if len(self.grants) >= MAX_GRANTS:
                self.grants.clear()
            self.grants[key] = decision
        return decision if end == decision.until else decision._replace(until=end)

    def _make(
        self, names: Sequence[str], every: Sequence[str], would: tuple[tuple[str, str], ...],
        counted: tuple[int, ...] | None, method: str | None,
    ) -> Decision:  # fmt: skip
        plan = self._plan
        rule = min(names) if names else plan.learn or ""
        if not names and plan.learn is not None:
            would = (*would, ("would_deny", plan.learn))
        hits: list[LimitHit] = []
        for place, (statement, hit) in enumerate(self.limits):
            rules = statement.limit.rules if statement.limit is not None else None
            if (counted is None or place in counted) and (rules is None or not rules.isdisjoint(names)):
                hits.append(settle(hit, rule, method))
        resolves = networks([a for a in plan.allows if a.id in every])
        return Decision(True, None, rule, Lane.INSPECT, None, would, tuple(hits), None, resolves, plan.until)

    def _counts(self, statement: Statement, hit: LimitHit, asked: Asked) -> bool:
        """Whether a limit counts the request, whichever allows match."""
        if hit.unit != "requests":
            return True
        return asked.hits(statement.cond.hits, self._plan.lifts.get(statement.id, ()))

    def _would_deny(
        self, asked: Asked, gates: Gates, user: User | None, now: float
    ) -> tuple[tuple[str, str], ...]:
        lifts = self._plan.lifts
        would = [s.id for s, hits in self.report_denies if asked.hits(hits, lifts.get(s.id, ()))]
        would += [
            s.id
            for s, hits in self.report_gates
            if asked.hits(hits) and gates.refusal((s,), user, now) is not None
        ]
        return tuple(("would_deny", name) for name in would)


def _everything(plan: Plan) -> Iterable[Statement]:
    for group in (plan.allows, plan.lost, plan.denies, plan.gates):
        yield from group
    for group in (plan.report_allows, plan.report_denies, plan.report_gates):
        yield from group
    for statement, _ in plan.limits:
        yield statement
