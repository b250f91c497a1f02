"""The algorithm against its definition, in exact rational arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.limits.gcra import TICK_BITS, Rate, arrive, more_in_ns, remaining, wait_ns

SECOND = 1_000_000_000
quotas = st.integers(1, 10_000_000_000)
periods = st.sampled_from([SECOND, 60 * SECOND, 3600 * SECOND, 86_400 * SECOND])


@given(quotas, periods, st.integers(1, 100_000))
def test_rate_never_exceeds_the_limit_and_loses_at_most_a_tick_per_unit(quota, period_ns, burst):
    rate = Rate.of(quota, period_ns, burst)
    exact = Fraction(period_ns << TICK_BITS, quota)
    assert exact <= rate.interval < exact + 1
    assert rate.tolerance == burst * rate.interval


@pytest.mark.parametrize("terms", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_terms_must_be_positive(terms):
    with pytest.raises(ValueError, match="positive"):
        Rate.of(*terms)


@given(
    quota=st.integers(1, 50),
    burst=st.integers(1, 20),
    gaps=st.lists(st.integers(0, 2 * SECOND), min_size=1, max_size=80),
    units=st.integers(1, 3),
)
def test_no_window_lets_more_through_than_burst_plus_rate(quota, burst, gaps, units):
    rate = Rate.of(quota, SECOND, burst)
    tat, clock, passed = 0, 10**15, []
    for gap in gaps:
        clock += gap
        now = clock << TICK_BITS
        new = arrive(tat, now, rate, units)
        if new <= now + rate.tolerance:
            tat = new
            passed.append(clock)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window = passed[last] - passed[first]
            assert (last - first + 1) * units <= burst + Fraction(quota * window, SECOND)


@given(
    quota=st.integers(1, 1000),
    burst=st.integers(1, 100),
    taken=st.integers(0, 100),
    later=st.integers(0, 3 * SECOND),
)
def test_wait_remaining_and_more_agree_with_arrive(quota, burst, taken, later):
    rate = Rate.of(quota, SECOND, burst)
    start = 7 << TICK_BITS
    tat = arrive(0, start, rate, min(taken, burst))
    now = start + (later << TICK_BITS)
    left = remaining(tat, now, rate)
    assert arrive(tat, now, rate, left) <= now + rate.tolerance
    refused = arrive(tat, now, rate, left + 1)
    assert refused > now + rate.tolerance
    wait = wait_ns(refused, now, rate)
    assert wait > 0
    if left < burst:
        then = now + (wait << TICK_BITS)
        assert arrive(tat, then, rate, left + 1) <= then + rate.tolerance
        assert more_in_ns(tat, now, rate) == wait
    else:
        assert more_in_ns(tat, now, rate) == 0 or tat > now


def test_whole_burst_passes_at_once_and_not_one_more():
    rate = Rate.of(3, SECOND, 3)
    now, tat = 5 << TICK_BITS, 0
    for _ in range(3):
        tat = arrive(tat, now, rate, 1)
        assert tat <= now + rate.tolerance
    assert arrive(tat, now, rate, 1) > now + rate.tolerance


def test_leftover_of_a_slower_rate_locks_nobody_out():
    slow = Rate.of(1, 86_400 * SECOND, 1)
    fast = Rate.of(100, SECOND, 10)
    now = 1 << TICK_BITS
    tat = arrive(0, now, slow, 1)
    assert remaining(tat, now, fast) == 0
    assert wait_ns(arrive(tat, now, fast, 1), now, fast) == SECOND // 100
    assert more_in_ns(tat, now, fast) == SECOND // 100


def test_gigabytes_per_second_are_not_rounded_to_nothing():
    rate = Rate.of(3_000_000_000, SECOND, 1_000_000)
    tat = arrive(0, 0, rate, 1_000_000)
    assert 333_333 <= tat >> TICK_BITS <= 333_400
