"""The decision log: JSON lines, numbered and hash-chained from the first one.

Each line carries the SHA-256 of the line before, so a line that is missing, changed or moved shows
(`verify_chain`). A restart goes on with the chain of the same file. What the chain cannot show is
a tail that was cut off, or a rewrite by somebody who owns the host: ship the lines elsewhere.

`offer` costs the traffic an append to a bounded queue. A thread of its own encodes, in slices small
enough that the traffic never waits long for the interpreter, and writes. When the queue is full or
the disk is broken, `offer` says so and the guard refuses new work: nothing passes unrecorded.
"""

import fcntl
import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from edgeguard.evidence.lines import Lines, Own, Shaped, Sort, UnwritableError, Written
from edgeguard.evidence.record import SCHEMA, Record
from edgeguard.evidence.turnstile import Turnstile

logger = logging.getLogger(__name__)
_new = tuple.__new__

FIRST_PREV: Final = "0" * 64
SLICE: Final = 64
"""Records encoded before the interpreter lock is given up."""
GATHER_S: Final = 0.02
"""The writer lets records gather for this long once it is awake: every time it takes the interpreter from the
traffic costs both of them more than a record does."""
IDLE_S: Final = 0.25
"""Longest sleep of the writer; `offer` wakes it earlier."""
RETRY_S: Final = 0.5
"""Pause after a failed write."""
MAX_LINE_BYTES: Final = 1_048_576


type Entry = Record | Shaped


class LogError(OSError):
    """The decision log cannot be opened. Says which file and why."""


class DecisionLog:
    """Takes records from any thread, writes them from its own.

    Args:
        sink: Path of a file that is appended to, or `-` for standard output.
        capacity: Records that may wait.
        observers: Called with every slice of records after it was written, in the writer's thread.
        sync_s: Seconds between flushes of a file to the disk.
        paths: False leaves paths out of the lines.
        chain: Name of the chain, where a node has several (one for each worker).
        turnstile: Where other processes write to the same stream.

    Raises:
        LogError: The file cannot be opened, or another process is writing it.
    """

    def __init__(
        self,
        sink: str | Path,
        capacity: int,
        *,
        observers: Sequence[Callable[[Sequence[Written]], None]] = (),
        sync_s: float = 1.0,
        paths: bool = True,
        chain: str | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        self._queue: deque[Entry] = deque()
        self._capacity = capacity
        self._observers = tuple(observers)
        self._lines = Lines(paths=paths, chain=chain)
        self._sink = _Sink(sink, sync_s, turnstile)
        self._refused = 0
        self._reported = 0
        self._written = 0
        self._broken = self._unsynced = False
        self._closing = False
        self._idle = False
        self._wake = threading.Event()
        self._id = f"log-{os.getpid()}"
        self._thread = threading.Thread(target=self._run, name="edgeguard-log", daemon=True)
        self._thread.start()

    def offer(self, record: Entry) -> bool:
        """Queues a record. False if it cannot be kept: the queue is full, the disk broken, or the log closed.

        A callable is called in the writer's thread, so that even shaping the record costs the traffic nothing.
        """
        queue = self._queue
        if self._broken or len(queue) >= self._capacity or self._closing:
            self._refused += 1
            return False
        queue.append(record)
        if self._idle:
            self._idle = False
            self._wake.set()
        return True

    @property
    def waiting(self) -> int:
        """Records in the queue."""
        return len(self._queue)

    @property
    def written(self) -> int:
        """Lines written since the start."""
        return self._written

    @property
    def refused(self) -> int:
        """Records that `offer` did not take since the start."""
        return self._refused

    @property
    def broken(self) -> bool:
        """Whether the last write failed."""
        return self._broken

    def close(self, timeout_s: float = 5.0) -> None:
        """Takes no more, writes what waits, syncs. Gives up after `timeout_s` if the disk does not take it."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("the decision log could not write %d records in time", len(self._queue))

    def _run(self) -> None:
        try:
            if self._sink.torn:
                self._write([self._event("torn")])
            self._write([self._event("started")])
            self._work()
        finally:
            # Without a writer nothing can be kept, whatever ended it.
            self._broken = True
            try:
                self._sink.close()
            except OSError as error:
                logger.error("the decision log %s could not be flushed at the end: %s", self._sink, error)  # noqa: TRY400

    def _work(self) -> None:
        while True:
            records = self._slice()
            if records:
                self._write(records)
            self._tend()
            if len(records) >= SLICE:
                continue
            if self._closing and not self._queue:
                return
            if not records:  # nothing came during a whole pause: sleep until somebody wakes us
                self._idle = True
                # Whoever appended before it saw `_idle` is found here; whoever appends later wakes us.
                if not self._queue:
                    self._wake.wait(IDLE_S)
                self._idle = False
            self._wake.clear()
            if not self._closing:  # read after the clearing: `close` sets it first
                self._wake.wait(GATHER_S)

    def _slice(self) -> list[tuple[Sort, Own]]:
        queue, sort_of = self._queue, self._lines.sort_of
        records: list[tuple[Sort, Own]] = []
        for _ in range(min(SLICE, len(queue))):
            entry = queue.popleft()
            try:
                records.append(sort_of(entry))
            except UnwritableError as error:
                logger.exception("a decision could not be encoded")
                records.append(self._bare(error.record.id, error.record))
            except Exception:
                # One record that cannot be shaped must not stop the log; it is counted as lost.
                logger.exception("a decision could not be recorded")
                self._refused += 1
        if not self._broken and (lost := self._refused - self._reported):
            self._reported += lost
            records.append(self._event("resumed", lost))
        return records

    def _event(self, why: str, lost: int | None = None) -> tuple[Sort, Own]:
        """What the log says of itself."""
        return self._lines.sort_of(Record(self._id, time.time(), "event", why=why, lost=lost))

    def _bare(self, ident: object, record: Record) -> tuple[Sort, Own]:
        """What stands for a record with a field of a wrong type. That is our defect; the decision still leaves a line."""
        return self._lines.sort_of(Record(str(ident), time.time(), record.kind, why="unencodable"))

    def _write(self, records: Sequence[tuple[Sort, Own]]) -> None:
        """Writes a slice; repeats until the disk takes it, or until the log is closed."""
        lines, seq, prev = self._encode(records)
        while True:
            try:
                self._sink.write(lines)
                break
            except OSError as error:
                self._failed(error)
                if self._closing:
                    return
                time.sleep(RETRY_S)
        if not self._unsynced:
            self._recovered()
        self._sink.seq, self._sink.prev = seq, prev
        self._written += len(records)
        written = [_new(Written, (sort.record, own)) for sort, own in records]
        for observer in self._observers:
            try:
                observer(written)
            except Exception:
                # Metrics and consoles are guests here; the log goes on without them.
                logger.exception("an observer of the decision log failed")

    def _tend(self) -> None:
        try:
            if self._sink.tend():
                self._unsynced = False
                self._recovered()
        except OSError as error:
            self._unsynced = True
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._broken:
            logger.error("the decision log %s cannot be written, new work is refused: %s", self._sink, error)
        self._broken = True

    def _recovered(self) -> None:
        if self._broken:
            logger.warning("the decision log %s is written again", self._sink)
        self._broken = False

    def _encode(self, records: Sequence[tuple[Sort, Own]]) -> tuple[bytes, int, str]:
        seq, prev, lines = self._sink.seq, self._sink.prev, []
        for sort, own in records:
            seq += 1
            try:
                line = sort.line(own, seq, prev)
            except Exception:
                # As above: a field of a wrong type is our defect.
                logger.exception("a decision could not be encoded")
                bare, its_own = self._bare(own.id, sort.record)
                line = bare.line(its_own, seq, prev)
            prev = sha256(line).hexdigest()
            lines.append(line)
        lines.append(b"")
        return b"\n".join(lines), seq, prev


class _Sink:
    """Where lines go: a file that is locked, continued and synced, or standard output."""

    def __init__(self, sink: str | Path, sync_s: float, turnstile: Turnstile | None = None) -> None:
        self.seq, self.prev, self.torn = 0, FIRST_PREV, False
        self._path = None if str(sink) == "-" else Path(sink)
        self._sync_s = sync_s
        self._turnstile = turnstile if self._path is None else None
        self._dirty = False
        self._synced = time.monotonic()
        self._fd = 1 if self._path is None else self._open(self._path)

    def __str__(self) -> str:
        return "-" if self._path is None else str(self._path)

    def _open(self, path: Path) -> int:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise LogError(
                error.errno, f"cannot open the decision log: {error.strerror}", str(path)
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.seq, self.prev, self.torn = _tail(fd)
            if self.torn:
                os.write(fd, b"\n")
        except BlockingIOError as error:
            os.close(fd)
            raise LogError(error.errno, "another process is writing this decision log", str(path)) from None
        except OSError as error:
            os.close(fd)
            raise LogError(
                error.errno, f"cannot continue the decision log: {error.strerror}", str(path)
            ) from None
        return fd

    def write(self, data: bytes) -> None:
        """Writes all of `data`, or nothing that stays in the file. Raises OSError."""
        if self._turnstile is None:
            self._write(data)
            return
        with self._turnstile.passing() as torn:
            self._write(b"\n" + data if torn else data)

    def _write(self, data: bytes) -> None:
        view, done = memoryview(data), 0
        try:
            while done < len(data):
                try:
                    done += os.write(self._fd, view[done:])
                except BlockingIOError:
                    select.select((), (self._fd,), (), RETRY_S)
        except OSError:
            if done and self._path is not None:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - done)
            raise
        self._dirty = True

    def tend(self) -> bool:
        """Flushes to the disk when it is time, and follows a file that was rotated away. True if it did."""
        if self._path is None or not self._dirty or time.monotonic() - self._synced < self._sync_s:
            return False
        os.fdatasync(self._fd)
        self._dirty, self._synced = False, time.monotonic()
        try:
            here, there = os.fstat(self._fd), self._path.stat()
            rotated = (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
        except FileNotFoundError:
            rotated = True
        if rotated:
            # The chain goes on in the new file: its first line names the last of the old one.
            seq, prev = self.seq, self.prev
            old, self._fd = self._fd, self._open(self._path)
            self.seq, self.prev, self.torn = seq, prev, False
            os.close(old)
        return True

    def close(self) -> None:
        if self._path is None:
            return
        try:
            os.fdatasync(self._fd)
        finally:
            os.close(self._fd)


def _tail(fd: int) -> tuple[int, str, bool]:
    """Number and hash of the last line, and whether it is torn: a crash left it without its newline."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0, FIRST_PREV, False
    data = os.pread(fd, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    torn = not data.endswith(b"\n")
    lines = (data if torn else data[:-1]).split(b"\n")
    # Torn lines took numbers too: go back to the newest line that has one.
    unread = 1 if torn else 0
    seq = 0
    for line in reversed(lines[: len(lines) - unread]):
        if seq := _seq(line):
            break
        unread += 1
    return seq + unread, sha256(lines[-1]).hexdigest(), torn


def _seq(line: bytes) -> int:
    try:
        value = json.loads(line)["seq"]
    except (ValueError, KeyError, TypeError):
        return 0
    return value if isinstance(value, int) else 0


class ChainReport(NamedTuple):
    """What `verify_chain` found."""

    lines: int
    last_seq: int
    last_hash: str
    """SHA-256 of the last line: compare it with a copy that was kept elsewhere."""
    problems: tuple[str, ...]
    """In words, with line numbers; empty if the chain holds."""

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_chain(lines: Iterable[bytes], *, seq: int = 0, prev: str = FIRST_PREV) -> ChainReport:
    """Checks numbers and hashes of a log.

    A line that a crash tore is accepted where the log says so itself, in the line after it.

    Args:
        lines: Lines as bytes, with or without newlines.
        seq: Number of the line before the first; for a file that continues a rotated one.
        prev: Hash of that line.
    """
    problems: list[str] = []
    torn: int | None = None
    count = 0
    for count, raw in enumerate(lines, start=1):
        line = raw.removesuffix(b"\n")
        try:
            entry = json.loads(line)
            found = (entry["schema"], entry["seq"], entry["prev"])
        except (ValueError, KeyError, TypeError):
            if torn is not None:
                problems.append(f"line {torn}: not a record")
            torn, seq, prev = count, seq + 1, sha256(line).hexdigest()
            continue
        if torn is not None and not (entry.get("kind") == "event" and entry.get("why") == "torn"):
            problems.append(f"line {torn}: not a record")
        torn = None
        if found[0] != SCHEMA:
            problems.append(f"line {count}: schema {found[0]!r} instead of {SCHEMA!r}")
        if found[1] != seq + 1:
            problems.append(f"line {count}: number {found[1]} instead of {seq + 1}")
        if found[2] != prev:
            problems.append(f"line {count}: does not follow from the line before it")
        seq = found[1] if isinstance(found[1], int) else seq + 1
        prev = sha256(line).hexdigest()
    if torn is not None:
        problems.append(f"line {torn}: not a record")
    return ChainReport(count, seq, prev, tuple(problems))
