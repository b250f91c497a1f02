"""What is in force, as one small value that processes of a node compare and send to each other."""

from typing import NamedTuple, Self

from edgeguard.bundle.snapshot import Snapshot


class Standing(NamedTuple):
    """Which documents are enforced, and until when. Times are Unix seconds."""

    bundle: str
    """`sha256:…` of the bundle's payload."""
    policy_hash: str
    bundle_version: int
    head_version: int
    root_version: int
    stale_at: int
    restricted_at: int
    closed_at: int
    revoked: bool
    quarantined: bool

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> Self | None:
        """None of nothing."""
        if snapshot is None:
            return None
        return cls(
            snapshot.bundle_id,
            snapshot.policy_hash,
            snapshot.bundle_version,
            snapshot.head_version,
            snapshot.root_version,
            snapshot.stale_at,
            snapshot.restricted_at,
            snapshot.closed_at,
            snapshot.revoked,
            snapshot.quarantined,
        )

    def agrees(self, other: Self, now: float) -> bool:
        """Whether both decide alike from `now` on: a deadline that has passed may have been another one."""
        same = self._replace(
            stale_at=other.stale_at, restricted_at=other.restricted_at, closed_at=other.closed_at
        )
        pairs = zip(self._deadlines, other._deadlines, strict=True)
        return same == other and all(a == b or max(a, b) <= now for a, b in pairs)

    @property
    def _deadlines(self) -> tuple[int, int, int]:
        return self.stale_at, self.restricted_at, self.closed_at

    def ahead_of(self, other: Self) -> bool:
        """Whether this is newer: nothing lower, something higher."""
        mine = (self.root_version, self.head_version, self.bundle_version)
        theirs = (other.root_version, other.head_version, other.bundle_version)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))

    def shut(self, now: float) -> bool:
        """Whether it lets nothing through any more, so that no policy at all is the same."""
        return self.revoked or now >= self.closed_at
