"""The addresses behind a name: which of them may be dialled.

Metadata services never; other special-purpose space only inside a granting allow's `resolves_to`; never what a deny
or an unpassed gate names. What is known of an address is kept, so that admitting it again costs a look-up.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_network
from typing import Final, NamedTuple

from edgeguard.policy.addresses import Address, AddressClass, classify, embedded, parse_address
from edgeguard.policy.decision import Admission, Decision
from edgeguard.policy.gates import Gates
from edgeguard.policy.kinds import Kind
from edgeguard.policy.matching import asked_of
from edgeguard.policy.names import canonical_ipv6
from edgeguard.policy.plan import Plan
from edgeguard.policy.planner import Planner
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Request
from edgeguard.policy.statements import Statement
from edgeguard.policy.tables import ENTRY, StatementTable, Tables

MAX_KNOWN: Final = 8192
"""Addresses kept."""
_REFUSED: Final = Admission((), Reason.ADDRESS_NOT_ALLOWED)


class Known(NamedTuple):
    """A resolved address on a port, as far as it does not depend on the request."""

    address: Address
    kind: AddressClass
    text: str
    """Canonical."""
    restrictive: tuple[Statement, ...]
    """Denies and gates whose networks hold it."""


class Addresses:
    """Judges resolved addresses under one set of tables."""

    __slots__ = ("_admitted", "_gates", "_known", "_planner", "_tables")

    def __init__(self, tables: Tables, planner: Planner, gates: Gates) -> None:
        self._planner, self._gates = planner, gates
        self._tables: tuple[StatementTable, ...] = tuple(
            table for table in (tables.rules, tables.gates) if table.nets[4] or table.nets[6]
        )
        self._known: dict[tuple[str, int], Known] = {}
        self._admitted: dict[tuple[tuple[str, ...], str, int, Sequence[str]], Admission] = {}
        """What depends on nothing but what the allow resolves to, the host, the port and the addresses."""

    def admit(
        self, decision: Decision, request: Request, addresses: Sequence[str], now: float, restricted: bool
    ) -> Admission:
        """Which of `addresses` (text) may be dialled for the request that `decision` allows."""
        host, port = request.host, request.port
        asked = (decision.resolves_to, host, port, addresses)
        steady = isinstance(addresses, tuple)
        admission = self._admitted.get(asked) if steady else None
        if admission is not None:
            return admission
        local = host[-9:] == "localhost" and (len(host) == 9 or host[-10] == ".")
        kept: list[str] = []
        rule: str | None = None
        for text in addresses:
            known = self._known.get((text, port)) or self._look(text, port)
            if known is None:
                continue
            address, kind, canonical, restrictive = known
            rule = None
            if kind is AddressClass.METADATA or (local and kind is not AddressClass.LOOPBACK):
                continue
            if kind is not AddressClass.PUBLIC and not _inside(text, decision.resolves_to):
                continue
            if restrictive:
                steady = False
                rule = self._refusal(request, address, restrictive, now, restricted)
            if rule is None and canonical not in kept:
                kept.append(canonical)
        if kept:
            admission = Admission(tuple(kept))
        else:
            admission = _REFUSED if rule is None else _REFUSED._replace(rule=rule)
        if steady:
            if len(self._admitted) >= MAX_KNOWN:
                self._admitted.clear()
            self._admitted[asked] = admission
        return admission

    def _look(self, text: str, port: int) -> Known | None:
        """What is known of a resolved address on a port, whoever asks; None if it is not one. Kept."""
        try:
            address = parse_address(text)
            kind = classify(str(address), self._planner.nat64)
        except ValueError:
            return None
        canonical = canonical_ipv6(address) if isinstance(address, IPv6Address) else str(address)
        known = Known(address, kind, canonical, tuple(self._restrictive(address, port)))
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[text, port] = known
        return known

    def _restrictive(self, address: Address, port: int) -> Iterator[Statement]:
        """Denies and gates whose network holds the address, or what it embeds."""
        planner = self._planner
        for table in self._tables:
            for candidate in (address, *embedded(address, planner.nat64)):
                for entries, _ in planner.networks(table, candidate, True):
                    for place in range(0, len(entries), ENTRY):
                        statement = table.get(entries[place])
                        if entries[place + 1] <= port <= entries[place + 2] and statement.kind in {
                            Kind.DENY,
                            Kind.GATE,
                        }:
                            yield statement

    def _refusal(
        self, request: Request, address: Address, restrictive: tuple[Statement, ...], now: float, restricted: bool,
    ) -> str | None:  # fmt: skip
        """The deny or unpassed gate that refuses the address. What is not known yet counts as matching."""
        client, host, port, protocol, method, target, user, _ = request
        planner = self._planner
        scratch = Plan(port)
        groups = planner.groups_of(client)
        for statement in restrictive:
            planner.restrict(scratch, statement, client, groups, host, address, now, restricted)
        asked = None if method is None or target is None else asked_of(request)
        for deny in sorted(scratch.denies, key=lambda s: s.id):
            cond = deny.cond
            if asked is None:
                if cond.may_touch(protocol, port):
                    return deny.id
            elif cond.touches(protocol, port) and asked.hits(cond.hits, scratch.lifts.get(deny.id, ())):
                return deny.id
        gates = [g for g in scratch.gates if g.cond.may_touch(protocol, port)]
        refused = self._gates.refusal(gates, user, now)
        return None if refused is None else refused.rule


@lru_cache(maxsize=MAX_KNOWN)
def _inside(text: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is in one of the networks."""
    address = parse_address(text)
    return any(address in n for n in map(_network, networks) if n.version == address.version)


_network = lru_cache(maxsize=4096)(ip_network)
