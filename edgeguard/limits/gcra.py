"""The generic cell rate algorithm (ITU-T I.371): one integer per key, exact, without windows.

A key's state is its *theoretical arrival time*: the moment at which its quota would be whole
again. A request of n units moves it n intervals ahead; it is allowed if that is at most the
tolerance ahead of now. So in any window of length w at most `burst + quota * w / period` units pass.

Times come in as integer nanoseconds of a monotonic clock and are kept in *ticks* of 2^-16 ns,
so that a limit of gigabytes per second has an interval that is not rounded to nothing. Rounding
is upwards: never more than the limit.
"""

from typing import Final, NamedTuple, Self

TICK_BITS: Final = 16
"""One nanosecond is 2 ** TICK_BITS ticks."""


class Rate(NamedTuple):
    """A limit in the terms of the algorithm."""

    interval: int
    """Ticks that one unit takes to come back."""
    tolerance: int
    """Ticks that the theoretical arrival time may lie ahead of now: `burst` intervals."""

    @classmethod
    def of(cls, quota: int, period_ns: int, burst: int) -> Self:
        """`quota` units per `period_ns`, `burst` at once. Raises ValueError unless all are positive."""
        if quota < 1 or period_ns < 1 or burst < 1:
            raise ValueError(
                f"a limit needs positive terms, not {quota} per {period_ns} ns with burst {burst}"
            )
        interval = -(-(period_ns << TICK_BITS) // quota)
        return cls(interval, burst * interval)


def kept(tat: int, now: int, rate: Rate, unit: str) -> int:
    """What of a stored arrival time still counts: at most as much as this rate can owe.

    More is a leftover of a slower rate, or of a clock that was ahead; it locks nobody out for longer
    than the present terms say. Only bytes can be owed beyond the quota, up to one burst (`spend`).
    """
    return min(tat, now + (2 * rate.tolerance if unit == "bytes" else rate.tolerance))


def arrive(tat: int, now: int, rate: Rate, units: int) -> int:
    """The arrival time (ticks) after `units` more; allowed if it is at most `now + rate.tolerance`.

    A stored time beyond the tolerance counts as no quota left.
    """
    latest = now + rate.tolerance
    start = now if tat < now else min(tat, latest)
    return start + units * rate.interval


def wait_ns(arrival: int, now: int, rate: Rate) -> int:
    """Nanoseconds until a refused `arrival` would be allowed."""
    return -((now + rate.tolerance - arrival) >> TICK_BITS)


def remaining(tat: int, now: int, rate: Rate) -> int:
    """Whole units that may come at once now."""
    ahead = max(0, tat - now)
    return max(0, (rate.tolerance - ahead) // rate.interval)


def more_in_ns(tat: int, now: int, rate: Rate) -> int:
    """Nanoseconds until `remaining` grows by one; 0 when the quota is whole."""
    if tat <= now:
        return 0
    tat = min(tat, now + rate.tolerance)
    left = (rate.tolerance - (tat - now)) // rate.interval
    return -((now + rate.tolerance - tat - (left + 1) * rate.interval) >> TICK_BITS)
