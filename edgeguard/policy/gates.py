"""Age gates: what a person has shown against what a gate asks for. Unknown never passes."""

from collections.abc import Iterable, Mapping
from typing import Final

from edgeguard.policy.reasons import Reason
from edgeguard.policy.refusal import Refused, first
from edgeguard.policy.regions import overlap
from edgeguard.policy.request import User
from edgeguard.policy.statements import Gate, Statement

MAX_REGIONS: Final = 4096
"""Answers kept of whether a region is one of a gate's."""


class Gates:
    """Judges people. `groups` are the region groups of the policy."""

    __slots__ = ("_groups", "_meant")

    def __init__(self, groups: Mapping[str, tuple[str, ...]]) -> None:
        self._groups = groups
        self._meant: dict[tuple[frozenset[str], str | None], bool] = {}

    def refusal(self, statements: Iterable[Statement], user: User | None, now: float) -> Refused | None:
        """The refusal of gates that match, first on the ladder, then in the order given; None if all are passed."""
        if user is not None and not user.invalid and user.expires is not None and user.expires <= now:
            user = None
        worst: Refused | None = None
        for statement in statements:
            gate = statement.gate
            if gate is not None and (reason := self._reason(gate, user)) is not None:
                worst = first(worst, Refused(reason, statement.id, None, gate.required))
        return worst

    def _reason(self, gate: Gate, user: User | None) -> Reason | None:
        age, wanted, _, _, regions, _ = gate
        if regions is not None:
            region = None if user is None or user.invalid else user.region
            meant = self._meant.get((regions, region))
            if meant is None:
                meant = self._look_up(regions, region)
            if not meant:
                return None
        if user is None:
            return Reason.AGE_VERIFICATION_REQUIRED
        low, high, assurance, _, _, invalid, _ = user
        if invalid:
            return Reason.AGE_TOKEN_INVALID
        if assurance is None or (wanted is not None and assurance < wanted):
            return Reason.AGE_VERIFICATION_REQUIRED
        if high is not None and high < age:
            return Reason.AGE_BELOW_MINIMUM
        if low is None or low < age:
            return Reason.AGE_VERIFICATION_REQUIRED
        return None

    def _look_up(self, regions: frozenset[str], region: str | None) -> bool:
        if len(self._meant) >= MAX_REGIONS:
            self._meant.clear()
        meant = self._meant[regions, region] = overlap(region, regions, self._groups)
        return meant
