"""The sum of a comparison: what became of each domain, and which statements differ as data."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgeguard.policy.diff.side import Side
from edgeguard.policy.diff.values import Change, Difference, Domain, Effect, Scheduled, Undecided, Verdict
from edgeguard.policy.kinds import Kind
from edgeguard.policy.tables import FOREVER, Statement

_GRANTING: Final = frozenset({Kind.ALLOW, Kind.LEARN})
_AROUND: Final = ("salt", "flags", "resources", "actions")
"""What the rules section holds besides statements."""


def sum_up(
    old: Side,
    new: Side,
    sections: tuple[Mapping[str, Any], Mapping[str, Any]],
    now: float,
    changes: tuple[Change, ...],
    undecided: tuple[Undecided, ...],
    asked: int,
) -> Difference:
    """The whole answer."""
    mine, theirs = _by_id(old), _by_id(new)
    touched = _touched(sections, mine, theirs)
    domains = {}
    for domain in Domain:
        effects = {c.effect for c in changes if c.domain is domain}
        if any(u.domain is domain for u in undecided):
            domains[domain] = Verdict.UNDECIDED
        elif len(effects) > 1:
            domains[domain] = Verdict.MIXED
        elif effects:
            domains[domain] = Verdict(effects.pop().value)
        else:
            domains[domain] = Verdict.NEUTRAL if domain in touched else Verdict.EQUAL
    known = {data for data, _ in mine.values()}
    scheduled = [i for data, s in theirs.values() if data not in known for i in _scheduled(s, now)]
    return Difference(
        now,
        changes,
        undecided,
        tuple(sorted(scheduled)),
        domains,
        tuple(sorted(theirs.keys() - mine.keys())),
        tuple(sorted(mine.keys() - theirs.keys())),
        tuple(sorted(i for i in mine.keys() & theirs.keys() if mine[i][0] != theirs[i][0])),
        asked,
    )


type _Statements = Mapping[str, tuple[object, Statement]]


def _by_id(side: Side) -> _Statements:
    """The statements with all their data, destinations included."""
    where = side.destinations()
    return {s.id: ((side.number(s), where.get(s.id)), s) for s in side.statements()}


def _touched(
    sections: tuple[Mapping[str, Any], Mapping[str, Any]], mine: _Statements, theirs: _Statements
) -> set[Domain]:
    """Domains whose data differ."""
    old, new = sections
    found = {d for d in (Domain.AGE, Domain.IDENTITY) if old[d.value] != new[d.value]}
    if any(old["rules"].get(name) != new["rules"].get(name) for name in _AROUND):
        found.add(Domain.EGRESS)
    kinds = {(s.kind, data) for data, s in mine.values()} ^ {(s.kind, data) for data, s in theirs.values()}
    for kind in {kind for kind, _ in kinds}:
        found.add(Domain.LIMITS if kind is Kind.LIMIT else Domain.AGE if kind is Kind.GATE else Domain.EGRESS)
    if not found and old != new:  # the same statements in another layout
        found.add(Domain.EGRESS)
    return found


def _scheduled(statement: Statement, now: float) -> Iterator[Scheduled]:
    """When the statement begins and ends, if that is still to come."""
    grants = statement.kind in _GRANTING
    kind = statement.kind.name.lower()
    if statement.percent == 0:
        return
    if statement.start > now:
        yield Scheduled(statement.id, kind, statement.start, Effect.WIDENING if grants else Effect.NARROWING)
    if now < statement.end < FOREVER:
        yield Scheduled(statement.id, kind, statement.end, Effect.NARROWING if grants else Effect.WIDENING)
