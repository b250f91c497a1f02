"""Puts questions about one client at one place to both engines, and notes where the answers differ."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.policy.addresses import Address, canonical_address, classify, embedded
from edgeguard.policy.decision import Decision, Lane
from edgeguard.policy.diff.admits import admits
from edgeguard.policy.diff.hosts import address_classes
from edgeguard.policy.diff.inside import looks, sample
from edgeguard.policy.diff.side import Network
from edgeguard.policy.diff.values import Effect, Example
from edgeguard.policy.names import is_address
from edgeguard.policy.request import Client, Protocol, Request, User
from edgeguard.policy.tables import Statement

if TYPE_CHECKING:
    from edgeguard.policy.diff.compare import Comparison


class Place(NamedTuple):
    """Where the comparison stands."""

    host: str
    port: int
    client: Client
    at: float
    restricted: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def request(
        self,
        protocol: Protocol,
        method: str | None = None,
        target: str | None = None,
        user: User | None = None,
        overrides: tuple[str, ...] = (),
    ) -> Request:
        return Request(self.client, self.host, self.port, protocol, method, target, user, overrides)


class Live(NamedTuple):
    """The statements that can decide for one client, by side; `alive`: something can be allowed there."""

    old: list[Statement]
    new: list[Statement]
    old_alive: bool
    new_alive: bool
    meant_old: list[Statement]
    meant_new: list[Statement]
    """Those in report mode, and those that do not survive, included."""

    @property
    def looks(self) -> bool:
        return any(looks(s) for s in (*self.meant_old, *self.meant_new))


class Asker:
    """`seen` remembers what was found at this port at an earlier moment or while the policy was current."""

    def __init__(
        self, run: "Comparison", place: Place, live: Live, seen: dict[object, object], *, simple: bool
    ) -> None:
        self._run, self._place, self._live, self._seen, self._simple = run, place, live, seen, simple
        self._since = None if place.at <= run.now else place.at
        self._named = not is_address(place.host)
        self._dead: Decision | None = None
        self._resolved: set[object] = set()
        self._connections: list[tuple[Request, Decision, Decision]] = []
        self._noted: set[object] = set()
        self.effects: set[Effect] = set()

    def connection(self, protocol: Protocol, users: Sequence[User | None]) -> bool:
        """Compares what CONNECT shows. Returns whether some request on it could be allowed.

        Differing verdicts wait for `note_connections`, since a whole request is the better example.
        """
        request = self._place.request(protocol)
        return any(any(answer) for _, answer in self._for_users(request, users, lanes=True))

    def example(self, protocol: Protocol, statement: Statement) -> bool:
        """Asks for one request that the statement, alone where it stands, should grant. Returns whether one side does."""
        if not self.connection(protocol, [None]):
            return False
        if protocol == "tcp":
            self.note_connections()
            return True
        method, target = sample(statement.cond)
        return any(self._ask(self._place.request(protocol, method, target), lanes=False))

    def requests(
        self, request: Request, methods: Sequence[str], users: Sequence[User | None], *, pairs: bool
    ) -> None:
        """Compares one target for all methods and people; with `pairs` also for methods that are overridden.

        A request with two readings is allowed only where both are, so only those pairs are asked.
        """
        allowed: dict[tuple[User | None, int], list[str]] = {}
        for method in methods:
            for user, answer in self._for_users(request._replace(method=method), users, lanes=False):
                for side in (0, 1):
                    if answer[side] and pairs:
                        allowed.setdefault((user, side), []).append(method)
        asked = {(user, pair) for (user, _), some in allowed.items() for pair in combinations(some, 2)}
        for user, (one, two) in sorted(asked, key=repr):
            self._ask(request._replace(method=one, overrides=(two,), user=user), lanes=False)

    def _for_users(
        self, request: Request, users: Sequence[User | None], *, lanes: bool
    ) -> list[tuple[User | None, tuple[bool, bool]]]:
        """Asks for the person who passes no gate, then for the one who passes all, and for others if that leaves a question."""
        found = []
        every = len(users) < 3 or self._run.persons_by_address
        for place, user in enumerate(users):
            answer = self._ask(request._replace(user=user), lanes=lanes)
            found.append((user, answer))
            if not every and ((place == 0 and all(answer)) or (place == 1 and not any(answer))):
                break
        return found

    def note_connections(self) -> None:
        """Notes the connections that only one policy allows."""
        for request, one, two in self._connections:
            self._verdict(request, one, two)

    def _ask(self, request: Request, *, lanes: bool) -> tuple[bool, bool]:
        run, place, live = self._run, self._place, self._live
        run.asked += 1
        one = (
            run.old.engine.decide(request, place.at, restricted=place.restricted) if live.old_alive else None
        )
        two = (
            run.new.engine.decide(request, place.at, restricted=place.restricted) if live.new_alive else None
        )
        left, right = one is not None and one.allow, two is not None and two.allow
        if not left and not right:
            return left, right
        if one is None or two is None or not left or not right:
            one, two = one or self._refused(request), two or self._refused(request)
            if lanes:
                self._connections.append((request, one, two))
            else:
                self._verdict(request, one, two)
            return left, right
        if lanes and one.lane is not two.lane:
            effect = Effect.WIDENING if two.lane is Lane.TUNNEL else Effect.NARROWING
            if self._new("lane", effect, one, two):
                run.found.lane(self._example(request), one, two, self._since)
        if one.limits or two.limits:
            self._limits(request, one, two)
        if self._named and (run.address_zones or one.resolves_to != two.resolves_to):
            self._addresses(request, one, two)
        return left, right

    def _refused(self, request: Request) -> Decision:
        """What the side says on which nothing is allowed; asked once."""
        if self._dead is None:
            run, place = self._run, self._place
            side = run.new if self._live.old_alive else run.old
            self._dead = side.engine.decide(request, place.at, restricted=place.restricted)
        return self._dead

    def _example(self, request: Request, address: str | None = None) -> Example:
        return Example(request, self._place.at, self._place.restricted, address)

    def _new(self, what: str, effect: Effect, one: Decision, two: Decision, more: object = None) -> bool:
        """Whether this difference begins here and now."""
        self.effects.add(effect)
        key = (what, effect, one.allow, one.rule or one.reason, two.allow, two.rule or two.reason, more)
        return self._begins(key)

    def _begins(self, key: object) -> bool:
        """Whether this was not found at this place yet, nor at the same port at an earlier moment."""
        if key in self._noted:
            return False
        self._noted.add(key)
        here = (self._place.at, self._place.restricted)
        return self._seen.setdefault(key, here) == here

    def _verdict(self, request: Request, one: Decision, two: Decision) -> None:
        effect = Effect.WIDENING if two.allow else Effect.NARROWING
        if self._new("verdict", effect, one, two):
            self._run.found.verdict(self._example(request), one, two, self._since, simple=self._simple)

    def _limits(self, request: Request, one: Decision, two: Decision) -> None:
        for effect, text, old, new in self._run.limits.compare(self._live.old, self._live.new, one, two):
            self.effects.add(effect)
            if self._begins(("limit", effect, text, old, new)):
                self._run.found.limit(effect, text, self._example(request), one, two, self._since)

    def _addresses(self, request: Request, one: Decision, two: Decision) -> None:
        """Which resolved addresses may be dialled; asked once unless something on a network looks inside or at a person."""
        run, place = self._run, self._place
        if run.plain_by_address:
            key = (one.resolves_to, two.resolves_to, request.protocol, request.method is None)
            if key in self._resolved:
                return
            self._resolved.add(key)
        names = (
            frozenset((*one.resolves_to, *two.resolves_to))
            if one.resolves_to != two.resolves_to
            else frozenset()
        )
        for text in _candidates(names, tuple(run.address_networks), tuple(run.address_zones)):
            before = admits(run.old.engine, request, text, place.at, restricted=place.restricted)
            after = admits(run.new.engine, request, text, place.at, restricted=place.restricted)
            run.asked += 1
            if bool(before.addresses) is bool(after.addresses):
                continue
            effect = Effect.WIDENING if after.addresses else Effect.NARROWING
            rule = (before if after.addresses else after).rule
            if rule is not None:
                run.pending.discard((effect, rule))
            if self._new("address", effect, one, two, rule):
                run.found.address(self._example(request, text), one, two, self._since, rule, effect)


@lru_cache(256)
def _candidates(
    names: frozenset[str], networks: tuple[Network, ...], zones: tuple[Network, ...]
) -> tuple[str, ...]:
    """An address of every class in the zones and in the networks named by text."""
    from ipaddress import ip_network

    named = [ip_network(name) for name in sorted(names)]
    every = [*networks, *named]
    found: dict[object, Address] = {}
    for address in address_classes(every, [*zones, *named]):
        inner = embedded(address)
        kind = (
            classify(str(address)),
            frozenset(n for n in every if n.version == address.version and address in n),
            frozenset(n for n in networks for a in inner if n.version == 4 and a in n),
        )
        found.setdefault(kind, address)
    return tuple(canonical_address(str(address)) for address in found.values())
