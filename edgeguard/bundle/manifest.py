"""The release manifest: which application, infrastructure and policy were approved together.

Signed by the release keys and named by the head. A node that requires one takes only the bundle that its manifest
names. A manifest has no expiry of its own: it says nothing beyond the one bundle it names, and that one expires.
The idea is that of the in-toto and SLSA verification summaries: bind digests, not names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

from edgeguard.bundle import codec
from edgeguard.bundle.documents import Kind
from edgeguard.bundle.fields import MAX_INT, SCHEMA, Fields, check_name
from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

MEMBER: Final = "manifest"
"""Its name among the head's members."""
MAX_MANIFEST_BYTES: Final = 64 * 1024
MAX_TESTED: Final = 256
MAX_FLAGS: Final = 512
PREFIX: Final = "sha256:"


class BundleName(NamedTuple):
    """One bundle, whoever signed it and however often."""

    version: int
    identity: str
    """`sha256:…` of its payload."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release of one environment."""

    kind: ClassVar[Kind] = Kind.MANIFEST
    environment: str
    version: int
    issued_at: int
    app: str
    """`sha256:…` of the application's image."""
    infra: str
    """`sha256:…` of the infrastructure plan."""
    bundle: BundleName
    policy_hash: str
    tested: tuple[str, ...]
    """Policy hashes that the release was tested with; `policy_hash` is one of them."""
    flags: Mapping[str, bool] = field(default_factory=dict)
    """The feature flags that the tests assumed."""
    rollback: BundleName | None = None
    """The bundle that alone may use its version: the way back, signed beforehand."""

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return codec.encode(
            {
                "role": "manifest",
                "schema": list(SCHEMA),
                "env": self.environment,
                "version": self.version,
                "issued": self.issued_at,
                "app": _raw(self.app),
                "infra": _raw(self.infra),
                "bundle": _name_data(self.bundle),
                "policy": _raw(self.policy_hash),
                "tested": sorted(_raw(item) for item in self.tested),
                "flags": dict(self.flags),
                "rollback": None if self.rollback is None else _name_data(self.rollback),
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Manifest":
        """Read a manifest's payload. Raises Refusal."""
        fields = Fields(codec.decode(payload, codec.Limits(size=MAX_MANIFEST_BYTES)), "manifest")
        lenient = fields.schema("manifest")
        tested, rollback = fields.items("tested", MAX_TESTED), fields.optional_items("rollback", 2)
        manifest = cls(
            environment=check_name(fields.text("env"), "environment"),
            version=fields.integer("version", 1),
            issued_at=fields.integer("issued"),
            app=_hash(fields.binary("app"), "app"),
            infra=_hash(fields.binary("infra"), "infra"),
            bundle=_name(fields.items("bundle", 2), "bundle"),
            policy_hash=_hash(fields.binary("policy"), "policy"),
            tested=tuple(_hash(item, "tested") for item in tested),
            flags=_flags(fields.mapping("flags", MAX_FLAGS)),
            rollback=None if rollback is None else _name(rollback, "rollback"),
        )
        fields.done(lenient=lenient)
        if manifest.policy_hash not in manifest.tested:
            raise Refusal(RefusalCode.MANIFEST_MISMATCH, "the policy is not among those that were tested")
        if manifest.rollback is not None and manifest.rollback.version <= manifest.bundle.version:
            raise malformed(
                "manifest.rollback must have a higher version than the bundle: versions only rise"
            )
        return manifest


def is_hash(text: str) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    digits = text.removeprefix(PREFIX)
    return text.startswith(PREFIX) and len(digits) == 64 and set(digits) <= set("0123456789abcdef")


def _raw(text: str) -> bytes:
    if not is_hash(text):
        raise ValueError(f"{text[:80]!r} is no `sha256:` and 64 hexadecimal digits")
    return bytes.fromhex(text.removeprefix(PREFIX))


def _hash(value: object, what: str) -> str:
    if not isinstance(value, bytes) or len(value) != 32:
        raise malformed(f"manifest.{what} is not a SHA-256 (bin of 32 bytes)")
    return PREFIX + value.hex()


def _name_data(name: BundleName) -> list[object]:
    return [name.version, _raw(name.identity)]


def _name(value: list[object], what: str) -> BundleName:
    if len(value) != 2 or type(value[0]) is not int or not 1 <= value[0] <= MAX_INT:
        raise malformed(f"manifest.{what} is not [version, identity]")
    return BundleName(value[0], _hash(value[1], what))


def _flags(value: Mapping[str, object]) -> dict[str, bool]:
    flags = {name: on for name, on in value.items() if isinstance(on, bool)}
    if len(flags) != len(value):
        raise malformed("manifest.flags is not a map of bools")
    return flags
