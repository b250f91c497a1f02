"""The folder that is served: `root/<N>.root`, `<environment>/head`, `blobs/<sha256>`.

Any static web server can serve it as it stands. Names have one spelling only: what does not match the
grammar here does not exist, whatever a percent-encoding would turn it into. Blobs and roots never change
once written; the head of an environment is replaced in one rename.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

from edgeguard.sync.files import UnsafeFileError, read_in, write_in

ENVIRONMENT: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_RESERVED: Final = frozenset({"root", "blobs", "v1", "healthz"})
_PATH: Final = re.compile(
    r"(?:(?P<folder>root)/(?P<version>[1-9][0-9]{0,15})\.root)"
    r"|(?:(?P<blobs>blobs)/(?P<sha256>[0-9a-f]{64}))"
    r"|(?:(?P<environment>[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?)/head)"
)
MODE: Final = 0o644
"""Published files are readable by other users, so that another web server can serve them."""


class Location(NamedTuple):
    """One name of the layout."""

    folder: str
    name: str
    immutable: bool

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


class RepositoryError(Exception):
    """The folder cannot be served. The message says what is wrong and how to mend it."""


def locate(path: str) -> Location | None:
    """The place that a URL path (without its leading slash, not percent-decoded) names, or None."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    if match["version"] is not None:
        return root_location(int(match["version"]))
    if match["sha256"] is not None:
        return Location("blobs", match["sha256"], immutable=True)
    return head_location(match["environment"]) if match["environment"] not in _RESERVED else None


def root_location(version: int) -> Location:
    return Location("root", f"{version}.root", immutable=True)


def head_location(environment: str) -> Location:
    """Raises ValueError for an environment that the layout cannot name."""
    if not ENVIRONMENT.fullmatch(environment) or environment in _RESERVED:
        raise ValueError(f"{environment!r}: an environment is lower-case letters, digits and '-', at most 32")
    return Location(environment, "head", immutable=False)


def blob_location(data: bytes) -> Location:
    return Location("blobs", hashlib.sha256(data).hexdigest(), immutable=True)


class Mark(NamedTuple):
    """What tells one state of a file from another without reading it."""

    inode: int
    size: int
    modified_ns: int
    newest_root: int = 0


class Repository:
    """A folder of published files. `cap` is the largest file in bytes that is read or written."""

    def __init__(self, directory: Path, *, cap: int = 64 * 1024 * 1024) -> None:
        if not directory.is_dir():
            raise RepositoryError(f"{directory}: no such folder; create it, or name another with --dir")
        self.directory = directory
        self.cap = cap

    async def read(self, location: Location) -> bytes | None:
        """The file's bytes, or None if it is not there. Raises OSError."""
        try:
            return await read_in(self.directory / location.folder, location.name, self.cap)
        except (FileNotFoundError, NotADirectoryError, UnsafeFileError):
            return None

    async def write(self, location: Location, data: bytes) -> None:
        """Publishes `data`, on the disk before anybody can see it. Raises OSError."""
        folder_path = self.directory / location.folder
        folder_path.mkdir(mode=0o755, exist_ok=True)
        await write_in(folder_path, location.name, data, mode=MODE)

    def mark(self, location: Location) -> Mark | None:
        """What the file looks like now; None if it is not there.

        The mark of a head also moves when a root is added, so that whoever waits for the one hears of both.
        """
        try:
            found = (self.directory / location.path).stat()
        except OSError:
            return None
        return Mark(
            found.st_ino, found.st_size, found.st_mtime_ns, 0 if location.immutable else self.newest_root()
        )

    def newest_root(self) -> int:
        """The highest root version without a gap below it, from 1; 0 if there is none."""
        try:
            names = {entry.name for entry in (self.directory / "root").iterdir()}
        except OSError:
            return 0
        version = 0
        while f"{version + 1}.root" in names:
            version += 1
        return version

    @contextlib.asynccontextmanager
    async def exclusive(self, timeout_s: float = 5.0) -> AsyncIterator[None]:
        """Holds the folder against any other publisher, in this process or another.

        Raises TimeoutError when another one does not let go in `timeout_s` seconds; OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.directory / ".lock", flags, MODE)
        try:
            async with asyncio.timeout(timeout_s):
                while not _try_lock(descriptor):  # noqa: ASYNC110 - the other holder may be another process
                    await asyncio.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
