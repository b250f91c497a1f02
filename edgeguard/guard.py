"""The one question that everybody asks: facts in, verdict out.

Front door, lanes, addon, probes and `explain` all come here; a second way to a decision would be
a second policy. The guard joins policy, limits, identity and evidence over one snapshot, and it
is where failing closed is made certain: whatever raises while a verdict is made becomes
`internal_error`, and a verdict that cannot be recorded becomes `capacity_exceeded`.

The way of a verdict: `judge` (names and policy) → the adapter resolves → `admit` (addresses) →
`reserve` (limits that are counted elsewhere; seldom) → `settle` (limits, record). Only a settled
allow may be acted on; a refusal is settled too, which is
what records it.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import lru_cache, partial
from ipaddress import IPv6Network
from typing import Final, NamedTuple

from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.log import DecisionLog
from edgeguard.identity.clients import ClientDirectory, Proof
from edgeguard.identity.plain import PlainReader
from edgeguard.identity.tokens import TokenReader
from edgeguard.limits.taken import Limiter, Ticket
from edgeguard.policy.addresses import WELL_KNOWN, AddressClass, classify
from edgeguard.policy.decision import Decision, Lane, LimitHit
from edgeguard.policy.engine import Engine
from edgeguard.policy.names import HostError, canonical_host, split_authority
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request, User
from edgeguard.verdict import Entry, Facts, Resolved, Verdict

logger = logging.getLogger(__name__)

DEADLINE_TICK_S: Final = 1.0
"""The deadline timer runs on a clock that stands still in suspend, so it never sleeps longer than this."""


MAX_KNOWN: Final = 4096
"""Allowed connections that are known again."""
MAX_REJUDGED: Final = 3
"""How often the policy may change while one request waits for its limits."""
ESSENTIALS: Final = "essentials"
"""What stands for the rule when a closed node lets something through that its configuration and root list."""


class _InForce(NamedTuple):
    """Swapped as one reference, so that a verdict never sees half of a change."""

    snapshot: Snapshot | None
    engine: Engine | None
    """The snapshot's; with this network's NAT64 prefixes if there are any."""
    tokens: TokenReader | None
    known: "dict[tuple[object, ...], _Known]"
    """Connections that were allowed before, by their facts without the connection: pure results, bounded."""


class _Known(NamedTuple):
    """What `judge` would find out again, on [start, end)."""

    start: float
    end: float
    request: Request
    decision: Decision
    ladder: Ladder
    engine: Engine


class Guard:
    """The policy decision point of one process.

    Args:
        clients: Who owns a connection.
        limiter: Rate limits of all scopes.
        log: Takes decisions; when it cannot, new work is refused.
        clock: Trusted time in Unix seconds (`sync/clock.py`).
        essentials: (canonical host, port) pairs that stay reachable when there is no policy to enforce:
            the local configuration within root's list.
        tokens: Makes the reader of user tokens for a snapshot's issuers.
        plain: Reads what listed clients say of a person without a signature.
        nobody: The facts about a person who presents no token, for instance a configured region.
        own: Whether this process listens at an address and port: never to be dialled, whatever a rule says.
        nat64: NAT64 prefixes of this network besides the well-known one (RFC 6052).
        monotonic_ns: Clock of the rate limits.
    """

    def __init__(
        self,
        *,
        clients: ClientDirectory,
        limiter: Limiter,
        log: DecisionLog,
        clock: Callable[[], float] = time.time,
        essentials: Collection[tuple[str, int]] = frozenset(),
        tokens: Callable[[Snapshot], TokenReader] = lambda snapshot: TokenReader(snapshot.issuers),
        plain: PlainReader | None = None,
        nobody: User | None = None,
        own: Callable[[str, int], bool] = lambda _address, _port: False,
        nat64: Sequence[IPv6Network] = (),
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clients = clients
        self._limiter = limiter
        self._log = log
        self._clock = clock
        self._essentials = frozenset(essentials)
        self._tokens = tokens
        self._plain = plain
        self._nobody = nobody
        self._own = own
        self._nat64 = (WELL_KNOWN, *nat64) if nat64 else ()
        self._classify = partial(classify, nat64=self._nat64 or (WELL_KNOWN,))
        self._monotonic_ns = monotonic_ns
        self._in_force = _InForce(None, None, None, {})
        self._ids = itertools.count(1)
        self._boot = secrets.token_hex(5)
        self._subscribers: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_ladder: Ladder | None = None

    # What is in force

    @property
    def snapshot(self) -> Snapshot | None:
        return self._in_force.snapshot

    def ladder(self) -> Ladder:
        """The state at this moment; CLOSED without a policy."""
        snapshot = self._in_force.snapshot
        return Ladder.CLOSED if snapshot is None else snapshot.ladder(self._clock())

    def now(self) -> float:
        """Trusted time, Unix seconds."""
        return self._clock()

    def activate(self, snapshot: Snapshot | None) -> None:
        """Puts a snapshot in force: one reference is swapped. Callable from any thread."""
        before = self._in_force
        if snapshot is None:
            self._in_force = _InForce(None, None, None, {})
        elif before.snapshot is not None and before.snapshot.engine is snapshot.engine:
            self._in_force = before._replace(snapshot=snapshot, known={})
        else:
            engine = Engine(snapshot.engine.tables, nat64=self._nat64) if self._nat64 else snapshot.engine
            self._in_force = _InForce(snapshot, engine, self._tokens(snapshot), {})
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed)
        if before.engine is not None and before.engine is not self._in_force.engine:
            before.engine.forget()

    def start(self) -> None:
        """Begins to watch deadlines on the running loop, which is the traffic's."""
        self._loop = asyncio.get_running_loop()
        self._last_ladder = self.ladder()
        self._arm()

    def stop(self) -> None:
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """`callback` runs on the traffic loop when the snapshot changes or a deadline passes."""
        self._subscribers.append(callback)

    def _changed(self) -> None:
        self._last_ladder = self.ladder()
        for callback in self._subscribers:
            try:
                callback()
            except Exception:
                # One subscriber's failure must not keep the others from closing what is no longer allowed.
                logger.exception("a subscriber to policy changes failed")
        self._arm()

    def _arm(self) -> None:
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock()
        snapshot = self._in_force.snapshot
        deadline = None if snapshot is None else snapshot.next_deadline(now)
        delay = DEADLINE_TICK_S if deadline is None else min(DEADLINE_TICK_S, max(0.0, deadline - now))
        self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self.ladder() is self._last_ladder:
            self._arm()
        else:
            self._changed()

    # Verdicts

    def identify(
        self, peer: str | None, proxy_authorization: Sequence[str] = (), proof: Proof | None = None
    ) -> Client:
        """Who owns the connection. Raises `identity.clients.CredentialsInvalid`."""
        return self._clients.identify(peer, proxy_authorization, proof)

    def judge(self, facts: Facts) -> Verdict:
        """Names and policy. Nothing is charged or recorded. Never raises."""
        in_force = self._in_force
        now = self._clock()
        ident = f"{self._boot}-{next(self._ids):x}"
        method = facts.method
        request: Request | None
        engine: Engine | None
        try:
            if method is None and (known := in_force.known.get(facts[1:])) is not None:
                start, end, request, decision, ladder, engine = known
                if start <= now < end:
                    fields = (ident, now, facts, request, decision, in_force.snapshot, ladder, engine)
                    return _new(Verdict, fields + _NOT_YET)
            ladder = Ladder.CLOSED if in_force.snapshot is None else in_force.snapshot.ladder(now)
            request, decision, engine = self._decide(facts, in_force, ladder, now)
            plain = facts[_METHOD:] == NOTHING_INSIDE
            if plain and decision.allow and request is not None and engine is not None:
                _keep(
                    facts,
                    in_force,
                    _Known(now, _end(in_force, decision, now), request, decision, ladder, engine),
                )
        except Exception:
            # Fail closed: whatever went wrong, nobody is let through.
            logger.exception("deciding failed")
            ladder = Ladder.CLOSED
            request, decision, engine = None, _refusal(Reason.INTERNAL_ERROR), None
        return Verdict(ident, now, facts, request, decision, in_force.snapshot, ladder, engine)

    def _decide(
        self, facts: Facts, in_force: _InForce, ladder: Ladder, now: float
    ) -> tuple[Request | None, Decision, Engine | None]:
        try:
            host = _canonical(facts.host)
            claimed = [_split(name, facts.port) for name in facts.names]
        except HostError:
            return None, _refusal(Reason.MALFORMED_REQUEST), None
        snapshot, engine, tokens, _ = in_force
        user = self._nobody
        if facts.tokens and tokens is not None:
            user = tokens.read(facts.tokens, now)
        elif facts.plain and self._plain is not None:
            user = self._plain.read(facts.client, facts.plain, now) or user
        request = Request(
            facts.client, host, facts.port, facts.protocol, facts.method, facts.target, user, facts.overrides
        )
        for name, port in claimed:
            if name != host or port != facts.port:
                return request, _refusal(Reason.MISDIRECTED_REQUEST), None
        if snapshot is None or engine is None or ladder is Ladder.CLOSED or ladder is Ladder.QUARANTINED:
            if (host, facts.port) in self._essentials:
                return request, Decision(allow=True, rule=ESSENTIALS, lane=Lane.TUNNEL), None
            if ladder is Ladder.QUARANTINED:
                return request, _refusal(Reason.QUARANTINED), None
            why = Reason.POLICY_MISSING if snapshot is None else snapshot.closed_reason()
            return request, _refusal(why), None
        return request, engine.decide(request, now, restricted=ladder is Ladder.RESTRICTED), engine

    def admit(self, verdict: Verdict, addresses: Sequence[str]) -> Verdict:
        """Narrows an allow to the resolved addresses that may be dialled, or refuses it. Never raises.

        Args:
            verdict: From `judge`. A refusal is returned as it is.
            addresses: Canonical address literals, in the order of preference.
        """
        request = verdict.request
        if not verdict.decision.allow or request is None:
            return verdict
        engine = verdict.engine
        try:
            if engine is None:
                kept = tuple(a for a in addresses if self._classify(a) in _ESSENTIAL_SPACE)
                reason, rule = None if kept else Reason.ADDRESS_NOT_ALLOWED, None
            else:
                kept, reason, rule = engine.admit(
                    request,
                    addresses,
                    verdict.now,
                    restricted=verdict.ladder is Ladder.RESTRICTED,
                    decision=verdict.decision,
                )
                if type(addresses) is Resolved:
                    verdict = verdict._replace(aliases=addresses.aliases)
                if verdict.aliases:
                    closed = verdict.decision.lane is Lane.TUNNEL
                    denied = engine.denied(request, verdict.aliases, verdict.now, closed=closed)
                    if denied is not None:
                        kept, reason, rule = (), Reason.DENIED_BY_RULE, denied
            own, port = self._own, request.port
            if len(kept) != 1:
                kept = tuple([a for a in kept if not own(a, port)])
            elif own(kept[0], port):
                kept = ()
        except Exception:
            # Fail closed: an address that could not be judged is not dialled.
            logger.exception("judging addresses failed")
            kept, reason, rule = (), Reason.INTERNAL_ERROR, None
        fields = (*verdict[:_ADDRESSES], kept, tuple(addresses), *verdict[_ADDRESSES + 2 :])
        verdict = _new(Verdict, fields)
        return verdict if kept else _refused(verdict, reason or Reason.ADDRESS_NOT_ALLOWED, rule)

    def reserve(self, verdict: Verdict) -> Awaitable[Verdict] | None:
        """What has to be awaited before `settle`, for limits that are counted elsewhere; None: nothing. Never raises.

        The awaited verdict takes the place of the argument. If the policy changed while it waited, it is a
        new judgement, so that nothing is charged under another policy than the one that decided.
        """
        limits = verdict.decision.limits
        if not verdict.decision.allow or not _in_scope(limits, "fleet"):
            return None
        try:
            waiting = self._limiter.reserve(_due(verdict), self._monotonic_ns())
        except Exception:
            # `settle` comes next, and fails closed if it meets the same.
            logger.exception("reserving at the limits failed")
            return None
        return None if waiting is None else self._reserved(verdict, waiting)

    async def _reserved(self, verdict: Verdict, waiting: Awaitable[Ticket]) -> Verdict:
        rounds = 0
        while True:
            ticket = await waiting
            if self._stands(verdict):
                return verdict._replace(ticket=ticket)
            self._limiter.give_back(ticket)
            verdict = self.rejudge(verdict)._replace(id=verdict.id)
            rounds += 1
            if not verdict.allow:
                return verdict
            if rounds == MAX_REJUDGED:
                return _refused(verdict, Reason.CAPACITY_EXCEEDED, None)
            again = self._limiter.reserve(_due(verdict), self._monotonic_ns())
            if again is None:
                return verdict
            waiting = again

    def _stands(self, verdict: Verdict) -> bool:
        """Whether what a verdict was made under is still in force."""
        snapshot, until = self._in_force.snapshot, verdict.until
        now = self._clock()
        ladder = Ladder.CLOSED if snapshot is None else snapshot.ladder(now)
        return (
            snapshot is verdict.snapshot
            and ladder is verdict.ladder
            and not (until is not None and until <= now)
        )

    def forgo(self, verdict: Verdict) -> None:
        """The end of a verdict that is never settled, since the client has left: what was awaited is given back.

        Nothing is charged. It is recorded all the same: the name may have been resolved by then.
        """
        if verdict.ticket is not None:
            self._limiter.give_back(verdict.ticket)
        entry = Entry(verdict, 0, 0, "client_lost", self._clock()) if verdict.allow else Entry(verdict)
        if not self._log.offer(entry):
            logger.warning("no room to record the end of %s", verdict.id)

    def settle(self, verdict: Verdict, *, before: Verdict | None = None) -> Verdict:
        """Checks and charges the limits and writes the record: the final word on an allow. Never raises.

        `before` is the settled allow of the same tunnel whose place this one takes: it is one tunnel, so what
        counts tunnels is not charged again. The result may be `rate_limited` or `capacity_exceeded` where the argument was an allow.
        """
        try:
            if verdict.decision.allow:
                hits = _due(verdict)
                if before is not None:
                    counted = {hit[:2] for hit in _in_unit(before.decision.limits, "tunnels")}
                    hits = tuple([hit for hit in hits if hit[:2] not in counted])
                if hits:
                    taken = self._limiter.take(hits, self._monotonic_ns(), 1, verdict.ticket)
                    verdict = _new(Verdict, (*verdict[:_TAKEN], taken, None, *verdict[_TAKEN + 2 :]))
                    if not taken.allowed:
                        verdict = _refused(verdict, Reason.RATE_LIMITED, taken.limit)
            elif verdict.ticket is not None:
                self._limiter.give_back(verdict.ticket)
                verdict = verdict._replace(ticket=None)
            if not self._log.offer(_new(Entry, (verdict, *_OPEN))) and verdict.decision.allow:
                self._release(verdict)
                verdict = _refused(verdict, Reason.CAPACITY_EXCEEDED, None)
        except Exception:
            # Fail closed: what could not be charged or recorded does not happen.
            logger.exception("settling a verdict failed")
            verdict = _refused(verdict, Reason.INTERNAL_ERROR, None)
        return verdict

    def refuse(self, verdict: Verdict, reason: Reason, rule: str | None = None) -> Verdict:
        """Turns a verdict into a refusal and records it: what was found out after `settle`. Never raises."""
        self._release(verdict)
        return self.settle(_refused(verdict, reason, rule))

    def rejudge(self, verdict: Verdict) -> Verdict:
        """The same question under what is in force now, for tunnels and streams that live on."""
        again = self.judge(verdict.facts)
        if not verdict.addresses:
            return again
        return self.admit(again._replace(aliases=verdict.aliases), verdict.addresses)

    def spend(self, verdict: Verdict, moved: int) -> bool:
        """Charges bytes of an open tunnel to its budgets; False: one is used up, and the tunnel has to end."""
        hits = _in_unit(verdict.decision.limits, "bytes")
        return not hits or self._limiter.spend(hits, self._monotonic_ns(), moved).allowed

    def finish(self, verdict: Verdict, *, sent: int, received: int, why: str, charged: int = 0) -> None:
        """The end of a tunnel or request that was allowed: frees what it held, records its bytes.

        Args:
            verdict: The settled allow.
            sent: Bytes from the client to the upstream.
            received: Bytes from the upstream to the client.
            why: What ended it, one word.
            charged: How many of the bytes `spend` was told of already.
        """
        if verdict.decision.limits:
            self._release(verdict)
            self.spend(verdict, sent + received - charged)
        if not self._log.offer(_new(Entry, (verdict, sent, received, why, self._clock()))):
            logger.warning("no room to record the end of %s", verdict.id)

    def _release(self, verdict: Verdict) -> None:
        if verdict.taken is not None and verdict.taken.allowed and verdict.facts.method is None:
            held = _in_unit(verdict.decision.limits, "concurrent_tunnels")
            if held:
                self._limiter.release(held)


# Verdicts are made anew several times for each tunnel, where `_replace` would cost more than the change.
_new = tuple.__new__
_ADDRESSES: Final = Verdict._fields.index("addresses")
"""`resolved` follows it."""
_TAKEN: Final = Verdict._fields.index("taken")
"""`ticket` follows it."""
_NOT_YET: Final = tuple(Verdict._field_defaults.values())[1:]
"""The fields after `engine`, before there is anything in them."""
_OPEN: Final = tuple(Entry._field_defaults.values())
_METHOD: Final = Facts._fields.index("method")
NOTHING_INSIDE: Final = tuple(Facts._field_defaults.values())[-len(Facts._fields) + _METHOD :]
"""The fields from `method` on, of a connection of which only the destination is known."""
_ESSENTIAL_SPACE: Final = frozenset({AddressClass.PUBLIC, AddressClass.PRIVATE})
_canonical = lru_cache(maxsize=8192)(canonical_host)
_split = lru_cache(maxsize=8192)(split_authority)


def _refusal(reason: Reason, rule: str | None = None) -> Decision:
    return Decision(allow=False, reason=reason, rule=rule)


def _refused(verdict: Verdict, reason: Reason, rule: str | None) -> Verdict:
    decision = verdict.decision._replace(allow=False, reason=reason, rule=rule or verdict.decision.rule)
    return verdict._replace(decision=decision, addresses=())


def _due(verdict: Verdict) -> tuple[LimitHit, ...]:
    """The limits that this question is charged to.

    Requests are counted inside, the rest at CONNECT; bytes inside only where no CONNECT counted them.
    """
    limits = verdict.decision.limits
    if verdict.facts.method is not None:
        return tuple([hit for hit in limits if hit.unit in {"requests", "bytes"}])
    for hit in limits:
        if hit.unit == "requests":
            return tuple([hit for hit in limits if hit.unit != "requests"])
    return limits


def _in_unit(limits: tuple[LimitHit, ...], unit: str) -> tuple[LimitHit, ...]:
    for hit in limits:
        if hit.unit == unit:
            return tuple([hit for hit in limits if hit.unit == unit])
    return ()


def _in_scope(limits: tuple[LimitHit, ...], scope: str) -> bool:
    for hit in limits:  # noqa: SIM110 - a generator costs as much as all the rest
        if hit.scope == scope:
            return True
    return False


def _end(in_force: _InForce, decision: Decision, now: float) -> float:
    """When time alone may change a decision of a policy: by itself, or because the ladder moves."""
    end = None if in_force.snapshot is None else in_force.snapshot.next_deadline(now)
    if end is None:
        return now
    return end if decision.until is None else min(end, decision.until)


def _keep(facts: Facts, in_force: _InForce, known: _Known) -> None:
    if len(in_force.known) >= MAX_KNOWN:
        in_force.known.clear()
    in_force.known[facts[1:]] = known
