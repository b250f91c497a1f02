"""A state folder that knows its own root and environment: what `edgeguard sync` works on.

A node that runs takes both from its configuration; this form is for scripts and for outside judges.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from edgeguard.bundle.trust import TrustState
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import Fetcher, check_url
from edgeguard.sync.store import Store, StoreError
from edgeguard.sync.update import Mirror, Updater

ENVIRONMENT: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
"""Names that are safe in an address, a file name and a media type parameter."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Whose bundles the folder holds."""

    environment: str
    audience: str = ""
    floor: int = 0

    async def keep(self, path: Path, root: bytes) -> None:
        """Writes the root and this profile into the folder, if the root is one.

        Raises Refusal for a root that is not one, StoreError for a folder that cannot be used, ValueError for
        an environment that has no such name, OSError.
        """
        if not ENVIRONMENT.fullmatch(self.environment):
            raise ValueError(
                f"{self.environment!r}: an environment is lower-case letters, digits and '-', at most 32"
            )
        TrustState.start(root, self.environment, audience=self.audience, floor=self.floor)
        store = _open(path, writable=True)
        try:
            kept, _ = await store.read("anchor")
            if kept and kept[0].data != root:
                raise StoreError(f"{path}: the folder belongs to another root; name an empty folder")
            await store.write("anchor", root)
            await store.write("profile", json.dumps(asdict(self)).encode())
        finally:
            store.close()

    @classmethod
    async def read(cls, store: Store) -> tuple[Self, bytes]:
        """The profile and the root. Raises StoreError."""
        anchors, _ = await store.read("anchor")
        profiles, _ = await store.read("profile")
        if not anchors or not profiles:
            raise StoreError(f"{store.path}: not prepared; run: edgeguard sync init --state {store.path} ...")
        value = json.loads(profiles[0].data)
        return cls(value["environment"], value["audience"], value["floor"]), anchors[0].data


async def run_refresh(
    path: Path, urls: list[str], *, now: int | None = None, ca_file: str | None = None
) -> tuple[bool, dict[str, object]]:
    """One cycle: whether everything is current and valid, and the status after it.

    Raises StoreError, Refusal for the kept root, ValueError for an address.
    """
    for url in urls:
        check_url(url)
    store = _open(path, writable=True)
    try:
        updater, config = await _loaded(store, now)
        ok = False
        for url in urls:
            async with Fetcher(url, config.fetch, ca_file=ca_file) as fetcher:
                ok = (await updater.refresh(Mirror(fetcher))).ok
            if ok:
                break
        # A disk that was full leaves less behind than was verified: that is not "current and valid".
        ok = ok and not updater.unsaved
        await updater.keep_report()
        return ok, {**updater.status(), "files": await _files(store)}
    finally:
        store.close()


async def run_status(path: Path, *, now: int | None = None) -> dict[str, object]:
    """The status of the folder. Raises StoreError, Refusal for the kept root."""
    store = _open(path, writable=False)
    try:
        updater, _ = await _loaded(store, now)
        return {**updater.status(), "files": await _files(store)}
    finally:
        store.close()


def _open(path: Path, *, writable: bool) -> Store:
    store = Store.open(path, writable=writable)
    if writable and not store.writable:
        store.close()
        raise StoreError(f"{path}: another process is using this state folder")
    return store


async def _loaded(store: Store, now: int | None) -> tuple[Updater, SyncConfig]:
    profile, root = await Profile.read(store)
    config = SyncConfig(profile.environment, store.path, audience=profile.audience, floor=profile.floor)
    clock = TrustedClock() if now is None else TrustedClock(wall=lambda: now, boot=lambda: 0.0)
    updater = Updater(config, root, store, clock)
    await updater.load()
    return updater, config


async def _files(store: Store) -> dict[str, str]:
    """The stored documents by role: newest intact file of each."""
    found: dict[str, str] = {}
    for role in ("root", "head", "bundle"):
        slots, _ = await store.read(role)
        if slots:
            found[role] = str(store.path / slots[0].name)
    return found
