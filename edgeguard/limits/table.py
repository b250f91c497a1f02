"""One file of counters that all processes of a host map: slots, seats, and the locks between them.

Everything is an aligned 64-bit word that is stored with one instruction, so that a process that is
killed leaves no half-written number behind; its locks are released by the kernel (open file
description locks, fcntl(2)). A new key's digest is stored last: a slot that a dying process was
filling is either free or complete.

    header   64 words: magic, version, size, generation, boot, base time, secret, checksum
    spare    slots for the shared bucket of each limit, where the slots of a group are all live
    slots    groups of eight, by digest: digest, theoretical arrival time, tag of the limit
    seats    groups of eight rows: digest, tag, and one 16-bit count for each process

Times are 2^-8 ns since `base`, on the monotonic clock, which all processes of a boot share. The
table is made anew after a reboot, when its header is damaged, and once a year. It is never shrunk
and never replaced while others have it mapped.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
import struct
import time
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

from edgeguard.limits.taken import LimitsError

logger = logging.getLogger(__name__)

MAGIC: Final = int.from_bytes(b"EGlimits", "little")
VERSION: Final = 1
TICK_BITS: Final = 8
"""One nanosecond is 2 ** TICK_BITS of the table's ticks."""
WAYS: Final = 8
"""Slots of a group: where a digest may stand."""
SPARE: Final = 2048
"""Slots for shared buckets."""
SPARE_ROWS: Final = 128
"""The same for seats."""
WORKERS: Final = 64
"""Processes that may share a table."""
STRIPES: Final = 1024
"""Locks over the groups."""
MAX_VALUE: Final = (1 << 63) - 1
SEATS_PER_SLOT: Final = 16
"""A row of seats for so many slots."""
MAX_AGE_NS: Final = 365 * 86_400 * 10**9
LEEWAY_NS: Final = 60 * 10**9
"""How far before its making a table begins: whoever read the clock a moment earlier counts, too."""
_HEADER: Final = 64
_ROW: Final = 2 + WORKERS // 4
"""Words of a row of seats."""
_LOCKS: Final = 1 << 40
"""Offset of the locks: past the end, so that they concern no bytes. The first guards the header, then workers, then stripes."""
_FLOCK: Final = struct.Struct("hhqqi4x")
GENERATION: Final = 3
_CHECKSUM: Final = 13
_SLICE_S: Final = 0.0002


class TableError(OSError):
    """The table cannot be used. Says which and why, and how to mend it."""


class TableBusyError(LimitsError):
    """Another process holds a lock and does not let go: it is stopped, or thrashing."""


def _flock(kind: int, place: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _LOCKS + place, 1, 0)


def _boot_id() -> int:
    return int(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""), 16)


def _time_namespace() -> int:
    """The inode of the time namespace: elsewhere the monotonic clock has another zero."""
    try:
        return Path("/proc/self/ns/time").stat().st_ino
    except OSError:
        return 0


class Table:
    """The mapped file. Not thread-safe: it belongs to the traffic's loop.

    Args:
        path: The file; made if it is missing (mode 0600).
        slots: Keys that fit, at least; a table that exists keeps its own size.
        wait_s: Longest wait for a lock.

    Raises:
        TableError: It cannot be opened, belongs to somebody else, or too many processes share it.

    Attributes:
        digests, values, tags: The slots, as words; the first `SPARE` are the shared buckets.
        words: The whole file, as words.
        generation: Of what is in there; compare with `words[GENERATION]` under a lock.
        fd: The descriptor that holds the locks.
    """

    def __init__(self, path: Path, slots: int, wait_s: float) -> None:
        self.path = path
        self._wanted = max(WAYS, 1 << (slots - 1).bit_length())
        self._wait_s = wait_s
        self._map: mmap.mmap | None = None
        self.fd = -1
        self.worker = -1
        self.locks = tuple(
            (_flock(fcntl.F_WRLCK, 1 + WORKERS + n), _flock(fcntl.F_UNLCK, 1 + WORKERS + n))
            for n in range(STRIPES + 1)
        )
        """(lock, unlock) of each stripe and, last, of the shared buckets, as fcntl(2) takes them."""
        self._open()

    # Opening

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            state = os.fstat(self.fd)
            if state.st_uid != os.geteuid() or state.st_mode & 0o077:
                raise TableError(
                    f"{self.path} must belong to this user alone: chown it, and chmod 600, or remove it"
                )
            self.inode = (state.st_dev, state.st_ino)
            with self._header_locked():
                self._take_over()
                self._join()
        except TableError:
            self.close()
            raise
        except (OSError, TableBusyError) as error:
            self.close()
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise TableError(f"{self.path}: the table of rate limits cannot be used: {why}") from None

    @contextlib.contextmanager
    def _header_locked(self) -> Iterator[None]:
        self.lock(_flock(fcntl.F_WRLCK, 0))
        try:
            yield
        finally:
            self.unlock(_flock(fcntl.F_UNLCK, 0))

    def _take_over(self) -> None:
        """Maps what is there, or makes it anew."""
        size = os.fstat(self.fd).st_size
        if size >= _bytes(WAYS):
            self._attach(size)
            words = self.words
            slots = words[2]
            sound = (
                words[0] == MAGIC
                and words[1] == VERSION
                and words[_CHECKSUM] == _checksum(words)
                and _bytes(slots) <= size
                and (words[4] | words[5] << 64) == _boot_id()
                and 0 <= time.monotonic_ns() - words[7] < MAX_AGE_NS
            )
            if sound and words[6] != _time_namespace():
                if self._inhabited():
                    raise TableError(
                        f"{self.path} is used by processes of another time namespace, whose clock is not ours: "
                        "give this one its own [limits] host_table"
                    )
                sound = False
            if sound:
                self._read_header()
                return
            if words[0] or words[1]:
                logger.warning("%s is from another boot or version, or damaged: made anew", self.path)
            self._detach()
        needed = max(size, _bytes(self._wanted))
        # Without room on the disk, touching the map would kill the process.
        os.posix_fallocate(self.fd, 0, needed)
        self._attach(needed)
        self._initialise()

    def _attach(self, size: int) -> None:
        self._map = mmap.mmap(self.fd, size)
        self.words = memoryview(self._map).cast("Q")

    def _detach(self) -> None:
        if self._map is not None:
            for name in ("digests", "values", "tags", "_seats", "_counts", "words"):
                view = getattr(self, name, None)
                if view is not None:
                    view.release()
                    delattr(self, name)
            self._map.close()
            self._map = None

    def _initialise(self) -> None:
        words, boot = self.words, _boot_id()
        generation = (words[GENERATION] + 1) & 0xFFFF_FFFF
        words[_CHECKSUM] = 0  # until the rest is written, nobody takes this for a table
        total = len(words)
        chunk = memoryview(bytes(65_536)).cast("Q")
        for start in range(_HEADER, total, len(chunk)):
            part = min(len(chunk), total - start)
            words[start : start + part] = chunk[:part]
        secret = memoryview(secrets.token_bytes(32)).cast("Q")
        fields = (
            MAGIC, VERSION, self._wanted, generation, boot & (1 << 64) - 1, boot >> 64, _time_namespace(),
            max(0, time.monotonic_ns() - LEEWAY_NS), *secret,
        )  # fmt: skip
        for place, value in enumerate(fields):
            words[place] = value
        words[_CHECKSUM] = _checksum(words)
        self._read_header()

    def _read_header(self) -> None:
        words = self.words
        slots = words[2]
        self.generation, self.base_ns = words[GENERATION], words[7]
        self.secret = words[8:12].tobytes()
        self.groups = slots // WAYS
        self.rows = SPARE_ROWS + max(WAYS, slots // SEATS_PER_SLOT)
        every, start = SPARE + slots, _HEADER
        self.digests = words[start : start + every]
        self.values = words[start + every : start + 2 * every]
        self.tags = words[start + 2 * every : start + 3 * every]
        seats = start + 3 * every
        self._seats = words[seats : seats + self.rows * _ROW]
        self._counts = self._seats.cast("B").cast("H")

    def _join(self) -> None:
        """Takes a process number whose lock nobody holds, and forgets the seats of who had it before."""
        for worker in range(WORKERS):
            if self._try(_flock(fcntl.F_WRLCK, 1 + worker)):
                self.worker = worker
                for row in range(self.rows):
                    if self._counts[row * _ROW * 4 + 8 + worker]:
                        self._counts[row * _ROW * 4 + 8 + worker] = 0
                return
        raise TableError(
            f"{self.path} is shared by {WORKERS} processes already: give this one its own [limits] host_table"
        )

    def _inhabited(self) -> bool:
        return any(self.alive(worker) for worker in range(WORKERS))

    def alive(self, worker: int) -> bool:
        """Whether the process with this number still holds its lock."""
        if worker == self.worker:
            return True
        probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCKS + 1 + worker, 1, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, probe))[0] != fcntl.F_UNLCK)

    @property
    def population(self) -> int:
        """How many processes share the table now."""
        return sum(self.alive(worker) for worker in range(WORKERS)) if self.mapped else 0

    @property
    def mapped(self) -> bool:
        """Whether there is a table: one that was lost, and could not be made anew, is looked for by `refresh`."""
        return self._map is not None

    def current(self) -> bool:
        """Whether nobody made the table anew since it was mapped."""
        return self.mapped and bool(self.words[GENERATION] == self.generation)

    def refresh(self) -> None:
        """Follows a table that was made anew, or a file that was replaced. Raises TableError, TableBusyError."""
        try:
            state = self.path.stat()
            replaced = not self.mapped or (state.st_dev, state.st_ino) != self.inode
        except OSError:
            replaced = True
        if replaced:
            logger.warning("%s was replaced: the counters begin anew", self.path)
            self.close()
            self._open()
        elif not self.current():
            try:
                with self._header_locked():
                    self._detach()
                    self._take_over()
            except TableError:
                raise
            except OSError as error:
                raise TableError(f"{self.path}: the table of rate limits cannot be used: {error}") from None

    def close(self) -> None:
        """Unmaps the table; the kernel frees the locks, so the seats of this process are forgotten."""
        self._detach()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # Locks

    def lock(self, lock: bytes) -> None:
        """Takes a lock, patiently but not for ever. Raises TableBusyError."""
        if self._try(lock):
            return
        deadline = time.monotonic() + self._wait_s
        spins = 0
        while not self._try(lock):
            spins += 1
            if time.monotonic() > deadline:
                raise TableBusyError(f"a lock of {self.path} was not let go within {self._wait_s} s")
            # Whoever holds it needs a microsecond, unless it was interrupted: then it needs the processor.
            if spins < 64:
                os.sched_yield()
            else:
                time.sleep(_SLICE_S)

    def unlock(self, unlock: bytes) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, unlock)

    def _try(self, lock: bytes) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, lock)
        except BlockingIOError:
            return False
        return True

    # Slots; the caller holds the lock of the group's stripe

    def stripe(self, digest: int) -> int:
        return digest % self.groups % STRIPES

    def find(self, digest: int, now: int, claimed: Collection[int] = ()) -> int:
        """The slot of a digest, or a free one to be filled that nobody has `claimed`; -1: all eight are live."""
        start = SPARE + digest % self.groups * WAYS
        present = self.digests[start : start + WAYS].tolist()
        if digest in present:
            return start + present.index(digest)
        values = self.values[start : start + WAYS].tolist()
        for place, value in enumerate(values):
            if (not present[place] or value <= now) and start + place not in claimed:
                return start + place
        return -1

    def spare(self, digest: int, claimed: Collection[int] = ()) -> int:
        """The slot of a shared bucket; the caller holds the last lock. Raises TableBusyError when there are too many of them."""
        for probe in range(32):
            place = (digest + probe) % SPARE
            known = self.digests[place]
            if known == digest or (not known and place not in claimed):
                return place
        raise TableBusyError(f"{self.path} has no room for further shared buckets")

    def put(self, slot: int, digest: int, tag: int, value: int) -> None:
        """Stores a value. The digest comes last: what is torn by a kill is a free slot."""
        if self.digests[slot] != digest:
            self.digests[slot] = 0
            self.tags[slot] = tag
            self.values[slot] = value
            self.digests[slot] = digest
        else:
            self.values[slot] = value

    # Seats; the caller holds the lock of the row's stripe, or the last one for a shared row

    def row(self, digest: int, claimed: Collection[int] = (), *, shared: bool = False) -> int:
        """The row of a digest, or a free one to be filled that nobody has `claimed`; -1: all eight are taken."""
        groups = SPARE_ROWS // WAYS if shared else (self.rows - SPARE_ROWS) // WAYS
        start = (0 if shared else SPARE_ROWS) + digest % groups * WAYS
        free = -1
        for row in range(start, start + WAYS):
            known = self._seats[row * _ROW]
            if known == digest:
                return row
            if free < 0 and row not in claimed and (not known or not any(self._counted(row))):
                free = row
        return free

    def row_stripe(self, digest: int) -> int:
        return digest % ((self.rows - SPARE_ROWS) // WAYS) % STRIPES

    def taken(self, row: int, digest: int) -> list[int]:
        """Seats taken by each process; none where the row is not the digest's yet."""
        return self._counted(row) if self._seats[row * _ROW] == digest else [0] * WORKERS

    def _counted(self, row: int) -> list[int]:
        start = row * _ROW * 4 + 8
        return self._counts[start : start + WORKERS].tolist()

    def sit(self, row: int, digest: int, tag: int, seats: int) -> None:
        """Sets how many seats this process has taken."""
        place = row * _ROW
        if self._seats[place] != digest:
            self._seats[place] = 0
            self._seats[place + 1] = tag
            self._seats[place] = digest
        self._counts[place * 4 + 8 + self.worker] = seats

    def bury(self, row: int) -> None:
        """Forgets the seats of processes that are gone."""
        for worker, seats in enumerate(self._counted(row)):
            if seats and not self.alive(worker):
                self._counts[row * _ROW * 4 + 8 + worker] = 0

    # Looking

    def live(self, now: int) -> dict[int, int]:
        """Live keys by the tag of their limit. Takes milliseconds: not for the traffic's way."""
        found: dict[int, int] = {}
        for digest, value, tag in zip(
            self.digests.tolist(), self.values.tolist(), self.tags.tolist(), strict=True
        ):
            if digest and value > now:
                found[tag] = found.get(tag, 0) + 1
        for row in range(self.rows):
            if self._seats[row * _ROW] and any(self._counted(row)):
                tag = self._seats[row * _ROW + 1]
                found[tag] = found.get(tag, 0) + 1
        return found

    def wipe(self, tag: int | None = None, digest: int | None = None) -> int:
        """Forgets arrival times: of one key, of one limit, or all. Seats stay: somebody sits there. Returns how many."""
        done = 0
        for stripe, (lock, unlock) in enumerate(self.locks):
            self.lock(lock)
            try:
                done += sum(self._wipe(slot, tag, digest) for slot in self._slots(stripe))
            finally:
                self.unlock(unlock)
        return done

    def _slots(self, stripe: int) -> Iterator[int]:
        if stripe == STRIPES:
            yield from range(SPARE)
            return
        for group in range(stripe, self.groups, STRIPES):
            yield from range(SPARE + group * WAYS, SPARE + (group + 1) * WAYS)

    def _wipe(self, slot: int, tag: int | None, digest: int | None) -> bool:
        known = self.digests[slot]
        meant = (digest is None or known == digest) and (tag is None or self.tags[slot] == tag)
        if known and meant:
            self.digests[slot] = 0
        return bool(known) and meant


def digest_of(secret: bytes, *parts: str) -> int:
    """A keyed digest of 64 bits, never 0."""
    data = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, key=secret).digest(), "little") or 1


def _bytes(slots: int) -> int:
    """Size of a table in bytes."""
    rows = SPARE_ROWS + max(WAYS, slots // SEATS_PER_SLOT)
    return 8 * (_HEADER + 3 * (SPARE + slots) + rows * _ROW)


def _checksum(words: memoryview) -> int:
    return int.from_bytes(blake2b(words[:_CHECKSUM].tobytes(), digest_size=8).digest(), "little")
