"""What a node holds of one limit and key that the fleet shares, and what it knows about the rest.

A *lease* is a handful of units that the store has charged already and that this node may use until
it expires. The store counts leased units as if they were used at the end of the lease; since they
are used earlier or never, the fleet together never passes more than the limit, however many nodes
hold leases. How many units are asked for follows the demand here: a key that is seldom asked for
costs a round trip each time and holds nothing back from the other nodes.

While the store is down the same object counts alone, with the limit divided by the known peers. It
starts from how full the limit was last known to be; what it let through is owed to the store, and
paid when the store is back, so that neither end of an outage is a burst.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Final

from edgeguard.limits.gcra import TICK_BITS, Rate, arrive, wait_ns
from edgeguard.limits.scripts import RETURN, TAKE, Call, Reply
from edgeguard.limits.store import Store
from edgeguard.limits.taken import Answer
from edgeguard.policy.decision import LimitHit

HOLD_PART: Final = 16
"""A lease holds for at most this part of the time in which a whole burst comes back."""
_NS_PER_US: Final = 1000
_DOWN: Final = Answer(0, down=True)
_GRANTED: Final = Answer(1)


class Lease:
    """One limit and key. `terms` may change at any time; what is counted stays.

    Attributes:
        key: Name in the store.
        known: When the quota is whole again, as the store last said (ns of the monotonic clock).
        local: The same, as counted here while the store is down.
        blocked_until: Before this moment (ns) nothing is granted.
        owed: Units that passed and that the store does not know of.
    """

    __slots__ = (
        "_asked", "_asked_before", "_before", "_busy", "_cap", "_hold_ns", "_interval", "_last_tat", "_later", "_most",
        "_sharers", "_window_at", "batches", "blocked_until", "exact", "key", "known", "local", "owed", "rate", "terms", "waiting",
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        self.key = key
        self.terms: tuple[str, int, int, int] | None = None
        self.rate = Rate(1, 1)
        self.exact = False
        self.batches: deque[list[int]] = deque()
        """[units, ns at which they expire]."""
        self.waiting: deque[asyncio.Future[Answer]] = deque()
        self.known = self.local = self.blocked_until = 0
        self.owed = 0
        self._later = 0
        self._sharers = 1
        self._busy = False
        self._last_tat = ""
        self._hold_ns = self._most = 0
        self._interval = self._cap = 0.0
        self._asked = self._asked_before = self._window_at = self._before = 0

    def adopt(self, hit: LimitHit, lease_ns: int) -> None:
        """Takes over terms. Counters stay: moving a limit resets nobody."""
        self.terms, self.exact = hit[2:6], hit.exact
        self.blocked_until = 0
        self.rate = rate = Rate.of(hit.quota, hit.period_ns, hit.burst)
        self._interval = rate.interval / (_NS_PER_US << TICK_BITS)
        tolerance_ns = rate.tolerance >> TICK_BITS
        self._cap = tolerance_ns / _NS_PER_US * (2 if hit.unit == "bytes" else 1)
        hold = 0 if hit.exact else min(lease_ns, tolerance_ns // HOLD_PART)
        self._most = (hold << TICK_BITS) // rate.interval
        self._hold_ns = hold if self._most > 1 else 0

    # Taking

    def ready(self, now: int) -> bool:
        """Whether a unit may be used at once."""
        batches = self.batches
        while batches and (batches[0][1] <= now or not batches[0][0]):
            batches.popleft()
        return bool(batches)

    def use(self, now: int, store: Store) -> None:
        """Uses a unit that is `ready`, and asks for more in time."""
        batch = self.batches[0]
        batch[0] -= 1
        self._count(1, now)
        if batch[0] * 4 <= self._before and len(self.batches) == 1 and not self._busy:
            self._ask(now, store)

    def put_back(self, now: int) -> None:
        """A unit that was used by a request that does not happen."""
        if self.batches and self.batches[0][1] > now:
            self.batches[0][0] += 1

    def wait(self, now: int, store: Store) -> asyncio.Future[Answer]:
        """A unit that the store is asked for."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self._count(1, now)
        if not self._busy:
            self._ask(now, store)
        return future

    def later(self, now: int, store: Store) -> None:
        """A unit of report mode: nobody waits for the answer."""
        self._later += 1
        self._count(1, now)
        if not self._busy:
            self._ask(now, store)

    def undo(self, store: Store, units: int = 1) -> None:
        """Units that the store granted to requests that do not happen: given back if nobody took any since."""
        if self._last_tat:
            back = f"{units * self._interval:.6f}"
            store.submit(Call(RETURN, self.key, (self._last_tat, back)), self._returned)

    def spend(self, amount: int, now: int, store: Store) -> bool:
        """Charges bytes that moved; False: the budget is used up."""
        self._count(amount, now)
        while amount and self.ready(now):
            part = min(amount, self.batches[0][0])
            self.batches[0][0] -= part
            amount -= part
        self.owed += amount
        if amount and not self._busy:
            self._ask(now, store)
        return self.blocked_until <= now

    def level(self, now: int) -> tuple[int, int]:
        """How full the limit is, as far as this node knows: arrival time and now, in ticks."""
        held = sum(units for units, ends in self.batches if ends > now)
        return (self.known << TICK_BITS) - held * self.rate.interval, now << TICK_BITS

    @property
    def held(self) -> int:
        """Units in leases, expired ones included until somebody looks."""
        return sum(units for units, _ in self.batches)

    def idle(self, now: int) -> bool:
        """Whether forgetting it loses nothing."""
        whole = self.known <= now and self.local <= now and self.blocked_until <= now
        return whole and not (self.waiting or self._busy or self.owed or self._later or self.ready(now))

    # Without the store

    def local_wait(self, now: int, sharers: int) -> int:
        """Nanoseconds until a unit may pass on this node's share; 0: now."""
        rate = self._share(sharers)
        new = arrive(self._local_tat(now), now << TICK_BITS, rate, 1)
        late = new > (now << TICK_BITS) + rate.tolerance
        return max(1, wait_ns(new, now << TICK_BITS, rate)) if late else 0

    def use_local(self, now: int, sharers: int, units: int = 1) -> bool:
        """Charges this node's share; False: it is used up by that."""
        self._sharers = sharers
        rate = self._share(sharers)
        ticks = now << TICK_BITS
        new = min(max(self._local_tat(now), ticks) + units * rate.interval, ticks + 2 * rate.tolerance)
        self.local = new >> TICK_BITS
        return new + rate.interval <= ticks + rate.tolerance

    def settle_up(self, now: int, store: Store) -> None:
        """The store is back: what passed meanwhile is owed to it."""
        over = self.local - max(self.known, now)
        if over > 0:
            self.owed += -(-(over << TICK_BITS) // self._share(self._sharers).interval)
        self.local = 0
        if (self.owed or self.waiting) and not self._busy:
            self._ask(now, store)

    def _share(self, sharers: int) -> Rate:
        interval = self.rate.interval * sharers
        return Rate(interval, max(interval, self.rate.tolerance))

    def _local_tat(self, now: int) -> int:
        return min(max(self.local, self.known), now + 2 * (self.rate.tolerance >> TICK_BITS)) << TICK_BITS

    # Asking the store

    def _count(self, units: int, now: int) -> None:
        """Demand is what was asked for in the present window or the one before; a window is as long as a lease."""
        if now - self._window_at >= self._hold_ns:
            recent = now - self._window_at < 2 * self._hold_ns
            self._asked_before = self._asked if recent else 0
            self._asked, self._window_at = 0, now
        self._asked += units

    def _ask(self, now: int, store: Store) -> None:
        waiters, later, owed = list(self.waiting), self._later, self.owed
        self.waiting.clear()
        self._later = self.owed = 0
        need = len(waiters) + later
        extra = 0
        if self._hold_ns:
            # Half of what the demand would use up: what expires unused is lost to the others.
            extra = max(0, min(max(self._asked, self._asked_before) // 2, self._most))
        self._busy = True
        call = Call(
            TAKE,
            self.key,
            (
                f"{self._interval:.9f}",
                f"{(self.rate.tolerance >> TICK_BITS) / _NS_PER_US:.3f}",
                need,
                extra,
                owed,
                self._hold_ns // _NS_PER_US,
                f"{self._cap:.3f}",
            ),
        )
        store.submit(call, partial(self._answered, store, now, waiters, need, extra, owed))

    def _answered(
        self, store: Store, asked_at: int, waiters: list[asyncio.Future[Answer]], need: int, extra: int, owed: int,
        answer: Reply,
    ) -> None:  # fmt: skip
        self._busy = False
        if answer is None:
            self.owed += owed
            for future in (*waiters, *self.waiting):
                if not future.done():
                    future.set_result(_DOWN)
            self.waiting.clear()
            return
        granted, leased, wait_us, last, ahead_us, held_us = answer
        now = store.now()
        self._last_tat = last.decode() if isinstance(last, bytes) else str(last)
        self.known = now + ahead_us * _NS_PER_US
        if leased:
            self._before = leased
            self.batches.append([leased, asked_at + held_us * _NS_PER_US])
        if wait_us:
            # Never longer than the limit can owe, whatever the store says.
            pause = min(wait_us * _NS_PER_US, 2 * (self.rate.tolerance >> TICK_BITS) + _NS_PER_US)
            if self._hold_ns and need:
                # Who is refused comes back for a handful, not for each unit as it appears.
                handful = (extra * self.rate.interval >> TICK_BITS) // 2
                pause = max(pause, min(self._hold_ns // 4, handful))
            self.blocked_until = now + pause
        refused = Answer(0, max(1, self.blocked_until - now))
        left = granted
        for future in waiters:
            if future.done():
                continue
            if left > 0:
                left -= 1
                future.set_result(_GRANTED)
            else:
                future.set_result(refused)
        if left > (later := need - len(waiters)):
            self.undo(store, left - later)  # for those who left while they waited
        self._serve(now, store, refused if granted < need else None)

    def _serve(self, now: int, store: Store, refused: Answer | None) -> None:
        """Those who came while the store was asked."""
        while self.waiting:
            future = self.waiting[0]
            if future.done():
                self.waiting.popleft()
            elif self.ready(now):
                self.waiting.popleft()
                self.batches[0][0] -= 1
                future.set_result(Answer(1, leased=True))
            elif refused is not None:
                self.waiting.popleft()
                future.set_result(refused)
            else:
                break
        if self.waiting or self.owed or self._later:
            self._ask(now, store)

    def _returned(self, answer: Reply) -> None:
        if answer:
            self._last_tat = answer.decode() if isinstance(answer, bytes) else str(answer)
