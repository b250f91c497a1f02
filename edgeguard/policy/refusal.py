"""Refusals on their way to a decision, and the ladder that picks one of several."""

from typing import Final, NamedTuple

from edgeguard.policy.conditions import METHOD, PATH, PROTOCOL
from edgeguard.policy.decision import Decision, Lane, Required
from edgeguard.policy.reasons import Reason

HOST, PORT, CLIENT, CLAIM = 0, 1, 2, 3
"""Stages at which an allow can fail before the connection is looked into; `conditions` continues the count."""
LADDER: Final = {reason: place for place, reason in enumerate(Reason)}
_STAGES: Final = {
    HOST: Reason.HOST_NOT_ALLOWED,
    PORT: Reason.PORT_NOT_ALLOWED,
    CLIENT: Reason.CLIENT_NOT_ALLOWED,
    CLAIM: Reason.CLAIM_MISSING,
    PROTOCOL: Reason.PROTOCOL_NOT_ALLOWED,
    METHOD: Reason.METHOD_NOT_ALLOWED,
    PATH: Reason.PATH_NOT_ALLOWED,
}


class Refused(NamedTuple):
    """Why, and which rule; `near` is the allow that got furthest."""

    reason: Reason
    rule: str | None = None
    near: str | None = None
    required: Required | None = None

    def decision(
        self, lane: Lane, would: tuple[tuple[str, str], ...] = (), until: float | None = None
    ) -> Decision:
        return Decision(False, self.reason, self.rule, lane, self.near, would, (), self.required, (), until)


def stage_reason(stage: int, protocol: str) -> Reason:
    """The reason of an allow that got as far as `stage`."""
    if stage == PROTOCOL and protocol == "tcp":
        return Reason.OPAQUE_TUNNEL
    return _STAGES[stage]


def first(one: Refused | None, two: Refused | None) -> Refused | None:
    """The one that stands first on the ladder; of equals, `one`."""
    if one is None or two is None:
        return one or two
    return two if LADDER[two.reason] < LADDER[one.reason] else one
