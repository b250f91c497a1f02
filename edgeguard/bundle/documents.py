"""The signed documents: root, head and bundle (the release manifest is in `manifest.py`).

The roles are those of The Update Framework (TUF 1.0.34), flattened: `root` names keys and caps,
`release` signs bundles, `head` is timestamp and snapshot in one. All times are integer Unix seconds
in UTC. `parse` takes bytes whose signatures have been verified; the one exception is a root, which
is also verified against itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple

from edgeguard.bundle import codec
from edgeguard.bundle.fields import MAX_INT, SCHEMA, Fields, check_name
from edgeguard.bundle.keys import KeyFileError, PublicKey
from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

ENGINE_LEVEL: Final = 1
"""Rises when bundles may say something that an older engine would misread."""
MAX_ROOT_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 4 * 1024
MAX_BUNDLE_BYTES: Final = 256 * 1024 * 1024
MAX_KEYS: Final = 32
"""Per role; no more than an envelope holds signatures."""
MAX_ENVIRONMENTS: Final = 32
MAX_MEMBERS: Final = 16


class Kind(StrEnum):
    """What an envelope can hold."""

    ROOT = "root"
    HEAD = "head"
    BUNDLE = "bundle"
    MANIFEST = "manifest"


def media_type(kind: Kind, environment: str = "") -> str:
    """The envelope type. Only a root belongs to no environment."""
    base = f"application/vnd.edgeguard.{kind}.v1+msgpack"
    return base if kind is Kind.ROOT else f"{base};env={environment}"


def check_type(found: str, kind: Kind, environment: str = "") -> None:
    """Refuse an envelope of another kind (`type`) or of another environment (`env`)."""
    wanted = media_type(kind, environment)
    if found == wanted:
        return
    same_kind = found.startswith(wanted.partition(";")[0] + ";")
    code = RefusalCode.ENV if same_kind and kind is not Kind.ROOT else RefusalCode.TYPE
    raise Refusal(code, f"the envelope is a {found[:120]!r}, not a {wanted!r}")


class Quorum(NamedTuple):
    """Distinct keys, and how many of them must sign."""

    keys: tuple[PublicKey, ...]
    threshold: int

    def to_data(self) -> dict[str, object]:
        return {"keys": [key.raw for key in sorted(self.keys)], "threshold": self.threshold}


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that the keys of one environment may ask of a node."""

    head_lifetime_s: int = 6 * 3600
    bundle_lifetime_s: int = 35 * 86400
    grace_s: int = 86400
    version_jump: int = 2**32
    """How far a version may rise above the last one seen."""
    bundle_bytes: int = 64 * 1024 * 1024
    essentials: tuple[str, ...] = ()
    """The `host:port` that a closed node may still be configured to reach."""

    def to_data(self) -> dict[str, object]:
        return {
            "head_lifetime_s": self.head_lifetime_s,
            "bundle_lifetime_s": self.bundle_lifetime_s,
            "grace_s": self.grace_s,
            "version_jump": self.version_jump,
            "bundle_bytes": self.bundle_bytes,
            "essentials": sorted(self.essentials),
        }


@dataclass(frozen=True, slots=True)
class Environment:
    """Whom one environment trusts."""

    release: Quorum
    widening: int
    """Signatures that a bundle needs to change a gated section; at least `release.threshold`."""
    head: Quorum
    caps: Caps = field(default_factory=Caps)
    floor: int = 0
    """The lowest bundle version that may be in force."""

    def to_data(self) -> dict[str, object]:
        return {
            "release": {**self.release.to_data(), "widening": self.widening},
            "head": self.head.to_data(),
            "caps": self.caps.to_data(),
            "floor": self.floor,
        }


@dataclass(frozen=True, slots=True)
class Root:
    """The anchor: keys and thresholds of every role, and what each environment may do."""

    kind: ClassVar[Kind] = Kind.ROOT
    version: int
    issued_at: int
    expires_at: int
    root: Quorum
    environments: Mapping[str, Environment]

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return codec.encode(
            {
                "role": "root",
                "schema": list(SCHEMA),
                "version": self.version,
                "issued": self.issued_at,
                "expires": self.expires_at,
                "root": self.root.to_data(),
                "environments": {name: item.to_data() for name, item in self.environments.items()},
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Root":
        """Read a root's payload. Raises Refusal."""
        fields = Fields(codec.decode(payload, codec.Limits(size=MAX_ROOT_BYTES)), "root")
        lenient = fields.schema("root")
        version = fields.integer("version", 1)
        issued, expires = fields.integer("issued"), fields.integer("expires")
        quorum = _quorum(fields.sub("root"), "root.root", lenient=lenient)
        environments = {
            check_name(name, "environment"): _environment(
                Fields(value, f"root.environments.{name}"), lenient=lenient
            )
            for name, value in fields.mapping("environments", MAX_ENVIRONMENTS).items()
        }
        fields.done(lenient=lenient)
        if expires <= issued:
            raise Refusal(RefusalCode.LIFETIME, "the root expires before it is issued")
        return cls(version, issued, expires, quorum, environments)


def _quorum(fields: Fields, where: str, *, lenient: bool, finish: bool = True) -> Quorum:
    raw = fields.items("keys", MAX_KEYS)
    try:
        keys = tuple(PublicKey(item) for item in raw if isinstance(item, bytes))
    except KeyFileError as error:
        raise malformed(f"{where}.keys: {error}") from None
    if len(keys) != len(raw) or len({key.hint for key in keys}) != len(raw):
        raise malformed(f"{where}.keys is not an array of distinct public keys (bin of 32 bytes)")
    threshold = fields.integer("threshold", 1, max(len(keys), 1))
    if not keys:
        raise malformed(f"{where}.keys is empty")
    if finish:
        fields.done(lenient=lenient)
    return Quorum(keys, threshold)


def _environment(fields: Fields, *, lenient: bool) -> Environment:
    release_fields = fields.sub("release")
    release = _quorum(release_fields, "release", lenient=lenient, finish=False)
    widening = release_fields.integer("widening", release.threshold, len(release.keys))
    release_fields.done(lenient=lenient)
    head = _quorum(fields.sub("head"), "head", lenient=lenient)
    caps = _caps(fields.sub("caps"), lenient=lenient)
    floor = fields.integer("floor")
    fields.done(lenient=lenient)
    return Environment(release, widening, head, caps, floor)


def _caps(fields: Fields, *, lenient: bool) -> Caps:
    caps = Caps(
        head_lifetime_s=fields.integer("head_lifetime_s", 1),
        bundle_lifetime_s=fields.integer("bundle_lifetime_s", 1),
        grace_s=fields.integer("grace_s"),
        version_jump=fields.integer("version_jump", 1),
        bundle_bytes=fields.integer("bundle_bytes", 1, MAX_BUNDLE_BYTES),
        essentials=fields.texts("essentials", 64),
    )
    fields.done(lenient=lenient)
    return caps


class BlobRef(NamedTuple):
    """A member of a head: which envelope is current."""

    version: int
    sha256: str
    """Hexadecimal, of the envelope's bytes: the blob's address."""
    length: int
    """Of the envelope, in bytes."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is current, said often and briefly."""

    kind: ClassVar[Kind] = Kind.HEAD
    environment: str
    version: int
    issued_at: int
    expires_at: int
    members: Mapping[str, BlobRef]
    quarantine: int = 0
    """Number of the newest quarantine order; in force until a bundle's `released` reaches it."""

    @property
    def bundle(self) -> BlobRef:
        """The member that a node enforces."""
        return self.members["bundle"]

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return codec.encode(
            {
                "role": "head",
                "schema": list(SCHEMA),
                "env": self.environment,
                "version": self.version,
                "issued": self.issued_at,
                "expires": self.expires_at,
                "members": {
                    name: [ref.version, bytes.fromhex(ref.sha256), ref.length]
                    for name, ref in self.members.items()
                },
                "quarantine": self.quarantine,
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Head":
        """Read a head's payload. Raises Refusal."""
        fields = Fields(codec.decode(payload, codec.Limits(size=MAX_HEAD_BYTES)), "head")
        lenient = fields.schema("head")
        head = cls(
            environment=check_name(fields.text("env"), "environment"),
            version=fields.integer("version", 1),
            issued_at=fields.integer("issued"),
            expires_at=fields.integer("expires"),
            members={
                check_name(name, "member"): _blob_ref(value)
                for name, value in fields.mapping("members", MAX_MEMBERS).items()
            },
            quarantine=fields.integer("quarantine"),
        )
        fields.done(lenient=lenient)
        if "bundle" not in head.members:
            raise Refusal(RefusalCode.MEMBER_MISSING, "the head names no bundle")
        if head.expires_at <= head.issued_at:
            raise Refusal(RefusalCode.LIFETIME, "the head expires before it is issued")
        return head


def _blob_ref(value: object) -> BlobRef:
    if not isinstance(value, list) or len(value) != 3:
        raise malformed("a member is [version, sha256, length]")
    version, digest, length = value
    if type(version) is not int or not 1 <= version <= MAX_INT:
        raise malformed("a member's version is an integer from 1")
    if type(length) is not int or not 1 <= length <= MAX_BUNDLE_BYTES:
        raise malformed("a member's length is a positive integer of bytes")
    if not isinstance(digest, bytes) or len(digest) != 32:
        raise malformed("a member's sha256 is a byte string of 32")
    return BlobRef(version, digest.hex(), length)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One environment's policy."""

    kind: ClassVar[Kind] = Kind.BUNDLE
    environment: str
    version: int
    issued_at: int
    not_before: int
    expires_at: int
    policy: bytes
    """The policy section (`build.encode_section`)."""
    grace_s: int = 0
    """How long after the head's expiry the bundle is enforced as it is."""
    audience: tuple[str, ...] = ()
    """Whom it is for; empty: every node of the environment."""
    released: int = 0
    """Quarantine orders up to this number are over."""
    min_engine: int = ENGINE_LEVEL

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return codec.encode(
            {
                "role": "bundle",
                "schema": list(SCHEMA),
                "env": self.environment,
                "audience": sorted(self.audience),
                "version": self.version,
                "issued": self.issued_at,
                "not_before": self.not_before,
                "expires": self.expires_at,
                "grace_s": self.grace_s,
                "released": self.released,
                "min_engine": self.min_engine,
                "policy": self.policy,
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Bundle":
        """Read a bundle's payload; the policy section stays bytes. Raises Refusal."""
        fields = Fields(codec.decode(payload, codec.Limits(size=MAX_BUNDLE_BYTES)), "bundle")
        lenient = fields.schema("bundle")
        min_engine = fields.integer("min_engine", 1)
        if min_engine > ENGINE_LEVEL:
            raise Refusal(
                RefusalCode.SCHEMA_UNSUPPORTED,
                f"needs engine level {min_engine}, this one has {ENGINE_LEVEL}",
            )
        bundle = cls(
            environment=check_name(fields.text("env"), "environment"),
            audience=fields.texts("audience", 64),
            version=fields.integer("version", 1),
            issued_at=fields.integer("issued"),
            not_before=fields.integer("not_before"),
            expires_at=fields.integer("expires"),
            grace_s=fields.integer("grace_s"),
            released=fields.integer("released"),
            min_engine=min_engine,
            policy=fields.binary("policy"),
        )
        fields.done(lenient=lenient)
        if bundle.expires_at <= bundle.not_before or bundle.expires_at <= bundle.issued_at:
            raise Refusal(RefusalCode.LIFETIME, "the bundle expires before it begins")
        return bundle
