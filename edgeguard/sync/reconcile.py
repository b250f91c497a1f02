"""Compares, on every cycle: the disk, what is in force, the head, the release manifest, and what was verified.

Each difference has a class and an action. What a crash or a bad sector can explain heals itself: the
verified bytes in memory are written again, the verified snapshot is put in force again. What only another
writer can explain freezes the node: no new bundle is taken until somebody has looked, while heads still
count, so that a quarantine gets through and the deadlines go on.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from edgeguard.bundle.marks import Marks
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Snapshot
from edgeguard.bundle.trust import TrustState, snapshot
from edgeguard.sync.audit import checksum
from edgeguard.sync.report import EventKind
from edgeguard.sync.store import Stamp, Store
from edgeguard.sync.update import NOT_PERSISTED, Updater


class DriftClass(StrEnum):
    """What differs. A closed set."""

    DISK_MISSING = "disk_missing"
    """What is in force is not on the disk."""
    DISK_DAMAGED = "disk_damaged"
    """A stored file does not match its checksum."""
    DISK_FOREIGN = "disk_foreign"
    """The newest stored document is not one that this process stored."""
    MARKS_BEHIND = "marks_behind"
    """The stored high-water marks are lower than what was seen, or gone."""
    MARKS_AHEAD = "marks_ahead"
    """The stored high-water marks are higher than anything that was seen."""
    GENERATION = "generation"
    """What is enforced is not what was verified."""
    TABLES = "tables"
    """The verified policy has changed in memory."""
    HEAD_UNMET = "head_unmet"
    """The head names a bundle that is not in force."""
    MANIFEST = "manifest"
    """What is in force is not, and was not before, what the approved release manifest names."""


class Action(StrEnum):
    """What is done about it."""

    HEAL = "heal"
    FREEZE = "freeze"


ACTIONS: Final = {
    DriftClass.DISK_MISSING: Action.HEAL,
    DriftClass.DISK_DAMAGED: Action.HEAL,
    DriftClass.DISK_FOREIGN: Action.HEAL,
    DriftClass.MARKS_BEHIND: Action.HEAL,
    DriftClass.MARKS_AHEAD: Action.FREEZE,
    DriftClass.GENERATION: Action.HEAL,
    DriftClass.TABLES: Action.HEAL,
    DriftClass.HEAD_UNMET: Action.HEAL,
    DriftClass.MANIFEST: Action.FREEZE,
}
_QUIET: Final = frozenset({DriftClass.DISK_MISSING, DriftClass.HEAD_UNMET})
"""A full disk explains the one, and the refusal of the bundle speaks for the other; the rest are alarms."""
ROLES: Final = ("root", "head", "bundle", "manifest", "marks")
_ON_DISK: Final = frozenset(
    {DriftClass.DISK_MISSING, DriftClass.DISK_DAMAGED, DriftClass.DISK_FOREIGN, DriftClass.MARKS_BEHIND}
)


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference."""

    kind: DriftClass
    detail: str

    @property
    def action(self) -> Action:
        return ACTIONS[self.kind]

    @property
    def alarm(self) -> bool:
        return self.kind not in _QUIET


class Stored(NamedTuple):
    """The newest intact file of a role, without its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What the state folder holds."""

    newest: dict[str, Stored | None]
    damaged: tuple[str, ...]
    marks: Marks | None


class DiskReader:
    """Reads the state folder; what has not changed since it was last found intact is read only when asked."""

    def __init__(self) -> None:
        self._intact: dict[str, tuple[Stamp, Marks | None]] = {}

    async def read(self, store: Store, *, full: bool) -> OnDisk:
        """The newest of each role, and what is damaged. `full`: read and hash every file again."""
        newest: dict[str, Stored | None] = {}
        damaged: list[str] = []
        marks: Marks | None = None
        known = {} if full else self._intact
        intact: dict[str, tuple[Stamp, Marks | None]] = {}
        for role in ROLES:
            newest[role] = None
            for name, stamp in store.stamps(role):
                before = known.get(name)
                found = (
                    before if before is not None and before[0] == stamp else await _read(store, name, stamp)
                )
                if found is None:
                    damaged.append(name)
                    continue
                intact[name] = found
                if newest[role] is None:
                    newest[role] = Stored(name, name.rpartition(".")[2])
                    marks = found[1] if role == "marks" else marks
        self._intact = intact
        return OnDisk(newest, tuple(damaged), marks)


async def _read(store: Store, name: str, stamp: Stamp) -> tuple[Stamp, Marks | None] | None:
    try:
        slot = await store.read_slot(name)
    except FileNotFoundError:
        return None
    if slot is None:
        return None
    try:
        return stamp, Marks.decode(slot.data) if slot.role == "marks" else None
    except Refusal:
        return None


def compare(
    state: TrustState, disk: OnDisk | None, enforced: Snapshot | None, anchor: bytes
) -> Sequence[Drift]:
    """All differences; none means that disk, memory and what is enforced agree.

    Args:
        state: What was verified.
        disk: What is stored; None when another process keeps the folder, which is then not ours to compare.
        enforced: What decisions are made against.
        anchor: The configured root, which need not be stored.
    """
    found = [] if disk is None else _stored(state, disk, anchor)
    held = snapshot(state)
    if _generation(held) != _generation(enforced):
        detail = f"enforced is {_generation(enforced)}, verified is {_generation(held)}"
        found.append(Drift(DriftClass.GENERATION, detail))
    head, current = state.head, state.in_force
    if head is not None and (current is None or current.sha256 != head.bundle.sha256):
        detail = f"head {head.version} names bundle {head.bundle.version}, which is not in force"
        found.append(Drift(DriftClass.HEAD_UNMET, detail))
    return found + _manifest(state)


def _manifest(state: TrustState) -> list[Drift]:
    """A manifest for a newer bundle is a release on its way; any other difference is nobody's release."""
    manifest, current = state.manifest, state.in_force
    if not state.manifest_required or manifest is None or current is None:
        return []
    running = (current.bundle.version, current.identity)
    if manifest.bundle == running or manifest.bundle.version > current.bundle.version:
        return []
    detail = f"manifest {manifest.version} names bundle {manifest.bundle.version}, {running[0]} is in force"
    return [Drift(DriftClass.MANIFEST, detail)]


def _stored(state: TrustState, disk: OnDisk, anchor: bytes) -> list[Drift]:
    found = [Drift(DriftClass.DISK_DAMAGED, f"{name} is damaged") for name in disk.damaged]
    expected = {
        "root": state.root_bytes if state.root_bytes != anchor else None,
        "head": state.head_bytes or None,
        "bundle": state.in_force.data if state.in_force else None,
        "manifest": state.manifest_bytes or None,
    }
    for role, data in expected.items():
        slot = disk.newest[role]
        if data is None:
            continue
        if slot is None:
            found.append(Drift(DriftClass.DISK_MISSING, f"the {role} in force is not stored"))
        elif slot.sha256 != hashlib.sha256(data).hexdigest():
            found.append(Drift(DriftClass.DISK_FOREIGN, f"{slot.name} is not the {role} in force"))
    return found + _marks(state.marks, disk.marks)


def _marks(held: Marks, stored: Marks | None) -> list[Drift]:
    if stored is None:
        return [Drift(DriftClass.MARKS_BEHIND, "no high-water marks are stored")] if held.head_version else []
    if stored == held:
        return []
    ahead = [
        name
        for name in ("root_version", "head_version", "bundle_version", "newest_signed_time", "quarantine")
        if getattr(stored, name) > getattr(held, name)
    ]
    if ahead:
        return [Drift(DriftClass.MARKS_AHEAD, f"stored {', '.join(ahead)} higher than anything seen")]
    return [Drift(DriftClass.MARKS_BEHIND, "the stored high-water marks are lower than what was seen")]


def _generation(current: Snapshot | None) -> tuple[object, ...] | None:
    if current is None:
        return None
    deadlines = (current.stale_at, current.restricted_at, current.closed_at)
    # The tables and not the engine: a node with NAT64 prefixes of its own decides with its own engine.
    return (current.bundle_id, id(current.engine.tables), deadlines, current.revoked, current.quarantined)


class Reconciler:
    """Compares on every cycle, and remembers what it has said and read.

    Args:
        updater: Whose state is compared.
        enforced: What decisions are made against now.
        anchor: The configured root.
    """

    def __init__(self, updater: Updater, enforced: Callable[[], Snapshot | None], anchor: bytes) -> None:
        self._updater = updater
        self._enforced = enforced
        self._anchor = anchor
        self._reader = DiskReader()
        self._present: frozenset[Drift] = frozenset()
        self._audited: tuple[object, int] | None = None
        self.counts = dict.fromkeys(DriftClass, 0)

    @property
    def present(self) -> Mapping[str, bool]:
        """Each class of drift, and whether the last comparison found it."""
        kinds = {drift.kind for drift in self._present}
        return {str(kind): kind in kinds for kind in DriftClass}

    async def run(self, *, full: bool) -> Sequence[Drift]:
        """One comparison, and what it calls for.

        Every time: names, sizes and times of the stored files, the marks, the head, and which snapshot is
        enforced. With `full` also the bytes of every file and the tables in memory.
        """
        updater = self._updater
        writable = updater.store.acquire()
        disk = await self._reader.read(updater.store, full=full) if writable else None
        drifts = list(compare(updater.state, disk, self._enforced(), self._anchor))
        if full:
            drifts += await self._audit()
        new = [drift for drift in drifts if drift not in self._present]
        self._present = frozenset(drifts)
        for drift in new:
            self.counts[drift.kind] += 1
            updater.note(EventKind.DRIFT, drift.kind, f"{drift.detail}; {drift.action}", alarm=drift.alarm)
        await self._act(drifts, writable=writable)
        return drifts

    async def _audit(self) -> list[Drift]:
        """Compares the tables, and the bytes that they were made from, with what they were at first."""
        current = self._updater.state.in_force
        if current is None:
            return []
        if hashlib.sha256(current.data).hexdigest() != current.sha256:
            return [Drift(DriftClass.TABLES, "the bytes of the bundle in force have changed in memory")]
        tables = current.engine.tables
        found = await checksum(tables)
        if self._audited is None or self._audited[0] is not tables:
            self._audited = (tables, found)
        if self._audited[1] == found:
            return []
        return [Drift(DriftClass.TABLES, "the compiled policy has changed in memory")]

    async def _act(self, drifts: Sequence[Drift], *, writable: bool) -> None:
        updater = self._updater
        # After a write that failed half-way, marks that are ahead are our own.
        freezing = [drift.detail for drift in drifts if drift.action is Action.FREEZE and not updater.unsaved]
        updater.frozen = "; ".join(freezing)
        kinds = {drift.kind for drift in drifts}
        # What is enforced is put right whatever else is found.
        if DriftClass.TABLES in kinds:
            updater.rebuild()
        elif DriftClass.GENERATION in kinds:
            updater.reactivate()
        if freezing or not writable or not (updater.unsaved or kinds & _ON_DISK):
            return
        store = updater.store
        try:
            for drift in drifts:
                if drift.kind is DriftClass.DISK_DAMAGED:
                    await store.discard(drift.detail.split(" ", 1)[0])
            await updater.save()
        except OSError as error:
            updater.unsaved = True
            updater.note(EventKind.NOT_PERSISTED, NOT_PERSISTED, f"{store.path}: {error.strerror or error}")


async def reconcile(updater: Updater, enforced: Snapshot | None, anchor: bytes) -> Sequence[Drift]:
    """One full comparison on its own, without the memory of earlier ones."""
    return await Reconciler(updater, lambda: enforced, anchor).run(full=True)
