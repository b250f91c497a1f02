"""High-water marks: what a node must remember so that nobody can take it back.

They live on the node's disk beside the documents, in one small file; they are not signed. Losing
them falls back to the floor of the configuration and of the root.
"""

from dataclasses import asdict, dataclass

from edgeguard.bundle import codec
from edgeguard.bundle.fields import Fields
from edgeguard.bundle.refusal import malformed

MAX_MARKS_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Marks:
    """The newest of everything that this node has accepted."""

    root_version: int = 0
    head_version: int = 0
    head_identity: str = ""
    """`sha256:…` of that head's payload; empty: none yet."""
    bundle_version: int = 0
    bundle_identity: str = ""
    newest_signed_time: int = 0
    """The latest issue time seen in an accepted document, Unix seconds: time is never earlier."""
    quarantine: int = 0
    """Number of the newest quarantine order seen."""
    gated: tuple[tuple[str, str], ...] = ()
    """Name and `sha256:…` of each gated section in force; empty: first contact."""
    fresh_until: int = 0
    """Expiry of the last head that named the bundle in force."""

    def encode(self) -> bytes:
        """The bytes to keep."""
        return codec.encode({**asdict(self), "gated": dict(self.gated)})

    @classmethod
    def decode(cls, data: bytes) -> "Marks":
        """Read kept bytes. Raises Refusal if they are damaged."""
        fields = Fields(codec.decode(data, codec.Limits(size=MAX_MARKS_BYTES)), "marks")
        marks = cls(
            root_version=fields.integer("root_version"),
            head_version=fields.integer("head_version"),
            head_identity=fields.text("head_identity"),
            bundle_version=fields.integer("bundle_version"),
            bundle_identity=fields.text("bundle_identity"),
            newest_signed_time=fields.integer("newest_signed_time"),
            quarantine=fields.integer("quarantine"),
            gated=_pairs(fields.mapping("gated", 16)),
            fresh_until=fields.integer("fresh_until"),
        )
        fields.done()
        return marks


def _pairs(value: dict[str, object]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(sorted((name, digest) for name, digest in value.items() if isinstance(digest, str)))
    if len(pairs) != len(value):
        raise malformed("marks.gated is not a map of strings")
    return pairs
