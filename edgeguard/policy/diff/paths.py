"""Paths and queries that have to be told apart, from the product automaton of all templates of one destination.

A class is the set of conditions that a path satisfies, strictly (allows, exceptions) or loosely (denies, gates, limits). The walk
follows all templates at once, segment by segment, and tries every literal that one of them wants, another spelling of it where
case matters, and a segment that none wants. Targets with empty segments are classes of their own: they have two readings.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice, product
from typing import Final, NamedTuple
from urllib.parse import quote

from edgeguard.policy.conditions import Condition
from edgeguard.policy.diff.hosts import FRESH
from edgeguard.policy.paths import Segments, Template, fold, fold_template

MAX_STATES: Final = 4096
"""States of the automaton that are visited."""
MAX_OCCURRENCES: Final = 8
"""Ways to write one query key of which every combination is tried."""
MAX_QUERIES: Final = 2048
MALFORMED: Final = "/.."
"""Refused where a rule looks at paths, and only there."""

type Pair = tuple[str, str]


class Conditions(NamedTuple):
    """The conditions of the statements that one client meets at one destination."""

    strict: tuple[Condition, ...]
    loose: tuple[Condition, ...]


class _Alive(NamedTuple):
    """A template that the path so far is a prefix of."""

    template: Template
    loose: bool


def path_classes(conds: Conditions) -> tuple[list[str], bool]:
    """A target of every class, and whether every class is there."""
    strict = [c.templates for c in conds.strict]
    loose = [
        None if c.templates is None else tuple(fold_template(t) for t in c.templates) for c in conds.loose
    ]
    start = [_Alive(t, False) for templates in strict for t in templates or ()]
    start += [_Alive(t, True) for templates in loose for t in templates or ()]
    if not start:
        return ["/"], True
    found: dict[object, Segments] = {}
    walked, complete = _walk(tuple(dict.fromkeys(start)))
    kinds = [_satisfied(path, strict, loose) for path in walked]
    for path, kind in zip(walked, kinds, strict=True):
        found.setdefault(frozenset({kind}), path)
    for path, kind in zip(walked, kinds, strict=True):
        for place in range(len(path)):  # an empty segment is read both as it stands and merged away
            broken = (*path[:place], "", *path[place:])
            found.setdefault(frozenset({kind, _satisfied(broken, strict, loose)}), broken)
    return [_target(path) for path in found.values()], complete


def _satisfied(
    path: Segments,
    strict: Sequence[tuple[Template, ...] | None],
    loose: Sequence[tuple[Template, ...] | None],
) -> tuple[bool, ...]:
    folded = fold(path)
    return (
        *(t is None or any(template.matches(path) for template in t) for t in strict),
        *(t is None or any(template.matches(folded) for template in t) for t in loose),
    )


def _walk(start: tuple[_Alive, ...]) -> tuple[list[Segments], bool]:
    """A path to every state, each also with a slash at its end."""
    ends: list[Segments] = [("",)]
    seen: set[object] = set()
    queue: list[tuple[Segments, tuple[_Alive, ...]]] = [((), start)]
    while queue:
        path, alive = queue.pop(0)
        place = len(path)
        for segment in _alphabet(alive, place):
            after = tuple(a for a in alive if _goes_on(a, place, segment))
            key = (place if any(place < len(a.template.segments) for a in alive) else -1, after)
            if key in seen:
                continue
            seen.add(key)
            longer = (*path, segment)
            ends += [longer, (*longer, "")]
            if len(seen) >= MAX_STATES:
                return ends, False
            if any(place < len(a.template.segments) for a in after):
                queue.append((longer, after))
    return ends, True


def _goes_on(alive: _Alive, place: int, segment: str) -> bool:
    wanted = alive.template.segments
    if place >= len(wanted):
        return alive.template.open
    want = wanted[place]
    return want is None or want == (segment.casefold() if alive.loose else segment)


def _alphabet(alive: Iterable[_Alive], place: int) -> Iterator[str]:
    """A segment that nobody wants, every literal that is wanted, and other spellings of what is wanted loosely."""
    literals: dict[str, None] = {}
    folded: dict[str, None] = {}
    for template, loose in alive:
        if place < len(template.segments) and (want := template.segments[place]):
            (folded if loose else literals)[want] = None
    fresh = FRESH
    while fresh in literals or fresh in folded or any(fresh == s.casefold() for s in literals):
        fresh += "-"
    yield from literals
    for want in folded:
        other = _respelled(want, literals)
        if other is not None:
            yield other
    yield fresh


def _respelled(want: str, taken: Iterable[str]) -> str | None:
    """A spelling with the same folded form that is not taken; None if there is none."""
    taken = set(taken)
    if want not in taken:
        return want
    options = [sorted({c, c.upper(), c.lower(), *_SAME_FOLD.get(c, "")}) for c in want]
    for tried, letters in enumerate(product(*(reversed(o) for o in options))):
        spelled = "".join(letters)
        if spelled not in taken and spelled.casefold() == want:
            return spelled
        if tried > 4096:
            break
    return None


_SAME_FOLD: Final = {"k": "\u212a", "s": "\u017f"}  # the Kelvin sign and the long s fold to ASCII letters


def instance(template: Template) -> str:
    """A target that the template matches."""
    return _target(tuple(FRESH if segment is None else segment for segment in template.segments) or ("",))


def _target(segments: Segments) -> str:
    return "/" + "/".join(quote(s, safe="!$&'()*+,=:@") for s in segments)


# queries


def query_classes(conds: Conditions) -> tuple[list[str], bool]:
    """A query string (with its `?`, or empty) of every class, and whether every class is there."""
    wanted = [c.query for c in (*conds.strict, *conds.loose) if c.query is not None]
    if not wanted:
        return [""], True
    spellings: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    for query in wanted:
        for key, accepted in query:
            spellings.setdefault(key.casefold(), set()).add(key)
            values.setdefault(key.casefold(), set()).update(accepted - {"*"})
    complete = not any("%" in text for query in wanted for key, vs in query for text in (key, *vs))
    choices = []
    for folded in sorted(spellings):
        single = _occurrences(conds, folded, spellings[folded], values[folded])
        complete = complete and len(single) <= MAX_OCCURRENCES
        choices.append(_some(single))
    found: dict[object, str] = {}
    for count, picked in enumerate(product(*choices)):
        if count >= MAX_QUERIES:
            return list(found.values()), False
        pairs = [pair for occurrences in picked for pair in occurrences]
        kind = (
            tuple(c.query is None or _strictly(c.query, pairs) for c in conds.strict),
            tuple(c.query is None or _loosely(c.query, pairs) for c in conds.loose),
        )
        if kind not in found:
            found[kind] = query_text(pairs)
    return list(found.values()), complete


def _occurrences(conds: Conditions, folded: str, spellings: set[str], values: set[str]) -> list[Pair]:
    """The ways to write one key with a value that some condition tells apart."""
    fresh = FRESH
    while fresh in {v.casefold() for v in values}:
        fresh += "-"
    texts = [*sorted(values), fresh]
    texts += [t for v in sorted({v.casefold() for v in values}) if (t := _respelled(v, values)) is not None]
    keys = sorted(spellings)
    other = _respelled(folded, spellings)
    if other is not None:
        keys.append(other)
    found: dict[object, Pair] = {}
    for key in keys:
        for text in texts:
            strict = tuple(_accepts(c.query, key, text, fold=False) for c in conds.strict)
            loose = tuple(_accepts(c.query, key, text, fold=True) for c in conds.loose)
            if any(map(any, strict)) or any(2 in places for places in loose):
                found.setdefault((strict, loose), (key, text))
    return list(found.values())


def _accepts(
    query: Sequence[tuple[str, frozenset[str]]] | None, key: str, value: str, *, fold: bool
) -> tuple[int, ...]:
    """What one occurrence is to each key of a condition: 0 nothing, 1 a value that is not listed, 2 one that is."""
    found = []
    for name, accepted in query or ():
        if (name.casefold() == key.casefold()) if fold else name == key:
            listed = value.casefold() in {v.casefold() for v in accepted} if fold else value in accepted
            found.append(2 if listed or "*" in accepted else 1)
        else:
            found.append(0)
    return tuple(found)


def _some(single: Sequence[Pair]) -> list[tuple[Pair, ...]]:
    """Every combination; past the cap none, one, two and all of them."""
    if len(single) <= MAX_OCCURRENCES:
        return [c for size in range(len(single) + 1) for c in combinations(single, size)]
    return [(), *((pair,) for pair in single), *islice(combinations(single, 2), MAX_QUERIES), tuple(single)]


def _strictly(query: Sequence[tuple[str, frozenset[str]]], pairs: Sequence[Pair]) -> bool:
    for key, accepted in query:
        got = [v for k, v in pairs if k == key]
        if not got or ("*" not in accepted and not accepted.issuperset(got)):
            return False
    return True


def _loosely(query: Sequence[tuple[str, frozenset[str]]], pairs: Sequence[Pair]) -> bool:
    for key, accepted in query:
        wanted = {v.casefold() for v in accepted}
        if not any(
            k.casefold() == key.casefold() and ("*" in accepted or v.casefold() in wanted) for k, v in pairs
        ):
            return False
    return True


def query_text(pairs: Sequence[Pair]) -> str:
    """The pairs as they stand in a target, with the question mark; empty for none."""
    if not pairs:
        return ""
    return "?" + "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs)
