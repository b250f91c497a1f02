"""Building bundles: the same compiled policy gives the same bytes on every machine.

The policy section is one byte string, a map of four byte strings, each a msgpack-encoded part of
the compiled policy. Its hash covers everything that a decision uses; the gated parts have hashes
of their own, because changing them takes more signatures (`trust.py`).
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from edgeguard.bundle import codec
from edgeguard.bundle.documents import Bundle
from edgeguard.bundle.fields import Fields
from edgeguard.bundle.refusal import Refusal

SECTIONS: Final = ("age", "exceptions", "identity", "rules")
GATED: Final = ("age", "exceptions", "identity")
"""Sections that only the widening quorum may change."""
_SECTION_DEPTH: Final = 15
_SECTION_MEMORY: Final = 16
"""Short ids and hosts cost more objects per byte than other documents; signatures come before this."""


class SourceMismatch(ValueError):  # noqa: N818 - what the tools print, not a defect
    """The policy section in a bundle is not what its sources compile to."""


def encode_section(sections: Mapping[str, object]) -> bytes:
    """The policy section of a compiled policy (`policy.compile.compile_policy`).

    Raises ValueError for sections other than the four, TypeError for data that has no encoding.
    """
    if sorted(sections) != list(SECTIONS):
        raise ValueError(
            f"a policy has the sections {', '.join(SECTIONS)}, not {', '.join(sorted(sections))}"
        )
    return codec.encode({name: codec.encode(sections[name]) for name in SECTIONS})


def section_parts(section: bytes) -> dict[str, bytes]:
    """The four encoded parts of a policy section. Raises Refusal."""
    fields = Fields(codec.decode(section, codec.Limits(size=len(section), depth=1)), "policy")
    parts = {name: fields.binary(name) for name in SECTIONS}
    fields.done()
    return parts


def decode_section(section: bytes, *, canonical: bool = False) -> dict[str, object]:
    """The sections that `encode_section` was given. Raises Refusal."""
    decoded: dict[str, object] = {}
    for name, part in section_parts(section).items():
        try:
            decoded[name] = codec.decode(
                part, codec.Limits(len(part), _SECTION_DEPTH, _SECTION_MEMORY), canonical=canonical
            )
        except Refusal as refusal:
            raise Refusal(refusal.code, f"policy.{name}: {refusal.detail}") from None
    return decoded


def policy_hash(section: bytes) -> str:
    """`sha256:…` of a policy section: the same in every environment."""
    return "sha256:" + hashlib.sha256(section).hexdigest()


def gated_hashes(section: bytes) -> dict[str, str]:
    """`sha256:…` of each gated part of a policy section. Raises Refusal."""
    parts = section_parts(section)
    return {name: "sha256:" + hashlib.sha256(parts[name]).hexdigest() for name in GATED}


def build_bundle(
    sections: Mapping[str, object],
    *,
    environment: str,
    version: int,
    issued_at: int,
    not_before: int,
    expires_at: int,
    grace_s: int = 0,
    audience: tuple[str, ...] = (),
    released: int = 0,
) -> bytes:
    """The payload of a bundle, to be sealed by the release keys. Times are Unix seconds.

    Raises:
        Refusal: a node would refuse the result whoever signed it.
    """
    return bundle_payload(
        encode_section(sections),
        environment=environment,
        version=version,
        issued_at=issued_at,
        not_before=not_before,
        expires_at=expires_at,
        grace_s=grace_s,
        audience=audience,
        released=released,
    )


def bundle_payload(
    section: bytes,
    *,
    environment: str,
    version: int,
    issued_at: int,
    not_before: int,
    expires_at: int,
    grace_s: int = 0,
    audience: tuple[str, ...] = (),
    released: int = 0,
) -> bytes:
    """As `build_bundle`, around a policy section that exists: how a policy is promoted unchanged."""
    bundle = Bundle(
        environment=environment,
        version=version,
        issued_at=issued_at,
        not_before=not_before,
        expires_at=expires_at,
        policy=section,
        grace_s=grace_s,
        audience=audience,
        released=released,
    )
    payload = bundle.to_payload()
    Bundle.parse(payload)
    decode_section(section, canonical=True)
    return payload


def check_sources(payload: bytes, sections: Mapping[str, object]) -> Bundle:
    """The bundle in `payload`, if its policy section is exactly what `sections` encode to.

    Raises:
        SourceMismatch: it is not; the message names the parts that differ.
        Refusal: the payload is not a bundle.
    """
    bundle = Bundle.parse(payload)
    rebuilt = encode_section(sections)
    if bundle.policy != rebuilt:
        old, new = section_parts(bundle.policy), section_parts(rebuilt)
        differing = ", ".join(name for name in SECTIONS if old[name] != new[name])
        raise SourceMismatch(
            f"the policy section differs from its sources ({differing or 'encoding'}): "
            f"the bundle has {policy_hash(bundle.policy)}, the sources give {policy_hash(rebuilt)}"
        )
    return bundle
