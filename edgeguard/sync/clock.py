"""The time that policy is judged by.

The wall clock can be set back to make an expired policy look valid, so time is never behind the newest
signed time that was seen plus what has passed since (`CLOCK_BOOTTIME`, which counts suspend and cannot be
set). The wall clock can also be set forward: then everything expires and the node closes; since a jump is
never persisted, the node recovers by itself when the clock does.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

JUMP_S = 30.0
"""A wall clock that leaves the boot clock by more than this between two looks has jumped (seconds)."""


def boottime() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Jump(NamedTuple):
    """The wall clock moved against the boot clock."""

    at: float
    """Trusted time at which it was noticed (Unix seconds)."""
    by_s: float
    """Positive: forward."""


class TrustedClock:
    """max(wall clock, newest signed time + elapsed). Safe to read from any thread; costs two clock reads."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], float] = boottime,
    ) -> None:
        self._wall = wall
        self._boot = boot
        self._offset = float("-inf")  # trusted time = boot clock + this, at least
        self._guard = threading.Lock()
        self._wall_offset = wall() - boot()
        self._jumps: tuple[Jump, ...] = ()

    def now(self) -> float:
        """Unix seconds."""
        floor = self._boot() + self._offset
        wall = self._wall()
        return floor if floor > wall else wall  # noqa: FURB136 - max() is a call, for every decision

    def anchor(self, signed: float) -> None:
        """Raises the floor to a signed time that has been verified (Unix seconds). Never lowers it."""
        with self._guard:
            self._offset = max(self._offset, signed - self._boot())

    @property
    def floor(self) -> float:
        """What trusted time is never behind, less the boot clock (seconds): the same for every process of a host."""
        return self._offset

    def share(self, floor: float) -> None:
        """Raises the floor to another process's. Never lowers it."""
        with self._guard:
            self._offset = max(self._offset, floor)

    def look(self) -> Jump | None:
        """Compares the two clocks with the look before; answers a jump, and remembers it for `status`."""
        with self._guard:
            offset = self._wall() - self._boot()
            by_s = offset - self._wall_offset
            self._wall_offset = offset
            if abs(by_s) <= JUMP_S:
                return None
            jump = Jump(self.now(), by_s)
            self._jumps = (*self._jumps[-7:], jump)
            return jump

    def status(self) -> dict[str, object]:
        """`now`, `wall_behind_s` (how far the wall clock is behind signed time) and the last jumps."""
        now, wall = self.now(), self._wall()
        return {
            "now": round(now, 3),
            "wall_behind_s": round(max(0.0, now - wall), 3),
            "jumps": [{"at": round(jump.at, 3), "by_s": round(jump.by_s, 3)} for jump in self._jumps],
        }
