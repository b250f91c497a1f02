"""What a policy brings is collected like everything else, and piece by piece."""

import gc
import sys
import weakref

import pytest

from edgeguard.bundle.build import decode_section
from edgeguard.policy.tables import Tables
from edgeguard.sync import gentle
from tests.bench.policies import section


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_nothing_that_lives_through_it_is_kept_for_good() -> None:
    alive = Cycle()
    frozen = gc.get_freeze_count()
    with gentle.gently():
        pass
    assert gc.get_freeze_count() <= frozen
    dead = weakref.ref(alive)
    del alive
    gc.collect()
    assert dead() is None


def test_older_objects_are_left_alone_meanwhile() -> None:
    collected: list[int] = []

    def watch(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collected.append(info["generation"])

    before = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.callbacks.append(watch)
    try:
        with gentle.gently():
            kept = [[n] for n in range(gc.get_threshold()[0] * 30)]
    finally:
        gc.callbacks.remove(watch)
    assert len(kept) > len(collected) > 20
    assert set(collected) == {0}
    assert (gc.get_threshold(), sys.getswitchinterval()) == before


def test_it_ends_in_order_when_the_work_fails() -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    with pytest.raises(ValueError, match="work"), gentle.gently():
        raise ValueError("work")
    assert (gc.get_threshold(), sys.getswitchinterval()) == before


def test_the_collector_lets_most_of_a_policy_go() -> None:
    """Two thousand rules, and fewer than a thousand objects that a collection looks at."""
    decoded = decode_section(section(2000))
    gc.collect()
    before = len(gc.get_objects())
    tables = Tables.load(decoded)
    del decoded
    gc.collect()
    assert len(tables.rules) >= 2000
    assert len(gc.get_objects()) - before < 1000
