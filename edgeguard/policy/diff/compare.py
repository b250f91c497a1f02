"""The comparison: walk through everything that has to be told apart and put each question to both engines.

    host class, port range, moment, client class, restricted, protocol, method, target, person

Only statements that meet a destination tell its requests apart, so the product stays small; destinations that both policies treat
with the same statements are not asked about. The verdicts come from the engines and nowhere else. Where a cap ends the
enumeration, the answer is "undecided", never "equal".
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from edgeguard.policy.addresses import Address, canonical_address, classify
from edgeguard.policy.diff.ask import Asker, Live, Place
from edgeguard.policy.diff.clients import ENFORCED, client_classes
from edgeguard.policy.diff.collect import Attribution, Collector
from edgeguard.policy.diff.hosts import address_classes, name_classes, port_classes, touches_teredo
from edgeguard.policy.diff.inside import Inside, user_classes
from edgeguard.policy.diff.issuers import compare_issuers
from edgeguard.policy.diff.limits import LimitComparer
from edgeguard.policy.diff.moments import moment_classes
from edgeguard.policy.diff.side import Met, Network, Side, pattern_networks
from edgeguard.policy.diff.total import sum_up
from edgeguard.policy.diff.values import Difference, Domain, Effect
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import is_address
from edgeguard.policy.request import Protocol, User
from edgeguard.policy.tables import HostPattern, Statement

MAX_QUESTIONS: Final = 50_000
"""Requests of one client at one destination and moment."""
MAX_TOTAL: Final = 2_000_000
"""Questions of one comparison."""
_PROTOCOLS: Final[tuple[Protocol, ...]] = ("tls", "http", "websocket", "tcp")
_GRANTING: Final = frozenset({Kind.ALLOW, Kind.LEARN})


def compare(old: Mapping[str, object], new: Mapping[str, object], now: float) -> Difference:
    """How `new` differs from `old` for whoever asks at `now` (Unix seconds) or later. Both are compiled sections.

    Raises `TablesError` for sections that are not a policy.
    """
    return Comparison(old, new, now).run()


class Comparison:
    """One run. Makes no use of anything but the two policies and the moment."""

    def __init__(self, old: Mapping[str, object], new: Mapping[str, object], now: float) -> None:
        numbers: dict[object, int] = {}
        self.sections = old, new
        self.old, self.new, self.now = Side(old, numbers), Side(new, numbers), now
        self.attribution = Attribution(old, new)
        self.found = Collector(self.attribution)
        self.inside = Inside()
        self.limits = LimitComparer(self.old, self.new)
        self.asked = 0
        mine = {(network, m.number): m for network, m in self.old.by_address}
        theirs = {(network, m.number): m for network, m in self.new.by_address}
        shared = [m for key, m in mine.items() if key in theirs]
        only_old = [(n, m) for (n, _), m in mine.items() if (n, m.number) not in theirs]
        only_new = [(n, m) for (n, _), m in theirs.items() if (n, m.number) not in mine]
        self.by_address = (
            [*(m for _, m in only_old), *shared],
            [*(m for _, m in only_new), *shared],
        )
        """Denies and gates on networks: they concern every name, by what it resolves to."""
        self.address_zones: list[Network] = [n for n, _ in (*only_old, *only_new)]
        self.address_networks = list({network for network, _ in (*mine, *theirs)})
        watching = (
            [m.statement for m in (*self.by_address[0], *self.by_address[1])] if self.address_zones else []
        )
        self.persons_by_address = any(s.kind is Kind.GATE for s in watching)
        self.plain_by_address = not self.persons_by_address and not any(
            cond.residual for s in watching for cond in (s.cond, *(lift.cond for lift in s.lifts))
        )
        """No statement on a network looks inside a connection, so one request of each protocol stands for all."""
        self.pending = {(Effect.WIDENING, m.statement.id) for _, m in only_old}
        self.pending |= {(Effect.NARROWING, m.statement.id) for _, m in only_new}
        """Statements on networks of which no example is known yet."""

    def run(self) -> Difference:
        if self.attribution.differ:
            self._names()
            self._literals()
        issuers = tuple(compare_issuers(self.old.tables.issuers, self.new.tables.issuers))
        return sum_up(
            self.old,
            self.new,
            self.sections,
            self.now,
            (*self.found.changes, *issuers),
            self.found.undecided,
            self.asked,
        )

    # destinations

    def _names(self) -> None:
        exact_old, below_old = self.old.names()
        exact_new, below_new = self.new.names()
        for host in name_classes(exact_old | exact_new, below_old | below_new):
            if not is_address(host):
                self._host(host, None)
            if self.asked > MAX_TOTAL:
                why = f"more than {MAX_TOTAL} questions to ask"
                self.found.give_up(Domain.EGRESS, "the policy as a whole", why)
                return

    def _literals(self) -> None:
        """An address of every class that somebody may be allowed to name."""
        networks: list[Network] = []
        zones: list[Network] = []
        inside: list[Network] = []
        for side in (self.old, self.new):
            for network, statements in side.networks():
                networks.append(network)
                granting = [s for s in statements if s.kind is Kind.ALLOW and s.percent]
                if granting:
                    zones.append(network)
                    inside += [n for s in granting for n in s.resolves]
            networks += pattern_networks(side.patterns())
        learns = any(s.kind is Kind.LEARN for side in (self.old, self.new) for s in side.everywhere())
        if not zones and not learns:
            return
        if touches_teredo(inside):
            self.found.give_up(Domain.EGRESS, "2001::/32", "Teredo addresses carry two other addresses each")
        seen: set[object] = set()
        everything = list(dict.fromkeys((*networks, *inside)))
        for address in address_classes(everything, None if learns else zones):
            self._host(canonical_address(str(address)), address, seen)

    def _host(self, host: str, literal: Address | None, seen: set[object] | None = None) -> None:
        before, after = self.old.meets(host, literal), self.new.meets(host, literal)
        if not any(m.statement.kind in _GRANTING and m.statement.percent for m in chain(before, after)):
            return
        mine = {(m.number, m.low, m.high) for m in before}
        theirs = {(m.number, m.low, m.high) for m in after}
        by_address = literal is None and bool(self.address_zones)
        if mine == theirs and not (by_address and self.pending):
            return
        if seen is not None and literal is not None:
            key = (frozenset(mine), frozenset(theirs), _kind_of(literal, (*before, *after)))
            if key in seen:
                return
            seen.add(key)
        if by_address:
            before, after = [*before, *self.by_address[0]], [*after, *self.by_address[1]]
        asked: set[object] = set()
        for port in port_classes([*before, *after]):
            here, there = _on(before, port), _on(after, port)
            numbers = frozenset(m.number for m in here), frozenset(m.number for m in there)
            kind = (numbers, port == 80, tuple(p.low <= port <= p.high for p in _patterns((*here, *there))))
            if numbers[0] != numbers[1] and kind not in asked:
                asked.add(kind)
                self._port(host, port, _distinct(here), _distinct(there))

    def _port(self, host: str, port: int, before: list[Statement], after: list[Statement]) -> None:
        moments, complete = moment_classes(self.old, self.new, before, after, self.now)
        if not complete:
            why = "too many moments at which something begins or ends"
            self.found.give_up(Domain.EGRESS, f"{host}:{port}", why)
        seen: dict[object, object] = {}
        for at, (mine, theirs) in moments:
            clients, complete = client_classes(self.old, self.new, mine, theirs)
            if not complete:
                why = "too many groups or claims, or shares of clients too small to find"
                self.found.give_up(Domain.IDENTITY, f"{host}:{port}", why)
            surviving = any(s.survive for s in chain(mine, theirs))
            for client, left, right in clients:
                for restricted in (False, True) if surviving else (False,):
                    live = _live(mine, theirs, left, right, restricted)
                    place = Place(host, port, client, at, restricted)
                    if (live.old_alive or live.new_alive) and self._is_new(place, live, seen):
                        self._client(place, live, seen)

    def _is_new(self, place: Place, live: Live, seen: dict[object, object]) -> bool:
        """Whether the two sides differ for this client, in a way that was not asked about yet."""
        old, new = self.old, self.new
        mine = {old.number(s) for s in live.meant_old}
        theirs = {new.number(s) for s in live.meant_new}
        if mine == theirs and not self.address_zones:
            return False
        lifts = tuple(
            lift.start <= place.at < lift.end
            and (lift.clients is None or lift.clients.has(place.client, side.planner.groups_of(place.client)))
            for side, statements in ((old, live.old), (new, live.new))
            for s in statements
            for lift in s.lifts
        )
        key = (place.restricted, tuple(map(id, live.old)), tuple(map(id, live.new)), live.looks, lifts)
        return seen.setdefault(key, place) is place

    # one client at one destination and moment

    def _client(self, place: Place, live: Live, seen: dict[object, object]) -> None:
        gates = [(self.old, s.gate) for s in live.old if s.gate is not None]
        gates += [(self.new, s.gate) for s in live.new if s.gate is not None]
        users = user_classes(self.old, self.new, gates)
        simple = not gates and "identity" not in self.attribution.differ
        ask = Asker(self, place, live, seen, simple=simple)
        openers = [s for s in (*live.old, *live.new) if s.kind in _GRANTING]
        tried = [p for p in _PROTOCOLS if any(_opens(s, p, place.port) for s in openers)]
        alone = _alone(live)
        if alone is not None and any(ask.example(protocol, alone) for protocol in tried):
            return
        self._requests(place, live, ask, users, [p for p in tried if ask.connection(p, users) and p != "tcp"])
        ask.note_connections()

    def _requests(
        self,
        place: Place,
        live: Live,
        ask: Asker,
        users: list[User | None],
        protocols: list[Protocol],
    ) -> None:
        if not protocols:
            return
        deciding = [*live.old, *live.new]
        methods, targets, complete = self.inside.requests(deciding, malformed=live.looks)
        if not complete:
            self.found.give_up(Domain.EGRESS, str(place), "too many paths or query values to tell apart")
        lifts = [lift.cond for s in deciding for lift in s.lifts if lift.cond.residual]
        count = len(protocols) * len(methods) * len(targets) * len(users)
        if count > MAX_QUESTIONS:
            why = f"{count} kinds of requests, more than {MAX_QUESTIONS}"
            self.found.give_up(Domain.EGRESS, str(place), why)
            return
        pairs = not place.restricted and any(cond.methods is not None for cond in lifts)
        for protocol in protocols:
            for target in targets:
                ask.requests(place.request(protocol, target=target), methods, users, pairs=pairs)
        if lifts and not place.restricted:
            self._check_lifts(place, live, ask.effects)

    def _check_lifts(self, place: Place, live: Live, effects: set[Effect]) -> None:
        """An exception must match every reading, so requests with several readings can differ where single ones do not.

        That cannot happen if the side that allows has the same statement with no more exceptions than the other.
        """
        for effect, (one, strict), (two, wide) in (
            (Effect.WIDENING, (self.old, live.old), (self.new, live.new)),
            (Effect.NARROWING, (self.new, live.new), (self.old, live.old)),
        ):
            known = {two.content(s, lifted=False): s for s in wide}
            for statement in strict:
                inside = [lift for lift in statement.lifts if lift.cond.residual]
                if effect in effects or not inside:
                    continue
                if len(inside) == 1 and inside[0].cond.templates is None and inside[0].cond.query is None:
                    continue  # pairs of methods were asked
                same = known.get(one.content(statement, lifted=False))
                if same is None or not set(map(two.lift, same.lifts)) <= set(map(one.lift, statement.lifts)):
                    why = (
                        f"the exceptions of `{statement.id}` look at what a request may spell in several ways"
                    )
                    self.found.give_up(Domain.EGRESS, str(place), why)


def _alone(live: Live) -> Statement | None:
    """The allow that decides alone, on one side only: then whatever it grants is one and the same change."""
    if live.old_alive and live.new_alive:
        return None
    deciding = live.old if live.old_alive else live.new
    return deciding[0] if len(deciding) == 1 and deciding[0].kind is Kind.ALLOW else None


def _opens(statement: Statement, protocol: Protocol, port: int) -> bool:
    """Whether a connection of this protocol could carry something that the statement grants."""
    return statement.kind is Kind.LEARN or statement.cond.opens(protocol, port)


def _on(met: Sequence[Met], port: int) -> list[Met]:
    return [m for m in met if m.low <= port <= m.high]


def _distinct(met: Sequence[Met]) -> list[Statement]:
    return list({id(m.statement): m.statement for m in met}.values())


def _patterns(met: Sequence[Met]) -> Iterator[HostPattern]:
    """Destinations of fixed lists and exceptions."""
    for m in met:
        yield from m.statement.excepted
        for lift in m.statement.lifts:
            yield from lift.hosts or ()


def _kind_of(literal: Address, met: Sequence[Met]) -> object:
    """What else than the statements tells two addresses apart."""
    own = [type(literal)(int(literal))]
    inside = [literal in n for m in met for n in m.statement.resolves if n.version == literal.version]
    listed = [n for n in pattern_networks(_patterns(met)) if n.version == literal.version and literal in n]
    return classify(str(own[0])), tuple(inside), frozenset(listed)


def _live(
    mine: Sequence[Statement],
    theirs: Sequence[Statement],
    left: Sequence[int],
    right: Sequence[int],
    restricted: bool,
) -> Live:
    """What can decide for one client: enforced, and (restricted) surviving."""

    def side(statements: Sequence[Statement], meant: Sequence[int]) -> list[Statement]:
        return [
            s
            for s, how in zip(statements, meant, strict=True)
            if how == ENFORCED and not (restricted and s.kind in _GRANTING and not s.survive)
        ]

    old, new = side(mine, left), side(theirs, right)
    return Live(
        old,
        new,
        any(s.kind in _GRANTING for s in old),
        any(s.kind in _GRANTING for s in new),
        [s for s, how in zip(mine, left, strict=True) if how],
        [s for s, how in zip(theirs, right, strict=True) if how],
    )
