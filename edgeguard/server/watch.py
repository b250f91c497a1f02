"""Who waits for a head to change.

One look at the file system every tick serves all who wait for the same file, so it does not matter whether
the head was published here, renewed by `edgeguard head --watch`, or copied in by somebody else, nor what
kind of file system it is.
"""

import asyncio
from typing import Final

from edgeguard.server.repository import Location, Mark, Repository

TICK_S: Final = 0.1


class _Watched:
    __slots__ = ("changed", "mark", "task", "waiters")

    def __init__(self, mark: Mark | None) -> None:
        self.mark = mark
        self.changed = asyncio.Event()
        self.waiters = 0
        self.task: asyncio.Task[None] | None = None


class HeadWatch:
    """Wakes waiters when a file is replaced. `capacity` bounds how many may wait at once."""

    def __init__(self, repository: Repository, *, capacity: int = 4096, tick_s: float = TICK_S) -> None:
        self._repository = repository
        self._capacity = capacity
        self._tick_s = tick_s
        self._watched: dict[Location, _Watched] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        return sum(watched.waiters for watched in self._watched.values())

    async def wait(self, location: Location, seen: Mark | None, timeout_s: float) -> bool:
        """True as soon as the file is not as it was `seen`; False after `timeout_s`, when full or closing."""
        if self._closed or self.waiting >= self._capacity:
            return False
        watched = self._watched.get(location)
        if watched is None:
            watched = self._watched[location] = _Watched(seen)
            watched.task = asyncio.get_running_loop().create_task(self._look(location, watched))
        elif watched.mark != seen:
            return True
        watched.waiters += 1
        changed = watched.changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        finally:
            watched.waiters -= 1
            if watched.waiters == 0 and self._watched.get(location) is watched:
                del self._watched[location]
                if watched.task is not None:
                    watched.task.cancel()
        return not self._closed

    def poke(self, location: Location) -> None:
        """Looks at once instead of at the next tick."""
        watched = self._watched.get(location)
        if watched is not None:
            self._compare(location, watched)

    def close(self) -> None:
        """Lets everybody go, so that the server can stop."""
        self._closed = True
        for watched in self._watched.values():
            watched.changed.set()

    async def _look(self, location: Location, watched: _Watched) -> None:
        while True:
            self._compare(location, watched)
            await asyncio.sleep(self._tick_s)

    def _compare(self, location: Location, watched: _Watched) -> None:
        mark = self._repository.mark(location)
        if mark != watched.mark:
            watched.mark = mark
            watched.changed.set()
            watched.changed = asyncio.Event()
