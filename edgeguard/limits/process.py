"""Rate limits of one process: all that match are checked, then all are charged.

Memory is bounded by construction. A table holds at most `max_keys` keys of one limit; when it is
full, keys whose quota is whole again are dropped (that loses nothing) and, failing that, new keys
share one overflow bucket. A key with a debt is never evicted: junk keys cannot wash it out. The
most a flood can gain is `max_keys + 1` times the limit, known in advance.

Keys are stored as keyed BLAKE2b (RFC 7693), so that a table costs the same for any key and holds
no names.
"""

import secrets
from collections import deque
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from edgeguard.limits.gcra import TICK_BITS, Rate, arrive, kept, wait_ns
from edgeguard.limits.taken import SEAT_RETRY_NS, Take, Taken, Ticket, Usage
from edgeguard.policy.decision import LimitHit

_OVERFLOW: Final = b""
"""Slot of the shared bucket; no digest is empty."""
_SWEEP: Final = 4
"""Old keys examined whenever a new one comes: bounded work, and tables shrink to the live keys."""
_HOT_KEYS: Final = 4096
"""Digests remembered: hashing costs more than all the rest of a check."""


class Prepared(NamedTuple):
    """A check whose charge is still to come: `ProcessLimiter.commit`, in the same turn of the loop."""

    taken: Taken
    charges: tuple[tuple["_Table", bytes, int], ...] = ()
    """Table, slot, new value."""


_FREE: Final = Taken(True)
_NOTHING: Final = Prepared(_FREE)
_new = tuple.__new__  # builds a NamedTuple at half the price of its constructor


class _Table:
    """The keys of one limit: theoretical arrival times in ticks, or seats taken for `concurrent_tunnels`."""

    __slots__ = ("hand", "max_keys", "overflowed", "rate", "seats", "terms", "values")

    def __init__(self, max_keys: int) -> None:
        self.max_keys = max_keys
        self.values: dict[bytes, int] = {}
        self.hand: deque[bytes] = deque()
        """Slots in the order of the next examination."""
        self.overflowed = 0
        self.seats = False
        self.terms: tuple[str, int, int, int] | None = None
        self.rate = Rate(1, 1)

    def adopt(self, hit: LimitHit) -> None:
        """Takes over changed terms. Counters stay: moving a limit resets nobody."""
        seats = hit.unit == "concurrent_tunnels"
        rate = self.rate if seats else Rate.of(hit.quota, hit.period_ns, hit.burst)
        if seats != self.seats:
            # Seats and times are different things; what was counted says nothing about the other.
            self.values.clear()
            self.hand.clear()
        self.rate, self.seats = rate, seats
        self.terms = (hit.unit, hit.quota, hit.period_ns, hit.burst)

    def place(self, digest: bytes, now: int) -> bytes:
        """The slot for a key that has none: its own if there is room, else the shared one."""
        values, hand = self.values, self.hand
        for _ in range(min(_SWEEP, len(hand))):
            old = hand.popleft()
            if self.seats or values[old] > now:
                hand.append(old)
            else:
                del values[old]
        if len(hand) < self.max_keys:
            return digest
        self.overflowed += 1
        return _OVERFLOW

    def put(self, slot: bytes, value: int) -> None:
        if slot and slot not in self.values:
            self.hand.append(slot)
        self.values[slot] = value

    def leave(self, digest: bytes) -> None:
        """Gives one seat back: the key's own, else one of the shared bucket's."""
        slot = digest if digest in self.values else _OVERFLOW
        taken = self.values.get(slot, 0) - 1
        if taken > 0:
            self.values[slot] = taken
        elif self.values.pop(slot, None) is not None and slot:
            self.hand.remove(slot)


class ProcessLimiter:
    """Limits of scope `process`. Not thread-safe: it belongs to the traffic's loop.

    Args:
        max_keys: Bound of every limit's table.
        secret: Key of the hash, at most 64 bytes; random by default.

    Attributes:
        beyond: Answers what the shortest way cannot; `here` by default. Where limits of other scopes exist, it
            looks at the scopes first, and a busy key of this process pays nothing for that.
    """

    __slots__ = ("_enforced", "_hot", "_known", "_max_keys", "_seal", "_shadow", "beyond")

    def __init__(self, max_keys: int, *, secret: bytes | None = None) -> None:
        self._max_keys = max_keys
        self.beyond: Take = self.here
        self._enforced: dict[str, _Table] = {}
        self._shadow: dict[str, _Table] = {}
        self._seal = blake2b(digest_size=16, key=secret if secret is not None else secrets.token_bytes(32))
        self._hot: dict[str, bytes] = {}
        self._known: dict[int, tuple[LimitHit, dict[bytes, int], bytes, int, int]] = {}
        """By id of a hit that the entry itself keeps alive: where its state is, and its rate."""

    def reserve(self, hits: Sequence[LimitHit], now_ns: int) -> None:
        """Nothing has to be awaited: everything is here."""

    def give_back(self, ticket: Ticket) -> None:
        """Nothing was awaited, so there is nothing to undo."""

    def take(
        self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1, ticket: Ticket | None = None
    ) -> Taken:
        """Checks every limit, and charges all of them if no enforced one refuses.

        A hit that names the same limit and key again counts once. Limits in report mode keep
        counters of their own and refuse nothing.

        Args:
            hits: The limits that match.
            now_ns: Nanoseconds of a monotonic clock.
            amount: Units for limits in bytes. The other units take one.
            ticket: Not needed here.
        """
        now = now_ns << TICK_BITS
        if len(hits) == 1 and amount == 1:
            # The usual case without lists or calls: one enforced limit, a known key, quota left.
            # It is `gcra.arrive` written out, since a call costs as much as the arithmetic.
            hit = hits[0]
            known = self._known.get(id(hit))
            if known is not None and known[0] is hit:
                _, values, slot, interval, tolerance = known
                tat = values.get(slot)
                if tat is not None:
                    if tat < now:  # noqa: PLR1730 - max() is a call
                        tat = now
                    tat += interval
                    if tat <= now + tolerance:
                        values[slot] = tat
                        return _new(Taken, (True, None, 0, ((hit, tat, now),), ()))
        return self.beyond(hits, now_ns, amount, ticket) if hits else _FREE

    def here(
        self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1, ticket: Ticket | None = None
    ) -> Taken:
        """`take` written plainly."""
        taken, charges = self._check(hits, now_ns << TICK_BITS, amount)
        for table, slot, new in charges:
            table.put(slot, new)
        return taken

    def prepare(self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1) -> Prepared:
        """What `take` would answer, uncharged: for requests that limits of other scopes have a say in, too."""
        return self._check(hits, now_ns << TICK_BITS, amount) if hits else _NOTHING

    @staticmethod
    def commit(prepared: Prepared) -> None:
        """Charges what was prepared, provided that nothing was taken since."""
        for table, slot, new in prepared.charges:
            table.put(slot, new)

    def _check(self, hits: Sequence[LimitHit], now: int, amount: int) -> Prepared:
        charges: list[tuple[_Table, bytes, int]] = []
        levels: list[tuple[LimitHit, int, int]] = []
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        distinct = {(hit.limit, hit.key, hit.enforced): hit for hit in hits}.values()
        found = [(hit, *self._find(hit, now)) for hit in distinct]
        for hit, table, slot, old in found:
            new, wait = _ask(table, old, now, amount if hit.unit == "bytes" else 1)
            if not wait:
                charges.append((table, slot, new))
                if hit.enforced:
                    levels.append((hit, new, now))
            elif not hit.enforced:
                would += (hit.limit,)
            elif wait > retry:
                limit, retry = hit.limit, wait
        if limit is not None:
            levels = [(hit, old, now) for hit, _, _, old in found if hit.enforced]
            return Prepared(Taken(False, limit, retry, tuple(levels), would))
        if len(found) == 1:
            self._remember(*found[0])
        return Prepared(Taken(True, None, 0, tuple(levels), would), tuple(charges))

    def spend(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        """Charges bytes that have already moved, whether or not there was quota for them.

        Only the hits in bytes count. `allowed` is False when an enforced budget is now used up, and the
        tunnel has to end: what it moved past the budget stays a debt, up to one burst.
        """
        now = now_ns << TICK_BITS
        levels: list[tuple[LimitHit, int, int]] = []
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        for hit in {(hit.limit, hit.key): hit for hit in hits if hit.unit == "bytes"}.values():
            table, slot, old = self._find(hit, now)
            rate = table.rate
            new = min(max(old, now) + amount * rate.interval, now + 2 * rate.tolerance)
            table.put(slot, new)
            wait = wait_ns(new + rate.interval, now, rate)
            if hit.enforced:
                levels.append((hit, new, now))
                if wait > retry:
                    limit, retry = hit.limit, wait
            elif wait > 0:
                would += (hit.limit,)
        return Taken(limit is None, limit, retry, tuple(levels), would)

    def release(self, hits: Sequence[LimitHit]) -> None:
        """Gives the seats of `concurrent_tunnels` back that `take` took for the same hits."""
        seats = {(hit.limit, hit.key, hit.enforced) for hit in hits if hit.unit == "concurrent_tunnels"}
        for limit, key, enforced in seats:
            table = (self._enforced if enforced else self._shadow).get(limit)
            if table is not None and table.seats:
                table.leave(self._digest(key))

    def seated(self, hit: LimitHit) -> int:
        """How many seats are taken by this limit and key, or by the shared bucket where it has none of its own."""
        table = (self._enforced if hit.enforced else self._shadow).get(hit.limit)
        if table is None or not table.seats:
            return 0
        return table.values.get(self._digest(hit.key), table.values.get(_OVERFLOW, 0))

    def retain(self, limits: Collection[str]) -> None:
        """Forgets the tables of limits that no longer exist. Seats are kept until they are released."""
        for tables in (self._enforced, self._shadow):
            for limit in [name for name in tables if name not in limits]:
                if not (tables[limit].seats and tables[limit].values):
                    del tables[limit]
        self._known.clear()

    def reset(self, limit: str | None = None, key: str | None = None) -> int:
        """Forgets arrival times of one limit, of one key of it, or all; seats stay. Returns how many keys."""
        done = 0
        for tables in (self._enforced, self._shadow):
            for name, table in tables.items():
                if table.seats or limit not in {None, name}:
                    continue
                gone = list(table.values) if key is None else [self._digest(key)]
                for slot in gone:
                    if table.values.pop(slot, None) is not None:
                        done += 1
                        if slot:
                            table.hand.remove(slot)
        self._known.clear()
        return done

    def usage(self) -> dict[str, Usage]:
        """Fill of the tables by limit id, report mode included."""
        totals: dict[str, Usage] = {}
        for tables in (self._enforced, self._shadow):
            for limit, table in list(tables.items()):
                keys, overflowed = totals.get(limit, (0, 0))
                totals[limit] = Usage(keys + len(table.hand), overflowed + table.overflowed)
        return totals

    def _find(self, hit: LimitHit, now: int) -> tuple[_Table, bytes, int]:
        """The table, the slot and its value; the table learns the hit's terms."""
        tables = self._enforced if hit.enforced else self._shadow
        table = tables.get(hit.limit)
        if table is None:
            table = tables[hit.limit] = _Table(self._max_keys)
        if table.terms != hit[2:6]:
            table.adopt(hit)
            self._known.clear()
        slot = self._digest(hit.key)
        value = table.values.get(slot)
        if value is None:
            slot = table.place(slot, now)
            value = table.values.get(slot, 0)
        if not table.seats and (still := kept(value, now, table.rate, hit.unit)) != value:
            value = table.values[slot] = still
        return table, slot, value

    def _remember(self, hit: LimitHit, table: _Table, slot: bytes, _: int) -> None:
        # Decisions are memoized, so the same hit object comes again and again.
        if not hit.enforced or table.seats or not slot:
            return
        if len(self._known) >= _HOT_KEYS:
            self._known.clear()
        self._known[id(hit)] = (hit, table.values, slot, *table.rate)

    def _digest(self, key: str) -> bytes:
        digest = self._hot.get(key)
        if digest is None:
            keyed = self._seal.copy()
            keyed.update(key.encode("utf-8", "surrogatepass"))
            digest = keyed.digest()
            if len(self._hot) >= _HOT_KEYS:
                self._hot.clear()
            self._hot[key] = digest
        return digest


def _ask(table: _Table, old: int, now: int, units: int) -> tuple[int, int]:
    """The value after `units` more, and the nanoseconds to wait for it: 0 if it may be charged now."""
    if table.seats:
        quota = table.terms[1] if table.terms else 0
        return old + 1, 0 if old < quota else SEAT_RETRY_NS
    rate = table.rate
    new = arrive(old, now, rate, units)
    return new, max(1, wait_ns(new, now, rate)) if new > now + rate.tolerance else 0
