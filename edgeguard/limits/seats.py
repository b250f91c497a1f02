"""Seats of `concurrent_tunnels` that a fleet shares: each node tells the store how many it holds.

The number is absolute, so that a message lost or sent twice does no harm, and it holds for a while
only: the seats of a node that is not heard of come back. So every new seat asks the store.
"""

import asyncio

from edgeguard.limits.scripts import SEATS, Call, Reply
from edgeguard.limits.store import Store
from edgeguard.limits.taken import SEAT_RETRY_NS, Answer


class Seats:
    """One limit and key.

    Attributes:
        key: Name in the store.
        taken: Seats that this node holds.
        others: Seats of the other nodes, as the store last said.
    """

    __slots__ = ("_asked", "_hold_us", "_node", "key", "others", "quota", "taken")

    def __init__(self, key: str, node: str, hold_us: int) -> None:
        self.key = key
        self.taken = self.others = self.quota = 0
        self._asked = 0
        self._node = node
        self._hold_us = hold_us

    def wait(self, quota: int, store: Store) -> asyncio.Future[Answer]:
        """A seat that the store is asked for."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.quota = quota
        self._asked += 1

        def answered(answer: Reply) -> None:
            self._asked -= 1
            if answer is None:
                result = Answer(0, down=True)
            else:
                granted, self.others = answer
                result = Answer(1) if granted else Answer(0, SEAT_RETRY_NS)
            if not future.done():
                self.taken += result.granted
                future.set_result(result)
            elif result.granted:  # whoever asked has left
                self.report(store)

        store.submit(self._call(self.taken + self._asked, quota, forced=False), answered)
        return future

    def leave(self, store: Store | None) -> None:
        """One seat is free again."""
        self.taken = max(0, self.taken - 1)
        if store is not None:
            self.report(store)

    def report(self, store: Store) -> None:
        """Says how many seats this node holds, whatever the quota: they are taken."""
        store.submit(self._call(self.taken + self._asked, self.quota, forced=True), _ignored)

    def share(self, sharers: int, quota: int) -> int:
        """Seats that this node may hold while the store is down."""
        return max(1, quota // sharers)

    def idle(self) -> bool:
        return not (self.taken or self._asked)

    def _call(self, mine: int, quota: int, *, forced: bool) -> Call:
        return Call(SEATS, self.key, (self._node, mine, quota, self._hold_us, int(forced)))


def _ignored(answer: Reply) -> None:
    """Nobody waits for a report."""
