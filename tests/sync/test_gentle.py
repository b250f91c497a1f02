"""What is set aside for a policy must not keep garbage alive."""

import weakref

from edgeguard.sync import gentle


class Cycle:
    def __init__(self):
        self.itself = self


def test_garbage_that_was_there_before_is_not_set_aside():
    dead = weakref.ref(Cycle())
    with gentle.gently():
        pass
    assert dead() is None


def test_what_was_alive_then_and_died_since_goes_in_time():
    alive = Cycle()
    with gentle.gently():
        pass
    dead = weakref.ref(alive)
    del alive
    for _ in range(gentle.THOROUGH_EVERY):
        with gentle.gently():
            pass
    assert dead() is None
