"""Mutation testing of a policy: change one statement, ask every case again; a change that no case notices is named.

What is changed: a statement is removed; an effect is flipped; a method, a port, a client, a claim or a query stops mattering; a path is
widened; the age of a gate and its assurance are lowered; a limit is doubled; an exception is removed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from edgeguard.policy.addresses import parse_address
from edgeguard.policy.compile import CompileError, compile_policy
from edgeguard.policy.diff import Verdict, compare
from edgeguard.policy.diff.side import Side
from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import QuestionError, requests_of
from edgeguard.policy.flat import Flat, Names, collect_names, flatten
from edgeguard.policy.kinds import Kind
from edgeguard.policy.model import ASSURANCES, AgeGate, Module, Policy, RateLimit, Rule, Where
from edgeguard.policy.names import is_address
from edgeguard.policy.source import Sources
from edgeguard.policy.tables import Tables
from edgeguard.policy.targets import ALL_PORTS, parse_target
from edgeguard.policy.testing import Case, run_case

_METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
_LISTS: Final = ("rules", "rate_limits", "age_gates", "exceptions", "learning", "quarantine")


class Mutant(NamedTuple):
    """One change of one statement. `item` is its new form; None: it is gone."""

    statement: str
    what: str
    item: Any


@dataclass(frozen=True, slots=True)
class Survivor:
    """A mutant that no case noticed, with the place of its statement."""

    statement: str
    what: str
    file: str
    line: int
    near: bool
    """False: no case comes near the statement at all."""

    def __str__(self) -> str:
        why = "" if self.near else " (no case comes near it)"
        return f"{self.file}:{self.line}: {self.statement}: {self.what}{why}"


@dataclass(frozen=True, slots=True)
class MutationReport:
    """How the mutants of a policy fared."""

    mutants: int
    survivors: tuple[Survivor, ...]
    equivalent: int
    """Mutants that no case noticed because they change no decision."""

    @property
    def passed(self) -> bool:
        return not self.survivors

    @property
    def killed(self) -> int:
        return self.mutants - len(self.survivors) - self.equivalent


def mutate(sources: Sources, cases: Sequence[Case], now: float) -> MutationReport:
    """Runs the cases, all of which pass, against every mutant. `now` (Unix seconds) holds for cases that name no time."""
    policy, near = _near(sources.policy, cases, now)
    whole = compile_policy(sources.policy)
    watched = frozenset(f.id for f in flatten(sources.policy) if isinstance(f, Flat) and f.percent < 100)
    count = equivalent = 0
    survivors = []
    for mutant in mutants(sources.policy):
        close = near is None or mutant.statement in near
        try:
            if close and _killed(replaced(policy, mutant), cases, now):
                count += 1
                continue
            other = compile_policy(replaced(sources.policy, mutant))
        except CompileError:
            continue
        count += 1
        # What is only watched changes no decision, and yet its author wants to know that it watches.
        if mutant.statement not in watched and _same(whole, other, cases, now):
            equivalent += 1
            continue
        file, line, _ = sources.places.get(mutant.statement, ("policy", 0, 0))
        survivors.append(Survivor(mutant.statement, mutant.what, file, line, close))
    found = tuple(sorted(survivors, key=lambda s: (s.file, s.line, s.what)))
    return MutationReport(count, found, equivalent)


def _same(one: Mapping[str, object], two: Mapping[str, object], cases: Sequence[Case], now: float) -> bool:
    """Whether two policies decide alike from the earliest moment on that a case is about."""
    earliest = min((case.now for case in cases if case.now is not None), default=now)
    return compare(one, two, min(now, earliest)).verdict in {Verdict.EQUAL, Verdict.NEUTRAL}


def engine_without(policy: Policy, statement: str) -> Engine:
    """The engine of a policy that lacks one statement."""
    return _engine(replaced(policy, Mutant(statement, "removed", None)))


def replaced(policy: Policy, mutant: Mutant) -> Policy:
    """The policy with one statement in its new form, or without it."""
    modules = []
    for module in policy.modules:
        changed: dict[str, Any] = {}
        for name in _LISTS:
            items = getattr(module, name)
            if any(item.id == mutant.statement for item in items):
                changed[name] = tuple(
                    mutant.item if item.id == mutant.statement else item
                    for item in items
                    if item.id != mutant.statement or mutant.item is not None
                )
        modules.append(module.model_copy(update=_orphaned(module, mutant) | changed))
    return policy.model_copy(update={"modules": tuple(modules)})


def _orphaned(module: Module, mutant: Mutant) -> dict[str, Any]:
    """What names a removed statement: exceptions of it go, limits no longer count it."""
    if mutant.item is not None:
        return {}
    limits = []
    for limit in module.rate_limits:
        rules = limit.match.rules
        if rules is not None and mutant.statement in rules:
            left = tuple(rule for rule in rules if rule != mutant.statement)
            if not left:
                continue
            limit = limit.model_copy(update={"match": limit.match.model_copy(update={"rules": left})})  # noqa: PLW2901
        limits.append(limit)
    return {
        "rate_limits": tuple(limits),
        "exceptions": tuple(e for e in module.exceptions if e.lifts != mutant.statement),
    }


def _engine(policy: Policy) -> Engine:
    return Engine(Tables.load(compile_policy(policy)))


def _killed(policy: Policy, cases: Sequence[Case], now: float) -> bool:
    engine = _engine(policy)
    return any(not run_case(engine, case, now).passed for case in cases)


def _near(policy: Policy, cases: Sequence[Case], now: float) -> tuple[Policy, frozenset[str] | None]:
    """The part of the policy that the cases can meet, so that large policies are not compiled for every mutant.

    The whole policy and None if the part does not answer the cases as the whole does.
    """
    side = Side(compile_policy(policy), {})
    hosts: set[str] = set()
    for case in cases:
        try:
            hosts.update(r.host for r in requests_of(side.engine, case.question, case.now or now))
        except QuestionError:
            return policy, None
    kept = {
        met.statement.id
        for host in hosts
        for met in side.meets(host, parse_address(host) if is_address(host) else None)
    }
    for module in policy.modules:
        kept |= {e.id for e in module.exceptions if e.lifts in kept}
        for limit in module.rate_limits:
            if limit.id in kept:
                kept.update(limit.match.rules or ())
    modules = tuple(
        module.model_copy(
            update={name: tuple(item for item in getattr(module, name) if item.id in kept) for name in _LISTS}
        )
        for module in policy.modules
    )
    part = policy.model_copy(update={"modules": modules})
    engine = _engine(part)
    if all(run_case(engine, case, now) == run_case(side.engine, case, now) for case in cases):
        return part, frozenset(kept)
    return policy, None


# the mutants of one statement


def mutants(policy: Policy) -> Iterator[Mutant]:
    """Every mutant, statement by statement."""
    names = collect_names(policy)
    flats = {flat.id: flat for flat in flatten(policy, names) if isinstance(flat, Flat)}
    for module in policy.modules:
        for name in _LISTS:
            for item in getattr(module, name):
                yield Mutant(item.id, "removed", None)
                if isinstance(item, Rule):
                    yield from _of_rule(item, flats[item.id], names)
                elif isinstance(item, RateLimit):
                    yield from _of_limit(item, flats[item.id], names)
                elif isinstance(item, AgeGate):
                    yield from _of_gate(item, flats[item.id], names)


def _of_rule(rule: Rule, flat: Flat, names: Names) -> Iterator[Mutant]:
    other = "deny" if rule.effect == "allow" else "allow"
    changed = {"effect": other, "survive_offline": False, "resolves_to": None, "tls": None}
    if not (other == "allow" and flat.targets is None):
        yield Mutant(rule.id, f"flipped to {other}", rule.model_copy(update=_plain(flat) | changed))
    for what, fields in _wider(rule, flat, names):
        yield Mutant(rule.id, what, rule.model_copy(update=fields))
    if rule.claims:
        yield Mutant(rule.id, "claims dropped", rule.model_copy(update={"claims": None}))


def _of_limit(limit: RateLimit, flat: Flat, names: Names) -> Iterator[Mutant]:
    quota, period = limit.rate()
    twice: str | int = 2 * quota
    if period:
        twice = f"{2 * quota}{'B' if limit.unit == 'bytes' else ''}/{period // 10**9}s"
    fields = {"limit": twice, "burst": limit.burst or quota}
    yield Mutant(limit.id, "limit doubled", limit.model_copy(update=fields))
    for what, changed in _wider(limit.match, flat, names):
        match = limit.match.model_copy(update=changed)
        yield Mutant(limit.id, what, limit.model_copy(update={"match": match}))


def _of_gate(gate: AgeGate, flat: Flat, names: Names) -> Iterator[Mutant]:
    need = gate.require
    if need.age > 1:
        lower = need.model_copy(update={"age": need.age - 1})
        yield Mutant(gate.id, f"age lowered to {lower.age}", gate.model_copy(update={"require": lower}))
    if need.assurance is not None and need.assurance != ASSURANCES[0]:
        level = ASSURANCES[ASSURANCES.index(need.assurance) - 1]
        lower = need.model_copy(update={"assurance": level})
        yield Mutant(gate.id, f"assurance lowered to {level}", gate.model_copy(update={"require": lower}))
    for what, changed in _wider(gate.match, flat, names):
        match = gate.match.model_copy(update=changed)
        yield Mutant(gate.id, what, gate.model_copy(update={"match": match}))


def _plain(flat: Flat) -> dict[str, Any]:
    """The matching fields with all names replaced by what they stand for."""
    return {
        "resource": None,
        "action": None,
        "to": None if flat.targets is None else tuple(dict.fromkeys(map(str, flat.targets))),
        "methods": flat.methods,
        "paths": flat.paths,
        "query": None if flat.query is None else dict(flat.query),
    }


def _wider(where: Where, flat: Flat, names: Names) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is changed, the fields): everything that makes the statement match more."""
    plain = _plain(flat)
    if flat.methods is not None:
        known = set(flat.methods) | (
            {"HEAD"} if "GET" in flat.methods and flat.kind is not Kind.ALLOW else set()
        )
        added = next((m for m in _METHODS if m not in known), None)
        if added is not None:
            yield f"method {added} added", plain | {"methods": (*flat.methods, added)}
    for place, path in enumerate(flat.paths or ()):
        wider = widened(path)
        if wider is not None:
            paths = dict.fromkeys((*(flat.paths or ())[:place], wider, *(flat.paths or ())[place + 1 :]))
            yield f"path {path} widened to {wider}", plain | {"paths": tuple(paths)}
    if flat.targets is not None and _names_ports(where, names):
        targets = dict.fromkeys(str(t._replace(ports=ALL_PORTS)) for t in flat.targets)
        yield "port removed", plain | {"to": tuple(targets)}
    if flat.clients is not None and flat.clients != ("any",):
        yield "clients dropped", {"clients": None}
    if flat.query is not None:
        yield "query dropped", plain | {"query": None}


def widened(path: str) -> str | None:
    """`/a/b` to `/a/b/**`, `/a/b/**` to `/a/**`; None for what matches everything."""
    if not path.endswith("/**"):
        return path.rstrip("/") + "/**"
    parts = path[:-3].split("/")
    return "/".join(parts[:-1]) + "/**" if len(parts) > 1 else None


def _names_ports(where: Where, names: Names) -> bool:
    """Whether the author wrote a port that could have been left out."""
    to = where.to
    resource = where.resource
    if where.action is not None and resource is None:
        resource = names.actions[where.action].resource
    if to is None and resource is not None:
        to = names.resources[resource].to
    return any(parse_target(text).ports is not None for text in to or ())
