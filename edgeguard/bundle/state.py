"""What the trust state machine holds, what it is told (events) and what it asks for (effects)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeguard.bundle.documents import (
    MAX_ROOT_BYTES,
    BlobRef,
    Bundle,
    Environment,
    Head,
    Kind,
    Root,
    check_type,
)
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.manifest import Manifest
from edgeguard.bundle.marks import Marks
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.snapshot import Snapshot
from edgeguard.policy.engine import Engine

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


@dataclass(frozen=True, slots=True)
class ManifestOffered:
    """A manifest envelope, as the `Fetch` effect asked for it. Where one is required, it comes before the bundle."""

    data: bytes
    stored: bool = False


type Event = CycleStarted | RootOffered | HeadOffered | BundleOffered | ManifestOffered


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
    manifest_required: bool = False
    """Only the bundle that a manifest names may be put in force."""
    app: str = ""
    """`sha256:…` of the application that this node stands beside; a manifest must name it. Empty: not compared."""
    manifest: Manifest | None = None
    """The newest that was accepted, if one is required."""
    manifest_bytes: bytes = b""
    rejected: str = ""
    """sha256 of the last blob that was refused for good under this root: not fetched again."""

    @classmethod
    def start(
        cls,
        root_envelope: bytes,
        environment: str,
        *,
        audience: str = "",
        marks: Marks | None = None,
        floor: int = 0,
        manifest_required: bool = False,
        app: str = "",
    ) -> "TrustState":
        """The state of a node that holds nothing but the root it was given.

        Offer it then, in this order: the stored roots from `root.version + 1` on, the stored head,
        the stored manifest, the stored bundle (each with `stored=True`), and what the server has.

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
            raise Refusal(
                RefusalCode.ENV, f"the root knows no environment {environment!r} (it knows: {known})"
            )
        start = marks or Marks()
        time = max(start.newest_signed_time, root.issued_at)
        return cls(
            environment=environment,
            root=root,
            root_bytes=root_envelope,
            marks=replace(start, newest_signed_time=time),
            audience=audience,
            floor=floor,
            manifest_required=manifest_required or bool(app),
            app=app,
        )

    @property
    def policy(self) -> Environment:
        """What the newest root says of this environment. Raises Refusal if it was removed."""
        found = self.root.environments.get(self.environment)
        if found is None:
            raise Refusal(
                RefusalCode.KEY_UNKNOWN, f"the root no longer knows environment {self.environment!r}"
            )
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
