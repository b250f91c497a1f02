"""What has to be told apart inside a connection: methods, targets, and the person behind the request."""

from collections.abc import Sequence
from typing import Final

from edgeguard.policy.conditions import NEVER_IMPLIED, Condition
from edgeguard.policy.diff.hosts import FRESH
from edgeguard.policy.diff.paths import (
    MALFORMED,
    Conditions,
    instance,
    path_classes,
    query_classes,
    query_text,
)
from edgeguard.policy.diff.side import Side
from edgeguard.policy.kinds import Kind
from edgeguard.policy.regions import overlap
from edgeguard.policy.request import Assurance, User
from edgeguard.policy.tables import Gate, Statement

STANDARD: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT")
OTHER: Final = "EDGEGUARD"
"""A method that nobody names."""


class Inside:
    """Classes of requests, kept for destinations whose conditions are the same."""

    def __init__(self) -> None:
        self._kept: dict[object, tuple[list[str], list[str], bool]] = {}

    def requests(
        self, statements: Sequence[Statement], *, malformed: bool
    ) -> tuple[list[str], list[str], bool]:
        """(methods, targets, whether every class is there) for the statements that can decide.

        `malformed`: also a target that is refused only where somebody looks at paths.
        """
        conds = conditions(statements)
        key = (tuple(map(id, conds.strict)), tuple(map(id, conds.loose)))
        kept = self._kept.get(key)
        if kept is None:
            paths, all_paths = path_classes(conds)
            queries, all_queries = query_classes(conds)
            targets = [path + query for path in paths for query in queries]
            kept = self._kept[key] = (method_classes(conds), targets, all_paths and all_queries)
        methods, targets, complete = kept
        if malformed:
            return methods, [*targets, MALFORMED], complete
        return methods, targets, complete


def conditions(statements: Sequence[Statement]) -> Conditions:
    """The conditions of the statements, each once."""
    strict = {id(s.cond): s.cond for s in statements if s.kind is Kind.ALLOW}
    strict |= {id(lift.cond): lift.cond for s in statements for lift in s.lifts}
    loose = {id(s.cond): s.cond for s in statements if s.kind in {Kind.DENY, Kind.GATE, Kind.LIMIT}}
    return Conditions(tuple(strict.values()), tuple(loose.values()))


def looks(statement: Statement) -> bool:
    """Whether the statement makes the engine read the path."""
    return any(
        cond.templates is not None or cond.query is not None
        for cond in (statement.cond, *(lift.cond for lift in statement.lifts))
    )


def sample(cond: Condition) -> tuple[str, str]:
    """A method and a target that satisfy the condition, if anything simple does."""
    methods = cond.methods
    method = "GET" if methods is None or "GET" in methods else min(methods)
    target = "/" if not cond.templates else instance(cond.templates[0])
    pairs = [(key, FRESH if "*" in values else min(values)) for key, values in cond.query or ()]
    return method, target + query_text(pairs)


def method_classes(conds: Conditions) -> list[str]:
    """A method of every class; the standard ones come first."""
    named = {m for c in (*conds.strict, *conds.loose) for m in c.methods or ()}
    other = OTHER
    while other in named:
        other += "X"
    ordered: list[str] = [m for m in STANDARD if m in named]
    ordered += [*sorted(named - set(STANDARD)), *(m for m in STANDARD if m not in named)]
    ordered += [m.lower() for m in sorted(named | {"HEAD", "TRACE"})] + [other]
    found: dict[object, str] = {}
    for method in ordered:
        upper = method.upper()
        kind = (
            upper in NEVER_IMPLIED,
            tuple(c.methods is None or method in c.methods for c in conds.strict),
            tuple(c.methods is None or upper in c.loose_methods for c in conds.loose),
        )
        found.setdefault(kind, method)
    return list(found.values())


def user_classes(old: Side, new: Side, gates: Sequence[tuple[Side, Gate]]) -> list[User | None]:
    """A person of every class that the gates tell apart.

    The first passes no gate (None: nothing is known of them), the second passes all of them.
    """
    if not gates:
        return [None]
    regions: dict[tuple[bool, ...], str | None] = {}
    for region in _regions(old, new, [gate for _, gate in gates]):
        applies = tuple(
            gate.regions is None or overlap(region, gate.regions, side.tables.region_groups)
            for side, gate in gates
        )
        regions.setdefault(applies, region)
    ages = sorted({gate.age for _, gate in gates})
    found: dict[object, User | None] = {}
    for applies, region in regions.items():
        for level in (None, *Assurance):
            for age in (None, *ages):
                passes = tuple(_passes(gate, age, level) for _, gate in gates)
                kind = tuple(not a or p for a, p in zip(applies, passes, strict=True))
                known = (age or level or region) is not None
                found.setdefault(kind, User(age, None, level, region) if known else None)
    best = found.pop((True,) * len(gates))
    worst, *others = found.values()
    return [worst, best, *others]


def _passes(gate: Gate, age: int | None, level: Assurance | None) -> bool:
    if level is None or (gate.assurance is not None and level < gate.assurance):
        return False
    return age is not None and age >= gate.age


def _regions(old: Side, new: Side, gates: Sequence[Gate]) -> list[str | None]:
    """Unknown, one that nobody names, every code that is named, its country, another part of it, and every group."""
    codes = {code for gate in gates for code in gate.regions or ()}
    groups = {*old.tables.region_groups, *new.tables.region_groups}
    if old.tables.region_groups != new.tables.region_groups:
        codes |= {c for side in (old, new) for cs in side.tables.region_groups.values() for c in cs}
    countries = {code.partition("-")[0] for code in codes}
    parts = {f"{country}-{_part(country, codes)}" for country in countries}
    stranger = next(
        (c for c in ("JP", "BR", "IN", "KR", "AU", "ZA", "AR", "NZ", "EG", "AQ") if c not in countries), None
    )
    return [None, stranger, *sorted(codes), *sorted(countries | parts), *sorted(groups)]


def _part(country: str, codes: set[str]) -> str:
    """A subdivision of the country that nobody names."""
    letters = "ZYXWVUTSRQPONMLKJIHGFEDCBA"
    return next(a + b for a in letters for b in letters if f"{country}-{a}{b}" not in codes)
