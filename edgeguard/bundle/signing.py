"""What the signing tools do with documents, without their files: choose, renew, describe."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from edgeguard.bundle import build
from edgeguard.bundle.documents import (
    BlobRef,
    Bundle,
    Environment,
    Head,
    Kind,
    Quorum,
    Root,
    check_type,
    media_type,
)
from edgeguard.bundle.envelope import Envelope, Signature, identity, seal, sign
from edgeguard.bundle.keys import Signer
from edgeguard.bundle.manifest import MEMBER, Manifest
from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed
from edgeguard.bundle.testkeys import is_published


class Candidate(NamedTuple):
    """A bundle that a head could name."""

    ref: BlobRef
    bundle: Bundle
    gated: Mapping[str, str]
    signatures: int
    """By distinct release keys."""
    identity: str


def unsigned(kind: Kind, environment: str, payload: bytes) -> bytes:
    """An envelope without signatures: what `build` tools write and `sign` tools fill."""
    return Envelope(media_type(kind, environment), payload, ()).encode()


def add_signatures(data: bytes, signers: Iterable[Signer]) -> bytes:
    """The same envelope, signed by `signers` too. Raises Refusal if it is not an envelope."""
    envelope = Envelope.parse(data)
    return envelope.merged(sign(envelope.type, envelope.payload, signer) for signer in signers).encode()


SIGNATURE_TAG: Final = "edgeguard-signature-v1"


def detach(data: bytes, signers: Iterable[Signer]) -> str:
    """Signatures over the document in an envelope, apart from it: a line each. Raises Refusal."""
    envelope = Envelope.parse(data)
    name = identity(envelope.payload)
    made = [sign(envelope.type, envelope.payload, signer) for signer in signers]
    lines = [
        f"{SIGNATURE_TAG} {name} {item.hint.hex()} {base64.b64encode(item.value).decode()}\n" for item in made
    ]
    return "".join(lines)


def _detached(text: bytes, name: str) -> list[Signature]:
    found = []
    for line in text.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) != 4 or words[0] != SIGNATURE_TAG:
            raise malformed(f"a line of detached signatures begins with `{SIGNATURE_TAG}` and has four words")
        if words[1] != name:
            raise Refusal(RefusalCode.HASH_MISMATCH, "these are signatures of different documents")
        try:
            found.append(Signature(bytes.fromhex(words[2]), base64.b64decode(words[3], validate=True)))
        except ValueError:
            raise malformed("a detached signature has a hexadecimal hint and a base64 value") from None
    return found


def merge(envelopes: Sequence[bytes]) -> bytes:
    """One envelope with the signatures of all, which signers made apart from each other.

    The first is an envelope; the others are copies of it or detached signatures.

    Raises:
        Refusal: they are not the same document, or a signature has the wrong length.
    """
    first = Envelope.parse(envelopes[0])
    for data in envelopes[1:]:
        if data.startswith(SIGNATURE_TAG.encode()):
            first = first.merged(_detached(data, identity(first.payload)))
            continue
        other = Envelope.parse(data)
        if (other.type, other.payload) != (first.type, first.payload):
            raise Refusal(RefusalCode.HASH_MISMATCH, "these are signatures of different documents")
        first = first.merged(other.signatures)
    merged = first.encode()
    Envelope.parse(merged)
    return merged


def parse_root(data: bytes) -> Root:
    """A root that meets its own threshold. Raises Refusal."""
    envelope = Envelope.parse(data)
    check_type(envelope.type, Kind.ROOT)
    root = Root.parse(envelope.payload)
    envelope.verify(*root.root)
    return root


def candidate(data: bytes, sha256: str, environment: str, policy: Environment) -> Candidate:
    """A bundle envelope that the release keys signed. Raises Refusal.

    `sha256` is the hexadecimal hash of `data`.
    """
    envelope = Envelope.parse(data)
    check_type(envelope.type, Kind.BUNDLE, environment)
    signers = envelope.verify(*policy.release)
    bundle = Bundle.parse(envelope.payload)
    if bundle.environment != environment:
        raise Refusal(RefusalCode.ENV, f"a bundle of {bundle.environment!r}")
    ref = BlobRef(bundle.version, sha256, len(data))
    return Candidate(ref, bundle, build.gated_hashes(bundle.policy), len(signers), identity(envelope.payload))


class Release(NamedTuple):
    """A manifest that the release keys signed."""

    ref: BlobRef
    manifest: Manifest


def release(data: bytes, sha256: str, environment: str, policy: Environment) -> Release:
    """As `candidate`, for a manifest envelope. Raises Refusal."""
    envelope = Envelope.parse(data)
    check_type(envelope.type, Kind.MANIFEST, environment)
    envelope.verify(*policy.release)
    manifest = Manifest.parse(envelope.payload)
    if manifest.environment != environment:
        raise Refusal(RefusalCode.ENV, f"a manifest of {manifest.environment!r}")
    return Release(BlobRef(manifest.version, sha256, len(data)), manifest)


def manifest_of(bundle: Candidate, releases: Iterable[Release]) -> Release | None:
    """The newest manifest that names this bundle."""
    named = [item for item in releases if item.manifest.bundle == (bundle.ref.version, bundle.identity)]
    return max(named, key=lambda item: item.ref.version, default=None)


def choose(
    candidates: Iterable[Candidate], policy: Environment, now: float, named: Candidate | None = None
) -> Candidate | None:
    """The bundle that a head should name: the highest version that nodes will accept now.

    `named` is the one that the head names so far: a bundle with fewer signatures than the widening
    quorum follows it only with the same gated sections, as in every node.
    """
    best = named
    for item in candidates:
        if not item.bundle.not_before <= now < item.bundle.expires_at:
            continue
        if item.signatures < policy.widening and (named is None or item.gated != named.gated):
            continue
        if best is None or (item.ref.version, item.signatures) > (best.ref.version, best.signatures):
            best = item
    return best


def next_head(
    previous: Head | None,
    named: BlobRef,
    environment: str,
    now: int,
    lifetime_s: int,
    *,
    quarantine: bool = False,
    manifest: BlobRef | None = None,
) -> Head:
    """The head to sign at `now`. Its version is the time, or one more than the last if that is higher.

    Other members and the quarantine number of `previous` are carried on; `quarantine` gives a new order.
    `manifest` is the release manifest that names the bundle.
    """
    members = {"bundle": named} | ({} if manifest is None else {MEMBER: manifest})
    if previous is None:
        return Head(environment, now, now, now + lifetime_s, members, int(quarantine))
    return replace(
        previous,
        version=max(previous.version + 1, now),
        issued_at=now,
        expires_at=now + lifetime_s,
        members={**previous.members, **members},
        quarantine=previous.quarantine + int(quarantine),
    )


def own_head(data: bytes, environment: str, signers: Sequence[Signer]) -> Head | None:
    """The head in `data`, if these signers made it: what a head signer carries on. None otherwise."""
    try:
        envelope = Envelope.parse(data)
        check_type(envelope.type, Kind.HEAD, environment)
        envelope.verify([signer.public for signer in signers], 1)
        return Head.parse(envelope.payload)
    except Refusal:
        return None


def seal_head(head: Head, signers: Iterable[Signer]) -> bytes:
    """The envelope of a head."""
    return seal(media_type(Kind.HEAD, head.environment), head.to_payload(), signers)


def describe(data: bytes) -> dict[str, object]:
    """What an envelope says, for people and scripts. Nothing in it has been verified. Raises Refusal."""
    envelope = Envelope.parse(data)
    kind = envelope.type.removeprefix("application/vnd.edgeguard.").partition(".")[0]
    facts: dict[str, object] = {
        "type": envelope.type,
        "bytes": len(data),
        "identity": identity(envelope.payload),
        "signatures": [signature.hint.hex() for signature in envelope.signatures],
    }
    match kind:
        case Kind.ROOT:
            return facts | _root_facts(Root.parse(envelope.payload))
        case Kind.HEAD:
            head = Head.parse(envelope.payload)
            members = {name: ref._asdict() for name, ref in head.members.items()}
            return facts | {
                "environment": head.environment,
                "version": head.version,
                "issued_at": head.issued_at,
                "expires_at": head.expires_at,
                "members": members,
                "quarantine": head.quarantine,
            }
        case Kind.BUNDLE:
            return facts | _bundle_facts(Bundle.parse(envelope.payload))
        case Kind.MANIFEST:
            return facts | _manifest_facts(Manifest.parse(envelope.payload))
        case _:
            raise Refusal(RefusalCode.TYPE, f"{envelope.type[:120]!r} is no document of edgeguard")


def _manifest_facts(manifest: Manifest) -> dict[str, object]:
    back = manifest.rollback
    return {
        "environment": manifest.environment,
        "version": manifest.version,
        "issued_at": manifest.issued_at,
        "app": manifest.app,
        "infra": manifest.infra,
        "bundle": manifest.bundle._asdict(),
        "policy_hash": manifest.policy_hash,
        "tested": list(manifest.tested),
        "flags": dict(manifest.flags),
        "rollback": None if back is None else back._asdict(),
    }


def _bundle_facts(bundle: Bundle) -> dict[str, object]:
    return {
        "environment": bundle.environment,
        "audience": list(bundle.audience),
        "version": bundle.version,
        "issued_at": bundle.issued_at,
        "not_before": bundle.not_before,
        "expires_at": bundle.expires_at,
        "grace_s": bundle.grace_s,
        "released": bundle.released,
        "min_engine": bundle.min_engine,
        "policy_hash": build.policy_hash(bundle.policy),
        "policy_bytes": len(bundle.policy),
        "gated": build.gated_hashes(bundle.policy),
    }


def _root_facts(root: Root) -> dict[str, object]:
    def quorum(item: Quorum) -> dict[str, object]:
        keys = [key.id + (" (published test key)" if is_published(key) else "") for key in item.keys]
        return {"threshold": item.threshold, "keys": keys}

    return {
        "version": root.version,
        "issued_at": root.issued_at,
        "expires_at": root.expires_at,
        "root": quorum(root.root),
        "environments": {
            name: {
                "release": quorum(item.release) | {"widening": item.widening},
                "head": quorum(item.head),
                "caps": item.caps.to_data(),
                "floor": item.floor,
            }
            for name, item in sorted(root.environments.items())
        },
    }
