"""The single checks of the trust state machine: each passes silently or raises `Refusal`."""

from typing import Final

from edgeguard.bundle.documents import BlobRef, Bundle, Environment, Head
from edgeguard.bundle.envelope import OVERHEAD_BYTES
from edgeguard.bundle.manifest import MAX_MANIFEST_BYTES, MEMBER, Manifest
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.state import BundleOffered, TrustState

CLOCK_SLACK_S: Final = 300
"""How far in the future a document may have been issued, in seconds."""
QUARANTINE_JUMP: Final = 1024
"""How far a quarantine number may rise at once, so that a stolen head key cannot use them up."""


def root_serves(state: TrustState, time: float, *, stored: bool) -> None:
    if state.root.version < state.marks.root_version:
        raise Refusal(
            RefusalCode.ROOT_GAP,
            f"root {state.marks.root_version} was seen before; {state.root.version} is held",
        )
    if not stored and time >= state.root.expires_at:
        raise Refusal(
            RefusalCode.ROOT_EXPIRED, f"root {state.root.version} has expired; a newer one must be signed"
        )


def head_order(state: TrustState, head: Head, name: str) -> None:
    """Versions only rise, each by no more than the root allows, and members stay."""
    marks, policy, ref = state.marks, state.policy, head.bundle
    if head.version < marks.head_version:
        raise Refusal(RefusalCode.ROLLBACK_HEAD, f"head {head.version}, {marks.head_version} was seen")
    if head.version == marks.head_version and marks.head_identity not in ("", name):
        raise Refusal(RefusalCode.EQUIVOCATION, f"another head {head.version} than the one seen before")
    _jump("head", head.version, marks.head_version, policy.caps.version_jump)
    floor = max(policy.floor, state.floor)
    if ref.version < max(marks.bundle_version, floor):
        seen = f"{marks.bundle_version} was seen" if marks.bundle_version > floor else f"the floor is {floor}"
        raise Refusal(RefusalCode.ROLLBACK_BUNDLE, f"head {head.version} names bundle {ref.version}, {seen}")
    _jump("bundle", ref.version, marks.bundle_version, policy.caps.version_jump)
    if head.quarantine > marks.quarantine + QUARANTINE_JUMP and marks.head_version:
        raise Refusal(RefusalCode.VERSION_JUMP, f"quarantine {head.quarantine} after {marks.quarantine}")
    if ref.length > policy.caps.bundle_bytes + OVERHEAD_BYTES:
        raise Refusal(
            RefusalCode.TOO_BIG, f"a bundle of {ref.length} bytes, {policy.caps.bundle_bytes} are allowed"
        )
    manifest = head.members.get(MEMBER)
    if manifest is not None and manifest.length > MAX_MANIFEST_BYTES + OVERHEAD_BYTES:
        raise Refusal(RefusalCode.TOO_BIG, f"a manifest of {manifest.length} bytes")
    for member, old in (state.head.members if state.head else {}).items():
        if member not in head.members:
            raise Refusal(RefusalCode.MEMBER_MISSING, f"member {member!r} has vanished from the head")
        if head.members[member].version < old.version:
            raise Refusal(
                RefusalCode.ROLLBACK_BUNDLE, f"member {member!r} goes back from version {old.version}"
            )


def _jump(what: str, version: int, seen: int, most: int) -> None:
    if seen and version > seen + most:
        raise Refusal(
            RefusalCode.VERSION_JUMP, f"{what} {version} after {seen}: the root allows steps of {most}"
        )


def head_times(head: Head, policy: Environment, time: float, *, stored: bool) -> None:
    lifetime = head.expires_at - head.issued_at
    if lifetime > policy.caps.head_lifetime_s:
        raise Refusal(
            RefusalCode.LIFETIME, f"a head for {lifetime} s, the root allows {policy.caps.head_lifetime_s} s"
        )
    if stored:
        return
    if head.issued_at > time + CLOCK_SLACK_S:
        raise Refusal(
            RefusalCode.NOT_BEFORE,
            f"issued {int(head.issued_at - time)} s in the future",
            retry_at=head.issued_at,
        )
    if time >= head.expires_at:
        raise Refusal(RefusalCode.FREEZE, f"head {head.version} expired {int(time - head.expires_at)} s ago")


def is_named(state: TrustState, member: str, data: bytes, digest: str) -> BlobRef:
    """A fetched blob is exactly what the head names, before any signature is looked at."""
    ref = state.head.members.get(member) if state.head else None
    if ref is None:
        raise Refusal(RefusalCode.HEAD_MISSING, f"a {member} without a head that names it")
    if len(data) != ref.length or digest != ref.sha256:
        raise Refusal(
            RefusalCode.HASH_MISMATCH, f"{len(data)} bytes that are not the blob {ref.sha256[:16]}…"
        )
    return ref


def manifest_order(state: TrustState, manifest: Manifest, data: bytes) -> None:
    """A manifest of this environment, not older than the one held, for this application and a free version."""
    if manifest.environment != state.environment:
        raise Refusal(
            RefusalCode.ENV, f"a manifest of {manifest.environment!r}, this is {state.environment!r}"
        )
    held = state.manifest
    if held is not None:
        if manifest.version < held.version:
            raise Refusal(
                RefusalCode.ROLLBACK_BUNDLE, f"manifest {manifest.version}, {held.version} was seen"
            )
        if manifest.version == held.version and manifest != held:
            raise Refusal(
                RefusalCode.EQUIVOCATION, f"another manifest {manifest.version} than the one seen before"
            )
        reserved = held.rollback
        if reserved and manifest.bundle.version == reserved.version and manifest.bundle != reserved:
            raise Refusal(
                RefusalCode.MANIFEST_MISMATCH,
                f"version {reserved.version} is reserved for the way back, {reserved.identity[:23]}…",
            )
    if state.app and manifest.app != state.app:
        raise Refusal(
            RefusalCode.MANIFEST_MISMATCH, f"for the application {manifest.app}, this is {state.app}"
        )


def manifest_names(state: TrustState, bundle: Bundle, name: str, policy_hash: str) -> None:
    """Where a manifest is required: it names exactly this bundle and this policy."""
    if not state.manifest_required:
        return
    manifest = state.manifest
    if manifest is None:
        raise Refusal(RefusalCode.MANIFEST_MISMATCH, "no release manifest, and this node requires one")
    if manifest.bundle != (bundle.version, name) or manifest.policy_hash != policy_hash:
        raise Refusal(
            RefusalCode.MANIFEST_MISMATCH,
            f"manifest {manifest.version} names bundle {manifest.bundle.version} "
            f"{manifest.bundle.identity[:23]}…, not {bundle.version} {name[:23]}…",
        )


def bundle_order(state: TrustState, event: BundleOffered, bundle: Bundle, name: str) -> None:
    marks, floor = state.marks, max(state.policy.floor, state.floor)
    if bundle.environment != state.environment:
        raise Refusal(RefusalCode.ENV, f"a bundle of {bundle.environment!r}, this is {state.environment!r}")
    if bundle.audience and state.audience not in bundle.audience:
        raise Refusal(
            RefusalCode.AUDIENCE, f"for {', '.join(bundle.audience)[:120]}; this is {state.audience!r}"
        )
    if state.head is not None and not event.stored and bundle.version != state.head.bundle.version:
        raise Refusal(
            RefusalCode.VERSION_MISMATCH,
            f"bundle {bundle.version}, the head says {state.head.bundle.version}",
        )
    if bundle.version < max(marks.bundle_version, floor):
        raise Refusal(
            RefusalCode.ROLLBACK_BUNDLE,
            f"bundle {bundle.version}, not under {max(marks.bundle_version, floor)}",
        )
    if bundle.version == marks.bundle_version and marks.bundle_identity not in ("", name):
        raise Refusal(RefusalCode.EQUIVOCATION, f"another bundle {bundle.version} than the one seen before")


def bundle_times(bundle: Bundle, policy: Environment, time: float, *, stored: bool) -> None:
    lifetime, caps = bundle.expires_at - bundle.issued_at, policy.caps
    if lifetime > caps.bundle_lifetime_s:
        raise Refusal(
            RefusalCode.LIFETIME, f"a bundle for {lifetime} s, the root allows {caps.bundle_lifetime_s} s"
        )
    if bundle.grace_s > caps.grace_s:
        raise Refusal(
            RefusalCode.LIFETIME, f"a grace of {bundle.grace_s} s, the root allows {caps.grace_s} s"
        )
    if stored:
        return
    if bundle.issued_at > time + CLOCK_SLACK_S or bundle.not_before > time:
        begins = max(bundle.not_before, bundle.issued_at - CLOCK_SLACK_S)
        raise Refusal(RefusalCode.NOT_BEFORE, f"valid in {int(begins - time)} s", retry_at=begins)
    if time >= bundle.expires_at:
        raise Refusal(
            RefusalCode.EXPIRED, f"bundle {bundle.version} expired {int(time - bundle.expires_at)} s ago"
        )
