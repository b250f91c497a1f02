"""One node's trust, kept on disk and brought up to date: executes what the state machine asks for.

The order is the point. A document is stored, then the high-water marks are raised, then it takes effect;
only what tightens (a revocation, a quarantine) takes effect first, since no full disk may hold it up. After
a crash at any moment the disk holds a state from which `load` arrives at the same policy or a newer one.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Final, NamedTuple

from edgeguard.bundle.build import decode_section
from edgeguard.bundle.documents import MAX_BUNDLE_BYTES, BlobRef, Bundle
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.refusal import Refusal, RefusalCode
from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.bundle.state import InForce
from edgeguard.bundle.trust import (
    MAX_ROOTS_PER_CYCLE,
    Activate,
    BundleOffered,
    CycleStarted,
    Event,
    Fetch,
    HeadOffered,
    ManifestOffered,
    Marks,
    RaiseMarks,
    Refuse,
    RootOffered,
    Store,
    TrustState,
    snapshot,
    step,
)
from edgeguard.policy.engine import Engine
from edgeguard.policy.tables import Tables
from edgeguard.sync.boots import CRASHLOOP, STEADY_S, Boots
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import FetchCode, Fetched, Fetcher, FetchError
from edgeguard.sync.gentle import gently
from edgeguard.sync.report import EventKind, Report, SyncEvent
from edgeguard.sync.store import Slot
from edgeguard.sync.store import Store as StateStore

logger = logging.getLogger(__name__)

NOT_PERSISTED: Final = "persist_failed"
REPORT_EVERY_S: Final = 600.0

type OnSnapshot = Callable[[Snapshot | None], None]
type OnEvent = Callable[[SyncEvent], None]


class Mirror:
    """One server, and what is known of it."""

    __slots__ = ("etag", "fetcher", "polls")

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.etag: str | None = None
        """Validator of the head in force. Kept only once everything that the head names is in force."""
        self.polls = 0


class Cycle(NamedTuple):
    """How one look at one server ended."""

    ok: bool
    """The server showed a current head, and what it names is in force."""
    changed: bool = False
    code: str = ""
    retry_after_s: float | None = None
    alarm: bool = False


class _NotNow(Exception):  # noqa: N818 - ends a cycle that has been reported already
    def __init__(self, code: str, *, alarm: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(code)
        self.cycle = Cycle(ok=False, code=code, alarm=alarm, retry_after_s=retry_after_s)


class _Held(NamedTuple):
    """A bundle that took the node down and is not tried again before `until` (Unix seconds)."""

    sha256: str
    until: float


class _Early(NamedTuple):
    """A bundle that is not valid yet."""

    sha256: str
    data: bytes
    retry_at: int


class Updater:
    """Owns the trust state of one node. Used by one task at a time; `status` may be read from any thread."""

    def __init__(
        self,
        config: SyncConfig,
        root: bytes,
        store: StateStore,
        clock: TrustedClock,
        *,
        on_snapshot: OnSnapshot = lambda _snapshot: None,
        on_event: OnEvent = lambda _event: None,
    ) -> None:
        self.config = config
        self.store = store
        self.clock = clock
        self.frozen = ""
        """Why no new bundle is taken; empty: they are. Heads still count, so that quarantine gets through."""
        self.unsaved = False
        """What is in force is not wholly on the disk."""
        self._root = root
        self._on_snapshot = on_snapshot
        self._on_event = on_event
        self._state: TrustState | None = None
        self._report = Report()
        self._kept = Report()
        self._loading = False
        self._activated = True
        self._early: _Early | None = None
        self._last: Refusal | None = None
        self._counting = False
        self._boots = Boots()
        self._held: _Held | None = None

    @property
    def state(self) -> TrustState:
        """Raises RuntimeError before `load`."""
        if self._state is None:
            raise RuntimeError("the state has not been loaded")
        return self._state

    @property
    def retry_at(self) -> float | None:
        """When a bundle that is not valid yet, or held back, may be taken (Unix seconds)."""
        if self._early:
            return self._early.retry_at
        return self._held.until if self._held else None

    # From the disk

    async def load(self, *, counted: bool = False) -> None:
        """Verifies everything on the disk from the configured root on, and puts it in force.

        `counted`: this process enforces, so a start that does not become `steady` counts against its bundle.
        Raises Refusal when the configured root is not one: then nothing may be enforced or fetched.
        """
        reports, _ = await self.store.read("report")
        self._report = Report.decode(reports[0].data) if reports else Report()
        marks = await self._stored_marks()
        self._state = TrustState.start(
            self._root,
            self.config.environment,
            audience=self.config.audience,
            marks=marks,
            floor=self.config.floor,
            manifest_required=self.config.manifest_required,
            app=self.config.app,
        )
        self.clock.anchor(self.state.marks.newest_signed_time)
        self._loading = True
        try:
            await self._stored_roots()
            for slot in await self._intact("head"):
                if await self._offer(HeadOffered(slot.data, stored=True)) is None:
                    break
            for slot in await self._intact("manifest"):
                if await self._offer(ManifestOffered(slot.data, stored=True)) is None:
                    break
            self._counting = counted
            self._boots = await self._stored_boots()
            for slot in await self._intact("bundle"):
                # An older bundle is no way out: its version is under the mark.
                if not await self._may_start(slot.sha256):
                    break
                if await self._offer(BundleOffered(slot.data, stored=True)) is None:
                    break
        finally:
            self._loading = False
        self._activate(snapshot(self.state))

    async def follow(self) -> None:
        """Takes what the process that owns the folder has stored since `load`, and puts it in force.

        Each document is verified as `load` does it; what is refused is reported, and changes nothing. The
        marks come first: they remember what documents in between have said, such as a quarantine.
        """
        self._loading = True
        try:
            self._adopt(await self._stored_marks())
            await self._stored_roots()
            for role, offered in (
                ("head", HeadOffered),
                ("manifest", ManifestOffered),
                ("bundle", BundleOffered),
            ):
                newest = next(iter(await self._intact(role)), None)
                if newest is not None and newest.data != self._held_bytes(role):
                    await self._offer(offered(newest.data, stored=True))
        finally:
            self._loading = False
        self._activate(snapshot(self.state))

    def _adopt(self, marks: Marks | None) -> None:
        """Takes another process's marks for this one's."""
        if marks is None:
            return
        current = self.state.in_force
        if current is not None and current.identity == marks.bundle_identity:
            current = replace(current, stale_at=min(current.stale_at, marks.fresh_until))
        self._state = replace(self.state, marks=marks, in_force=current)
        self.clock.anchor(marks.newest_signed_time)

    def _held_bytes(self, role: str) -> bytes:
        state = self.state
        bundle = state.in_force.data if state.in_force is not None else b""
        return {"head": state.head_bytes, "manifest": state.manifest_bytes, "bundle": bundle}[role]

    async def _stored_roots(self) -> None:
        roots = {slot.sequence: slot.data for slot in (await self._intact("root"))}
        while (version := self.state.root.version + 1) in roots:
            if await self._offer(RootOffered(roots[version], version, stored=True)) is not None:
                break
            await self._offer(CycleStarted())

    async def _stored_marks(self) -> Marks | None:
        slots, damaged = await self.store.read("marks")
        for slot in slots:
            try:
                return Marks.decode(slot.data)
            except Refusal:
                damaged = (*damaged, slot.name)
        others, _ = await self.store.read("bundle")
        if damaged or others:
            self.note(
                EventKind.DRIFT,
                "marks_lost",
                "the high-water marks are gone; the floor is what is left",
                alarm=True,
            )
        return None

    async def _intact(self, role: str) -> Sequence[Slot]:
        slots, damaged = await self.store.read(role)
        for name in damaged:
            self.note(EventKind.DRIFT, "disk_damaged", f"{name} does not match its checksum", alarm=True)
        return slots

    # Starts that did not last

    async def _stored_boots(self) -> Boots:
        slots, _ = await self.store.read("boots")
        return Boots.decode(slots[0].data) if slots else Boots()

    async def _may_start(self, sha256: str) -> bool:
        """Counts one start with this bundle before it can do harm; False while it is held back."""
        if not self._counting:
            return True
        now = self.clock.now()
        until = self._boots.held_until(sha256)
        if until is not None and now < until:
            if self._held is None:
                detail = f"{self._boots.count} starts with bundle {sha256[:16]}… did not last; held back"
                self.note(EventKind.REFUSED, CRASHLOOP, detail, alarm=True)
            self._held = _Held(sha256, until)
            return False
        self._held = None
        await self._keep_boots(self._boots.starting(sha256, now))
        return True

    async def steady(self, *, ending: bool = False) -> None:
        """Forgets the starts once the process has lived for a while, or is ending in good order."""
        if not self._counting or not self._boots.count or self._held is not None:
            return
        if ending or self.clock.now() - self._boots.at >= STEADY_S:
            await self._keep_boots(replace(self._boots, count=0))

    async def _retry_held(self) -> None:
        """Gives a bundle that was held back another try, once its time has come."""
        held = self._held
        if held is None or self.clock.now() < held.until:
            return
        for slot in await self._intact("bundle"):
            if slot.sha256 == held.sha256 and await self._may_start(slot.sha256):
                await self._offer(BundleOffered(slot.data, stored=True))
                return
        self._held = None

    async def _keep_boots(self, boots: Boots) -> None:
        self._boots = boots
        if not self.store.writable:
            return
        try:
            await self.store.write("boots", boots.encode())
        except OSError as error:
            logger.warning("the count of starts could not be kept: %s", error)

    # From a server

    async def refresh(
        self, mirror: Mirror, *, wait_s: float = 0.0, interrupt: asyncio.Event | None = None
    ) -> Cycle:
        """One update cycle against one server. Never raises for anything that the server does.

        With `wait_s` the server may hold the request for the head; `interrupt` ends the waiting.
        """
        before = self.state.in_force, self.state.root.version
        try:
            await self._retry_held()
            await self._offer(CycleStarted())
            if wait_s <= 0:
                await self._roots(mirror)
            head = await self._head(mirror, wait_s, interrupt)
            if wait_s > 0:
                await self._roots(mirror)
            await self._take_head(mirror, head)
        except FetchError as error:
            self.note(EventKind.FAILED, str(error.code), f"{mirror.fetcher.url}: {error.detail}")
            cycle = Cycle(ok=False, code=str(error.code), retry_after_s=error.retry_after_s)
        except _NotNow as end:
            cycle = end.cycle
        else:
            cycle = self._success()
        if not cycle.ok:
            mirror.etag = None
        await self._keep_report()
        return cycle._replace(changed=(self.state.in_force, self.state.root.version) != before)

    def _success(self) -> Cycle:
        now, head = self.clock.now(), self.state.head
        if not self._activated:
            return Cycle(ok=False, code="activation_failed", alarm=True)
        if head is None or now >= head.expires_at:
            self.note(EventKind.FAILED, RefusalCode.FREEZE, "the server has no head that is current")
            return Cycle(ok=False, code=RefusalCode.FREEZE)
        current = snapshot(self.state)
        if current is None or current.ladder(now) is Ladder.CLOSED:
            code = "policy_missing" if current is None else str(current.closed_reason())
            self.note(EventKind.FAILED, code, "the head is current, but what it names may not be enforced")
            return Cycle(ok=False, code=code)
        if self._report.last_failure is not None:
            self.note(EventKind.RECOVERED, "ok", f"after: {self._report.last_failure.code}")
        self._report = self._report.succeeding(now)
        self._held = None  # another bundle is in force
        return Cycle(ok=True)

    async def _roots(self, mirror: Mirror) -> None:
        for _ in range(MAX_ROOTS_PER_CYCLE + 1):
            version = self.state.root.version + 1
            try:
                fetched = await mirror.fetcher.get(f"root/{version}.root", self.config.root_bytes)
            except FetchError as error:
                if error.code is FetchCode.MISSING:
                    return
                raise
            await self._require(RootOffered(_body(fetched), version))

    async def _head(self, mirror: Mirror, wait_s: float, interrupt: asyncio.Event | None) -> Fetched:
        path, cap = f"{self.config.environment}/head", self.config.head_bytes
        mirror.polls += 1
        if mirror.polls % self.config.full_every == 0 or self.state.head is None:
            mirror.etag = None
        if mirror.etag is None:
            return await mirror.fetcher.get(path, cap)
        if wait_s <= 0 or interrupt is None:
            return await mirror.fetcher.get(path, cap, etag=mirror.etag, wait_s=wait_s)
        loop = asyncio.get_running_loop()
        held = loop.create_task(mirror.fetcher.get(path, cap, etag=mirror.etag, wait_s=wait_s))
        stopper = loop.create_task(interrupt.wait())
        try:
            await asyncio.wait({held, stopper}, return_when=asyncio.FIRST_COMPLETED)
            if held.done():
                return held.result()
        finally:
            for task in (held, stopper):
                task.cancel()
            await asyncio.gather(held, stopper, return_exceptions=True)
        return await mirror.fetcher.get(path, cap, etag=mirror.etag)

    async def _take_head(self, mirror: Mirror, fetched: Fetched) -> None:
        if fetched.data is None and self.state.head is None:  # a new root came in between, and the head fell
            fetched = await mirror.fetcher.get(f"{self.config.environment}/head", self.config.head_bytes)
        # A 304 says that what we hold is current: its members may still be missing.
        data = self.state.head_bytes if fetched.data is None else fetched.data
        wanted = await self._require(HeadOffered(data))
        while wanted:
            member = wanted.pop(0)
            if member.member == "bundle":
                await self._take_bundle(mirror, member.ref)
            elif not self.frozen:
                fetched_member = await mirror.fetcher.get(
                    f"blobs/{member.ref.sha256}", member.ref.length, exact=True
                )
                wanted += await self._require(ManifestOffered(_body(fetched_member)))
        head, current = self.state.head, self.state.in_force
        if head is None or current is None or head.bundle.sha256 != current.sha256:
            if self.frozen:
                self.note(EventKind.FAILED, "frozen", self.frozen)
            raise _NotNow("frozen" if self.frozen else "bundle_refused")
        mirror.etag = None if fetched.doubtful else fetched.etag

    async def _take_bundle(self, mirror: Mirror, ref: BlobRef) -> None:
        if self.frozen:
            return
        if self._held is not None and self._held.sha256 == ref.sha256:
            raise _NotNow(CRASHLOOP)
        early = self._early
        if early is not None and early.sha256 == ref.sha256:
            if self.clock.now() < early.retry_at:
                raise _NotNow(RefusalCode.NOT_BEFORE)
            data = early.data
        else:
            if ref.length > self.config.bundle_bytes:
                detail = f"a bundle of {ref.length} bytes, sync.bundle_bytes is {self.config.bundle_bytes}"
                self.note(EventKind.REFUSED, RefusalCode.TOO_BIG, detail)
                raise _NotNow(RefusalCode.TOO_BIG)
            fetched = await mirror.fetcher.get(f"blobs/{ref.sha256}", ref.length, exact=True)
            data = _body(fetched)
        self._early = None
        try:
            await self._require(BundleOffered(data))
        except _NotNow as end:
            refusal = self._last
            if (
                end.cycle.code == RefusalCode.NOT_BEFORE
                and refusal is not None
                and refusal.retry_at is not None
            ):
                self._early = _Early(ref.sha256, data, refusal.retry_at)
            raise

    # Events and effects

    async def _require(self, event: Event) -> list[Fetch]:
        wanted: list[Fetch] = []
        refused = await self._offer(event, wanted)
        if refused is not None:
            raise _NotNow(refused.code, alarm=refused.alarm)
        return wanted

    async def _offer(self, event: Event, wanted: list[Fetch] | None = None) -> SyncEvent | None:
        """Takes one step and executes its effects; answers what was refused, if anything was."""
        with gently() if isinstance(event, BundleOffered) else nullcontext():
            following, effects = step(self.state, event, self.clock.now())
        in_force_already = False
        failure: SyncEvent | None = None
        for effect in effects:
            match effect:
                case Store() | RaiseMarks():
                    problem = await self._persist(effect)
                    if problem is None:
                        continue
                    self.unsaved = True
                    failure = self.note(EventKind.NOT_PERSISTED, NOT_PERSISTED, problem)
                    if not in_force_already:
                        return failure
                case Activate(snapshot=current):
                    in_force_already = True
                    self._activate(current)
                case Fetch():
                    if wanted is not None:
                        wanted.append(effect)
                case Refuse(refusal=refusal):
                    self._last = refusal
                    failure = self.note(EventKind.REFUSED, refusal.code, refusal.detail, alarm=refusal.alarm)
        self._state = following
        self.clock.anchor(following.marks.newest_signed_time)
        # What tightens holds although it could not be stored; `reconcile` stores it later.
        return failure if failure is None or failure.kind is EventKind.REFUSED else None

    async def _persist(self, effect: Store | RaiseMarks) -> str | None:
        if not self.store.writable:
            return None  # another process owns the folder and keeps it; this one only follows
        try:
            if isinstance(effect, RaiseMarks):
                await self.store.write("marks", effect.marks.encode())
            else:
                sequence = effect.version if effect.role == "root" else None
                await self.store.write(effect.role, effect.data, sequence=sequence)
        except OSError as error:
            return f"{self.store.path}: {error.strerror or error}"
        return None

    async def save(self) -> None:
        """Writes what is in force to the disk again. Raises OSError."""
        state = self.state
        if not self.store.writable:
            return
        if state.root_bytes != self._root:
            await self.store.write("root", state.root_bytes, sequence=state.root.version)
        if state.head is not None:
            await self.store.write("head", state.head_bytes)
        if state.in_force is not None:
            await self.store.write("bundle", state.in_force.data)
            named = state.manifest
            if named is not None and named.bundle.identity == state.in_force.identity:
                await self.store.write("manifest", state.manifest_bytes)
        await self.store.write("marks", state.marks.encode())
        self.unsaved = False

    def rebuild(self) -> None:
        """Compiles the verified bytes anew and puts them in force; if they are no longer those, nothing is."""
        current = self.state.in_force
        if current is None:
            return
        rebuilt: InForce | None = None
        if hashlib.sha256(current.data).hexdigest() == current.sha256:
            try:
                envelope = Envelope.parse(current.data, size=MAX_BUNDLE_BYTES)
                tables = Tables.load(decode_section(Bundle.parse(envelope.payload).policy))
                rebuilt = replace(current, engine=Engine(tables), issuers=tables.issuers)
            except Exception:
                # Fail closed: memory that cannot be trusted must not decide.
                logger.exception("the bundle in force could not be compiled again")
        self._state = replace(self.state, in_force=rebuilt)
        self._activate(snapshot(self.state))

    def reactivate(self) -> None:
        """Puts what is held in force once more."""
        self._activate(snapshot(self.state))

    def _activate(self, current: Snapshot | None) -> None:
        if self._loading:
            return
        try:
            with gently():  # the old policy is let go
                self._on_snapshot(current)
        except Exception:
            # Whoever enforces could not take it, and still has the old one, whose deadlines go on.
            logger.exception("a new policy could not be put in force")
            self._activated = False
            self.note(EventKind.INTERNAL, "activation_failed", "the log says why", alarm=True)
            return
        self._activated = True
        if current is not None:
            detail = f"bundle {current.bundle_version} {current.bundle_id} under head {current.head_version}"
            self.note(EventKind.ACTIVATED, str(current.ladder(self.clock.now())), detail)

    def note(self, kind: EventKind, code: str, detail: str, *, alarm: bool = False) -> SyncEvent:
        """Reports an event and remembers it for `status`."""
        event = SyncEvent(kind, str(code), detail, self.clock.now(), alarm)
        self._report = self._report.noting(event)
        self._on_event(event)
        return event

    async def _keep_report(self) -> None:
        """Keeps the report when it has news; a success alone only every ten minutes, to spare the disk."""
        now, kept = self._report, self._kept
        news = now.last_refusal != kept.last_refusal or (now.last_failure is None) != (
            kept.last_failure is None
        )
        if not news and (now.last_success or 0) - (kept.last_success or 0) < REPORT_EVERY_S:
            return
        await self.keep_report()

    async def keep_report(self) -> None:
        """Keeps the report for `status` of another process. A disk that fails is logged only."""
        if not self.store.writable:
            return
        self._kept = self._report
        try:
            await self.store.write("report", self._report.encode())
        except OSError as error:
            logger.warning("the report of the last cycle could not be kept: %s", error)

    # Status

    @property
    def last_success(self) -> float | None:
        return self._report.last_success

    def status(self) -> dict[str, object]:
        """Everything that an operator or a judge asks: plain data, times in Unix seconds."""
        state, now = self.state, self.clock.now()
        current = snapshot(state)
        return {
            "environment": state.environment,
            "ladder": str(Ladder.CLOSED if current is None else current.ladder(now)),
            "root": {
                "version": state.root.version,
                "sha256": hashlib.sha256(state.root_bytes).hexdigest(),
                "expires_at": state.root.expires_at,
            },
            "head": None
            if state.head is None
            else {
                "version": state.head.version,
                "sha256": hashlib.sha256(state.head_bytes).hexdigest(),
                "issued_at": state.head.issued_at,
                "expires_at": state.head.expires_at,
                "quarantine": state.head.quarantine,
            },
            "bundle": None
            if current is None or state.in_force is None
            else _bundle(current, state.in_force.sha256),
            "marks": {**asdict(state.marks), "gated": dict(state.marks.gated)},
            "persisted": not self.unsaved,
            "writable": self.store.writable,
            "frozen": self.frozen or None,
            "held_back": self._held._asdict() if self._held else None,
            "clock": self.clock.status(),
            **self._report.to_data(),
        }


def _bundle(current: Snapshot, sha256: str) -> dict[str, object]:
    return {
        "version": current.bundle_version,
        "sha256": sha256,
        "identity": current.bundle_id,
        "policy_hash": current.policy_hash,
        "signers": list(current.signers),
        "issued_at": current.issued_at,
        "stale_at": current.stale_at,
        "restricted_at": current.restricted_at,
        "closed_at": current.closed_at,
        "revoked": current.revoked,
        "quarantined": current.quarantined,
    }


def _body(fetched: Fetched) -> bytes:
    if fetched.data is None:  # an unconditional request cannot end in a 304: `get` refuses that
        raise FetchError(FetchCode.NOT_MODIFIED, "304 to a request without a validator")
    return fetched.data
