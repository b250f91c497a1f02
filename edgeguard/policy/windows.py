"""When a statement holds, and until when that answer stands."""

from collections.abc import Mapping
from typing import Final

from edgeguard.policy.kinds import Kind
from edgeguard.policy.statements import FOREVER, Statement, When

_DAY: Final = 86400
"""Seconds; UTC has no other days here."""


class Span:
    """The time around a moment in which nothing begins, ends or changes its hour: [start, end), Unix seconds."""

    __slots__ = ("end", "start")

    def __init__(self) -> None:
        self.start, self.end = -FOREVER, FOREVER

    def narrow(self, edge: float, now: float) -> None:
        """Ends the span at `edge`, on whichever side of `now` it lies."""
        if edge <= now:
            self.start = max(self.start, edge)
        else:
            self.end = min(self.end, edge)


def active(span: Span, statement: Statement, flags: Mapping[str, bool], now: float) -> bool:
    """Whether the statement holds at `now`. Narrows `span` to the time for which that is so."""
    if not statement.timed:
        return True
    span.narrow(statement.start, now)
    span.narrow(statement.end, now)
    if not statement.start <= now < statement.end:
        return False
    when = statement.when
    if when is None:
        return True
    restrictive = statement.kind is not Kind.ALLOW and statement.kind is not Kind.LEARN
    for flag, wanted in when.flags.items():
        state = flags.get(flag)
        if (not restrictive) if state is None else state is not wanted:
            return False  # an unknown flag counts as what restricts
    return (when.days is None and when.hours is None) or _in_hours(span, when, now)


def _in_hours(span: Span, when: When, now: float) -> bool:
    """Days and hours; a window that passes midnight belongs to the day on which it began."""
    day = int(now // _DAY)
    midnight = day * _DAY
    first, last = when.hours or (0, 1440)
    for edge in (midnight, midnight + first * 60, midnight + last * 60, midnight + _DAY):
        span.narrow(edge, now)
    minute = (now - midnight) / 60
    weekday = (day + 3) % 7  # the epoch was a Thursday
    today = when.days is None or weekday in when.days
    if first < last:
        return today and first <= minute < last
    yesterday = when.days is None or (weekday - 1) % 7 in when.days
    return (today and minute >= first) or (yesterday and minute < last)
