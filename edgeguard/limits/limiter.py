"""All scopes as one: what a request is charged to is checked everywhere before it is charged anywhere.

What is counted in this process cannot change between its check and its charge, since both happen in
one turn of the loop. Only the host's table is shared with others at that moment, so it goes last:
its check and charge are one step, and nothing can refuse after it.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import sha256
from typing import Final, Self

from edgeguard.limits.fleet import FleetLimiter
from edgeguard.limits.host import HostLimiter
from edgeguard.limits.process import ProcessLimiter
from edgeguard.limits.taken import Take, Taken, Ticket, Usage
from edgeguard.policy.decision import LimitHit
from edgeguard.settings.model import Limits as LimitSettings

_SCOPE: Final = LimitHit._fields.index("scope")


class ScopedLimiter:
    """The limiter of a node: `taken.Limiter` over the three scopes."""

    __slots__ = ("_fleet", "_host", "_process", "take")

    def __init__(self, process: ProcessLimiter, host: HostLimiter, fleet: FleetLimiter) -> None:
        self._process = process
        self._host = host
        self._fleet = fleet
        process.beyond = self._anywhere
        self.take: Take = process.take
        """Begins where most checks end: with a busy key of this process."""

    @classmethod
    def from_settings(
        cls,
        settings: LimitSettings,
        environment: str,
        max_keys: int,
        root: bytes,
        clock_ns: Callable[[], int],
    ) -> Self:
        """Opens the host's table.

        Args:
            settings: Section `[limits]`.
            environment: Of the node.
            max_keys: Bound of every limit's keys in this process.
            root: The configured root, from which the key of the fleet's counters is derived if none is configured.
            clock_ns: The guard's monotonic clock.

        Raises:
            TableError: The host's table cannot be used. StoreMissingError: the client library is missing.
        """
        secret = root if settings.secret is None else settings.secret.get_secret_value().encode()
        fleet = FleetLimiter(settings, sha256(secret).digest(), environment, max_keys, clock_ns)
        host = HostLimiter(settings.host_table, settings.host_slots, settings.host_lock_s, max_keys)
        return cls(ProcessLimiter(max_keys), host, fleet)

    def reserve(self, hits: Sequence[LimitHit], now_ns: int) -> Awaitable[Ticket] | None:
        """What has to be awaited before `take`: answers of the store, where no lease holds any."""
        fleet = [hit for hit in hits if hit.scope == "fleet"]
        if not fleet or not self._process.prepare(_of(hits, "process"), now_ns).taken.allowed:
            return None
        return self._fleet.reserve(fleet, now_ns)

    def _anywhere(
        self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1, ticket: Ticket | None = None
    ) -> Taken:
        scope = hits[0][_SCOPE]
        if scope != "fleet" and (len(hits) < 2 or all(hit[_SCOPE] == scope for hit in hits)):
            # The usual case: one scope, and it is here.
            if scope == "process":
                return self._process.here(hits, now_ns, amount)
            return self._host.take(hits, now_ns, amount)
        local = self._process.prepare(_of(hits, "process"), now_ns, amount)
        far = self._fleet.prepare(_of(hits, "fleet"), now_ns, amount, ticket)
        if not (local.taken.allowed and far.taken.allowed):
            self._fleet.undo(far)
            return _joined(local.taken, far.taken)
        near = self._host.take(_of(hits, "host"), now_ns, amount)
        if not near.allowed:
            self._fleet.undo(far)
            return _joined(local.taken, near, far.taken)
        self._process.commit(local)
        self._fleet.commit(far)
        return _joined(local.taken, near, far.taken)

    def give_back(self, ticket: Ticket) -> None:
        """Undoes what was awaited for a request that does not happen."""
        self._fleet.give_back(ticket)

    def spend(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        """Charges bytes that have moved already. `allowed` is False when a budget is used up."""
        answers = []
        if mine := _of(hits, "process"):
            answers.append(self._process.spend(mine, now_ns, amount))
        if near := _of(hits, "host"):
            answers.append(self._host.spend(near, now_ns, amount))
        if far := _of(hits, "fleet"):
            answers.append(self._fleet.spend(far, now_ns, amount))
        return answers[0] if len(answers) == 1 else _joined(*answers)

    def release(self, hits: Sequence[LimitHit]) -> None:
        """Gives the seats of `concurrent_tunnels` back."""
        if mine := _of(hits, "process"):
            self._process.release(mine)
        if near := _of(hits, "host"):
            self._host.release(near)
        if far := _of(hits, "fleet"):
            self._fleet.release(far)

    def retain(self, limits: Collection[str]) -> None:
        """Forgets what this process counts for limits that no longer exist."""
        self._process.retain(limits)
        self._fleet.retain(limits)

    def usage(self, now_ns: int) -> dict[str, Usage]:
        """Fill of the tables by limit, for metrics and `limits status`."""
        totals: dict[str, Usage] = {}
        for usage in (self._process.usage(), self._host.usage(now_ns), self._fleet.usage()):
            for limit, (keys, overflowed) in usage.items():
                known = totals.get(limit, Usage(0, 0))
                totals[limit] = Usage(known.keys + keys, known.overflowed + overflowed)
        return totals

    def status(self, now_ns: int) -> dict[str, object]:
        """What `limits status` shows."""
        return {
            "limits": {
                limit: {"keys": use.keys, "overflowed": use.overflowed}
                for limit, use in sorted(self.usage(now_ns).items())
            },
            "host": self._host.status(now_ns),
            "fleet": self.fleet(now_ns),
        }

    def fleet(self, now_ns: int) -> dict[str, object]:
        """The store's part of `status`."""
        return self._fleet.status(now_ns)

    async def reset(self, limit: str | None, key: str | None) -> dict[str, int]:
        """Forgets the counters of one limit, of one key of it, or all. Seats stay. Returns how many, by scope."""
        return {
            "process": self._process.reset(limit, key),
            "host": self._host.reset(limit, key),
            "fleet": await self._fleet.reset(limit, key),
        }

    def start(self) -> None:
        """Begins to talk to the store, on the running loop."""
        self._fleet.start()

    async def stop(self) -> None:
        """Gives back everything that this process holds."""
        await self._fleet.stop()
        self._host.close()


def _of(hits: Sequence[LimitHit], scope: str) -> tuple[LimitHit, ...]:
    return tuple([hit for hit in hits if hit.scope == scope])


def _joined(*answers: Taken) -> Taken:
    """Several answers as one: the longest wait is the one that counts."""
    refused = max(
        (taken for taken in answers if not taken.allowed), key=lambda t: t.retry_after_ns, default=None
    )
    levels = tuple(level for taken in answers for level in taken.levels)
    would = tuple(limit for taken in answers for limit in taken.would)
    if refused is None:
        return Taken(True, None, 0, levels, would)
    return Taken(False, refused.limit, refused.retry_after_ns, levels, would)
