"""What `/status` and `/readyz` say of the policy in force."""

from typing import Final

from edgeguard.bundle.snapshot import Ladder, Snapshot

READY_STATES: Final = frozenset({Ladder.FRESH, Ladder.STALE, Ladder.RESTRICTED})


def policy_report(snapshot: Snapshot | None, now: float) -> dict[str, object]:
    """Which policy, who signed it, until when: plain data. Times are Unix seconds."""
    if snapshot is None:
        return {"bundle": None, "bundle_version": None, "policy_hash": None}
    return {
        "bundle": snapshot.bundle_id,
        "bundle_version": snapshot.bundle_version,
        "policy_hash": snapshot.policy_hash,
        "signers": list(snapshot.signers),
        "head_version": snapshot.head_version,
        "root_version": snapshot.root_version,
        "issued_at": snapshot.issued_at,
        "age_s": round(now - snapshot.issued_at, 3),
        "staleness_s": round(max(0.0, now - snapshot.stale_at), 3),
        "stale_at": snapshot.stale_at,
        "restricted_at": snapshot.restricted_at,
        "closed_at": snapshot.closed_at,
    }
