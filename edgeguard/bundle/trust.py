"""The trust state machine: `step(state, event, now) -> (state, effects)`, pure.

The order of checks is that of TUF 1.0.34, section 5, with three differences that matter to traffic:
another content under a known version is an alarm and not a silent discard; a new root re-judges the
bundle in force; and a bundle with few signatures may not change a gated section. The caller executes
the effects in their order. An effect that tightens comes before the storing, so that a full disk
cannot stop it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgeguard.bundle import build, checks
from edgeguard.bundle.documents import (
    MAX_HEAD_BYTES,
    MAX_ROOT_BYTES,
    Bundle,
    Head,
    Kind,
    Quorum,
    Root,
    check_type,
)
from edgeguard.bundle.envelope import OVERHEAD_BYTES, Envelope, identity
from edgeguard.bundle.manifest import MAX_MANIFEST_BYTES, MEMBER, Manifest
from edgeguard.bundle.marks import Marks
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.state import (
    Activate,
    BundleOffered,
    CycleStarted,
    Effect,
    Event,
    Fetch,
    HeadOffered,
    InForce,
    ManifestOffered,
    RaiseMarks,
    Refuse,
    RootOffered,
    Store,
    TrustState,
    snapshot,
)
from edgeguard.policy.engine import Engine
from edgeguard.policy.tables import Tables

MAX_ROOTS_PER_CYCLE: Final = 32
_MAY_PASS: Final = frozenset(
    {RefusalCode.NOT_BEFORE, RefusalCode.EXPIRED, RefusalCode.ROOT_EXPIRED, RefusalCode.ROOT_GAP}
)
"""Refusals that another time or another root may turn into acceptance of the same bytes."""

__all__ = [
    "Activate",
    "BundleOffered",
    "CycleStarted",
    "Effect",
    "Event",
    "Fetch",
    "HeadOffered",
    "ManifestOffered",
    "Marks",
    "RaiseMarks",
    "Refuse",
    "RootOffered",
    "Store",
    "TrustState",
    "snapshot",
    "step",
]


def step(state: TrustState, event: Event, now: float) -> tuple[TrustState, tuple[Effect, ...]]:
    """Judge one event at `now` (Unix seconds). Never raises for anything that the event holds."""
    time = max(now, state.marks.newest_signed_time)
    try:
        match event:
            case CycleStarted():
                return replace(state, chained=0), ()
            case RootOffered():
                return _root(state, event, time)
            case HeadOffered():
                return _head(state, event, time)
            case ManifestOffered():
                return _manifest(state, event, time)
            case BundleOffered():
                return _bundle(state, event, time)
    except Refusal as refusal:
        return _refused(state, event, refusal), (Refuse(refusal),)


def _refused(state: TrustState, event: Event, refusal: Refusal) -> TrustState:
    if (
        not isinstance(event, BundleOffered | ManifestOffered)
        or event.stored
        or state.head is None
        or refusal.code in _MAY_PASS
    ):
        return state
    digest = hashlib.sha256(event.data).hexdigest()
    named = {ref.sha256 for ref in state.head.members.values()}
    return replace(state, rejected=digest) if digest in named else state


def _activate(state: TrustState) -> tuple[Activate, ...]:
    current = snapshot(state)
    return (Activate(current),) if current else ()


# Root


def _root(state: TrustState, event: RootOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    if event.data == state.root_bytes:
        return state, ()
    if event.version > state.root.version + 1:
        raise Refusal(
            RefusalCode.ROOT_GAP, f"root {event.version} was offered, {state.root.version + 1} is next"
        )
    if state.chained >= MAX_ROOTS_PER_CYCLE:
        raise Refusal(RefusalCode.ROOT_CHAIN, f"more than {MAX_ROOTS_PER_CYCLE} new roots in one cycle")
    envelope = Envelope.parse(event.data, size=MAX_ROOT_BYTES)
    check_type(envelope.type, Kind.ROOT)
    envelope.verify(*state.root.root)
    root = Root.parse(envelope.payload)
    envelope.verify(*root.root)
    if root.version != event.version:
        raise Refusal(
            RefusalCode.VERSION_MISMATCH, f"root {root.version} stands under the name {event.version}"
        )
    if root.version == state.root.version:
        raise Refusal(RefusalCode.EQUIVOCATION, f"another root {root.version} than the one in force")
    if root.version < state.root.version:
        raise Refusal(RefusalCode.ROLLBACK_ROOT, f"root {root.version}, {state.root.version} is in force")

    rotated = _rotated(state, root)
    following = _rejudged(replace(rotated, root=root, root_bytes=event.data, chained=state.chained + 1), time)
    marks = replace(
        following.marks,
        root_version=max(root.version, following.marks.root_version),
        newest_signed_time=max(root.issued_at, following.marks.newest_signed_time),
    )
    following = replace(following, marks=marks, rejected="")
    stored = () if event.stored else (Store("root", root.version, event.data),)
    kept: tuple[Effect, ...] = (*stored, RaiseMarks(marks))
    active = _activate(following)
    # A revocation must not wait for the disk.
    return following, (*active, *kept) if following.revoked else (*kept, *active)


def _rotated(state: TrustState, root: Root) -> TrustState:
    """Take marks back that a retired key may have driven up (fast-forward recovery, TUF 5.3.11).

    Only for a root newer than any this node has seen: replaying the chain after a restart must not.
    """
    if root.version <= state.marks.root_version:
        return state
    old, new = state.root.environments.get(state.environment), root.environments.get(state.environment)
    marks = state.marks
    if old and (new is None or not set(old.head.keys) <= set(new.head.keys)):
        marks = replace(marks, head_version=0, head_identity="")
    if old and (new is None or not set(old.release.keys) <= set(new.release.keys)):
        # `_rejudged` restores these from the bundle in force, if the remaining keys still carry it.
        # The held head may have named a version that a retired key drove up; it is offered again anyway.
        marks = replace(marks, bundle_version=0, bundle_identity="", gated=())
        state = replace(state, head=None, head_bytes=b"")
    return replace(state, marks=marks)


def _rejudged(state: TrustState, time: float) -> TrustState:
    """Judge the held head and the bundle in force again, under the new root."""
    found = state.root.environments.get(state.environment)
    current, head, head_bytes = state.in_force, state.head, state.head_bytes
    if head is not None and not (found and _signed_by(head_bytes, found.head)):
        head, head_bytes = None, b""
        if current is not None:
            current = replace(current, stale_at=min(current.stale_at, int(time)))
    manifest, manifest_bytes = state.manifest, state.manifest_bytes
    if manifest is not None and not (found and _signed_by(manifest_bytes, found.release)):
        manifest, manifest_bytes = None, b""
    marks = state.marks
    if current is not None:
        signers = _signed_by(current.data, found.release) if found else ()
        low = found is None or current.bundle.version < max(found.floor, state.floor)
        current = replace(current, revoked=low or not signers, signers=signers or current.signers)
        if current.revoked:
            marks = replace(marks, gated=())  # nothing that is in force vouches for them any more
        elif marks.bundle_version <= current.bundle.version:
            marks = _marks_of(marks, current)
    return replace(
        state,
        head=head,
        head_bytes=head_bytes,
        in_force=current,
        marks=marks,
        manifest=manifest,
        manifest_bytes=manifest_bytes,
    )


def _signed_by(data: bytes, quorum: Quorum) -> tuple[str, ...]:
    try:
        return Envelope.parse(data).verify(*quorum)
    except Refusal:
        return ()


# Head


def _head(state: TrustState, event: HeadOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    checks.root_serves(state, time, stored=event.stored)
    policy = state.policy
    envelope = Envelope.parse(event.data, size=MAX_HEAD_BYTES)
    check_type(envelope.type, Kind.HEAD, state.environment)
    envelope.verify(*policy.head)
    head = Head.parse(envelope.payload)
    name = identity(envelope.payload)
    if head.environment != state.environment:
        raise Refusal(RefusalCode.ENV, f"a head of {head.environment!r}, this is {state.environment!r}")
    if state.head is not None and head == state.head and name == state.marks.head_identity:
        return state, _next(state)
    checks.head_order(state, head, name)
    checks.head_times(head, policy, time, stored=event.stored)

    current = state.in_force
    if current is not None and current.sha256 == head.bundle.sha256:
        current = replace(current, stale_at=head.expires_at)
    marks = replace(
        state.marks,
        head_version=head.version,
        head_identity=name,
        newest_signed_time=max(head.issued_at, state.marks.newest_signed_time),
        quarantine=max(head.quarantine, state.marks.quarantine),
        fresh_until=current.stale_at if current else state.marks.fresh_until,
    )
    following = replace(state, head=head, head_bytes=event.data, in_force=current, marks=marks)
    stored = () if event.stored else (Store("head", head.version, event.data),)
    kept: tuple[Effect, ...] = (*stored, RaiseMarks(marks))
    active = _activate(following)
    ordered = (*active, *kept) if following.quarantined and not state.quarantined else (*kept, *active)
    return following, ordered if event.stored else (*ordered, *_next(following))


def _next(state: TrustState) -> tuple[Effect, ...]:
    """What follows a head. One without a manifest still counts, so that a quarantine gets through."""
    if state.manifest_required and state.head is not None and MEMBER not in state.head.members:
        detail = f"head {state.head.version} names no release manifest, and this node requires one"
        return (Refuse(Refusal(RefusalCode.MANIFEST_MISMATCH, detail)),)
    return _wanted(state)


def _wanted(state: TrustState) -> tuple[Fetch, ...]:
    """What the head names and is neither held nor refused for good; a manifest before its bundle."""
    if state.head is None:
        return ()
    if state.manifest_required:
        manifest = state.head.members.get(MEMBER)
        if manifest is None or manifest.sha256 == state.rejected:
            return ()
        if hashlib.sha256(state.manifest_bytes).hexdigest() != manifest.sha256:
            return (Fetch(MEMBER, manifest),)
    ref = state.head.bundle
    if ref.sha256 == state.rejected or (state.in_force and state.in_force.sha256 == ref.sha256):
        return ()
    return (Fetch("bundle", ref),)


# Manifest


def _manifest(
    state: TrustState, event: ManifestOffered, time: float
) -> tuple[TrustState, tuple[Effect, ...]]:
    checks.root_serves(state, time, stored=event.stored)
    policy, head = state.policy, state.head
    ref = None
    if not event.stored:
        ref = checks.is_named(state, MEMBER, event.data, hashlib.sha256(event.data).hexdigest())
    envelope = Envelope.parse(event.data, size=MAX_MANIFEST_BYTES + OVERHEAD_BYTES)
    check_type(envelope.type, Kind.MANIFEST, state.environment)
    envelope.verify(*policy.release)
    manifest = Manifest.parse(envelope.payload)
    checks.manifest_order(state, manifest, event.data)
    if ref is not None and manifest.version != ref.version:
        raise Refusal(
            RefusalCode.VERSION_MISMATCH, f"manifest {manifest.version}, the head says {ref.version}"
        )
    if not event.stored and head is not None and manifest.bundle.version != head.bundle.version:
        raise Refusal(
            RefusalCode.MANIFEST_MISMATCH,
            f"manifest {manifest.version} names bundle {manifest.bundle.version}, the head {head.bundle.version}",
        )
    if not event.stored and manifest.issued_at > time + checks.CLOCK_SLACK_S:
        ahead = int(manifest.issued_at - time)
        raise Refusal(RefusalCode.NOT_BEFORE, f"issued {ahead} s in the future", retry_at=manifest.issued_at)
    following = replace(state, manifest=manifest, manifest_bytes=event.data, rejected="")
    if event.stored:
        return following, ()
    # It is stored beside the bundle that it names: not before that one is there.
    current = state.in_force
    kept = (
        (Store(MEMBER, manifest.version, event.data),)
        if current and current.identity == manifest.bundle.identity
        else ()
    )
    return following, (*kept, *_wanted(following))


# Bundle


def _bundle(state: TrustState, event: BundleOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    checks.root_serves(state, time, stored=event.stored)
    policy = state.policy
    digest = hashlib.sha256(event.data).hexdigest()
    if not event.stored:
        checks.is_named(state, "bundle", event.data, digest)
    envelope = Envelope.parse(event.data, size=policy.caps.bundle_bytes + OVERHEAD_BYTES)
    check_type(envelope.type, Kind.BUNDLE, state.environment)
    signers = envelope.verify(policy.release.keys, policy.release.threshold)
    bundle = Bundle.parse(envelope.payload)
    name = identity(envelope.payload)
    checks.bundle_order(state, event, bundle, name)
    checks.bundle_times(bundle, policy, time, stored=event.stored)
    policy_hash = build.policy_hash(bundle.policy)
    checks.manifest_names(state, bundle, name, policy_hash)
    gated = tuple(sorted(build.gated_hashes(bundle.policy).items()))
    if len(signers) < policy.widening and gated != state.marks.gated:
        raise Refusal(
            RefusalCode.GATED,
            f"{len(signers)} signatures, {policy.widening} are needed: "
            + ("a gated section changes" if state.marks.gated else "this is the first bundle here"),
        )
    engine, issuers = _compiled(state, bundle, name)

    stale_at = _vouched_until(state, bundle, digest, name)
    current = InForce(
        bundle=bundle,
        data=event.data,
        sha256=digest,
        identity=name,
        policy_hash=policy_hash,
        signers=signers,
        engine=engine,
        issuers=issuers,
        stale_at=stale_at,
    )
    marks = replace(
        _marks_of(state.marks, current),
        gated=gated,
        newest_signed_time=max(bundle.issued_at, state.marks.newest_signed_time),
    )
    following = replace(state, in_force=current, marks=marks)
    stored: tuple[Effect, ...] = () if event.stored else (Store("bundle", bundle.version, event.data),)
    if stored and state.manifest_required and state.manifest is not None:
        # After the bundle: a crash in between leaves the old bundle with the manifest that names it.
        stored = (*stored, Store(MEMBER, state.manifest.version, state.manifest_bytes))
    return following, (*stored, RaiseMarks(marks), *_activate(following))


def _marks_of(marks: Marks, current: InForce) -> Marks:
    return replace(
        marks,
        bundle_version=current.bundle.version,
        bundle_identity=current.identity,
        gated=tuple(sorted(build.gated_hashes(current.bundle.policy).items())),
        fresh_until=current.stale_at,
    )


def _compiled(
    state: TrustState, bundle: Bundle, name: str
) -> tuple[Engine, tuple[Mapping[str, object], ...]]:
    current = state.in_force
    if current is not None and current.identity == name:
        return current.engine, current.issuers
    sections = build.decode_section(bundle.policy)
    try:
        tables = Tables.load(sections)
        return Engine(tables), tables.issuers
    except Exception as error:  # fail closed: whatever a signed policy breaks, the old one stays in force
        raise Refusal(RefusalCode.POLICY_INVALID, f"the engine refuses the policy: {error}"[:300]) from error


def _vouched_until(state: TrustState, bundle: Bundle, digest: str, name: str) -> int:
    """When the bundle goes stale: never later than what a head has said, also across restarts."""
    if state.head is not None and state.head.bundle.sha256 == digest:
        return state.head.expires_at
    if state.marks.bundle_identity == name:
        return state.marks.fresh_until
    return bundle.issued_at
