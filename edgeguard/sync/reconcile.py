"""Compares, on every cycle, what is on the disk, what is in force, and what was verified.

Each difference has a class and an action. What a crash or a bad sector can explain heals itself: the
verified bytes in memory are written again, the verified snapshot is put in force again. What only another
writer can explain freezes the node: no new bundle is taken until somebody has looked, while heads still
count, so that a quarantine gets through and the deadlines go on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeguard.bundle.marks import Marks
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Snapshot
from edgeguard.bundle.trust import TrustState, snapshot
from edgeguard.sync.report import EventKind
from edgeguard.sync.store import Slot, Store
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
}
_QUIET: Final = frozenset({DriftClass.DISK_MISSING})
"""A disk that was full explains it; everything else raises an alarm."""


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


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What the state folder holds."""

    newest: dict[str, Slot | None]
    damaged: tuple[str, ...]
    marks: Marks | None

    @classmethod
    async def read(cls, store: Store) -> "OnDisk":
        newest: dict[str, Slot | None] = {}
        damaged: list[str] = []
        for role in ("root", "head", "bundle", "marks"):
            slots, broken = await store.read(role)
            newest[role] = slots[0] if slots else None
            damaged += broken
        slot = newest["marks"]
        marks = None
        if slot is not None:
            try:
                marks = Marks.decode(slot.data)
            except Refusal:
                damaged.append(slot.name)
        return cls(newest, tuple(damaged), marks)


def compare(state: TrustState, disk: OnDisk, enforced: Snapshot | None, anchor: bytes) -> Sequence[Drift]:
    """All differences; none means that disk, memory and what is enforced agree. `anchor` is the configured root."""
    found = [Drift(DriftClass.DISK_DAMAGED, f"{name} is damaged") for name in disk.damaged]
    expected = {
        "root": state.root_bytes if state.root_bytes != anchor else None,
        "head": state.head_bytes or None,
        "bundle": state.in_force.data if state.in_force else None,
    }
    for role, data in expected.items():
        slot = disk.newest[role]
        if data is None:
            continue
        if slot is None:
            found.append(Drift(DriftClass.DISK_MISSING, f"the {role} in force is not stored"))
        elif slot.sha256 != hashlib.sha256(data).hexdigest():
            found.append(Drift(DriftClass.DISK_FOREIGN, f"{slot.name} is not the {role} in force"))
    found += _marks(state.marks, disk.marks)
    held = snapshot(state)
    if _generation(held) != _generation(enforced):
        detail = f"enforced is {_generation(enforced)}, verified is {_generation(held)}"
        found.append(Drift(DriftClass.GENERATION, detail))
    return found


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
    return (current.bundle_id, id(current.engine), deadlines, current.revoked, current.quarantined)


async def reconcile(updater: Updater, enforced: Snapshot | None, anchor: bytes) -> Sequence[Drift]:
    """One comparison, and what it calls for. `enforced` is what decisions are made against now."""
    store = updater.store
    if not store.acquire():
        return await _follow(updater, enforced, anchor)
    drifts = compare(updater.state, await OnDisk.read(store), enforced, anchor)
    for drift in drifts:
        updater.note(EventKind.DRIFT, drift.kind, f"{drift.detail}; {drift.action}", alarm=drift.alarm)
    # After a write that failed half-way, marks that are ahead are our own.
    freezing = [drift.detail for drift in drifts if drift.action is Action.FREEZE and not updater.unsaved]
    updater.frozen = "; ".join(freezing)
    if freezing:
        return drifts
    kinds = {drift.kind for drift in drifts}
    if DriftClass.GENERATION in kinds:
        updater.reactivate()
    if updater.unsaved or kinds - {DriftClass.GENERATION}:
        try:
            for drift in drifts:
                if drift.kind is DriftClass.DISK_DAMAGED:
                    await store.discard(drift.detail.split(" ", 1)[0])
            await updater.save()
        except OSError as error:
            updater.unsaved = True
            updater.note(EventKind.NOT_PERSISTED, NOT_PERSISTED, f"{store.path}: {error.strerror or error}")
    return drifts


async def _follow(updater: Updater, enforced: Snapshot | None, anchor: bytes) -> Sequence[Drift]:
    """Another process keeps the folder: only what is enforced here is ours to compare."""
    disk = OnDisk({"root": None, "head": None, "bundle": None, "marks": None}, (), None)
    drifts = [
        drift
        for drift in compare(updater.state, disk, enforced, anchor)
        if drift.kind is DriftClass.GENERATION
    ]
    for drift in drifts:
        updater.note(EventKind.DRIFT, drift.kind, f"{drift.detail}; {drift.action}", alarm=True)
        updater.reactivate()
    return drifts
