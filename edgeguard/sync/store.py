"""The state folder of a node: what it has verified, kept so that a restart needs no server.

Each role (`root`, `head`, `bundle`, `marks`, ...) has at least two slots, and the live one is never
written to. A slot is a file named `<role>.<sequence>.<sha256>`, so its bytes are exactly the bytes that
were served, while the name carries the order and the checksum and becomes visible in one rename. A slot
whose bytes do not match its name is damaged; the one before it is used. Roots are all kept, numbered by
their version, since each is needed to verify the next (TUF 1.0.34, section 5.3).

The store trusts nothing that it reads: whoever loads it verifies the signatures again.
"""

import fcntl
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple, Self

from edgeguard.sync.files import (
    TEMPORARY_SUFFIX,
    UnsafeFileError,
    open_folder,
    read_plain,
    remove,
    write_durably,
)

ROLES: Final = ("root", "head", "bundle", "manifest", "marks", "report", "boots", "anchor", "profile")
KEPT: Final = 2
"""Slots kept for each role but root."""
DEFAULT_CAP: Final = 64 * 1024 * 1024
"""No stored file may be larger (bytes); what a role may weigh is decided when it is verified."""
_NAME: Final = re.compile(rf"({'|'.join(ROLES)})\.([0-9]{{1,19}})\.([0-9a-f]{{64}})")


class StoreError(Exception):
    """The state folder cannot be used. The message says what is wrong and how to mend it."""


class Slot(NamedTuple):
    """One stored file whose bytes match its name."""

    role: str
    sequence: int
    sha256: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.role}.{self.sequence}.{self.sha256}"


class Stamp(NamedTuple):
    """What tells one state of a file from another without reading it; a change cannot keep `changed_ns`."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Store:
    """An open state folder. One process writes (flock); any other reads only."""

    def __init__(self, path: Path, folder: int, *, cap: int) -> None:
        self.path = path
        self._folder = folder
        self._cap = cap
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path, *, writable: bool = True, cap: int = DEFAULT_CAP) -> Self:
        """Opens the folder, creating it (mode 0700) if it is missing and `writable` is asked for.

        Blocks on a few system calls; call it before traffic starts. When another process holds the lock the
        store opens read-only (`writable` is False). Raises StoreError.
        """
        try:
            if writable:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = open_folder(path)
        except OSError as error:
            raise StoreError(_cannot_open(path, error)) from error
        store = cls(path, folder, cap=cap)
        try:
            _check_folder(path, os.fstat(folder))
            if writable:
                store.acquire()
        except BaseException:
            store.close()
            raise
        return store

    @property
    def writable(self) -> bool:
        return self._lock is not None

    def acquire(self) -> bool:
        """Takes the lock if it is free; the kernel frees it when its holder dies. Raises StoreError."""
        if self._lock is not None:
            return True
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open("lock", flags, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise StoreError(_cannot_open(self.path / "lock", error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        self._sweep()
        return True

    def close(self) -> None:
        """Gives the lock and the folder back. Safe to call twice."""
        for descriptor in (self._lock, self._folder):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._lock, self._folder = None, -1

    async def read(self, role: str) -> tuple[tuple[Slot, ...], tuple[str, ...]]:
        """The intact slots of a role, newest first, and the names of the damaged ones."""
        intact: list[Slot] = []
        damaged: list[str] = []
        for _, _, name in self._slots(role):
            try:
                slot = await self.read_slot(name)
            except FileNotFoundError:  # the writing process replaced it meanwhile
                continue
            if slot is None:
                damaged.append(name)
            else:
                intact.append(slot)
        return tuple(intact), tuple(damaged)

    async def read_slot(self, name: str) -> Slot | None:
        """The slot of this name, or None if it is damaged. Raises FileNotFoundError."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        try:
            data = await read_plain(self._folder, name, self._cap, private=True)
        except FileNotFoundError:
            raise
        except (UnsafeFileError, OSError):
            return None
        intact = hashlib.sha256(data).hexdigest() == match[3]
        return Slot(match[1], int(match[2]), match[3], data) if intact else None

    def stamps(self, role: str) -> list[tuple[str, Stamp]]:
        """Name and stamp of each of a role's files, newest first. A few system calls, no reading."""
        found = []
        for _, _, name in self._slots(role):
            try:
                at = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append((name, Stamp(at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)))
        return found

    async def write(self, role: str, data: bytes, *, sequence: int | None = None) -> Slot:
        """Stores `data` as the newest slot of its role (roots: under their version) and flushes it.

        Nothing is written if the newest slot holds the same bytes already. Raises OSError; PermissionError
        when another process owns the folder.
        """
        if not self.writable:
            raise PermissionError("another process owns the state folder")
        existing = self._slots(role)
        sha256 = hashlib.sha256(data).hexdigest()
        if sequence is None:
            same = bool(existing) and existing[0][1] == sha256
            sequence = existing[0][0] if same else (existing[0][0] + 1 if existing else 1)
        slot = Slot(role, sequence, sha256, data)
        if not (any(name == slot.name for _, _, name in existing) and await self._holds(slot)):
            await write_durably(self._folder, slot.name, data)
        await self._retire(role, slot)
        return slot

    async def discard(self, name: str) -> None:
        """Removes one damaged slot. Raises OSError."""
        if self.writable and _NAME.fullmatch(name):
            await remove(self._folder, name)

    async def _holds(self, slot: Slot) -> bool:
        try:
            return await read_plain(self._folder, slot.name, self._cap, private=True) == slot.data
        except OSError:
            return False

    async def _retire(self, role: str, newest: Slot) -> None:
        kept = 0
        for sequence, _, name in self._slots(role):
            if role == "root":
                if sequence == newest.sequence and name != newest.name:
                    await remove(self._folder, name)
                continue
            kept += 1
            if kept > KEPT and name != newest.name:
                await remove(self._folder, name)

    def _slots(self, role: str) -> list[tuple[int, str, str]]:
        """(sequence, sha256, name) of a role's files, newest first."""
        found = []
        for name in os.listdir(self._folder):  # noqa: PTH208 - an open folder, not a path
            match = _NAME.fullmatch(name)
            if match and match[1] == role:
                found.append((int(match[2]), match[3], name))
        return sorted(found, reverse=True)

    def _sweep(self) -> None:
        """Removes what a crash left half-written."""
        for name in os.listdir(self._folder):  # noqa: PTH208 - an open folder, not a path
            if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
                os.unlink(name, dir_fd=self._folder)


def _check_folder(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path}: the state folder belongs to uid {found.st_uid}, this process runs as {os.geteuid()}; "
            f"chown it, or set trust.state_dir to another folder"
        )
    if found.st_mode & 0o022:
        raise StoreError(
            f"{path}: the state folder may be written by others (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"run: chmod 700 {path}"
        )


def _cannot_open(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return (
            f"{path}: the state folder must not be a symbolic link; set trust.state_dir to the folder itself"
        )
    return f"{path}: cannot open the state folder: {error.strerror}; check trust.state_dir"
