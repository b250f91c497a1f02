"""What a limiter answers, whatever the scope: taken or not, how full each limit is, when to come back."""

from collections.abc import Awaitable, Sequence
from typing import Final, NamedTuple, Protocol

from edgeguard.limits.gcra import TICK_BITS, Rate, more_in_ns, remaining
from edgeguard.policy.decision import LimitHit

SEAT_RETRY_NS: Final = 1_000_000_000
"""When to try again where only somebody's leaving helps: nobody knows, so a second."""


class LimitsError(Exception):
    """A counter that others share cannot be reached. Says which and why."""


class LimitState(NamedTuple):
    """What a client may be told about one limit (`RateLimit` and `RateLimit-Policy` fields)."""

    limit: str
    quota: int
    period_ns: int
    remaining: int
    """Units that may come at once now."""
    reset_ns: int
    """Nanoseconds until there is more; 0 when the quota is whole, or when only a release brings more."""
    unit: str = "requests"


class Level(NamedTuple):
    """How full one limit is, in raw terms."""

    hit: LimitHit
    value: int
    """Theoretical arrival time in ticks, or seats taken."""
    now: int
    """Ticks."""

    def state(self) -> LimitState:
        hit, value, now = self
        if hit.unit == "concurrent_tunnels":
            return LimitState(hit.limit, hit.quota, hit.period_ns, max(0, hit.quota - value), 0, hit.unit)
        rate = Rate.of(hit.quota, hit.period_ns, hit.burst)
        left, more = remaining(value, now, rate), more_in_ns(value, now, rate)
        return LimitState(hit.limit, hit.quota, hit.period_ns, left, more, hit.unit)


def _near(hit: LimitHit, value: int, now: int) -> bool:
    """Whether four fifths are used: fields of a `Level`. Without a `Rate`: every record asks."""
    if hit.unit == "concurrent_tunnels":
        return value * 5 >= hit.quota * 4
    return (value - now) * hit.quota * 5 >= (hit.burst * hit.period_ns << TICK_BITS) * 4


class Taken(NamedTuple):
    """The answer for all limits of one request."""

    allowed: bool
    limit: str | None = None
    """The limit that refused; of several, the one to wait for longest."""
    retry_after_ns: int = 0
    """Nanoseconds until every refusing limit has quota again; 0 if allowed."""
    levels: tuple[tuple[LimitHit, int, int], ...] = ()
    """Of the enforced limits, after the charge: the fields of `Level`."""
    would: tuple[str, ...] = ()
    """Report-mode limits that would have refused."""

    @property
    def states(self) -> tuple[LimitState, ...]:
        """`levels` in a client's terms, computed on demand: most requests never ask."""
        return tuple([Level(*level).state() for level in self.levels])

    @property
    def near(self) -> tuple[str, ...]:
        """Limits that let this pass and are nearly used up."""
        return tuple([level[0].limit for level in self.levels if _near(*level)]) if self.allowed else ()


class Usage(NamedTuple):
    """Fill of one limit's table, for metrics and `limits status`."""

    keys: int
    overflowed: int
    """Requests that were sent to the overflow bucket since the start."""


class Answer(NamedTuple):
    """What a store said about one limit before the request was settled."""

    granted: int
    """Units that were charged to the store for this request; 0: refused, or nobody answered."""
    wait_ns: int = 0
    """Of a refusal: nanoseconds until there is quota again."""
    down: bool = False
    """Nobody answered in time: the limit's `on_store_error` decides."""
    leased: bool = False
    """The units came out of a lease that this node held already."""


class Ticket:
    """Answers that were awaited for one request; `Limiter.take` redeems it, or `Limiter.give_back` undoes it."""

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str, bool], Answer] = {}
        """By limit, key, and whether it is enforced."""


class Take(Protocol):
    """Checks every limit, and charges all of them if no enforced one refuses."""

    def __call__(
        self, hits: Sequence[LimitHit], now_ns: int, amount: int = 1, ticket: Ticket | None = None
    ) -> Taken: ...


class Limiter(Protocol):
    """What the guard asks about limits. All of it runs on the traffic's loop; nothing but `reserve` waits."""

    def reserve(self, hits: Sequence[LimitHit], now_ns: int) -> Awaitable[Ticket] | None:
        """What has to be awaited before `take`, where a limit is counted elsewhere; None: nothing."""

    @property
    def take(self) -> Take: ...

    def give_back(self, ticket: Ticket) -> None:
        """Undoes what was awaited for a request that does not happen."""

    def spend(self, hits: Sequence[LimitHit], now_ns: int, amount: int) -> Taken:
        """Charges bytes that have moved already. `allowed` is False when a budget is used up."""

    def release(self, hits: Sequence[LimitHit]) -> None:
        """Gives the seats of `concurrent_tunnels` back."""
