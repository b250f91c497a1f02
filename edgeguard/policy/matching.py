"""A request against conditions: every method and path that it may mean, strictly for allows, loosely for what restricts.

`Quick` is a condition laid out flat, for requests that mean one method: a grant costs a handful of look-ups.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from edgeguard.policy.conditions import OK, Condition
from edgeguard.policy.paths import (
    Query,
    fold_path,
    query_readings,
    spellings,
)
from edgeguard.policy.request import Request
from edgeguard.policy.statements import Statement

NO_QUERY: Final[tuple[Query, ...]] = ((),)
type Reach = Callable[[str, str, tuple[Query, ...]], int]
type Hits = Callable[[str, str, tuple[Query, ...]], bool]


class Asked:
    """The methods, paths and queries that a request may mean."""

    __slots__ = ("_folded", "methods", "paths", "queries")

    def __init__(
        self, methods: tuple[str, ...], paths: tuple[str, ...], queries: tuple[Query, ...] = NO_QUERY
    ) -> None:
        self.methods, self.paths, self.queries = methods, paths, queries
        self._folded: tuple[str, ...] | None = None

    def hits(self, hits: Hits, lifts: Sequence[Condition] = ()) -> bool:
        """A restrictive statement matches some reading, and no exception matches every one."""
        folded = self._folded
        if folded is None:
            folded = self._folded = tuple(map(fold_path, self.paths))
        queries = self.queries
        for path in folded:
            for method in self.methods:
                if hits(method, path, queries):
                    return not lifts or not any(map(self._lifted, lifts))
        return False

    def _lifted(self, lift: Condition) -> bool:
        return all(lift.lifts(m, p, self.queries) for m in self.methods for p in self.paths)

    def reaches(self, reach: Reach) -> bool:
        """An allow matches every reading."""
        return all(reach(m, p, self.queries) == OK for m in self.methods for p in self.paths)


type Quick = tuple[
    str, frozenset[str] | None, frozenset[str] | None, tuple[str, ...], Condition | None, Statement
]
"""A statement for a request that means one thing: id, methods, literal paths (None: any), prefixes of paths, the
condition if those are not all of it, the statement."""


def quick(statement: Statement, *, strict: bool) -> Quick:
    cond = statement.cond
    methods = None if cond.methods is None else cond.methods if strict else cond.loose_methods
    if cond.query is not None:
        return statement.id, methods, frozenset(), (), cond, statement
    if cond.templates is None:
        return statement.id, methods, None, (), None, statement
    paths = cond.strict if strict else cond.loose
    more = None if paths.trie is None else cond
    return statement.id, methods, paths.exact, paths.prefixes, more, statement


def met(
    quicks: Iterable[Quick], method: str, folded: Sequence[str], queries: tuple[Query, ...]
) -> list[Statement]:
    """The restrictive statements that match some path."""
    met: list[Statement] = []
    for _, methods, literals, prefixes, more, statement in quicks:
        if methods is None or method in methods or method.upper() in methods:
            for path in folded:
                if (
                    literals is None
                    or path in literals
                    or path.startswith(prefixes)
                    or (more is not None and more.hits(method, path, queries))
                ):
                    met.append(statement)
                    break
    return met


def asked_of(request: Request) -> Asked:
    """The readings of a request that was found well-formed. Raises `PathError` for another."""
    target = request.target or "/"
    methods = (request.method or "", *(o.strip().upper() for o in request.overrides))
    return Asked(methods, spellings(target), query_readings(target))
