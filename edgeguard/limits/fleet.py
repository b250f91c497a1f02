"""Rate limits that the nodes of a fleet share through Valkey or Redis.

Most requests are served from leases that this node holds (`lease.py`); the others, those of
`accuracy: exact`, and new seats of `concurrent_tunnels` wait for one answer of the store
(`reserve`), a few milliseconds at most. What holds while the store cannot be reached, or when none
is configured, is each limit's `on_store_error`.

Keys are keyed digests, the same on all nodes; the store never sees a name. Every key has a lifetime
in the store, and every node keeps at most `max_keys` of them for one limit: further ones share one.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from edgeguard.limits.gcra import TICK_BITS
from edgeguard.limits.lease import Lease
from edgeguard.limits.scripts import PEERS, Call, Reply
from edgeguard.limits.seats import Seats
from edgeguard.limits.share import RETRY_NS, share_of
from edgeguard.limits.store import Store, StoreDownError
from edgeguard.limits.taken import SEAT_RETRY_NS, Answer, Taken, Ticket, Usage
from edgeguard.policy.decision import LimitHit
from edgeguard.settings.model import Limits as LimitSettings

logger = logging.getLogger(__name__)

SILENT: Final = 3
"""A node that missed so many beats is gone."""
_HOT_KEYS: Final = 4096
_SWEEP: Final = 4
_SHARED: Final = "\x00shared"
type _Id = tuple[str, str, bool]


class Charge(NamedTuple):
    """What is still to be charged here for one hit, once every limit has agreed."""

    hit: LimitHit
    held: Lease | Seats
    local: bool
    """The store is down: this node's share is charged."""


class Prepared(NamedTuple):
    """A check whose charge is still to come, in the same turn of the loop."""

    taken: Taken
    charges: tuple[Charge, ...] = ()
    ticket: Ticket | None = None


_NOTHING: Final = Prepared(Taken(True))


class _Keys:
    """The keys of one limit that this node knows."""

    __slots__ = ("hand", "known", "overflowed")

    def __init__(self) -> None:
        self.known: dict[str, Lease | Seats] = {}
        self.hand: deque[str] = deque()
        self.overflowed = 0


class FleetLimiter:
    """Limits of scope `fleet`. Not thread-safe: it belongs to the traffic's loop.

    Args:
        settings: Section `[limits]`; without a `store` every limit follows its `on_store_error`.
        secret: Key of the digests; the same on all nodes.
        environment: Part of the names in the store.
        max_keys: Bound of every limit's keys on this node.
        clock_ns: The guard's monotonic clock.
    """

    def __init__(
        self,
        settings: LimitSettings,
        secret: bytes,
        environment: str,
        max_keys: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = Store(settings, clock_ns) if settings.store else None
        self._now = clock_ns
        self._secret = blake2b(secret, digest_size=32, person=b"fleet limits").digest()
        self._prefix = f"edgeguard:{environment}"
        self._max_keys = max_keys
        self._lease_ns = int(settings.lease_s * 1e9)
        self._keys: dict[tuple[str, bool], _Keys] = {}
        self._hot: dict[int, tuple[LimitHit, Lease | Seats]] = {}
        self._node = secrets.token_hex(8)
        self._hold_us = int(settings.peers_s * SILENT * 1e6)
        self._said = False
        self.peers = settings.peers
        """Nodes that share the store, this one included: as configured, or more if more were seen."""
        self.checks = 0

    # The traffic's way

    def reserve(self, hits: Sequence[LimitHit], now: int) -> Awaitable[Ticket] | None:
        """What has to be awaited before `prepare`; None: nothing, because leases suffice, or nothing would help."""
        store = self._store
        if store is None or not store.up:
            return None
        asked: list[tuple[LimitHit, Lease | Seats]] = []
        ready: list[tuple[LimitHit, Lease]] = []
        for hit in _distinct(hits):
            if not hit.enforced:
                continue
            held = self._held(hit, now)
            if isinstance(held, Seats):
                asked.append((hit, held))
            elif held.blocked_until > now and not held.ready(now):
                return None
            elif held.exact or not held.ready(now):
                asked.append((hit, held))
            else:
                ready.append((hit, held))
        return self._fetch(store, asked, ready) if asked else None

    async def _fetch(
        self,
        store: Store,
        asked: Sequence[tuple[LimitHit, Lease | Seats]],
        ready: Sequence[tuple[LimitHit, Lease]],
    ) -> Ticket:
        ticket, now = Ticket(), self._now()
        answers = ticket.answers
        for hit, lease in ready:
            if lease.ready(now):
                lease.use(now, store)
                answers[_id(hit)] = Answer(1, leased=True)
        waiting = [
            (hit, held.wait(hit.quota, store) if isinstance(held, Seats) else held.wait(now, store))
            for hit, held in asked
        ]
        try:
            for hit, future in waiting:
                answers[_id(hit)] = await future
        except BaseException:
            # Whoever waited has left: what was or will be granted goes back.
            for hit, future in waiting:
                if future.done() and not future.cancelled():
                    answers[_id(hit)] = future.result()
                else:
                    future.cancel()
            self.give_back(ticket)
            raise
        return ticket

    def prepare(
        self, hits: Sequence[LimitHit], now: int, amount: int = 1, ticket: Ticket | None = None
    ) -> Prepared:
        """What `take` would answer, uncharged where the store has not charged it already."""
        if not hits:
            return _NOTHING if ticket is None else Prepared(Taken(True), (), ticket)
        self.checks += 1
        charges: list[Charge] = []
        levels: list[tuple[LimitHit, int, int]] = []
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        answers = {} if ticket is None else ticket.answers
        for hit in _distinct(hits):
            held = self._held(hit, now)
            wait, charge = self._check(hit, held, now, answers.get(_id(hit)))
            if hit.enforced:
                levels.append(self._level(hit, held, now, charge))
            if not wait:
                if charge is not None:
                    charges.append(charge)
            elif not hit.enforced:
                would += (hit.limit,)
            elif wait > retry:
                limit, retry = hit.limit, wait
        return Prepared(Taken(limit is None, limit, retry, tuple(levels), would), tuple(charges), ticket)

    def _check(
        self, hit: LimitHit, held: Lease | Seats, now: int, answer: Answer | None
    ) -> tuple[int, Charge | None]:
        """(nanoseconds to wait, what to charge here)."""
        store = self._store
        if answer is not None and not answer.down:
            return 0 if answer.granted else max(1, answer.wait_ns), None
        if isinstance(held, Lease) and answer is None and store is not None:
            if held.ready(now) and not held.exact:
                return 0, Charge(hit, held, False)
            if held.blocked_until > now:
                return held.blocked_until - now, None
            if not hit.enforced and store.up:
                return 0, Charge(hit, held, False)
        if isinstance(held, Seats) and not hit.enforced and store is not None and store.up:
            return 0 if held.taken + held.others < hit.quota else SEAT_RETRY_NS, Charge(hit, held, False)
        return self._alone(hit, held, now)

    def _alone(self, hit: LimitHit, held: Lease | Seats, now: int) -> tuple[int, Charge | None]:
        """The same where the store cannot be asked."""
        match hit.on_store_error:
            case "allow":
                return 0, None
            case "deny":
                return RETRY_NS, None
        sharers = self._sharers(hit)
        if isinstance(held, Seats):
            free = held.taken < held.share(sharers, hit.quota)
            return (0, Charge(hit, held, True)) if free else (SEAT_RETRY_NS, None)
        return held.local_wait(now, sharers), Charge(hit, held, True)

    def commit(self, prepared: Prepared) -> None:
        """Charges what was prepared."""
        now, store = self._now(), self._store
        for hit, held, local in prepared.charges:
            if isinstance(held, Seats):
                held.taken += 1
                held.quota = hit.quota
                if store is not None:
                    held.report(store)
            elif local and store is not None and store.up:
                held.spend(1, now, store)
            elif local:
                held.use_local(now, self._sharers(hit))
            elif store is not None:
                if held.ready(now):
                    held.use(now, store)
                else:
                    held.later(now, store)

    def undo(self, prepared: Prepared) -> None:
        """Another limit refused: what the store has charged goes back."""
        if prepared.ticket is not None:
            self.give_back(prepared.ticket)

    def give_back(self, ticket: Ticket) -> None:
        """Undoes what was awaited for a request that does not happen."""
        now, store = self._now(), self._store
        for (limit, key, enforced), answer in ticket.answers.items():
            held = self._find(limit, key, enforced)
            if not answer.granted or held is None or store is None:
                continue
            if isinstance(held, Seats):
                held.leave(store)
            elif answer.leased:
                held.put_back(now)
            else:
                held.undo(store)
        ticket.answers.clear()

    def spend(self, hits: Sequence[LimitHit], now: int, amount: int) -> Taken:
        """Charges bytes that have moved already; see `ProcessLimiter.spend`."""
        limit: str | None = None
        retry = 0
        would: tuple[str, ...] = ()
        store = self._store
        for hit in _distinct(hits):
            held = self._held(hit, now)
            if hit.unit != "bytes" or not isinstance(held, Lease):
                continue
            if store is not None and store.up:
                good, wait = held.spend(amount, now, store), max(1, held.blocked_until - now)
            elif hit.on_store_error in {"allow", "deny"}:
                good, wait = hit.on_store_error == "allow", RETRY_NS
            else:
                sharers = self._sharers(hit)
                good = held.use_local(now, sharers, amount)
                wait = max(1, held.local_wait(now, sharers))
            if not good and not hit.enforced:
                would += (hit.limit,)
            elif not good and wait > retry:
                limit, retry = hit.limit, wait
        return Taken(limit is None, limit, retry, (), would)

    def release(self, hits: Sequence[LimitHit]) -> None:
        """Gives the seats of `concurrent_tunnels` back."""
        for hit in _distinct(hits):
            held = self._find(hit.limit, hit.key, hit.enforced)
            if isinstance(held, Seats):
                held.leave(self._store)

    def _level(
        self, hit: LimitHit, held: Lease | Seats, now: int, charge: Charge | None
    ) -> tuple[LimitHit, int, int]:
        if isinstance(held, Seats):
            return hit, held.taken + held.others, now << TICK_BITS
        if charge is not None and charge.local:
            alone = share_of(hit, self._sharers(hit))
            return alone, max(held.local, held.known) << TICK_BITS, now << TICK_BITS
        return hit, *held.level(now)

    def _sharers(self, hit: LimitHit) -> int:
        return 1 if hit.on_store_error == "local_full" else self.peers

    # Keys

    def _held(self, hit: LimitHit, now: int) -> Lease | Seats:
        known = self._hot.get(id(hit))
        if known is not None and known[0] is hit:
            return known[1]
        if self._store is None and not self._said:
            self._said = True
            logger.warning(
                "the policy has limits that a fleet shares (%s), and [limits] store is not set: they follow on_store_error",
                hit.limit,
            )
        keys = self._keys.get((hit.limit, hit.enforced))
        if keys is None:
            keys = self._keys[hit.limit, hit.enforced] = _Keys()
        held = keys.known.get(hit.key)
        seats = hit.unit == "concurrent_tunnels"
        if held is None or isinstance(held, Seats) != seats:
            held = self._place(keys, hit, now)
        if isinstance(held, Lease) and (held.terms != hit[2:6] or held.exact != hit.exact):
            held.adopt(hit, self._lease_ns)
        if len(self._hot) >= _HOT_KEYS:
            self._hot.clear()
        self._hot[id(hit)] = (hit, held)
        return held

    def _place(self, keys: _Keys, hit: LimitHit, now: int) -> Lease | Seats:
        """A new key: its own if there is room, else the shared one."""
        hand, known = keys.hand, keys.known
        held: Lease | Seats | None
        for _ in range(min(_SWEEP, len(hand))):
            old = hand.popleft()
            held = known[old]
            if held.idle() if isinstance(held, Seats) else held.idle(now):
                del known[old]
                self._hot.clear()
            else:
                hand.append(old)
        key = hit.key
        if len(hand) >= self._max_keys and key not in known:
            keys.overflowed += 1
            key = _SHARED
        seats = hit.unit == "concurrent_tunnels"
        held = known.get(key)
        if held is None or isinstance(held, Seats) != seats:
            name = self._name(hit.limit, key, hit.enforced, seats=seats)
            if held is None and key != _SHARED:
                hand.append(key)
            held = known[key] = Seats(name, self._node, self._hold_us) if seats else Lease(name)
        return held

    def _find(self, limit: str, key: str, enforced: bool) -> Lease | Seats | None:
        keys = self._keys.get((limit, enforced))
        return None if keys is None else keys.known.get(key) or keys.known.get(_SHARED)

    def _digest(self, *parts: str) -> str:
        data = "\x00".join(parts).encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=16, key=self._secret).hexdigest()

    def _limit_prefix(self, limit: str) -> str:
        return f"{self._prefix}:{self._digest(limit)[:12]}"

    def _name(self, limit: str, key: str, enforced: bool, *, seats: bool) -> str:
        """The digest is the hash tag: a cluster spreads the keys by it."""
        digest = self._digest(limit, key, "enforced" if enforced else "report", "seats" if seats else "rate")
        return f"{self._limit_prefix(limit)}:{{{digest}}}"

    def _all(self) -> Iterator[Lease | Seats]:
        for keys in self._keys.values():
            yield from keys.known.values()

    # The store

    def start(self) -> None:
        """Begins to talk to the store, on the running loop."""
        if self._store is not None:
            self._store.on_up = self._up
            self._store.start(self._beat, self._heard)

    async def stop(self) -> None:
        """Gives the seats back, as far as the store can be reached."""
        if self._store is None:
            return
        if self._store.up:
            held = [seats for seats in self._all() if isinstance(seats, Seats) and seats.taken]
            for seats in held:
                seats.taken = 0
                seats.report(self._store)
            await asyncio.sleep(self._settings.timeout_s if held else 0)
        await self._store.stop()

    def _beat(self) -> Call:
        return Call(PEERS, f"{self._prefix}:{{peers:{self._digest()[:12]}}}", (self._node, self._hold_us))

    def _heard(self, answer: Reply) -> None:
        self.peers = max(self._settings.peers, int(answer))
        store = self._store
        if store is not None and store.up:
            for seats in self._all():
                if isinstance(seats, Seats) and seats.taken:
                    seats.report(store)

    def _up(self) -> None:
        now, store = self._now(), self._store
        if store is None:
            return
        for held in self._all():
            if isinstance(held, Seats):
                held.report(store)
            else:
                held.settle_up(now, store)

    # Looking, and forgetting

    def usage(self) -> dict[str, Usage]:
        """Keys that this node knows, by limit."""
        totals: dict[str, Usage] = {}
        for (limit, _), keys in list(self._keys.items()):
            known = totals.get(limit, Usage(0, 0))
            totals[limit] = Usage(known.keys + len(keys.hand), known.overflowed + keys.overflowed)
        return totals

    def status(self, now: int) -> dict[str, object]:
        """What `limits status` shows."""
        store = self._store
        leases = [held for held in self._all() if isinstance(held, Lease) and held.ready(now)]
        return {
            "store": _shown(self._settings.store) if store is not None else None,
            "state": "none" if store is None else "up" if store.up else "down",
            "problem": "" if store is None else store.problem,
            "failures": 0 if store is None else store.failures,
            "round_trips": 0 if store is None else store.round_trips,
            "checks": self.checks,
            "peers": self.peers,
            "leases": len(leases),
            "leased_units": sum(lease.held for lease in leases),
            "counters": self._digest()[:12],
        }

    def retain(self, limits: Collection[str]) -> None:
        """Forgets limits that no longer exist, unless somebody sits there."""
        for name in [name for name in self._keys if name[0] not in limits]:
            if not any(isinstance(held, Seats) and held.taken for held in self._keys[name].known.values()):
                del self._keys[name]
        self._hot.clear()

    async def reset(self, limit: str | None, key: str | None) -> int:
        """Forgets what the store and this node have counted; seats stay. Raises StoreDownError."""
        done = 0
        for (name, _), keys in self._keys.items():
            if limit is None or name == limit:
                gone = [k for k, held in keys.known.items() if isinstance(held, Lease) and key in {None, k}]
                for k in gone:
                    del keys.known[k]
                    if k != _SHARED:
                        keys.hand.remove(k)
        self._hot.clear()
        store = self._store
        if store is None:
            return 0
        if limit is not None and key is not None:
            names = [self._name(limit, key, enforced, seats=False) for enforced in (True, False)]
        else:
            pattern = f"{self._prefix if limit is None else self._limit_prefix(limit)}:*"
            names = [name for name in await store.scan(pattern) if "{peers:" not in name]
        done += await store.delete(names)
        return done


def _distinct(hits: Sequence[LimitHit]) -> list[LimitHit]:
    return list({_id(hit): hit for hit in hits}.values())


def _id(hit: LimitHit) -> _Id:
    return hit.limit, hit.key, hit.enforced


def _shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


__all__ = ["FleetLimiter", "StoreDownError"]
