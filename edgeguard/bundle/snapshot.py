"""What is in force: one immutable value that every decision is made against."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgeguard.policy.engine import Engine
from edgeguard.policy.reasons import Reason


class Ladder(StrEnum):
    """How far the policy in force can still be proved current. Deadlines move it, not polls."""

    FRESH = "fresh"
    STALE = "stale"
    """The head has expired, inside the grace that the bundle carries: enforced as is."""
    RESTRICTED = "restricted"
    """Grace over, bundle unexpired: only allows marked `survive_offline`."""
    CLOSED = "closed"
    """Bundle expired, revoked, or none: the fail-closed defaults."""
    QUARANTINED = "quarantined"
    """A signed order: everything is refused but the essentials."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified bundle under a verified head. All times are Unix seconds."""

    engine: Engine
    issuers: tuple[Mapping[str, object], ...]
    """Token issuers of the identity section, as compiled."""
    environment: str
    bundle_id: str
    """`sha256:…` of the bundle's payload: what equivocation is judged by."""
    policy_hash: str
    """`sha256:…` of the policy section: the same in every environment."""
    bundle_version: int
    head_version: int
    root_version: int
    signers: tuple[str, ...]
    """Ids of the release keys whose signatures counted."""
    issued_at: int
    not_before: int
    stale_at: int
    """The head's expiry."""
    restricted_at: int
    """`stale_at` plus the bundle's signed grace."""
    closed_at: int
    """The bundle's expiry."""
    revoked: bool = False
    """A newer root no longer trusts the signers: closed at once."""
    quarantined: bool = False

    def ladder(self, now: float) -> Ladder:
        """The state at `now` (Unix seconds)."""
        if self.revoked or now >= self.closed_at or now < self.not_before:
            return Ladder.CLOSED
        if self.quarantined:
            return Ladder.QUARANTINED
        if now < self.stale_at:
            return Ladder.FRESH
        return Ladder.STALE if now < self.restricted_at else Ladder.RESTRICTED

    def closed_reason(self) -> Reason:
        """Why a closed snapshot refuses."""
        return Reason.POLICY_REVOKED if self.revoked else Reason.POLICY_EXPIRED

    def next_deadline(self, now: float) -> float | None:
        """The next moment at which `ladder` may answer differently, or None."""
        return min((t for t in (self.stale_at, self.restricted_at, self.closed_at) if t > now), default=None)
