"""Moments that have to be told apart: now, every later beginning or end, and the hours and days that `when` names."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from edgeguard.policy.diff.side import Side
from edgeguard.policy.plan import Plan
from edgeguard.policy.tables import FOREVER, Statement

MAX_MOMENTS: Final = 4096
_DAY: Final = 86400
_WEEK: Final = 7 * _DAY

type Active = tuple[list[Statement], list[Statement]]


def moment_classes(
    old: Side, new: Side, before: Sequence[Statement], after: Sequence[Statement], now: float
) -> tuple[list[tuple[float, Active]], bool]:
    """(moment, the statements in force on each side), and whether every class of moments is there.

    The first moment is now; of the later ones, one for each set of statements that was not in force before.
    """
    if not any(s.timed or s.lifts for s in (*before, *after)):
        return [(now, (list(before), list(after)))], True
    found: dict[object, tuple[float, Active]] = {}
    moments = _moments((*before, *after), now)
    complete = len(moments) <= MAX_MOMENTS
    for at in moments[:MAX_MOMENTS]:
        active = in_force(old, before, at), in_force(new, after, at)
        lifts = tuple(
            lift.start <= at < lift.end for side in active for statement in side for lift in statement.lifts
        )
        key = (tuple(map(id, active[0])), tuple(map(id, active[1])), lifts)
        found.setdefault(key, (at, active))
    return list(found.values()), complete


def in_force(side: Side, statements: Iterable[Statement], at: float) -> list[Statement]:
    """Those whose time and flags hold."""
    scratch = Plan(0)
    return [s for s in statements if side.planner.active(scratch, s, at)]


def _moments(statements: Iterable[Statement], now: float) -> list[float]:
    edges: set[float] = set()
    minutes: set[int] = set()
    for statement in statements:
        edges.update((statement.start, statement.end))
        for lift in statement.lifts:
            edges.update((lift.start, lift.end))
        when = statement.when
        if when is not None and (when.days is not None or when.hours is not None):
            minutes.update((0, *(when.hours or ())))
    starts = [now, *sorted(edge for edge in edges if now < edge < FOREVER)]
    if not minutes:
        return starts
    out: list[float] = []
    for start, end in zip(starts, [*starts[1:], FOREVER], strict=True):
        out.append(start)
        out += sorted(t for t in _weekly(minutes, start) if t < end)
    return out


def _weekly(minutes: Iterable[int], start: float) -> Iterator[float]:
    """The first time after `start` of each edge on each day of the week."""
    midnight = start // _DAY * _DAY
    for day in range(8):
        for minute in minutes:
            at = midnight + day * _DAY + minute * 60
            if start < at <= start + _WEEK:
                yield at
