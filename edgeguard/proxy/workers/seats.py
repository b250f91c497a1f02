"""Keeps a number of workers running: restarts with backoff, one-by-one replacement, the end of all.

A seat is a place for one serving worker. A worker that ends without being asked is replaced after a pause
that doubles with each short life in a row; one that has lived for a while starts that count anew.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from edgeguard.proxy.workers.process import State, Worker

logger = logging.getLogger(__name__)

BACKOFF_S: Final = 0.2
"""Pause after the first short life; doubled with each further one, with jitter."""
BACKOFF_MAX_S: Final = 10.0
STABLE_S: Final = 30.0
"""A worker that serves for so long was well."""
CRASH_LOOP: Final = 3
"""Short lives in a row that are no accident."""


class Seat:
    """One place, and who has it."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.restarts = 0
        """Workers that ended without being asked."""
        self.failures = 0
        """Short lives in a row."""

    @property
    def crash_looping(self) -> bool:
        return self.failures >= CRASH_LOOP

    def settle(self) -> None:
        """Forgets short lives once a worker has served for a while."""
        worker = self.worker
        if worker is not None and worker.state is State.SERVING and worker.age_s >= STABLE_S:
            self.failures = 0


class Seats:
    """All places of a node.

    Args:
        count: How many workers serve.
        spawn: Starts a worker; raises OSError.
    """

    def __init__(self, count: int, spawn: Callable[[], Awaitable[Worker]]) -> None:
        self.seats = [Seat() for _ in range(count)]
        self._ending = asyncio.Event()
        self._spawn = spawn
        self._tasks: list[asyncio.Task[None]] = []
        self._rolling = asyncio.Lock()

    @property
    def restarts(self) -> int:
        return sum(seat.restarts for seat in self.seats)

    @property
    def crash_looping(self) -> int:
        return sum(seat.crash_looping for seat in self.seats)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(seat)) for seat in self.seats]

    def stop(self) -> None:
        """No more workers are started."""
        self._ending.set()
        for task in self._tasks:
            task.cancel()

    async def replace(self) -> bool:
        """A new worker for each seat, one after the other; each serves before the one before it drains.

        False if one did not come to serve: then the rest stays as it is.
        """
        async with self._rolling:
            for number, seat in enumerate(self.seats, 1):
                if self._ending.is_set():
                    return False
                try:
                    fresh = await self._spawn()
                except OSError as error:
                    logger.error("no worker can be started: %s", error)  # noqa: TRY400 - the message says it all
                    return False
                await fresh.serving.wait()
                if self._ending.is_set():
                    return False
                if fresh.state is not State.SERVING:
                    logger.error(
                        "the new worker of seat %d does not serve; the others stay as they are", number
                    )
                    return False
                old, seat.worker = seat.worker, fresh
                if old is not None and not old.ended.is_set():
                    old.drain()
                    await old.ended.wait()
            return True

    async def _keep(self, seat: Seat) -> None:
        while not self._ending.is_set():
            worker = seat.worker
            if worker is None:
                try:
                    worker = seat.worker = await self._spawn()
                except OSError as error:
                    logger.error("no worker can be started: %s", error)  # noqa: TRY400 - the message says it all
                    seat.failures += 1
                    await asyncio.sleep(backoff_s(seat.failures))
                    continue
            await worker.ended.wait()
            if seat.worker is not worker:
                continue  # it was replaced
            seat.worker = None
            if self._ending.is_set():
                return
            seat.restarts += 1
            seat.failures = 1 if worker.age_s >= STABLE_S else seat.failures + 1
            pause_s = backoff_s(seat.failures)
            logger.error(
                "worker %d (process %d) has ended%s; the next one starts in %.1f s",
                worker.number,
                worker.pid,
                f" with {worker.code}" + (f": {worker.failure}" if worker.failure else ""),
                pause_s,
            )
            await asyncio.sleep(pause_s)


def backoff_s(failures: int) -> float:
    """Seconds until the next try after so many short lives in a row: full jitter over the upper half."""
    longest: float = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (min(failures, 20) - 1))
    jitter: float = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
    return longest * jitter
