"""The trust state machine: `step(state, event, now) -> (state, effects)`, pure.

The order of checks is that of TUF 1.0.34, section 5, with three differences that matter to traffic:
another content under a known version is an alarm and not a silent discard; a new root re-judges the
bundle in force; and a bundle with few signatures may not change a gated section. The caller executes
the effects in their order. An effect that tightens comes before the storing, so that a full disk
cannot stop it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from edgeguard.bundle import build
from edgeguard.bundle.documents import (
    MAX_HEAD_BYTES,
    MAX_ROOT_BYTES,
    BlobRef,
    Bundle,
    Environment,
    Head,
    Kind,
    Root,
    check_type,
)
from edgeguard.bundle.envelope import OVERHEAD_BYTES, Envelope, identity
from edgeguard.bundle.marks import Marks
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.snapshot import Snapshot
from edgeguard.policy.engine import Engine
from edgeguard.policy.tables import Tables

MAX_ROOTS_PER_CYCLE: Final = 32
CLOCK_SLACK_S: Final = 300
"""How far in the future a document may have been issued, in seconds."""
QUARANTINE_JUMP: Final = 1024
"""How far a quarantine number may rise at once, so that a stolen head key cannot use them up."""
_MAY_PASS: Final = frozenset(
    {RefusalCode.NOT_BEFORE, RefusalCode.EXPIRED, RefusalCode.ROOT_EXPIRED, RefusalCode.ROOT_GAP}
)
"""Refusals that another time or another root may turn into acceptance of the same bytes."""


# Events. `stored=True`: read from this node's own disk at start, not fetched; expiry is then left to
# the ladder, and nothing is stored again.


@dataclass(frozen=True, slots=True)
class CycleStarted:
    """A new update cycle begins: the allowance of chained roots is fresh again."""


@dataclass(frozen=True, slots=True)
class RootOffered:
    """The root found under the name `version`."""

    data: bytes
    version: int
    stored: bool = False


@dataclass(frozen=True, slots=True)
class HeadOffered:
    """A head envelope."""

    data: bytes
    stored: bool = False


@dataclass(frozen=True, slots=True)
class BundleOffered:
    """A bundle envelope, as the `Fetch` effect asked for it."""

    data: bytes
    stored: bool = False


type Event = CycleStarted | RootOffered | HeadOffered | BundleOffered


# Effects, to be executed in their order.


@dataclass(frozen=True, slots=True)
class Store:
    """Keep these bytes durably, exactly as they are."""

    role: str
    version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RaiseMarks:
    """Keep these marks durably, in place of the old ones."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get this blob and offer it."""

    member: str
    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Activate:
    """Put this in force, in one reference swap."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Refuse:
    """Report it; what was in force stays in force."""

    refusal: Refusal


type Effect = Store | RaiseMarks | Fetch | Activate | Refuse


@dataclass(frozen=True, slots=True)
class InForce:
    """An accepted bundle, and what became of it."""

    bundle: Bundle
    data: bytes
    sha256: str
    """Hexadecimal, of the envelope: compared with the head's member."""
    identity: str
    policy_hash: str
    signers: tuple[str, ...]
    engine: Engine
    issuers: tuple[Mapping[str, object], ...]
    stale_at: int
    """Expiry of the last head that named this bundle."""
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class TrustState:
    """Everything that a node believes, and why."""

    environment: str
    root: Root
    root_bytes: bytes
    marks: Marks
    audience: str = ""
    floor: int = 0
    """The lowest bundle version, by this node's own configuration."""
    head: Head | None = None
    head_bytes: bytes = b""
    in_force: InForce | None = None
    chained: int = 0
    """Roots accepted in this cycle."""
    rejected: str = ""
    """sha256 of the last blob that was refused for good under this root: not fetched again."""

    @classmethod
    def start(
        cls, root_envelope: bytes, environment: str, *, audience: str = "", marks: Marks | None = None, floor: int = 0
    ) -> "TrustState":
        """The state of a node that holds nothing but the root it was given.

        Offer it then, in this order: the stored roots from `root.version + 1` on, the stored head,
        the stored bundle (each with `stored=True`), and what the server has.

        Raises:
            Refusal: the root is not one, or knows no such environment. Nothing may be enforced, and
                nothing need be fetched.
        """
        envelope = Envelope.parse(root_envelope, size=MAX_ROOT_BYTES)
        check_type(envelope.type, Kind.ROOT)
        root = Root.parse(envelope.payload)
        envelope.verify(*root.root)
        if environment not in root.environments:
            known = ", ".join(sorted(root.environments)) or "none"
            raise Refusal(RefusalCode.ENV, f"the root knows no environment {environment!r} (it knows: {known})")
        start = marks or Marks()
        time = max(start.newest_signed_time, root.issued_at)
        return cls(environment, root, root_envelope, replace(start, newest_signed_time=time), audience, floor)

    @property
    def policy(self) -> Environment:
        """What the newest root says of this environment. Raises Refusal if it was removed."""
        found = self.root.environments.get(self.environment)
        if found is None:
            raise Refusal(RefusalCode.KEY_UNKNOWN, f"the root no longer knows environment {self.environment!r}")
        return found

    @property
    def bundle(self) -> Bundle | None:
        return self.in_force.bundle if self.in_force else None

    @property
    def engine(self) -> Engine | None:
        return self.in_force.engine if self.in_force else None

    @property
    def revoked(self) -> bool:
        return self.in_force is not None and self.in_force.revoked

    @property
    def quarantined(self) -> bool:
        """Whether a quarantine order is in force that no bundle has ended."""
        released = self.in_force.bundle.released if self.in_force else 0
        return self.marks.quarantine > released

    @property
    def essentials(self) -> tuple[str, ...]:
        """The `host:port` that the root lets a closed node reach."""
        found = self.root.environments.get(self.environment)
        return found.caps.essentials if found else ()


def snapshot(state: TrustState) -> Snapshot | None:
    """What decisions are made against, or None when no bundle was ever accepted."""
    current = state.in_force
    if current is None:
        return None
    bundle, found = current.bundle, state.root.environments.get(state.environment)
    lifetime = found.caps.bundle_lifetime_s if found else 0
    grace = min(bundle.grace_s, found.caps.grace_s) if found else 0
    closed_at = min(bundle.expires_at, bundle.issued_at + lifetime)
    stale_at = min(current.stale_at, closed_at)
    return Snapshot(
        engine=current.engine,
        issuers=current.issuers,
        environment=state.environment,
        bundle_id=current.identity,
        policy_hash=current.policy_hash,
        bundle_version=bundle.version,
        head_version=state.head.version if state.head else state.marks.head_version,
        root_version=state.root.version,
        signers=current.signers,
        issued_at=bundle.issued_at,
        not_before=bundle.not_before,
        stale_at=stale_at,
        restricted_at=min(stale_at + grace, closed_at),
        closed_at=closed_at,
        revoked=current.revoked,
        quarantined=state.quarantined,
    )


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
            case BundleOffered():
                return _bundle(state, event, time)
    except Refusal as refusal:
        return _refused(state, event, refusal), (Refuse(refusal),)


def _refused(state: TrustState, event: Event, refusal: Refusal) -> TrustState:
    if not isinstance(event, BundleOffered) or event.stored or state.head is None or refusal.code in _MAY_PASS:
        return state
    digest = hashlib.sha256(event.data).hexdigest()
    return replace(state, rejected=digest) if digest == state.head.bundle.sha256 else state


def _activate(state: TrustState) -> tuple[Activate, ...]:
    current = snapshot(state)
    return (Activate(current),) if current else ()


# Root


def _root(state: TrustState, event: RootOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    if event.data == state.root_bytes:
        return state, ()
    if event.version > state.root.version + 1:
        raise Refusal(RefusalCode.ROOT_GAP, f"root {event.version} was offered, {state.root.version + 1} is next")
    if state.chained >= MAX_ROOTS_PER_CYCLE:
        raise Refusal(RefusalCode.ROOT_CHAIN, f"more than {MAX_ROOTS_PER_CYCLE} new roots in one cycle")
    envelope = Envelope.parse(event.data, size=MAX_ROOT_BYTES)
    check_type(envelope.type, Kind.ROOT)
    envelope.verify(*state.root.root)
    root = Root.parse(envelope.payload)
    envelope.verify(*root.root)
    if root.version != event.version:
        raise Refusal(RefusalCode.VERSION_MISMATCH, f"root {root.version} stands under the name {event.version}")
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
        marks = replace(marks, bundle_version=0, bundle_identity="", gated=())
    return replace(state, marks=marks)


def _rejudged(state: TrustState, time: float) -> TrustState:
    """Judge the held head and the bundle in force again, under the new root."""
    found = state.root.environments.get(state.environment)
    current, head, head_bytes = state.in_force, state.head, state.head_bytes
    if head is not None and not (found and _signed_by(head_bytes, *found.head)):
        head, head_bytes = None, b""
        if current is not None:
            current = replace(current, stale_at=min(current.stale_at, int(time)))
    marks = state.marks
    if current is not None:
        signers = _signed_by(current.data, *found.release) if found else ()
        low = found is None or current.bundle.version < max(found.floor, state.floor)
        current = replace(current, revoked=low or not signers, signers=signers or current.signers)
        if not current.revoked and marks.bundle_version <= current.bundle.version:
            marks = _marks_of(marks, current)
    return replace(state, head=head, head_bytes=head_bytes, in_force=current, marks=marks)


def _signed_by(data: bytes, keys: tuple[object, ...], threshold: int) -> tuple[str, ...]:
    try:
        return Envelope.parse(data).verify(keys, threshold)  # type: ignore[arg-type]
    except Refusal:
        return ()


# Head


def _head(state: TrustState, event: HeadOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    _root_serves(state, time, stored=event.stored)
    policy = state.policy
    envelope = Envelope.parse(event.data, size=MAX_HEAD_BYTES)
    check_type(envelope.type, Kind.HEAD, state.environment)
    envelope.verify(*policy.head)
    head = Head.parse(envelope.payload)
    name = identity(envelope.payload)
    if head.environment != state.environment:
        raise Refusal(RefusalCode.ENV, f"a head of {head.environment!r}, this is {state.environment!r}")
    if state.head is not None and head == state.head and name == state.marks.head_identity:
        return state, _wanted(state)
    _head_order(state, head, name)
    _head_times(head, policy, time, stored=event.stored)

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
    return following, ordered if event.stored else (*ordered, *_wanted(following))


def _root_serves(state: TrustState, time: float, *, stored: bool) -> None:
    if state.root.version < state.marks.root_version:
        raise Refusal(
            RefusalCode.ROOT_GAP, f"root {state.marks.root_version} was seen before; {state.root.version} is held"
        )
    if not stored and time >= state.root.expires_at:
        raise Refusal(RefusalCode.ROOT_EXPIRED, f"root {state.root.version} has expired; a newer one must be signed")


def _head_order(state: TrustState, head: Head, name: str) -> None:
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
        raise Refusal(RefusalCode.TOO_BIG, f"a bundle of {ref.length} bytes, {policy.caps.bundle_bytes} are allowed")
    for member, old in (state.head.members if state.head else {}).items():
        if member not in head.members:
            raise Refusal(RefusalCode.MEMBER_MISSING, f"member {member!r} has vanished from the head")
        if head.members[member].version < old.version and member != "bundle":
            raise Refusal(RefusalCode.ROLLBACK_BUNDLE, f"member {member!r} goes back from version {old.version}")


def _jump(what: str, version: int, seen: int, most: int) -> None:
    if seen and version > seen + most:
        raise Refusal(RefusalCode.VERSION_JUMP, f"{what} {version} after {seen}: the root allows steps of {most}")


def _head_times(head: Head, policy: Environment, time: float, *, stored: bool) -> None:
    lifetime = head.expires_at - head.issued_at
    if lifetime > policy.caps.head_lifetime_s:
        raise Refusal(
            RefusalCode.LIFETIME, f"a head for {lifetime} s, the root allows {policy.caps.head_lifetime_s} s"
        )
    if stored:
        return
    if head.issued_at > time + CLOCK_SLACK_S:
        raise Refusal(
            RefusalCode.NOT_BEFORE, f"issued {int(head.issued_at - time)} s in the future", retry_at=head.issued_at
        )
    if time >= head.expires_at:
        raise Refusal(RefusalCode.FREEZE, f"head {head.version} expired {int(time - head.expires_at)} s ago")


def _wanted(state: TrustState) -> tuple[Fetch, ...]:
    """The bundle that the head names, unless it is in force or was refused for good."""
    if state.head is None:
        return ()
    ref = state.head.bundle
    if ref.sha256 == state.rejected or (state.in_force and state.in_force.sha256 == ref.sha256):
        return ()
    return (Fetch("bundle", ref),)


# Bundle


def _bundle(state: TrustState, event: BundleOffered, time: float) -> tuple[TrustState, tuple[Effect, ...]]:
    _root_serves(state, time, stored=event.stored)
    policy = state.policy
    digest = hashlib.sha256(event.data).hexdigest()
    if not event.stored:
        _is_named(state, event.data, digest)
    envelope = Envelope.parse(event.data, size=policy.caps.bundle_bytes + OVERHEAD_BYTES)
    check_type(envelope.type, Kind.BUNDLE, state.environment)
    signers = envelope.verify(policy.release.keys, policy.release.threshold)
    bundle = Bundle.parse(envelope.payload)
    name = identity(envelope.payload)
    _bundle_order(state, event, bundle, name)
    _bundle_times(bundle, policy, time, stored=event.stored)
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
        policy_hash=build.policy_hash(bundle.policy),
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
    stored = () if event.stored else (Store("bundle", bundle.version, event.data),)
    return following, (*stored, RaiseMarks(marks), *_activate(following))


def _marks_of(marks: Marks, current: InForce) -> Marks:
    return replace(
        marks,
        bundle_version=current.bundle.version,
        bundle_identity=current.identity,
        gated=tuple(sorted(build.gated_hashes(current.bundle.policy).items())),
        fresh_until=current.stale_at,
    )


def _is_named(state: TrustState, data: bytes, digest: str) -> None:
    """A fetched bundle is exactly the blob that the head names, before any signature is looked at."""
    if state.head is None:
        raise Refusal(RefusalCode.HEAD_MISSING, "a bundle without a head that names it")
    ref = state.head.bundle
    if len(data) != ref.length or digest != ref.sha256:
        raise Refusal(RefusalCode.HASH_MISMATCH, f"{len(data)} bytes that are not the blob {ref.sha256[:16]}…")


def _bundle_order(state: TrustState, event: BundleOffered, bundle: Bundle, name: str) -> None:
    marks, floor = state.marks, max(state.policy.floor, state.floor)
    if bundle.environment != state.environment:
        raise Refusal(RefusalCode.ENV, f"a bundle of {bundle.environment!r}, this is {state.environment!r}")
    if bundle.audience and state.audience not in bundle.audience:
        raise Refusal(RefusalCode.AUDIENCE, f"for {', '.join(bundle.audience)[:120]}; this is {state.audience!r}")
    if state.head is not None and not event.stored and bundle.version != state.head.bundle.version:
        raise Refusal(
            RefusalCode.VERSION_MISMATCH, f"bundle {bundle.version}, the head says {state.head.bundle.version}"
        )
    if bundle.version < max(marks.bundle_version, floor):
        raise Refusal(
            RefusalCode.ROLLBACK_BUNDLE, f"bundle {bundle.version}, not under {max(marks.bundle_version, floor)}"
        )
    if bundle.version == marks.bundle_version and marks.bundle_identity not in ("", name):
        raise Refusal(RefusalCode.EQUIVOCATION, f"another bundle {bundle.version} than the one seen before")


def _bundle_times(bundle: Bundle, policy: Environment, time: float, *, stored: bool) -> None:
    lifetime, caps = bundle.expires_at - bundle.issued_at, policy.caps
    if lifetime > caps.bundle_lifetime_s:
        raise Refusal(RefusalCode.LIFETIME, f"a bundle for {lifetime} s, the root allows {caps.bundle_lifetime_s} s")
    if bundle.grace_s > caps.grace_s:
        raise Refusal(RefusalCode.LIFETIME, f"a grace of {bundle.grace_s} s, the root allows {caps.grace_s} s")
    if stored:
        return
    if bundle.issued_at > time + CLOCK_SLACK_S or bundle.not_before > time:
        begins = max(bundle.not_before, bundle.issued_at - CLOCK_SLACK_S)
        raise Refusal(RefusalCode.NOT_BEFORE, f"valid in {int(begins - time)} s", retry_at=begins)
    if time >= bundle.expires_at:
        raise Refusal(RefusalCode.EXPIRED, f"bundle {bundle.version} expired {int(time - bundle.expires_at)} s ago")


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
    except Exception as error:  # noqa: BLE001 - fail closed: whatever a signed policy breaks, the old one stays in force
        raise Refusal(RefusalCode.POLICY_INVALID, f"the engine refuses the policy: {error}"[:300]) from error


def _vouched_until(state: TrustState, bundle: Bundle, digest: str, name: str) -> int:
    """When the bundle goes stale: never later than what a head has said, also across restarts."""
    if state.head is not None and state.head.bundle.sha256 == digest:
        return state.head.expires_at
    if state.marks.bundle_identity == name:
        return state.marks.fresh_until
    return bundle.issued_at
