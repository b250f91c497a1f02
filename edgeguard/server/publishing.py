"""What may be published: only what the roots of the folder vouch for, and nothing older than what is there.

The nodes verify everything again and would refuse a bad document anyway; this check keeps mistakes and
thieves of a publish token from breaking the service. `root/1.root` is the anchor: the operator puts it
there, and each later root is signed by the one before it and by itself (TUF 1.0.34, section 5.3).
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from edgeguard.bundle.documents import Bundle, Environment, Head, Kind, Root, check_type
from edgeguard.bundle.envelope import Envelope, identity
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.signing import release
from edgeguard.server.repository import Location, Repository, blob_location, head_location, root_location

SLACK_S: Final = 300
"""How far a signer's clock may be ahead of ours."""
_TYPE: Final = re.compile(
    r"application/vnd\.edgeguard\.(root|head|bundle|manifest)\.v1\+msgpack(?:;env=([a-z0-9-]{1,32}))?"
)
_CONFLICTS: Final = frozenset(
    {
        RefusalCode.ROLLBACK_ROOT,
        RefusalCode.ROLLBACK_HEAD,
        RefusalCode.ROLLBACK_BUNDLE,
        RefusalCode.EQUIVOCATION,
        RefusalCode.VERSION_JUMP,
        RefusalCode.ROOT_GAP,
        RefusalCode.MEMBER_MISSING,
    }
)


class PublishRefused(Exception):  # noqa: N818 - a verdict, not a defect of the program
    """A document that is not published: the HTTP status, the reason code, and a sentence for people."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class Published(NamedTuple):
    """Where a document stands now."""

    location: Location
    role: str
    version: int
    identity: str
    """`sha256:…` of its payload."""
    created: bool
    """False: the very same bytes were there already."""


class Publisher:
    """Judges and writes, one document at a time. `now` is Unix seconds."""

    def __init__(self, repository: Repository, *, now: Callable[[], float] = time.time) -> None:
        self._repository = repository
        self._now = now
        self._turn = asyncio.Lock()

    async def publish(self, data: bytes) -> Published:
        """Verifies one envelope and puts it in its place. Raises PublishRefused."""
        try:
            async with self._turn, self._repository.exclusive():
                return await self._publish(data)
        except Refusal as refusal:
            if refusal.code is RefusalCode.TOO_BIG:
                status = 413
            else:
                status = 409 if refusal.code in _CONFLICTS else 422
            raise PublishRefused(status, str(refusal.code), refusal.detail) from refusal
        except TimeoutError as error:
            raise PublishRefused(503, "busy", "another publisher holds the folder; try again") from error
        except OSError as error:
            raise PublishRefused(
                507, "not_stored", f"the document could not be stored: {error.strerror}"
            ) from error

    async def _publish(self, data: bytes) -> Published:
        envelope = await asyncio.to_thread(Envelope.parse, data, size=self._repository.cap)
        match = _TYPE.fullmatch(envelope.type)
        if match is None:
            raise Refusal(RefusalCode.TYPE, f"{envelope.type[:120]!r} is nothing that is published")
        chain = await self._chain()
        if match[1] == Kind.ROOT:
            location, version = await self._root(envelope, chain)
        else:
            environment = chain[-1].environments.get(match[2] or "")
            if environment is None:
                raise Refusal(RefusalCode.ENV, f"the root knows no environment {match[2]!r}")
            if match[1] == Kind.BUNDLE:
                location, version = await self._bundle(data, envelope, match[2], environment)
            elif match[1] == Kind.MANIFEST:
                found = release(data, hashlib.sha256(data).hexdigest(), match[2], environment)
                location, version = blob_location(data), found.ref.version
            else:
                location, version = await self._head(envelope, match[2], environment)
        stored = await self._repository.read(location)
        if stored is not None and stored != data and match[1] == Kind.ROOT:
            return Published(location, match[1], version, identity(envelope.payload), created=False)
        if stored != data:
            await self._repository.write(location, data)
        return Published(location, match[1], version, identity(envelope.payload), created=stored != data)

    async def _chain(self) -> list[Root]:
        """All roots of the folder, verified from the first on."""
        roots: list[Root] = []
        for version in range(1, await asyncio.to_thread(self._repository.newest_root) + 1):
            data = await self._repository.read(root_location(version))
            if data is None:
                break
            roots.append(_next_root(Envelope.parse(data), roots[-1] if roots else None, version))
        if not roots:
            raise PublishRefused(
                409,
                "no_root",
                "the folder has no root/1.root; put the first root there by hand: it is the anchor",
            )
        return roots

    async def _root(self, envelope: Envelope, chain: list[Root]) -> tuple[Location, int]:
        offered = Root.parse(envelope.payload)
        if offered.version <= len(chain):
            stored = await self._repository.read(root_location(offered.version))
            if stored is None or Envelope.parse(stored).payload != envelope.payload:
                raise Refusal(
                    RefusalCode.EQUIVOCATION, f"root {offered.version} is published with another content"
                )
            return root_location(offered.version), offered.version
        if offered.version != len(chain) + 1:
            raise Refusal(
                RefusalCode.ROOT_GAP, f"root {offered.version} offered, {len(chain) + 1} is the next"
            )
        _next_root(envelope, chain[-1], offered.version)
        return root_location(offered.version), offered.version

    async def _bundle(
        self, data: bytes, envelope: Envelope, name: str, environment: Environment
    ) -> tuple[Location, int]:
        bundle = await asyncio.to_thread(_verified_bundle, envelope, name, environment, len(data))
        if bundle.expires_at <= self._now():
            raise Refusal(RefusalCode.EXPIRED, "the bundle has expired")
        head = await self._current(name, environment)
        if head is not None:
            await self._not_older(head, bundle.version, identity(envelope.payload), environment)
        return blob_location(data), bundle.version

    async def _head(self, envelope: Envelope, name: str, environment: Environment) -> tuple[Location, int]:
        offered = _verified_head(envelope, name, environment)
        now = self._now()
        if offered.expires_at <= now:
            raise Refusal(RefusalCode.FREEZE, "the head has expired")
        if offered.issued_at > now + SLACK_S:
            raise Refusal(RefusalCode.NOT_BEFORE, "the head is issued in the future; compare the clocks")
        if offered.expires_at - offered.issued_at > environment.caps.head_lifetime_s:
            raise Refusal(RefusalCode.LIFETIME, f"a head may live {environment.caps.head_lifetime_s} s")
        current = await self._current(name, environment)
        if current is not None:
            _check_order(offered, current, environment)
        for member, ref in offered.members.items():
            blob = await self._repository.read(Location("blobs", ref.sha256, immutable=True))
            if blob is None or len(blob) != ref.length or hashlib.sha256(blob).hexdigest() != ref.sha256:
                raise Refusal(RefusalCode.MEMBER_MISSING, f"publish the {member} {ref.sha256[:16]}… first")
            if member == Kind.MANIFEST:
                _check_manifest(blob, name, environment, offered)
            if member == Kind.BUNDLE:
                sealed = Envelope.parse(blob, size=self._repository.cap)
                bundle = await asyncio.to_thread(_verified_bundle, sealed, name, environment, len(blob))
                if bundle.version != ref.version:
                    raise Refusal(RefusalCode.VERSION_MISMATCH, f"the bundle is version {bundle.version}")
                if current is not None:
                    await self._not_older(current, bundle.version, identity(sealed.payload), environment)
        return head_location(name), offered.version

    async def _current(self, name: str, environment: Environment) -> Head | None:
        """The published head, if the keys of today still vouch for it."""
        data = await self._repository.read(head_location(name))
        if data is None:
            return None
        try:
            return _verified_head(Envelope.parse(data), name, environment)
        except Refusal:
            return None  # its keys were rotated away, which is how a version that ran ahead is mended

    async def _not_older(
        self, current: Head, version: int, payload_id: str, environment: Environment
    ) -> None:
        if version < current.bundle.version:
            raise Refusal(
                RefusalCode.ROLLBACK_BUNDLE, f"bundle {version} offered, {current.bundle.version} is there"
            )
        if version - current.bundle.version > environment.caps.version_jump:
            raise Refusal(RefusalCode.VERSION_JUMP, f"from {current.bundle.version} to {version}")
        if version == current.bundle.version:
            blob = await self._repository.read(Location("blobs", current.bundle.sha256, immutable=True))
            if (
                blob is not None
                and identity(Envelope.parse(blob, size=self._repository.cap).payload) != payload_id
            ):
                raise Refusal(RefusalCode.EQUIVOCATION, f"bundle {version} is published with another content")


def _next_root(envelope: Envelope, before: Root | None, version: int) -> Root:
    """The root in `envelope`, signed by itself and by the one before it."""
    check_type(envelope.type, Kind.ROOT)
    if before is not None:
        envelope.verify(before.root.keys, before.root.threshold)
    root = Root.parse(envelope.payload)
    envelope.verify(root.root.keys, root.root.threshold)
    if root.version != version:
        raise Refusal(RefusalCode.VERSION_MISMATCH, f"root {root.version} where {version} is expected")
    return root


def _check_order(offered: Head, current: Head, environment: Environment) -> None:
    if offered.version < current.version:
        raise Refusal(
            RefusalCode.ROLLBACK_HEAD, f"head {offered.version} offered, {current.version} is there"
        )
    if offered.version == current.version and offered != current:
        raise Refusal(RefusalCode.EQUIVOCATION, f"head {offered.version} is published with another content")
    if offered.version - current.version > environment.caps.version_jump:
        raise Refusal(RefusalCode.VERSION_JUMP, f"from {current.version} to {offered.version}")


def _verified_head(envelope: Envelope, name: str, environment: Environment) -> Head:
    check_type(envelope.type, Kind.HEAD, name)
    envelope.verify(environment.head.keys, environment.head.threshold)
    head = Head.parse(envelope.payload)
    if head.environment != name:
        raise Refusal(RefusalCode.ENV, f"the head says {head.environment!r} inside")
    return head


def _check_manifest(blob: bytes, name: str, environment: Environment, head: Head) -> None:
    """Refuses a manifest that nodes would not take together with this head."""
    ref = head.members[Kind.MANIFEST]
    named = release(blob, ref.sha256, name, environment).manifest
    if named.version != ref.version:
        raise Refusal(RefusalCode.VERSION_MISMATCH, f"the manifest is version {named.version}")
    if named.bundle.version != head.bundle.version:
        raise Refusal(
            RefusalCode.MANIFEST_MISMATCH,
            f"manifest {named.version} names bundle {named.bundle.version}, the head another",
        )


def _verified_bundle(envelope: Envelope, name: str, environment: Environment, size: int) -> Bundle:
    check_type(envelope.type, Kind.BUNDLE, name)
    caps = environment.caps
    if size > caps.bundle_bytes:
        raise Refusal(RefusalCode.TOO_BIG, f"a bundle may have {caps.bundle_bytes} bytes")
    envelope.verify(environment.release.keys, environment.release.threshold)
    bundle = Bundle.parse(envelope.payload)
    if bundle.environment != name:
        raise Refusal(RefusalCode.ENV, f"the bundle says {bundle.environment!r} inside")
    if bundle.version < environment.floor:
        raise Refusal(RefusalCode.ROLLBACK_BUNDLE, f"version {bundle.version} is below the root's floor")
    if bundle.expires_at - bundle.not_before > caps.bundle_lifetime_s or bundle.grace_s > caps.grace_s:
        raise Refusal(RefusalCode.LIFETIME, "lifetime or grace is more than the root allows")
    return bundle
