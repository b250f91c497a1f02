"""A key ceremony in memory: signs roots, bundles and heads with fixed test keys."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from edgeguard.bundle.build import encode_section
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
from edgeguard.bundle.envelope import seal
from edgeguard.bundle.keys import SigningKey

HOUR = 3600
DAY = 86400


def key(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


@cache
def policy_for(host: str) -> bytes:
    """A policy section that allows one host."""
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.source import load_sources

    source = (
        f'edgeguard: 1\nmodule: m\nowner: o\nrules:\n  - id: r\n    effect: allow\n    to: ["{host}:443"]\n'
    )
    return encode_section(compile_policy(load_sources({"m.yaml": source.encode()})))


@dataclass
class Authority:
    now: int
    env: str = "test"
    policy: bytes = b"policy"
    root_keys: tuple[str, ...] = ("root-a", "root-b")
    release_keys: tuple[str, ...] = ("release-a",)
    head_keys: tuple[str, ...] = ("head-a",)
    caps: Caps = field(default_factory=Caps)
    floor: int = 0

    def environment(self) -> Environment:
        release = Quorum(tuple(key(name).public for name in self.release_keys), 1)
        head = Quorum(tuple(key(name).public for name in self.head_keys), 1)
        return Environment(release, 1, head, self.caps, self.floor)

    def root(self, version: int = 1, *, signers=None, before=(), **changes) -> bytes:
        quorum = Quorum(tuple(key(name).public for name in self.root_keys), len(self.root_keys))
        root = Root(version, self.now - DAY, self.now + 365 * DAY, quorum, {self.env: self.environment()})
        names = signers if signers is not None else dict.fromkeys((*self.root_keys, *before))
        return seal(
            media_type(Kind.ROOT), replace(root, **changes).to_payload(), [key(name) for name in names]
        )

    def bundle(self, version: int = 1, *, signers=None, type_env=None, **changes) -> bytes:
        bundle = Bundle(
            environment=self.env,
            version=version,
            issued_at=self.now - HOUR,
            not_before=self.now - HOUR,
            expires_at=self.now + 7 * DAY,
            policy=self.policy,
        )
        names = self.release_keys if signers is None else signers
        kind = media_type(Kind.BUNDLE, type_env or self.env)
        return seal(kind, replace(bundle, **changes).to_payload(), [key(name) for name in names])

    def head(self, version: int, bundle: bytes, bundle_version: int = 1, *, signers=None, **changes) -> bytes:
        head = Head(
            environment=self.env,
            version=version,
            issued_at=self.now,
            expires_at=self.now + HOUR,
            members={"bundle": ref(bundle, bundle_version)},
        )
        names = self.head_keys if signers is None else signers
        return seal(
            media_type(Kind.HEAD, self.env),
            replace(head, **changes).to_payload(),
            [key(name) for name in names],
        )


def ref(data: bytes, version: int) -> BlobRef:
    return BlobRef(version, hashlib.sha256(data).hexdigest(), len(data))


def lay_out(directory: Path, env: str, *, roots=(), head=None, blobs=()) -> None:
    """Writes the served layout as a plain copy would."""
    for number, root in enumerate(roots, 1):
        place(directory / "root" / f"{number}.root", root)
    for blob in blobs:
        place(directory / "blobs" / hashlib.sha256(blob).hexdigest(), blob)
    if head is not None:
        place(directory / env / "head", head)


def place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.rename(path)
