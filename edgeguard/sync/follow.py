"""A worker's way to its policy: the state folder, which another process of the same node fills.

The supervisor fetches, verifies and stores; then it says what is in force (`Standing`). A worker reads
the folder, verifies everything again from the root on, and enforces it only if it is what was named.
What differs is not enforced, and neither is what was in force before: the worker serves nothing. It
never writes there and never takes the folder's lock.

The work is done in a thread with a loop of its own, as `agent.py` does it: decoding a policy must not
delay traffic.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Snapshot
from edgeguard.sync.audit import checksum
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.reconcile import DriftClass
from edgeguard.sync.report import EventKind, SyncEvent
from edgeguard.sync.standing import Standing
from edgeguard.sync.store import Store, StoreError
from edgeguard.sync.update import OnSnapshot, Updater

logger = logging.getLogger(__name__)

AHEAD_S: Final = 2.0
"""Documents are stored before they are named. For so long what is enforced may stay behind what is named meanwhile."""


class Followed(NamedTuple):
    """What became of one `expect`."""

    enforced: Standing | None
    """What is enforced now; None: nothing."""
    problem: str = ""
    """Why it is not what was named; empty if it is."""
    waiting: bool = False
    """The folder is ahead of what was named, and its owner will name that next. What was enforced stays so long."""


class Follower:
    """Loads and verifies what another process stored.

    Args:
        config: As the owner of the folder has it.
        root: Bytes of the configured root.
        on_snapshot: Called on the follower's thread with what is to be enforced (None: nothing). Must be quick.
        on_event: Called on the follower's thread with everything that happens.
        on_followed: Called on the follower's thread when the folder has been compared with what was named.
        expected: What is in force at the start.
        clock: The trusted clock of whoever decides.
    """

    def __init__(
        self,
        config: SyncConfig,
        root: bytes,
        on_snapshot: OnSnapshot,
        *,
        expected: Standing | None,
        clock: TrustedClock,
        on_event: Callable[[SyncEvent], None] = lambda _event: None,
        on_followed: Callable[[Followed], None] = lambda _followed: None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.last = Followed(None, "nothing was loaded yet")
        self._root = root
        self._on_snapshot = on_snapshot
        self._on_event = on_event
        self._on_followed = on_followed
        self._expected = expected
        self._verified: Snapshot | None = None
        self._enforced: Snapshot | None = None
        self._audited: tuple[object, int] | None = None
        self._failure: BaseException | None = None
        self._loaded = threading.Event()
        self._met = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None

    def start(self) -> None:
        """Starts the thread and returns once the folder has been compared with what was named.

        Raises StoreError for a folder that cannot be used, Refusal for a root that is not one.
        """
        store = Store.open(self.config.state_dir, writable=False)
        self._thread = threading.Thread(
            target=self._main, args=(store,), name="edgeguard-follow", daemon=True
        )
        self._thread.start()
        self._loaded.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends the thread. Safe to call twice."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None and self._thread is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(task.cancel)
            self._thread.join(timeout_s)

    def wait(self, timeout_s: float) -> bool:
        """Whether what was named is enforced, now or within `timeout_s`. Callable from any thread but its own."""
        return self._met.wait(timeout_s)

    def expect(self, standing: Standing | None) -> None:
        """Says what is in force now. Callable from any thread; `on_followed` gets the answer."""
        self._expected = standing
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None and not loop.is_closed():
            loop.call_soon_threadsafe(wake.set)

    def status(self) -> dict[str, object]:
        """What is followed: plain data."""
        return {"problem": self.last.problem or None, "waiting": self.last.waiting}

    def _main(self, store: Store) -> None:
        try:
            asyncio.run(self._run(store))
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if self._loaded.is_set():
                # Fail closed: nobody would hear of a revocation any more.
                logger.critical("following the policy has ended", exc_info=True)
                self._withdraw("following the policy has ended")
            else:
                self._failure = error
        finally:
            store.close()
            self._loaded.set()

    async def _run(self, store: Store) -> None:
        self._wake = wake = asyncio.Event()
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        updater = Updater(
            self.config, self._root, store, self.clock, on_snapshot=self._verify, on_event=self._on_event
        )
        await updater.load()
        self._compare()
        self._loaded.set()
        loop = asyncio.get_running_loop()
        audit_at = loop.time() + self.config.reconcile_s
        while True:
            until = min(audit_at, loop.time() + AHEAD_S) if self.last.waiting else audit_at
            named = await _set_by(wake, until)
            try:
                if named:
                    await updater.follow()
                if named or self.last.waiting:
                    self._compare(patient=named)
                if loop.time() >= audit_at:
                    await self._audit(updater)
                    audit_at = loop.time() + self.config.reconcile_s
            except Exception:
                # Fail closed: what could not be read or put in force is not what is in force.
                logger.exception("the policy could not be loaded")
                self._withdraw("the policy could not be loaded; the log says why")

    def _verify(self, snapshot: Snapshot | None) -> None:
        self._verified = snapshot

    def _compare(self, *, patient: bool = True) -> None:
        """Enforces what was verified if it is what was named; else nothing."""
        expected, now = self._expected, self.clock.now()
        found, enforced = Standing.of(self._verified), Standing.of(self._enforced)
        if expected is None or (found is None and expected.shut(now)):
            self._enforce(None)
        elif found is not None and found.agrees(expected, now):
            self._enforce(self._verified)
        elif found is not None and found.ahead_of(expected) and enforced is not None:
            current = enforced.agrees(expected, now)
            if current or (patient and not (expected.revoked or expected.quarantined)):
                self._tell(Followed(enforced, "" if current else "the folder is ahead", waiting=not current))
            else:
                self._withdraw(_differs(found, expected))
        else:
            self._withdraw(_differs(found, expected))

    def _enforce(self, snapshot: Snapshot | None) -> None:
        self._on_snapshot(snapshot)
        self._enforced = snapshot
        self._tell(Followed(Standing.of(snapshot)))

    def _withdraw(self, problem: str) -> None:
        self._on_snapshot(None)
        self._enforced = None
        self._tell(Followed(None, problem))

    def _tell(self, followed: Followed) -> None:
        self.last = followed
        if followed.problem:
            self._met.clear()
        else:
            self._met.set()
        self._on_followed(followed)

    async def _audit(self, updater: Updater) -> None:
        """Whether the tables are still those that were verified; if not, they are made anew from the bytes."""
        enforced = self._enforced
        if enforced is None:
            return
        tables = enforced.engine.tables
        found = await checksum(tables)
        if self._audited is None or self._audited[0] is not tables:
            self._audited = (tables, found)
        if self._audited[1] != found:
            detail = "the compiled policy of a worker has changed in memory"
            updater.note(EventKind.DRIFT, DriftClass.TABLES, detail, alarm=True)
            updater.rebuild()
            self._compare()


async def _set_by(wake: asyncio.Event, until: float) -> bool:
    """Whether somebody woke us before `until` (loop time)."""
    try:
        async with asyncio.timeout_at(until):
            await wake.wait()
    except TimeoutError:
        return False
    wake.clear()
    return True


def _differs(found: Standing | None, expected: Standing) -> str:
    return f"verified is {_text(found)}, in force is {_text(expected)}"


def _text(standing: Standing | None) -> str:
    if standing is None:
        return "nothing"
    return f"bundle {standing.bundle_version} under head {standing.head_version} and root {standing.root_version}"


__all__ = ["Followed", "Follower", "Refusal", "StoreError"]
