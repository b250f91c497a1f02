"""Clients that have to be told apart: by name, groups, claims, and the share of `enforce_percent` that they fall into."""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Final

from edgeguard.policy.diff.hosts import FRESH
from edgeguard.policy.diff.side import Side
from edgeguard.policy.kinds import Kind
from edgeguard.policy.request import Client
from edgeguard.policy.tables import ClientSet, Statement

MAX_WORDS: Final = 6
"""Groups, and claims, of one destination whose every combination is tried."""
MAX_TRIES: Final = 20_000
"""Names that are tried to find one in every share of `enforce_percent`."""

ABSENT, REPORT, ENFORCED = 0, 1, 2


def client_classes(
    old: Side, new: Side, before: Sequence[Statement], after: Sequence[Statement]
) -> tuple[list[tuple[Client, tuple[int, ...], tuple[int, ...]]], bool]:
    """(client, how each statement of the old side and of the new one means it), and whether every class is there."""
    names, groups, claims, complete = _words(old, new, (*before, *after))
    shares = _shares(old, new, before, after)
    strangers, found_all = _strangers(old, new, shares, frozenset(names))
    found: dict[object, tuple[Client, tuple[int, ...], tuple[int, ...]]] = {}
    for base in (*(Client(name, True) for name in names), *strangers):
        for some in _subsets(groups):
            for more in _subsets(claims):
                client = base._replace(groups=frozenset(some), claims=frozenset(more))
                left, right = _meant(old, before, client), _meant(new, after, client)
                key = (left, right, _lifted(old, before, client), _lifted(new, after, client))
                if key not in found:
                    found[key] = (client, left, right)
    return list(found.values()), complete and found_all


def _words(
    old: Side, new: Side, statements: Sequence[Statement]
) -> tuple[list[str], list[str], list[str], bool]:
    sets: list[ClientSet] = []
    claims: set[str] = set()
    for statement in statements:
        claims |= statement.claims
        if statement.clients is not None:
            sets.append(statement.clients)
        sets += [lift.clients for lift in statement.lifts if lift.clients is not None]
    names = {name for s in sets for name in s.names}
    groups = {group for s in sets for group in s.groups}
    for group in groups:
        names |= old.members.get(group, frozenset()) | new.members.get(group, frozenset())
    complete = len(groups) <= MAX_WORDS and len(claims) <= MAX_WORDS
    return sorted(names), sorted(groups), sorted(claims), complete


def _subsets(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Every combination, the small ones first; past the cap none, one, two and all of them."""
    if not words:
        yield ()
    elif len(words) <= MAX_WORDS:
        yield from chain.from_iterable(combinations(words, size) for size in range(len(words) + 1))
    else:
        yield from chain(combinations(words, 0), combinations(words, 1), combinations(words, 2))
        yield tuple(words)


def _meant(side: Side, statements: Sequence[Statement], client: Client) -> tuple[int, ...]:
    groups = side.planner.groups_of(client)
    out = []
    for statement in statements:
        whom = statement.clients
        allow = statement.kind is Kind.ALLOW
        if not (client.identified or not allow if whom is None else whom.has(client, groups)) or (
            statement.claims and not statement.claims <= client.claims
        ):
            out.append(ABSENT)
        else:
            out.append(ENFORCED if side.planner.enforced(statement, client) else REPORT)
    return tuple(out)


def _lifted(side: Side, statements: Sequence[Statement], client: Client) -> tuple[bool, ...]:
    groups = side.planner.groups_of(client)
    return tuple(
        lift.clients is None or lift.clients.has(client, groups) for s in statements for lift in s.lifts
    )


type Shares = tuple[tuple[int, ...], tuple[int, ...]]


def _shares(old: Side, new: Side, before: Sequence[Statement], after: Sequence[Statement]) -> Shares:
    """The percentages in use; the new side's too where the salts differ."""

    def of(statements: Sequence[Statement]) -> set[int]:
        return {s.percent for s in statements if 0 < s.percent < 100}

    if old.tables.salt == new.tables.salt:
        return tuple(sorted(of(before) | of(after))), ()
    return tuple(sorted(of(before))), tuple(sorted(of(after)))


def _strangers(old: Side, new: Side, shares: Shares, taken: frozenset[str]) -> tuple[list[Client], bool]:
    """Clients whom nobody names, known and unknown, one for every combination of shares."""
    first, second = shares
    fresh = FRESH
    while fresh in taken:
        fresh += "-"
    plain = [Client(fresh, True), Client(None, False)]
    if not first and not second:
        return plain, True
    wanted = (len(first) + 1) * (len(second) + 1)
    found: list[Client] = []
    complete = True
    for known in (True, False):
        classes: dict[tuple[int, int], Client] = {}
        for count in range(MAX_TRIES):
            if known:
                client = Client(f"{fresh}-{count}", True)
                if client.name in taken:
                    continue
            else:
                client = Client(None, False, address=f"198.18.{count >> 8}.{count & 255}")
            mine, theirs = old.planner.bucket(client), new.planner.bucket(client)
            classes.setdefault((sum(mine >= p for p in first), sum(theirs >= p for p in second)), client)
            if len(classes) == wanted:
                break
        complete = complete and len(classes) == wanted
        found += classes.values()
    return found, complete
