"""Signs and publishes a policy folder for this machine only: environment `dev`, keys of its own.

The same compiler, bundle format and repository layout as production; only the ceremony is missing. The
keys are made once, stay in the clear in the workshop's folder, and are good for nothing but loopback: a
node refuses the environment `dev` anywhere else.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from edgeguard.bundle.build import build_bundle, decode_section, policy_hash
from edgeguard.bundle.documents import BlobRef, Bundle, Environment, Head, Kind, Quorum, Root, media_type
from edgeguard.bundle.envelope import Envelope, seal
from edgeguard.bundle.keys import SigningKey
from edgeguard.bundle.refusal import Refusal
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables
from edgeguard.server.repository import Repository, blob_location, head_location, root_location

ENVIRONMENT: Final = "dev"
HEAD_LIFETIME_S: Final = 3600
BUNDLE_LIFETIME_S: Final = 30 * 86_400
ROOT_LIFETIME_S: Final = 365 * 86_400


class Published(NamedTuple):
    """What a call of `Workshop.publish` made current."""

    version: int
    policy_hash: str
    rules: int


class Workshop:
    """Keys and repository of one developer.

    Args:
        folder: Made if it is missing, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keys = folder / "keys"
        self._keys.mkdir(exist_ok=True, mode=0o700)
        directory = folder / "repository"
        directory.mkdir(exist_ok=True)
        self.repository = Repository(directory)
        self.root_file = directory / "root" / "1.root"
        self._release = self._key("release")
        self._head = self._key("head")

    def _key(self, name: str) -> SigningKey:
        file = self._keys / f"{name}.key"
        try:
            return SigningKey.from_text(file.read_text(encoding="ascii"))
        except FileNotFoundError:
            key = SigningKey.generate(os.urandom)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as target:
                target.write(key.to_text(None, os.urandom, name=f"dev {name}"))
            return key

    async def ensure_root(self) -> bytes:
        """The root's envelope, made on the first call."""
        existing = await self.repository.read(root_location(1))
        if existing is not None:
            return existing
        root_key = self._key("root")
        now = int(time.time())
        root = Root(
            version=1,
            issued_at=now,
            expires_at=now + ROOT_LIFETIME_S,
            root=Quorum((root_key.public,), 1),
            environments={
                ENVIRONMENT: Environment(
                    release=Quorum((self._release.public,), 1),
                    widening=1,
                    head=Quorum((self._head.public,), 1),
                )
            },
        )
        envelope = seal(media_type(Kind.ROOT), root.to_payload(), [root_key])
        await self.repository.write(root_location(1), envelope)
        return envelope

    async def publish(self, sources: Mapping[str, bytes]) -> Published:
        """Compiles, signs and publishes; nothing is published unless everything before it succeeded.

        Raises `policy.source.PolicyErrors` for mistakes in the sources.
        """
        policy = load_sources(sources)
        previous = await self._current()
        now = int(time.time())
        version = now if previous is None else max(now, previous.bundle.version + 1)
        payload = build_bundle(
            compile_policy(policy),
            environment=ENVIRONMENT,
            version=version,
            issued_at=now,
            not_before=now,
            expires_at=now + BUNDLE_LIFETIME_S,
        )
        section = Bundle.parse(payload).policy
        engine = Engine(Tables.load(decode_section(section)))
        envelope = seal(media_type(Kind.BUNDLE, ENVIRONMENT), payload, [self._release])
        location = blob_location(envelope)
        await self.repository.write(location, envelope)
        await self._write_head(previous, BlobRef(version, location.name, len(envelope)), now)
        return Published(version, policy_hash(section), engine.rule_count)

    async def renew_head(self) -> None:
        """Says again, for another `HEAD_LIFETIME_S`, that the newest bundle is current."""
        previous = await self._current()
        if previous is not None:
            await self._write_head(previous, previous.bundle, int(time.time()))

    async def _current(self) -> Head | None:
        data = await self.repository.read(head_location(ENVIRONMENT))
        if data is None:
            return None
        try:
            return Head.parse(Envelope.parse(data).payload)
        except Refusal:
            return None

    async def _write_head(self, previous: Head | None, ref: BlobRef, now: int) -> None:
        head = Head(
            environment=ENVIRONMENT,
            version=now if previous is None else max(now, previous.version + 1),
            issued_at=now,
            expires_at=now + HEAD_LIFETIME_S,
            members={"bundle": ref},
        )
        envelope = seal(media_type(Kind.HEAD, ENVIRONMENT), head.to_payload(), [self._head])
        await self.repository.write(head_location(ENVIRONMENT), envelope)
