"""Rate limits that all processes of a host share: the same algorithm over one mapped table.

A check costs two system calls for a lock and a few words of shared memory. It is exact: the locks
make checking and charging one step, whichever process asks, and the kernel frees those of a process
that dies. A table that cannot be had (a stopped process holds a lock) is left alone for a second,
and each limit's `on_store_error` decides meanwhile.
"""

import logging
import time
from collections.abc import Sequence
from fcntl import F_OFD_SETLK, fcntl
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from edgeguard.limits.gcra import TICK_BITS, Rate, arrive, kept
from edgeguard.limits.share import Shares
from edgeguard.limits.table import (
    GENERATION,
    MAX_VALUE,
    STRIPES,
    Table,
    TableBusyError,
    TableError,
    digest_of,
)
from edgeguard.limits.table import TICK_BITS as SLOT_BITS
from edgeguard.limits.taken import SEAT_RETRY_NS, Taken, Usage
from edgeguard.policy.decision import LimitHit

logger = logging.getLogger(__name__)

REST_NS: Final = 1_000_000_000
"""How long a table that was busy is left alone."""
LOOK_NS: Final = 1_000_000_000
"""How often it is checked that the file is still the one that is mapped."""
MAX_TOLERANCE: Final = MAX_VALUE >> 3
_COARSER: Final = TICK_BITS - SLOT_BITS
_HOT_KEYS: Final = 4096
_MAX_SEATS: Final = 0xFFFF
_new = tuple.__new__


class Place(NamedTuple):
    """Where a limit and key stand in the table."""

    digest: int
    shared: int
    """Digest of the limit's shared bucket."""
    tag: int
    """Tells the limits in the table apart."""
    stripe: int
    rate: Rate
    """In the table's ticks; meaningless for seats."""


class HostLimiter:
    """Limits of scope `host`.

    Args:
        path: File of the table.
        slots: Keys that fit.
        wait_s: Longest wait for a lock.
        max_keys: Bound of the tables that stand in for the shared one.

    Raises:
        TableError: The table cannot be opened.
    """

    def __init__(self, path: Path, slots: int, wait_s: float, max_keys: int) -> None:
        self.table = Table(path, slots, wait_s)
        self._shares = Shares(max_keys)
        self._places: dict[LimitHit, Place] = {}
        self._known: dict[int, tuple[LimitHit, int, int, bytes, bytes, int, int]] = {}
        """By id of a hit that the entry keeps alive: slot, digest, locks, rate."""
        self._overflowed: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._seen: tuple[int, dict[int, int]] = (0, {})
        self._look_at = 0
        """Before this moment the table is taken for the one that it was; never while it is left alone."""
        self._mapping = self._mapped()
        self._busy_until = 0
        self.failures = 0
        """How often the table was not to be had."""

    def take(self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1) -> Taken:
        """Checks every limit, and charges all of them if no enforced one refuses; see `ProcessLimiter.take`."""
        if len(hits) == 1 and amount == 1 and now_ns < self._look_at:
            hit = hits[0]
            known = self._known.get(id(hit))
            if known is not None and known[0] is hit:
                taken = self._again(hit, known, now_ns)
                if taken is not None:
                    return taken
        if not hits:
            return Taken(True)
        if now_ns >= self._busy_until:
            try:
                self._look(now_ns)
                return self._charge(hits, now_ns, amount)
            except (TableBusyError, TableError) as error:
                self._rest(error, now_ns)
        return self._shares.take(hits, now_ns, amount)

    def spend(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        """Charges bytes that have already moved; see `ProcessLimiter.spend`."""
        if now_ns >= self._busy_until:
            try:
                self._look(now_ns)
                return self._debit(hits, now_ns, amount)
            except (TableBusyError, TableError) as error:
                self._rest(error, now_ns)
        return self._shares.spend(hits, now_ns, amount)

    def release(self, hits: Sequence[LimitHit]) -> None:
        """Gives the seats of `concurrent_tunnels` back. What cannot be written is forgotten when this process ends."""
        for hit in {(hit.limit, hit.key, hit.enforced): hit for hit in hits}.values():
            if self._shares.holds(hit):
                self._shares.release((hit,))
            elif hit.unit == "concurrent_tunnels" and self.table.mapped:
                try:
                    self._leave(hit)
                except TableBusyError as error:
                    logger.warning("a seat of %s was not given back: %s", hit.limit, error)

    def usage(self, now_ns: int) -> dict[str, Usage]:
        """Live keys of the limits that this process knows, of all processes together. Takes milliseconds."""
        if not self._names:
            return {}
        live = self._live(now_ns)
        return {
            name: Usage(live.get(tag, 0), self._overflowed.get(name, 0))
            for tag, name in list(self._names.items())
        }

    def status(self, now_ns: int) -> dict[str, object]:
        """What `limits status` shows."""
        table = self.table
        return {
            "table": str(table.path),
            "slots": table.groups * 8,
            "keys": sum(self._live(now_ns).values()),
            "processes": table.population,
            "overflowed": sum(self._overflowed.values()),
            "failures": self.failures,
            "state": "busy" if now_ns < self._busy_until else "ok",
        }

    def _live(self, now_ns: int) -> dict[int, int]:
        """Looking at all slots takes milliseconds, so what was seen counts for a second."""
        seen_at, live = self._seen
        if self.table.mapped and (seen_at == 0 or now_ns - seen_at > LOOK_NS):
            live = self.table.live(self._ticks(now_ns))
            self._seen = (now_ns, live)
        return live

    def reset(self, limit: str | None = None, key: str | None = None) -> int:
        """Forgets arrival times; seats stay. Returns how many keys. Raises TableBusyError."""
        if not self.table.mapped:
            raise TableBusyError(f"{self.table.path} is lost")
        if limit is None:
            return self.table.wipe()
        secret = self.table.secret
        if key is None:
            return self.table.wipe(tag=digest_of(secret, limit))
        return sum(self.table.wipe(digest=digest_of(secret, limit, key, kind)) for kind in ("e", "s"))

    def close(self) -> None:
        """Gives back everything that this process holds."""
        self.table.close()

    # The table's way

    def _ticks(self, now_ns: int) -> int:
        return (now_ns - self.table.base_ns) << SLOT_BITS

    def _again(
        self, hit: LimitHit, known: tuple[LimitHit, int, int, bytes, bytes, int, int], now_ns: int
    ) -> Taken | None:
        """One enforced limit, a slot that is ours, quota left: `_charge` written out. None: not so."""
        _, slot, digest, lock, unlock, interval, tolerance = known
        table = self.table
        now = (now_ns - table.base_ns) << SLOT_BITS
        try:
            fcntl(table.fd, F_OFD_SETLK, lock)
        except BlockingIOError:
            try:
                table.lock(lock)
            except TableBusyError as error:
                self._rest(error, now_ns)
                return None
        try:
            values = table.values
            if table.digests[slot] == digest and table.words[GENERATION] == table.generation:
                tat = values[slot]
                if tat < now:  # noqa: PLR1730 - max() is a call
                    tat = now
                tat += interval
                if tat <= now + tolerance:
                    values[slot] = tat
                    return _new(Taken, (True, None, 0, ((hit, tat << _COARSER, now << _COARSER),), ()))
        finally:
            fcntl(table.fd, F_OFD_SETLK, unlock)
        return None

    def _charge(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        table = self.table
        now = self._ticks(now_ns)
        wide = now << _COARSER
        charges: list[tuple[int, int, int, int]] = []
        seats: list[tuple[int, int, int, int]] = []
        levels: list[tuple[LimitHit, int, int]] = []
        before: list[tuple[LimitHit, int, int]] = []
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        found = [(hit, self._place(hit)) for hit in _distinct(hits)]
        with _Locked(table, {place.stripe for _, place in found}) as locked:
            for hit, place in found:
                if hit.unit == "concurrent_tunnels":
                    row, digest, counts = self._row(hit, place, locked, [c[0] for c in seats])
                    old, shift = sum(counts), 0
                    new, mine = old + 1, counts[table.worker] + 1
                    wait = 0 if new <= hit.quota and row >= 0 and mine <= _MAX_SEATS else SEAT_RETRY_NS
                    charge, charged = (row, digest, place.tag, mine), seats
                else:
                    slot, digest, old = self._slot(hit, place, now, locked, [c[0] for c in charges])
                    shift = _COARSER
                    new = arrive(old, now, place.rate, amount if hit.unit == "bytes" else 1)
                    wait = _wait_ns(new, now, place.rate)
                    charge, charged = (slot, digest, place.tag, new), charges
                if hit.enforced:
                    levels.append((hit, new << shift, wide))
                    before.append((hit, old << shift, wide))
                if not wait:
                    charged.append(charge)
                elif not hit.enforced:
                    would += (hit.limit,)
                elif wait > retry:
                    limit, retry = hit.limit, wait
            if limit is not None:
                return Taken(False, limit, retry, tuple(before), would)
            for charge in charges:
                table.put(*charge)
            for charge in seats:
                table.sit(*charge)
        if len(found) == len(charges) == 1:
            self._remember(*found[0], charges[0][0], charges[0][1])
        return Taken(True, None, 0, tuple(levels), would)

    def _debit(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        table = self.table
        now = self._ticks(now_ns)
        levels: list[tuple[LimitHit, int, int]] = []
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        found = [(hit, self._place(hit)) for hit in _distinct(hits) if hit.unit == "bytes"]
        with _Locked(table, {place.stripe for _, place in found}) as locked:
            for hit, place in found:
                rate = place.rate
                slot, digest, old = self._slot(hit, place, now, locked)
                new = max(old, min(max(old, now) + amount * rate.interval, now + 2 * rate.tolerance))
                table.put(slot, digest, place.tag, new)
                wait = _wait_ns(new + rate.interval, now, rate)
                if hit.enforced:
                    levels.append((hit, new << _COARSER, now << _COARSER))
                    if wait > retry:
                        limit, retry = hit.limit, wait
                elif wait:
                    would += (hit.limit,)
        return Taken(limit is None, limit, retry, tuple(levels), would)

    def _leave(self, hit: LimitHit) -> None:
        table, place = self.table, self._place(hit)
        with _Locked(table, {place.stripe}) as locked:
            row = table.row(place.digest)
            own = table.taken(row, place.digest)[table.worker] if row >= 0 else 0
            if own:
                table.sit(row, place.digest, place.tag, own - 1)
                return
            locked.last()
            row = table.row(place.shared, shared=True)
            own = table.taken(row, place.shared)[table.worker] if row >= 0 else 0
            if own:
                table.sit(row, place.shared, place.tag, own - 1)

    def _slot(
        self, hit: LimitHit, place: Place, now: int, locked: "_Locked", claimed: Sequence[int] = ()
    ) -> tuple[int, int, int]:
        """(slot, its digest, what its arrival time still counts). `claimed`: slots that the same request fills."""
        table, digest = self.table, place.digest
        slot = table.find(digest, now, claimed)
        if slot < 0:
            locked.last()
            digest = place.shared
            slot = table.spare(digest, claimed)
            self._overflowed[hit.limit] = self._overflowed.get(hit.limit, 0) + 1
        if table.digests[slot] != digest:
            return slot, digest, 0
        value = table.values[slot]
        if kept(value, now, place.rate, hit.unit) != value:
            # Who waited for the lock is behind those who had it: what they charged is no leftover.
            now = max(now, self._ticks(time.monotonic_ns()))
            value = table.values[slot] = kept(value, now, place.rate, hit.unit)
        return slot, digest, value

    def _row(
        self, hit: LimitHit, place: Place, locked: "_Locked", claimed: Sequence[int]
    ) -> tuple[int, int, list[int]]:
        """(row or -1, its digest, seats taken by each process), the dead removed where it matters."""
        table, digest = self.table, place.digest
        row = table.row(digest, claimed)
        if row < 0:
            locked.last()
            digest = place.shared
            row = table.row(digest, claimed, shared=True)
            self._overflowed[hit.limit] = self._overflowed.get(hit.limit, 0) + 1
        if row < 0:
            return row, digest, [hit.quota]
        counts = table.taken(row, digest)
        if sum(counts) >= hit.quota:
            table.bury(row)
            counts = table.taken(row, digest)
        return row, digest, counts

    def _place(self, hit: LimitHit) -> Place:
        place = self._places.get(hit)
        if place is None:
            if len(self._places) >= _HOT_KEYS:
                self._places.clear()
            table, secret = self.table, self.table.secret
            kind = "e" if hit.enforced else "s"
            digest, tag = digest_of(secret, hit.limit, hit.key, kind), digest_of(secret, hit.limit)
            shared = digest_of(secret, hit.limit, "", kind, "shared")
            if hit.unit == "concurrent_tunnels":
                place = Place(digest, shared, tag, table.row_stripe(digest), Rate(1, 1))
            else:
                rate = Rate.of(hit.quota, hit.period_ns, hit.burst)
                interval = -(-rate.interval >> _COARSER)
                tolerance = min(hit.burst * interval, MAX_TOLERANCE)
                place = Place(digest, shared, tag, table.stripe(digest), Rate(interval, tolerance))
            self._places[hit] = place
            self._names[tag] = hit.limit
        return place

    def _remember(self, hit: LimitHit, place: Place, slot: int, digest: int) -> None:
        if hit.enforced and digest == place.digest:
            if len(self._known) >= _HOT_KEYS:
                self._known.clear()
            lock, unlock = self.table.locks[place.stripe]
            self._known[id(hit)] = (hit, slot, digest, lock, unlock, *place.rate)

    # When it cannot be had

    def _look(self, now_ns: int) -> None:
        if now_ns < self._look_at and self.table.current():
            return
        self._look_at = now_ns + LOOK_NS
        self.table.refresh()
        if self._mapping != (mapping := self._mapped()):
            self._mapping = mapping
            self._places.clear()
            self._known.clear()
        self._shares.sharers = max(1, self.table.population)

    def _mapped(self) -> tuple[tuple[int, int], int, bytes]:
        """Tells one table from another: a new file may have the number of the old one."""
        return self.table.inode, self.table.generation, self.table.secret

    def _rest(self, error: Exception, now_ns: int) -> None:
        self.failures += 1
        self._busy_until, self._look_at = now_ns + REST_NS, 0
        logger.error("limits of scope host fall back to on_store_error: %s", error)


class _Locked:
    """Holds the locks of some stripes, in their order; `last` adds that of the shared buckets."""

    __slots__ = ("_held", "_stripes", "_table")

    def __init__(self, table: Table, stripes: set[int]) -> None:
        self._table = table
        self._stripes = sorted(stripes)
        self._held: list[bytes] = []

    def __enter__(self) -> Self:
        try:
            for stripe in self._stripes:
                self._lock(stripe)
        except TableBusyError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            self._table.unlock(self._held.pop())

    def last(self) -> None:
        """Raises TableBusyError."""
        if self._table.locks[STRIPES][1] not in self._held:
            self._lock(STRIPES)

    def _lock(self, stripe: int) -> None:
        lock, unlock = self._table.locks[stripe]
        self._table.lock(lock)
        self._held.append(unlock)


def _distinct(hits: Sequence[LimitHit]) -> list[LimitHit]:
    return list({(hit.limit, hit.key, hit.enforced): hit for hit in hits}.values())


def _wait_ns(arrival: int, now: int, rate: Rate) -> int:
    """Nanoseconds until an arrival (the table's ticks) would be allowed; 0: it is."""
    late = arrival - now - rate.tolerance
    return max(1, -(-late >> SLOT_BITS)) if late > 0 else 0
