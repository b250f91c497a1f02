"""Age gates: what a person has shown against what a gate asks for. Unknown never passes."""

from collections.abc import Iterable, Mapping
from typing import Final

from edgeguard.policy.reasons import Reason
from edgeguard.policy.refusal import Refused, first
from edgeguard.policy.regions import overlap
from edgeguard.policy.request import User
from edgeguard.policy.statements import Statement

MAX_REGIONS: Final = 4096
"""Answers kept per gate of whether a region is one of its own."""


class Gates:
    """Judges people. `groups` are the region groups of the policy."""

    __slots__ = ("_groups", "_meant")

    def __init__(self, groups: Mapping[str, tuple[str, ...]]) -> None:
        self._groups = groups
        self._meant: dict[str, dict[str | None, bool]] = {}

    def refusal(self, statements: Iterable[Statement], user: User | None, now: float) -> Refused | None:
        """The refusal of gates that match, first on the ladder, then in the order given; None if all are passed."""
        region: str | None = None
        if user is not None:
            low, high, assurance, region, expires, invalid, _ = user
            if invalid:
                region = None
            elif expires is not None and expires <= now:
                user = region = None
        worst: Refused | None = None
        for statement in statements:
            gate = statement.gate
            if gate is None:
                continue
            age, wanted, _, _, regions, required = gate
            if regions is not None:
                known = self._meant.get(statement.id)
                meant = None if known is None else known.get(region)
                if not (self._look_up(statement.id, regions, region) if meant is None else meant):
                    continue
            if user is not None and not invalid:
                if assurance is None or (wanted is not None and assurance < wanted):
                    reason = Reason.AGE_VERIFICATION_REQUIRED
                elif high is not None and high < age:
                    reason = Reason.AGE_BELOW_MINIMUM
                elif low is None or low < age:
                    reason = Reason.AGE_VERIFICATION_REQUIRED
                else:
                    continue
            else:
                reason = Reason.AGE_VERIFICATION_REQUIRED if user is None else Reason.AGE_TOKEN_INVALID
            worst = first(worst, Refused(reason, statement.id, None, required))
        return worst

    def _look_up(self, gate: str, regions: frozenset[str], region: str | None) -> bool:
        known = self._meant.setdefault(gate, {})
        if len(known) >= MAX_REGIONS:
            known.clear()
        meant = known[region] = overlap(region, regions, self._groups)
        return meant
