"""Recomputes the test vectors of docs/bundle-format.md from the published test keys."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from edgeguard.bundle import build
from edgeguard.bundle.documents import (
    BlobRef,
    Bundle,
    Caps,
    Environment,
    Head,
    Kind,
    Quorum,
    Root,
    media_type,
)
from edgeguard.bundle.envelope import Envelope, Signature, identity, pae, seal, sign
from edgeguard.bundle.manifest import BundleName, Manifest
from edgeguard.bundle.testkeys import published

FILE = Path(__file__).with_name("vectors.json")
T0 = 1_800_000_000
KEYS = ("root-1", "root-2", "root-3", "release-1", "release-2", "release-3", "head-1", "head-2")
SECTIONS = {"rules": {"example": ["any data", 1, True, None]}, "age": {}, "identity": {}, "exceptions": {}}


def keys(*names):
    return [published(name) for name in names]


def quorum(threshold, *names):
    return Quorum(tuple(sorted(key.public for key in keys(*names))), threshold)


def stages(kind, environment, payload, names):
    signers = keys(*names)
    name = media_type(kind, environment)
    return {
        "type": name,
        "payload": payload.hex(),
        "identity": identity(payload),
        "pae": pae(name, payload).hex(),
        "signatures": {
            n: sign(name, payload, key).value.hex() for n, key in zip(names, signers, strict=True)
        },
        "envelope": seal(name, payload, signers).hex(),
        "envelope_sha256": hashlib.sha256(seal(name, payload, signers)).hexdigest(),
    }


def make():
    """The whole file as one JSON value."""
    caps = Caps(essentials=("vault.internal:443",))
    prod = Environment(quorum(1, "release-1", "release-2"), 2, quorum(1, "head-1"), caps, 0)
    root1 = Root(1, T0, T0 + 31_536_000, quorum(2, "root-1", "root-2", "root-3"), {"prod": prod})
    rotated = replace(prod, release=quorum(1, "release-2", "release-3"), head=quorum(1, "head-2"), floor=1)
    root2 = replace(root1, version=2, issued_at=T0 + 60, environments={"prod": rotated})
    section = build.encode_section(SECTIONS)
    bundle = Bundle("prod", 1, T0, T0, T0 + 604_800, section, grace_s=3600, audience=())
    sealed = seal(media_type(Kind.BUNDLE, "prod"), bundle.to_payload(), keys("release-1", "release-2"))
    ref = BlobRef(1, hashlib.sha256(sealed).hexdigest(), len(sealed))
    named = BundleName(1, identity(bundle.to_payload()))
    policy, reserved = build.policy_hash(section), BundleName(3, digest("the way back"))
    manifest = Manifest(
        *("prod", 1, T0, digest("app"), digest("infra"), named, policy, (policy,), {"beta": True}, reserved)
    )
    head = Head("prod", T0 + 1, T0 + 1, T0 + 3601, {"bundle": ref}, 0)
    return {
        "warning": "PUBLISHED TEST KEYS. Anybody can sign with them. Never trust them.",
        "keys": {
            name: {
                "seed": hashlib.sha256(
                    f"edgeguard published test key, never trust it: {name}".encode()
                ).hexdigest(),
                "public": published(name).public.raw.hex(),
                "hint": published(name).public.hint.hex(),
            }
            for name in KEYS
        },
        "policy": {
            "sections": {name: part.hex() for name, part in build.section_parts(section).items()},
            "section": section.hex(),
            "policy_hash": build.policy_hash(section),
            "gated": build.gated_hashes(section),
        },
        "documents": {
            "root-1": stages(Kind.ROOT, "", root1.to_payload(), ("root-1", "root-2")),
            "root-2": stages(Kind.ROOT, "", root2.to_payload(), ("root-2", "root-3")),
            "bundle-1": stages(Kind.BUNDLE, "prod", bundle.to_payload(), ("release-1", "release-2")),
            "head-1": stages(Kind.HEAD, "prod", head.to_payload(), ("head-1",)),
            "manifest-1": stages(Kind.MANIFEST, "prod", manifest.to_payload(), ("release-1",)),
        },
        "history": history(root1, bundle, head, sealed),
        "required": required(bundle, head, sealed, manifest),
    }


def digest(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def required(bundle, head, sealed, manifest):
    """Events for a node that starts from root 1 for `prod` and requires a manifest that names `app`."""

    def papers(document, *names):
        return seal(media_type(Kind.MANIFEST, "prod"), document.to_payload(), keys(*names))

    def heads(seconds, paper, number, blob=sealed, blob_version=1):
        members = {
            "bundle": BlobRef(blob_version, hashlib.sha256(blob).hexdigest(), len(blob)),
            "manifest": BlobRef(number, hashlib.sha256(paper).hexdigest(), len(paper)),
        }
        times = {"version": T0 + seconds, "issued_at": T0 + seconds, "expires_at": T0 + seconds + 3600}
        made = replace(head, **times, members=members)
        return seal(media_type(Kind.HEAD, "prod"), made.to_payload(), keys("head-1"))

    good, other = papers(manifest, "release-1"), papers(replace(manifest, app=digest("other")), "release-1")
    second = replace(bundle, version=3, issued_at=T0 + 10)
    blob = seal(media_type(Kind.BUNDLE, "prod"), second.to_payload(), keys("release-1", "release-2"))
    taken = replace(manifest, version=2, bundle=BundleName(3, identity(second.to_payload())), rollback=None)
    taken_paper = papers(taken, "release-1")
    bare = seal(media_type(Kind.HEAD, "prod"), head.to_payload(), keys("head-1"))
    return [
        offer("head", bare, T0 + 2, "manifest_mismatch", "the head counts, but names no manifest"),
        offer("head", heads(2, other, 1), T0 + 3, "accepted", "names a manifest"),
        offer("manifest", other, T0 + 3, "manifest_mismatch", "for another application"),
        offer("bundle", sealed, T0 + 3, "manifest_mismatch", "a bundle without a manifest"),
        offer("head", heads(3, good, 1), T0 + 4, "accepted", "names another manifest"),
        offer("manifest", papers(manifest, "head-1"), T0 + 4, "hash_mismatch", "not the blob that is named"),
        offer("manifest", good, T0 + 4, "accepted", "the first manifest"),
        offer("bundle", sealed, T0 + 4, "accepted", "the bundle that it names"),
        offer("head", heads(10, taken_paper, 2, blob, 3), T0 + 11, "accepted", "names bundle 3"),
        offer(
            "manifest", taken_paper, T0 + 11, "manifest_mismatch", "version 3 is reserved for another bundle"
        ),
    ]


def offer(event, data, now, verdict, why, **more):
    return {"event": event, "data": data.hex(), "now": now, "verdict": verdict, "why": why, **more}


def history(root1, bundle, head, sealed):
    """Events for a node that starts from root 1 for `prod`; the verdict is `accepted` or a reason code."""
    head_type, bundle_type = media_type(Kind.HEAD, "prod"), media_type(Kind.BUNDLE, "prod")

    def signed(document, *names, kind=head_type):
        return seal(kind, document.to_payload(), keys(*names))

    def later(document, blob, number, seconds, **changes):
        ref = BlobRef(number, hashlib.sha256(blob).hexdigest(), len(blob))
        return replace(
            document,
            version=T0 + seconds,
            issued_at=T0 + seconds,
            expires_at=T0 + seconds + 3600,
            members={"bundle": ref},
            **changes,
        )

    good = signed(head, "head-1")
    broken = Envelope.parse(good)
    zero = broken._replace(signatures=(Signature(broken.signatures[0].hint, bytes(64)),)).encode()
    twice = broken._replace(signatures=broken.signatures * 2).encode()
    widened = replace(
        bundle,
        version=2,
        policy=build.encode_section({**SECTIONS, "exceptions": {"more": True}}),
    )
    lone = signed(widened, "release-1", kind=bundle_type)
    both = signed(replace(widened, version=3), "release-1", "release-2", kind=bundle_type)
    lone_head, both_head = later(head, lone, 2, 10), later(head, both, 3, 20)
    second = replace(root1, version=2, issued_at=T0 + 60)
    return [
        offer("head", zero, T0 + 2, "sig_invalid", "a signature of zeros"),
        offer("head", twice, T0 + 2, "sig_dup", "the same hint twice"),
        offer("head", signed(head, "release-1"), T0 + 2, "key_unknown", "the key of another role"),
        offer(
            "head",
            signed(head, "head-1", kind=media_type(Kind.HEAD, "staging")),
            T0 + 2,
            "env",
            "another environment",
        ),
        offer("head", sealed, T0 + 2, "type", "a bundle offered as a head"),
        offer("head", good, T0 + 3601, "freeze", "the head has expired"),
        offer(
            "head",
            signed(later(head, sealed, 1, 303), "head-1"),
            T0 + 2,
            "not_before",
            "issued more than 300 s in the future",
        ),
        offer("head", good, T0 + 2, "accepted", "the first head"),
        offer("bundle", sealed[:-1], T0 + 2, "hash_mismatch", "not the blob that the head names"),
        offer("bundle", sealed, T0 + 2, "accepted", "the first bundle, by the widening quorum"),
        offer(
            "head",
            signed(replace(head, issued_at=T0), "head-1"),
            T0 + 2,
            "equivocation",
            "same version, other content",
        ),
        offer(
            "head", signed(replace(head, version=T0), "head-1"), T0 + 2, "rollback_head", "a lower version"
        ),
        offer("head", signed(lone_head, "head-1"), T0 + 11, "accepted", "names bundle 2"),
        offer("bundle", lone, T0 + 11, "gated", "one signature changes a gated section"),
        offer("head", signed(both_head, "head-1"), T0 + 21, "accepted", "names bundle 3"),
        offer("bundle", both, T0 + 21, "accepted", "two signatures may change it"),
        offer(
            "head",
            signed(later(head, lone, 2, 30), "head-1"),
            T0 + 31,
            "rollback_bundle",
            "names an older bundle",
        ),
        offer(
            "head",
            signed(later(head, both, 3, 2**33), "head-1"),
            T0 + 31,
            "version_jump",
            "a version too far ahead",
        ),
        offer(
            "root",
            seal(media_type(Kind.ROOT), replace(second, version=3).to_payload(), keys("root-1", "root-2")),
            T0 + 61,
            "root_gap",
            "root 3 after root 1",
            version=3,
        ),
        offer(
            "root",
            seal(media_type(Kind.ROOT), second.to_payload(), keys("root-1")),
            T0 + 61,
            "threshold",
            "one of two root signatures",
            version=2,
        ),
        offer(
            "root",
            seal(
                media_type(Kind.ROOT),
                replace(
                    second,
                    environments={
                        "prod": replace(
                            root1.environments["prod"], release=quorum(1, "release-3"), widening=1
                        )
                    },
                ).to_payload(),
                keys("root-2", "root-3"),
            ),
            T0 + 61,
            "accepted",
            "root 2 takes the release keys away: the bundle in force is revoked",
            version=2,
            revoked=True,
        ),
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
