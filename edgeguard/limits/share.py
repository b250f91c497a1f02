"""What holds while a counter that others share cannot be reached: each limit's `on_store_error`.

`local_share` counts here alone, with the limit divided by those who share it; the burst, too. So
the sum over all of them stays the limit, whoever of them still reaches the counter.
"""

import logging
from collections.abc import Sequence
from typing import Final

from edgeguard.limits.process import ProcessLimiter
from edgeguard.limits.taken import Taken
from edgeguard.policy.decision import LimitHit

logger = logging.getLogger(__name__)

RETRY_NS: Final = 1_000_000_000
"""When a client should try again that `deny` refused: nobody knows, so a second."""
_HOT: Final = 4096


def share_of(hit: LimitHit, sharers: int) -> LimitHit:
    """The part of a limit that one of `sharers` may use: the same burst in time, at a fraction of the rate."""
    if hit.unit == "concurrent_tunnels":
        return hit._replace(quota=max(1, hit.quota // sharers))
    return hit._replace(period_ns=hit.period_ns * sharers, burst=max(1, hit.burst // sharers))


class Shares:
    """Stands in for a shared counter. `max_keys` bounds every limit's table, as in `ProcessLimiter`."""

    def __init__(self, max_keys: int) -> None:
        self._local = ProcessLimiter(max_keys)
        self._hot: dict[tuple[LimitHit, int], LimitHit] = {}
        self.sharers = 1
        """How many share the counter."""

    def take(self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1) -> Taken:
        """See `ProcessLimiter.take`."""
        refused = self._denied(hits)
        return refused or self._local.take(self._counted(hits), now_ns, amount)

    def spend(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        """See `ProcessLimiter.spend`."""
        refused = self._denied(hits)
        return refused or self._local.spend(self._counted(hits), now_ns, amount)

    def release(self, hits: Sequence[LimitHit]) -> None:
        """See `ProcessLimiter.release`."""
        self._local.release(hits)

    def holds(self, hit: LimitHit) -> bool:
        """Whether a seat of this limit and key was taken here."""
        return self._local.seated(hit) > 0

    def _denied(self, hits: Sequence[LimitHit]) -> Taken | None:
        for hit in hits:
            if hit.on_store_error == "deny" and hit.enforced:
                return Taken(False, hit.limit, RETRY_NS)
        return None

    def _counted(self, hits: Sequence[LimitHit]) -> tuple[LimitHit, ...]:
        return tuple(
            self._scaled(hit) if hit.on_store_error == "local_share" else hit
            for hit in hits
            if hit.on_store_error not in {"allow", "deny"}
        )

    def _scaled(self, hit: LimitHit) -> LimitHit:
        known = self._hot.get((hit, self.sharers))
        if known is None:
            if len(self._hot) >= _HOT:
                self._hot.clear()
            known = self._hot[hit, self.sharers] = share_of(hit, self.sharers)
        return known
