"""What all connections of one process share: services, caps, deadlines, and re-judging.

There is one coarse clock. Phases before the tunnel (head, dial, hello, refusal) have a deadline
each, compared a few times a second; tunnels are swept by comparing byte counters. When the
policy changes, everything that is open is judged again, in slices, so that traffic goes on
meanwhile; what is no longer allowed ends at once.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from edgeguard.guard import Guard
from edgeguard.identity.clients import CHALLENGE
from edgeguard.policy.decision import Lane
from edgeguard.policy.keys import client_key
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.heads import ROUTING
from edgeguard.proxy.page import Links
from edgeguard.proxy.passages import Passages
from edgeguard.proxy.relay import Tunnel
from edgeguard.proxy.resolver import Resolver
from edgeguard.proxy.sites import open_sites
from edgeguard.settings import Settings
from edgeguard.verdict import Verdict

logger = logging.getLogger(__name__)

TICK_S: Final = 0.25
"""Precision of all deadlines here, at most; shorter limits get a quarter of themselves."""
SLICE: Final = 256
"""Connections that are judged again before traffic gets its turn: about half a millisecond."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a door asks of others."""

    guard: Guard
    resolver: Resolver
    dialer: Dialer
    passages: Passages
    settings: Settings
    clock: Callable[[], float] = time.time
    """Trusted time in Unix seconds, the guard's."""


class Open(Protocol):
    """A connection that an allow keeps open."""

    until: float | None

    @property
    def verdict(self) -> Verdict | None: ...

    def end(self, why: str, /) -> None: ...


class Metered(Open, Protocol):
    """A connection that its verdict gives a budget of bytes."""

    charged: int
    """Bytes that the guard was told of."""

    @property
    def moved(self) -> int: ...


class Phase(Protocol):
    """A connection in a phase with a deadline."""

    deadline: float

    def expire(self) -> None: ...

    def abort(self) -> None: ...


class Door:
    """The shared state of all listeners of a process. Everything runs on one event loop.

    Attributes:
        now: The coarse clock: the loop's time at the last tick.
        generation: Raised whenever the policy may have changed.
        connections: Client connections that are open in whatever phase.
        turned_away: How many found the place taken, or the door closing.
        failed: How many failed before their first request, by what they failed at.
        bare: A head of routing fields only names nobody, whatever the configuration calls its own headers.
        draining: No new connections are taken any more.
    """

    def __init__(self, services: Services, loop: asyncio.AbstractEventLoop) -> None:
        self.guard = services.guard
        self.resolver = services.resolver
        self.dialer = services.dialer
        self.passages = services.passages
        self.bounds = services.settings.bounds
        self.user_header = services.settings.user.header
        self.links = Links(*services.settings.replies.model_dump().values())
        self.plain_headers = tuple(services.settings.user.plain.headers)
        self.bare = ROUTING.isdisjoint({self.user_header, *self.plain_headers})
        self.sites = open_sites(services.settings.site)
        self.challenge = CHALLENGE if services.settings.identity.secret else None
        self.loop = loop
        self.clock = services.clock
        self.now = loop.time()
        self.generation = 0
        self.connections = 0
        self.turned_away = 0
        self.failed: Counter[str] = Counter()
        self.phases: set[Phase] = set()
        self.open: set[Open] = set()
        self.tunnels: set[Tunnel] = set()
        self.metered: set[Metered] = set()
        self.draining = False
        self.closed = False
        limits = (self.bounds.head_s, self.bounds.dial_s, self.bounds.hello_s, self.bounds.drain_s)
        self._tick_s = max(0.01, min(TICK_S, min(limits) / 4))
        self._sweep_s = max(0.01, min(1.0, self.bounds.idle_s / 4, self.bounds.half_closed_s / 4))
        self._swept = self.now
        self._drained_at = 0.0
        self._next_until = float("inf")
        self._held: dict[str, int] = {}
        self._held_total = 0
        self._names = itertools.count(1)
        self._boot = secrets.token_hex(3)
        self._rejudging: Iterator[Open] | None = None
        # The coarse clock lags by up to a tick; deadlines add it, so that none strikes early.
        self.head_s = self.bounds.head_s + self._tick_s
        self.dial_s = self.bounds.dial_s + self._tick_s
        self.hello_s = self.bounds.hello_s + self._tick_s
        self.server_first_s = self.bounds.server_first_s + self._tick_s
        self.linger_s = self.bounds.drain_s + self._tick_s
        self._timer = loop.call_later(self._tick_s, self._tick)
        self.guard.subscribe(self._policy_changed)

    def connection_id(self) -> str:
        return f"{self._boot}-{next(self._names):x}"

    # Caps

    def take(self, client: Client) -> str | None:
        """A tunnel's place, or None when the caps leave none. Returns the key that `release` wants back.

        Clients without a name share those of their network (IPv6: a /64).
        """
        key = client_key(client)
        held = self._held.get(key, 0)
        if self._held_total >= self.bounds.tunnels or held >= self.bounds.tunnels_per_client:
            return None
        self._held[key] = held + 1
        self._held_total += 1
        return key

    def release(self, key: str) -> None:
        self._held_total -= 1
        left = self._held[key] - 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]

    @property
    def held(self) -> int:
        """Places that are taken: tunnels and connections in the mitmproxy lane, those being set up included."""
        return self._held_total

    # What is open

    def opened(self, connection: Open) -> None:
        """A verdict now keeps this connection open."""
        self.open.add(connection)
        until = connection.until
        if until is not None and until < self._next_until:
            self._next_until = until

    def meter(self, connection: Metered, verdict: Verdict) -> None:
        """From now on a connection's bytes are charged while they move, if there is a budget for them."""
        for hit in verdict.decision.limits:
            if hit.unit == "bytes":
                self.metered.add(connection)
                return

    def _charge(self) -> None:
        for connection in tuple(self.metered):
            moved, verdict = connection.moved, connection.verdict
            if moved > connection.charged and verdict is not None:
                more, connection.charged = moved - connection.charged, moved
                try:
                    good = self.guard.spend(verdict, more)
                except Exception:
                    # Fail closed: what cannot be charged does not go on.
                    logger.exception("charging bytes failed")
                    good = False
                if not good:
                    connection.end(Reason.RATE_LIMITED.value)

    def tunnel_done(self, tunnel: Tunnel) -> None:
        """The end of a tunnel, however it came."""
        self.tunnels.discard(tunnel)
        self.metered.discard(tunnel)
        self.open.discard(tunnel)
        self.connections -= 1
        self.release(tunnel.key)
        self.guard.finish(
            tunnel.verdict,
            sent=tunnel.client.count,
            received=tunnel.upstream.count,
            why=tunnel.ended_by or "closed",
            charged=tunnel.charged,
        )

    def drain(self) -> None:
        """The listener has stopped: what is open may finish until `drain_s` has passed."""
        if self.draining:
            return
        self.draining = True
        self._drained_at = self.loop.time() + self.bounds.drain_s
        if not self.connections:
            self.close()

    def close(self) -> None:
        """Ends everything that is open, now."""
        self.draining = self.closed = True
        self._timer.cancel()
        for connection in tuple(self.open):
            connection.end("shutdown")
        for phase in tuple(self.phases):
            phase.abort()

    # Deadlines

    def _tick(self) -> None:
        self.now = now = self.loop.time()
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        for phase in [phase for phase in self.phases if phase.deadline <= now]:
            try:
                phase.expire()
            except Exception:
                # Fail closed: one connection's trouble keeps no other's deadline from striking.
                logger.exception("a connection could not be refused in order")
                phase.abort()
        if now - self._swept >= self._sweep_s:
            self._swept = now
            idle_s, half_closed_s = self.bounds.idle_s, self.bounds.half_closed_s
            for tunnel in tuple(self.tunnels):
                tunnel.sweep(now, idle_s, half_closed_s)
        if self.metered:
            self._charge()
        if self.clock() >= self._next_until:
            self._policy_changed()
        if self.draining and (not self.connections or now >= self._drained_at):
            self.close()

    # Re-judging

    def _policy_changed(self) -> None:
        """Judges again everything that is open; a change that comes meanwhile starts over."""
        if self.closed:
            return
        self.generation += 1
        running = self._rejudging is not None
        self._rejudging = iter(tuple(self.open))
        self._next_until = float("inf")
        if not running:
            self._rejudge_slice()

    def _rejudge_slice(self) -> None:
        remaining = self._rejudging
        if remaining is None or self.closed:
            return
        done = 0
        for connection in itertools.islice(remaining, SLICE):
            done += 1
            if connection in self.open:
                self._rejudge(connection)
        if done == SLICE:
            self.loop.call_soon(self._rejudge_slice)
        else:
            self._rejudging = None

    def _rejudge(self, connection: Open) -> None:
        verdict = connection.verdict
        if verdict is None:
            return
        try:
            again = self.guard.rejudge(verdict)
            if again.allow and (verdict.lane is Lane.INSPECT or again.lane is Lane.TUNNEL):
                connection.until = again.until
                if again.until is not None and again.until < self._next_until:
                    self._next_until = again.until
                return
            connection.end(again.reason.value if again.reason else "policy_changed")
        except Exception:
            # Fail closed: what could not be judged again does not stay open.
            logger.exception("judging an open connection again failed")
            connection.end("internal_error")
