"""Rate limits, looser or tighter: by the numbers, by whose quota it is, by how many processes share it."""

from collections.abc import Iterator, Sequence
from typing import Final

from edgeguard.policy.decision import Decision
from edgeguard.policy.diff.side import Side
from edgeguard.policy.diff.values import Effect
from edgeguard.policy.rates import rate_text
from edgeguard.policy.tables import Limit, Statement

_SCOPES: Final = {"process": 0, "host": 1, "fleet": 2}
_STORE_ERROR: Final = {"deny": 0, "local_share": 1, "local_full": 2, "allow": 3}
_BOTH: Final = frozenset(Effect)


def compare_limits(old: Limit, new: Limit) -> frozenset[Effect]:
    """What it means for who is limited that `new` stands in the place of `old`; both where they cannot be compared."""
    if old.unit != new.unit:
        return _BOTH
    found: set[Effect] = set()

    def note(before: int, after: int) -> None:
        if after != before:
            found.add(Effect.WIDENING if after > before else Effect.NARROWING)

    note(old.quota * (new.period_ns or 1), new.quota * (old.period_ns or 1))
    note(old.burst, new.burst)
    note(-_SCOPES[old.scope], -_SCOPES[new.scope])
    if old.scope == new.scope:
        note(_STORE_ERROR[old.on_store_error], _STORE_ERROR[new.on_store_error])
    mine, theirs = set(old.key), set(new.key)
    if mine != theirs:
        if mine < theirs:
            found.add(Effect.WIDENING)  # more quotas, each as large as before
        elif theirs < mine:
            found.add(Effect.NARROWING)
        else:
            found |= _BOTH
    return frozenset(found)


class LimitComparer:
    """Compares what two decisions count. A limit that was only renamed is the same limit."""

    def __init__(self, old: Side, new: Side) -> None:
        self._sides = (old, new)

    def compare(
        self,
        before: Sequence[Statement],
        after: Sequence[Statement],
        one: Decision,
        two: Decision,
    ) -> Iterator[tuple[Effect, str, str | None, str | None]]:
        """(effect, what happened, old limit, new limit) for a request that both sides allow."""
        old = self._counted(0, before, one)
        new = self._counted(1, after, two)
        for id_, (limit, content) in old.items():
            if id_ in new:
                effects = compare_limits(limit, new[id_][0])
                text = f"limit `{id_}` goes from {_describe(limit)} to {_describe(new[id_][0])}"
                for effect in sorted(effects):
                    yield effect, text, id_, id_
            elif not any(content == other for _, other in new.values()):
                yield Effect.WIDENING, f"limit `{id_}` ({_describe(limit)}) no longer counts this", id_, None
        for id_, (limit, content) in new.items():
            if id_ not in old and not any(content == other for _, other in old.values()):
                yield Effect.NARROWING, f"limit `{id_}` ({_describe(limit)}) counts this now", None, id_

    def _counted(
        self, side: int, statements: Sequence[Statement], decision: Decision
    ) -> dict[str, tuple[Limit, object]]:
        enforced = {hit.limit for hit in decision.limits if hit.enforced}
        return {
            s.id: (s.limit, self._sides[side].content(s, anonymous=True))
            for s in statements
            if s.limit is not None and s.id in enforced
        }


def _describe(limit: Limit) -> str:
    text = f"{rate_text(limit.quota, limit.period_ns, limit.burst, limit.unit)} {limit.unit} per {' and '.join(limit.key)}"
    if limit.scope == "process":
        return text
    text = f"{text}, {limit.scope}-wide{', exact' if limit.exact else ''}"
    return text if limit.on_store_error == "local_share" else f"{text}, on_store_error {limit.on_store_error}"
