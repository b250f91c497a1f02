"""Trusted time: set back, set forward, suspended."""

import pytest

from edgeguard.sync.clock import TrustedClock, boottime


class Hands:
    def __init__(self):
        self.wall = 1_000_000.0
        self.boot = 500.0

    def clock(self):
        return TrustedClock(wall=lambda: self.wall, boot=lambda: self.boot)

    def pass_time(self, seconds):
        self.wall += seconds
        self.boot += seconds


@pytest.fixture
def hands():
    return Hands()


def test_the_wall_clock_is_believed_when_it_is_ahead(hands):
    clock = hands.clock()
    clock.anchor(900_000)
    assert clock.now() == 1_000_000
    assert clock.look() is None


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-B18")])
def test_set_back_years_changes_nothing(hands, case):
    clock = hands.clock()
    clock.anchor(999_990)
    hands.pass_time(100)
    hands.wall = 5
    jump = clock.look()
    assert jump is not None
    assert jump.by_s < -900_000
    assert clock.now() == 1_000_090
    hands.pass_time(60)  # suspend counts
    assert clock.now() == 1_000_150
    assert clock.status()["wall_behind_s"] > 0


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-B19")])
def test_set_forward_years_recovers_with_the_clock(hands, case):
    clock = hands.clock()
    clock.anchor(999_990)
    hands.wall += 10**9
    assert clock.look().by_s == 10**9
    assert clock.now() > 10**9
    hands.wall -= 10**9
    assert clock.look().by_s == -(10**9)
    assert clock.now() == 1_000_000
    assert [jump["by_s"] for jump in clock.status()["jumps"]] == [10**9, -(10**9)]


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-B17")])
def test_an_hour_of_signed_time_ahead_of_the_wall(hands, case):
    clock = hands.clock()
    clock.anchor(1_000_000 + 3600)
    assert clock.now() == 1_003_600
    clock.anchor(5)
    assert clock.now() == 1_003_600


def test_the_real_clocks():
    assert boottime() > 0
    clock = TrustedClock()
    first = clock.now()
    assert clock.now() >= first
    assert clock.look() is None
