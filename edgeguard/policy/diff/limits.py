"""Rate limits, looser or tighter: by the numbers, by whose quota it is, by how many processes share it."""

from collections.abc import Iterator, Sequence
from typing import Final

from edgeguard.policy.decision import Decision
from edgeguard.policy.diff.side import Side
from edgeguard.policy.diff.values import Effect
from edgeguard.policy.tables import Limit, Statement

_SCOPES: Final = {"process": 0, "host": 1, "fleet": 2}
_UNITS: Final = {1: "s", 60: "m", 3600: "h", 86400: "d"}
_BOTH: Final = frozenset(Effect)


def rate_text(quota: int, period_ns: int, burst: int) -> str:
    """`100/s burst 200`; a bare number for concurrent tunnels."""
    if not period_ns:
        return str(quota)
    seconds = period_ns // 10**9
    unit = max((s for s in _UNITS if seconds % s == 0), default=1)
    count = seconds // unit
    text = f"{quota}/{count if count > 1 else ''}{_UNITS[unit]}"
    return text if burst == quota else f"{text} burst {burst}"


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
    """Compares what two decisions count. `alike` are limits that were only renamed."""

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
    text = (
        f"{rate_text(limit.quota, limit.period_ns, limit.burst)} {limit.unit} per {' and '.join(limit.key)}"
    )
    return text if limit.scope == "process" else f"{text}, {limit.scope}-wide"
