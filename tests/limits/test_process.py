"""The limiter against a reference model, and its bounds under attack."""

import time
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.limits.process import ProcessLimiter
from edgeguard.limits.taken import SEAT_RETRY_NS, Usage
from edgeguard.policy.decision import LimitHit
from tests.limits.kit import SECOND, agrees_with_the_model, hit, steps


@settings(max_examples=150)
@given(steps())
def test_any_sequence_agrees_with_the_model(sequence):
    agrees_with_the_model(ProcessLimiter(100), sequence)


@given(st.lists(st.integers(0, SECOND // 3), min_size=1, max_size=60), st.booleans())
def test_fast_and_slow_way_say_the_same(gaps, again):
    """The same hit object takes the short way from its second use; equal copies of it never do."""
    fast, slow, now, same = ProcessLimiter(10), ProcessLimiter(10), 10**12, hit(quota=3, burst=2)
    for gap in gaps:
        now += gap
        one = fast.take((same,), now)
        two = slow.take((LimitHit(*same),) * (2 if again else 1), now)
        assert one == two
        assert one.states == two.states


def test_refused_request_drains_no_sibling():
    limiter = ProcessLimiter(10)
    narrow, wide = hit("narrow", quota=1), hit("wide", quota=100)
    assert limiter.take((narrow, wide), 0).allowed
    for _ in range(50):
        assert limiter.take((narrow, wide), 1).limit == "narrow"
    (state,) = limiter.take((wide,), 1).states
    assert state.remaining == 98


def test_charged_once_per_limit_and_key():
    limiter = ProcessLimiter(10)
    taken = limiter.take((hit(), hit(), hit(key="other")), 0)
    assert [state.remaining for state in taken.states] == [9, 9]


def test_longest_wait_is_named():
    limiter = ProcessLimiter(10)
    hits = (hit("short", quota=1), hit("long", quota=1, period_ns=60 * SECOND))
    limiter.take(hits, 0)
    taken = limiter.take(hits, 0)
    assert (taken.allowed, taken.limit, taken.retry_after_ns) == (False, "long", 60 * SECOND)
    assert [(s.limit, s.remaining, s.reset_ns) for s in taken.states] == [
        ("short", 0, SECOND),
        ("long", 0, 60 * SECOND),
    ]


def test_report_mode_never_refuses_and_keeps_its_own_counters():
    limiter = ProcessLimiter(10)
    shadow, real = hit(quota=1, enforced=False), hit(quota=1)
    assert limiter.take((shadow,), 0).would == ()
    assert limiter.take((shadow,), 0) == (True, None, 0, (), ("l",))
    assert limiter.take((real,), 0).allowed
    assert not limiter.take((real,), 0).allowed


def test_seats_come_back_on_release():
    limiter = ProcessLimiter(10)
    seat = hit(unit="concurrent_tunnels", quota=2)
    assert limiter.take((seat,), 0).allowed
    taken = limiter.take((seat,), 0)
    assert taken.states[0].remaining == 0
    refused = limiter.take((seat,), 10 * SECOND)
    assert (refused.limit, refused.retry_after_ns) == ("l", SEAT_RETRY_NS)
    limiter.release((seat, hit("requests-are-not-seats")))
    assert limiter.take((seat,), 10 * SECOND).allowed
    limiter.release((seat,))
    limiter.release((seat,))
    limiter.release((seat,))  # one too many is harmless
    assert limiter.usage()["l"] == Usage(0, 0)
    assert limiter.take((seat,), 10 * SECOND).states[0].remaining == 1


def test_bytes_are_charged_by_amount_and_spent_after_the_fact():
    limiter = ProcessLimiter(10)
    budget = hit(unit="bytes", quota=1000, burst=4000)
    assert limiter.take((budget,), 0, 3000).states[0].remaining == 1000
    assert limiter.take((budget,), 0, 2000).retry_after_ns == SECOND
    assert limiter.spend((budget, hit("other")), 0, 500).allowed
    spent = limiter.spend((budget,), 0, 100_000)
    assert (spent.allowed, spent.limit) == (False, "l")
    # What was moved beyond the budget is a debt of at most one burst.
    assert not limiter.take((budget,), 4 * SECOND).allowed
    assert limiter.take((budget,), 4 * SECOND + 2 * SECOND // 1000).allowed
    assert limiter.spend((hit("r", unit="bytes", quota=1, enforced=False),), 0, 9).would == ("r",)


def test_changed_limit_keeps_its_counter():
    limiter = ProcessLimiter(10)
    for _ in range(10):
        assert limiter.take((hit(quota=10),), 0).allowed
    assert not limiter.take((hit(quota=20),), 0).allowed
    assert limiter.take((hit(quota=20),), SECOND).allowed
    # A narrower limit is not overdrawn either, and forgets nobody longer than its own terms say.
    limiter.take((hit("d", quota=1, period_ns=86_400 * SECOND),), SECOND)
    assert limiter.take((hit("d", quota=100, burst=1),), SECOND).retry_after_ns == SECOND // 100


def test_leftover_of_a_slower_rate_is_forgotten_after_the_burst_of_the_present_one():
    limiter = ProcessLimiter(10)
    limiter.take((hit(quota=1, period_ns=86_400 * SECOND),), 0)
    fast = hit(quota=100, burst=10)
    assert not limiter.take((fast,), 0).allowed
    assert limiter.take((fast,), SECOND // 100).allowed
    limiter.take((hit("b", unit="bytes", quota=1, period_ns=86_400 * SECOND),), 0)
    assert not limiter.take((hit("b", unit="bytes", quota=100),), 0).allowed
    assert limiter.take((hit("b", unit="bytes", quota=100),), 2 * SECOND).allowed


def test_old_and_new_terms_side_by_side():
    """While two snapshots overlap, both forms of a limit share one counter."""
    limiter = ProcessLimiter(10)
    old, new = hit(quota=4), hit(quota=2)
    assert limiter.take((old,), 0).allowed
    assert limiter.take((old,), 0).allowed
    assert limiter.take((new,), 0).states[0].remaining == 0
    assert not limiter.take((old,), 0).allowed
    assert not limiter.take((new,), 0).allowed


def test_changed_unit_starts_anew():
    limiter = ProcessLimiter(10)
    assert limiter.take((hit(quota=1),), 10**9).allowed
    assert limiter.take((hit(quota=1, unit="concurrent_tunnels"),), 10**9).allowed
    assert not limiter.take((hit(quota=1, unit="concurrent_tunnels"),), 10**9).allowed
    assert limiter.take((hit(quota=1),), 10**9).allowed


def test_key_flood_keeps_memory_bounded_and_the_victim_limited():
    limiter = ProcessLimiter(100)
    victim = hit(quota=10, period_ns=3600 * SECOND)
    passed = sum(limiter.take((victim,), n).allowed for n in range(10))
    for n in range(20_000):
        limiter.take((hit(key=f"junk-{n}", quota=10, period_ns=3600 * SECOND),), n)
        passed += limiter.take((victim,), n).allowed
    assert passed == 10
    assert limiter.usage()["l"].keys == 100


def test_flood_gains_at_most_one_overflow_bucket():
    limiter = ProcessLimiter(50)
    allowed = sum(
        limiter.take((hit(key=str(n % 5000), quota=3, period_ns=3600 * SECOND),), 0).allowed
        for n in range(15_000)
    )
    assert allowed == (50 + 1) * 3
    assert limiter.usage()["l"].overflowed > 0


def test_full_table_makes_room_when_keys_are_whole_again():
    limiter = ProcessLimiter(50)
    for n in range(50):
        limiter.take((hit(key=f"old-{n}"),), 0)
    for n in range(50):
        assert limiter.take((hit(key=f"new-{n}"),), 100 * SECOND).states[0].remaining == 9
    assert limiter.usage()["l"].keys <= 50


def test_seats_in_a_full_table_go_through_the_shared_bucket():
    limiter = ProcessLimiter(1)
    own, first, second = (hit(key=k, unit="concurrent_tunnels", quota=1) for k in ("own", "first", "second"))
    assert limiter.take((own,), 0).allowed
    assert limiter.take((first,), 0).allowed
    assert not limiter.take((second,), 0).allowed
    limiter.release((first,))
    assert limiter.take((second,), 0).allowed
    limiter.release((second,))
    limiter.release((own,))
    assert limiter.usage()["l"].keys == 0


def test_retain_forgets_limits_but_not_seats():
    limiter = ProcessLimiter(10)
    seat = hit("seats", unit="concurrent_tunnels")
    limiter.take((seat, hit("gone"), hit("kept"), hit("shadow", enforced=False)), 0)
    limiter.take((hit("gone"),), 0)
    limiter.retain({"kept"})
    assert set(limiter.usage()) == {"kept", "seats"}
    limiter.release((seat,))
    limiter.retain({"kept"})
    assert set(limiter.usage()) == {"kept"}


def test_nothing_to_check_is_allowed():
    assert ProcessLimiter(1).take((), 0) == (True, None, 0, (), ())


def test_tables_hold_no_names():
    limiter = ProcessLimiter(10, secret=b"s")
    limiter.take((hit(key="payments-api"),), 0)
    assert not any(b"payments" in slot for table in limiter._enforced.values() for slot in table.values)


@pytest.mark.parametrize("key", ["", "\udcff", "x" * 100_000, "a\x1fb"])
def test_any_key_is_a_key(key):
    limiter = ProcessLimiter(10)
    assert limiter.take((hit(key=key, quota=1),), 0).allowed
    assert not limiter.take((hit(key=key, quota=1),), 0).allowed


def test_many_hot_keys_only_cost_time():
    limiter = ProcessLimiter(10_000)
    hits = [hit(key=str(n), quota=1) for n in range(9000)]
    assert all(limiter.take((h,), 0).allowed for h in hits)
    assert not any(limiter.take((h,), 0).allowed for h in hits)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_flood_of_a_million_keys():
    limiter = ProcessLimiter(65_536)
    victim = hit(key="victim", quota=10, period_ns=3600 * SECOND)
    passed = sum(limiter.take((victim,), 0).allowed for _ in range(10))
    others = 0
    for n in range(1_000_000):
        others += limiter.take((hit(key=f"junk-{n}", quota=1, period_ns=3600 * SECOND),), n).allowed
        if not n % 16:
            passed += limiter.take((victim,), n).allowed
    assert passed == 10
    assert others <= 65_536
    assert limiter.usage()["l"].keys == 65_536


@given(st.lists(st.integers(0, SECOND // 3), min_size=1, max_size=40), st.integers(-86_400, 86_400))
def test_a_jump_of_the_wall_clock_changes_nothing(gaps, jump):
    """Only the monotonic clock is read: the same moments give the same answers, whatever the day."""

    def answers():
        limiter, now = ProcessLimiter(10), 10**12
        for gap in gaps:
            now += gap
            yield limiter.take((hit(quota=3),), now)

    expected = list(answers())
    with mock.patch.object(time, "time", return_value=time.time() + jump):
        assert list(answers()) == expected
