"""Gathers what differs: one change for each pair of causes, with its first example, in the domain that causes it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgeguard.policy.decision import Decision
from edgeguard.policy.diff.admits import admits
from edgeguard.policy.diff.values import Change, Domain, Effect, Example, Outcome, Undecided
from edgeguard.policy.engine import Engine
from edgeguard.policy.tables import Tables

MAX_HOSTS: Final = 5
"""Destinations that a change names."""
_DOMAINS: Final = {
    "age": Domain.AGE,
    "identity": Domain.IDENTITY,
    "rules": Domain.EGRESS,
    "exceptions": Domain.EGRESS,
}


class Observation:
    """What an engine says about one example: the verdict, the lane, or one address."""

    def __init__(self, example: Example, what: str) -> None:
        self.example, self.what = example, what

    def of(self, engine: Engine) -> object:
        request, at, restricted, address = self.example
        if address is not None:
            return bool(admits(engine, request, address, at, restricted=restricted).addresses)
        decision = engine.decide(request, at, restricted=restricted)
        return decision.lane if self.what in {"relayed", "inspected"} else decision.allow


class Attribution:
    """Which sections of the policy cause a change: those that bring it about alone, or without which it is gone."""

    def __init__(self, old: Mapping[str, object], new: Mapping[str, object]) -> None:
        self._old, self._new = old, new
        self.differ = [name for name in _DOMAINS if old[name] != new[name]]
        self._engines: dict[frozenset[str], Engine] = {}

    def domain(self, observation: Observation) -> Domain:
        if len(self.differ) == 1:
            return _DOMAINS[self.differ[0]]
        before = observation.of(self._engine(frozenset()))
        after = observation.of(self._engine(frozenset(self.differ)))
        for name in self.differ:
            if observation.of(self._engine(frozenset({name}))) == after:
                return _DOMAINS[name]
        for name in self.differ:
            if observation.of(self._engine(frozenset(self.differ) - {name})) == before:
                return _DOMAINS[name]
        return Domain.EGRESS

    def _engine(self, taken: frozenset[str]) -> Engine:
        """The old policy with these sections of the new one."""
        engine = self._engines.get(taken)
        if engine is None:
            sections = {name: (self._new if name in taken else self._old)[name] for name in _DOMAINS}
            engine = self._engines[taken] = Engine(Tables.load(sections))
        return engine


class Collector:
    """Changes in the order in which they are found, joined by what they have in common."""

    def __init__(self, attribution: Attribution) -> None:
        self._attribution = attribution
        self._changes: dict[object, tuple[Change, list[str]]] = {}
        """By cause; with the destinations, one for every time that it was found."""
        self._undecided: dict[Undecided, None] = {}
        self.witnessed: set[Effect] = set()

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(
            replace(change, count=len(hosts), hosts=tuple(dict.fromkeys(hosts))[:MAX_HOSTS])
            for change, hosts in self._changes.values()
        )

    @property
    def undecided(self) -> tuple[Undecided, ...]:
        return tuple(self._undecided)

    def give_up(self, domain: Domain, where: str, why: str) -> None:
        self._undecided[Undecided(domain, where, why)] = None

    def verdict(
        self, example: Example, one: Decision, two: Decision, since: float | None, *, simple: bool
    ) -> Effect:
        """A request that one policy allows and the other refuses. `simple`: no gate or group is near it."""
        effect = Effect.WIDENING if two.allow else Effect.NARROWING
        return self._add(
            effect, "allowed" if two.allow else "denied", example, one, two, since, simple=simple
        )

    def lane(self, example: Example, one: Decision, two: Decision, since: float | None) -> Effect:
        """A connection that is looked into by one policy only."""
        relayed = two.lane == "tunnel"
        effect = Effect.WIDENING if relayed else Effect.NARROWING
        return self._add(
            effect, "relayed" if relayed else "inspected", example, one, two, since, simple=False
        )

    def address(
        self,
        example: Example,
        one: Decision,
        two: Decision,
        since: float | None,
        rule: str | None,
        effect: Effect,
    ) -> Effect:
        """An allowed name whose address may be dialled under one policy only."""
        refused = (
            two._replace(allow=False, rule=rule)
            if effect is Effect.NARROWING
            else one._replace(allow=False, rule=rule)
        )
        pair = (one, refused) if effect is Effect.NARROWING else (refused, two)
        return self._add(effect, "address", example, *pair, since, simple=False)

    def limit(
        self,
        effect: Effect,
        text: str,
        example: Example,
        one: Decision,
        two: Decision,
        since: float | None,
    ) -> Effect:
        key = (effect, "limit", text, since)
        if not self._again(key, example):
            change = Change(
                effect, Domain.LIMITS, "limit", f"{text}, for example {example}", example, outcome(one), outcome(two), since
            )  # fmt: skip
            self._changes[key] = change, [example.request.host]
        self.witnessed.add(effect)
        return effect

    def _add(
        self,
        effect: Effect,
        what: str,
        example: Example,
        one: Decision,
        two: Decision,
        since: float | None,
        *,
        simple: bool,
    ) -> Effect:
        key = (
            effect,
            what,
            one.allow,
            one.rule or one.reason,
            two.allow,
            two.rule or two.reason,
            since,
            example.restricted,
        )
        if not self._again(key, example):
            domain = Domain.EGRESS if simple else self._attribution.domain(Observation(example, what))
            before, after = outcome(one), outcome(two)
            text = _text(what, effect, example, before, after)
            change = Change(effect, domain, what, text, example, before, after, since)
            self._changes[key] = change, [example.request.host]
        self.witnessed.add(effect)
        return effect

    def _again(self, key: object, example: Example) -> bool:
        known = self._changes.get(key)
        if known is None:
            return False
        known[1].append(example.request.host)
        return True


def outcome(decision: Decision) -> Outcome:
    reason = None if decision.reason is None else decision.reason.value
    return Outcome(decision.allow, reason, decision.rule, decision.lane.value)


def _text(what: str, effect: Effect, example: Example, before: Outcome, after: Outcome) -> str:
    match what:
        case "allowed" | "denied":
            return f"{what}: {example} ({before}; now {after})"
        case "address":
            verb = "may be dialled" if effect is Effect.WIDENING else "is no longer dialled"
            by = (before if effect is Effect.WIDENING else after).rule
            return f"{example} {verb}" + (
                f" ({'was ' if effect is Effect.WIDENING else ''}kept back by {by})" if by else ""
            )
        case "relayed":
            return f"relayed without being looked into: {example}"
        case _:
            return f"looked into: {example}"
