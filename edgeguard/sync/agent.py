"""Keeps a node's policy current, in a thread with an event loop of its own.

Nothing here runs on the traffic's loop, and no deadline depends on it: if this thread stood still, the
policy in force would still go stale, restricted and closed at the times that its signers wrote down.
"""

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final

from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.settings.model import Settings
from edgeguard.sync.alerts import Pager
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import Fetcher, check_url, full_jitter, tls_context
from edgeguard.sync.reconcile import DriftClass, Reconciler
from edgeguard.sync.report import EventKind, SyncEvent
from edgeguard.sync.store import Store, StoreError
from edgeguard.sync.update import Cycle, Mirror, OnEvent, OnSnapshot, Updater

logger = logging.getLogger(__name__)

LADDER_TICK_S: Final = 1.0
"""The longest time that a passed deadline goes unreported. Deadlines themselves need no report."""


class SyncAgent:
    """Loads, verifies, fetches, persists, hands over.

    Args:
        settings: The node's settings, or a SyncConfig.
        root: Bytes of the configured root: the anchor of everything.
        on_snapshot: Called on the agent's thread with what is now in force (None: nothing). Must be quick.
        on_event: Called on the agent's thread with everything that happens.
        clock: The trusted clock; give the same one to whoever decides.
        enforced: Answers what decisions are made against, so that drift shows. Default: what was handed over.
    """

    def __init__(
        self,
        settings: Settings | SyncConfig,
        root: bytes,
        on_snapshot: OnSnapshot,
        on_event: OnEvent | None = None,
        *,
        clock: TrustedClock | None = None,
        enforced: Callable[[], Snapshot | None] | None = None,
    ) -> None:
        self.config = settings if isinstance(settings, SyncConfig) else SyncConfig.from_settings(settings)
        self.clock = clock or TrustedClock()
        self._root = root
        self._on_snapshot = on_snapshot
        self._tell = on_event or _log
        self._counts: Counter[tuple[str, str]] = Counter()
        self._pager: Pager | None = None
        self._reconciler: Reconciler | None = None
        self._handed_over: Snapshot | None = None
        self._enforced = enforced or (lambda: self._handed_over)
        self._updater: Updater | None = None
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._cycles = 0
        self._reachable: dict[str, str] = {}

    def start(self) -> None:
        """Starts the thread and returns once what is on the disk has been verified and handed over.

        Raises StoreError for a state folder that cannot be used, Refusal for a root that is not one (then
        nothing is fetched), ValueError for an address of a server or a file of certificate
        authorities that cannot be used.
        """
        for url in self.config.urls:
            check_url(url)
        tls_context(self.config.ca_file)
        if self.config.alerts.webhook:
            check_url(self.config.alerts.webhook, folder=False)
            tls_context(self.config.alerts.ca_file)
        store = Store.open(self.config.state_dir)
        self._updater = Updater(
            self.config, self._root, store, self.clock, on_snapshot=self._hand_over, on_event=self._on_event
        )
        # Asked at each comparison, since whoever made the agent may wrap what it was given.
        self._reconciler = Reconciler(self._updater, lambda: self._enforced(), self._root)  # noqa: PLW0108
        self._thread = threading.Thread(target=self._main, args=(store,), name="edgeguard-sync", daemon=True)
        self._thread.start()
        self._loaded.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends the thread; a crash-safe moment is any moment. Safe to call twice."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None and self._thread is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(task.cancel)
            self._thread.join(timeout_s)

    def refresh(self) -> None:
        """Asks the servers now, whatever the agent is waiting for. Callable from any thread."""
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None and not loop.is_closed():
            loop.call_soon_threadsafe(wake.set)

    def relay(self, event: SyncEvent) -> None:
        """Takes what a process that follows this one has noticed: counted, paged, logged. From any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._on_event, event)

    @property
    def writable(self) -> bool:
        """Whether this process owns the state folder. After `start`."""
        return self._updater is not None and self._updater.store.writable

    def status(self) -> dict[str, object]:
        """As `Updater.status`, and the servers. Callable from any thread after `start`."""
        if self._updater is None:
            raise RuntimeError("the agent has not been started")
        return {
            **self._updater.status(),
            "cycles": self._cycles,
            "servers": [{"url": url, "last": self._reachable.get(url)} for url in self.config.urls],
            "drift": [kind for kind, present in self.drifting.items() if present],
            "alerts": dict(self.alerts),
        }

    # What the metrics read (`evidence.metrics.SyncView`)

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Events so far, by kind and code."""
        return self._counts.copy()

    @property
    def drifting(self) -> Mapping[str, bool]:
        """Each class of drift, and whether the last comparison found it."""
        return self._reconciler.present if self._reconciler else {str(kind): False for kind in DriftClass}

    @property
    def alerts(self) -> Mapping[str, int]:
        """Alerts by what became of them."""
        return self._pager.counts.copy() if self._pager else {}

    @property
    def last_success(self) -> float | None:
        """Trusted time at which a server last showed a current head whose bundle is in force (Unix seconds)."""
        return self._updater.last_success if self._updater else None

    @property
    def frozen(self) -> bool:
        return self._updater is not None and bool(self._updater.frozen)

    @property
    def persisted(self) -> bool:
        return self._updater is None or not self._updater.unsaved

    def _hand_over(self, current: Snapshot | None) -> None:
        self._on_snapshot(current)
        self._handed_over = current

    def _on_event(self, event: SyncEvent) -> None:
        self._counts[str(event.kind), event.code] += 1
        if self._pager is not None:
            self._pager.offer(event)
        self._tell(event)

    def _context(self) -> dict[str, object]:
        """What an alert says about the node."""
        current = self._handed_over
        return {
            "environment": self.config.environment,
            "ladder": str(self._ladder()),
            "bundle": current.bundle_id if current else None,
            "bundle_version": current.bundle_version if current else None,
        }

    def _ladder(self) -> Ladder:
        current = self._handed_over
        return Ladder.CLOSED if current is None else current.ladder(self.clock.now())

    def _main(self, store: Store) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if self._loaded.is_set():
                # Deadlines close the node without us; the log says why.
                logger.critical("sync has ended", exc_info=True)
            else:
                self._failure = error
        finally:
            store.close()
            self._loaded.set()

    async def _run(self) -> None:
        updater = self._updater
        assert updater is not None  # noqa: S101 - `start` made it
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._wake = asyncio.Event()
        self._pager = Pager(self.config.alerts, self._context)
        await updater.load(counted=True)
        self._loaded.set()
        try:
            async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
                mirrors = []
                for url in self.config.urls:
                    fetcher = Fetcher(
                        url, self.config.fetch, ca_file=self.config.ca_file, token=self.config.token
                    )
                    mirrors.append(Mirror(await stack.enter_async_context(fetcher)))
                group.create_task(self._page(self._pager))
                group.create_task(self._watch_ladder(updater))
                await self._forever(updater, mirrors, self._wake)
        except asyncio.CancelledError:
            await updater.steady(ending=True)
            raise

    async def _page(self, pager: Pager) -> None:
        try:
            await pager.run()
        except Exception:
            # Whatever is wrong with alerting must not end sync; the log has every alarm as well.
            logger.exception("alerts are no longer sent")

    async def _watch_ladder(self, updater: Updater) -> None:
        """Reports the state when a deadline has moved it, beside all polling."""
        last: Ladder | None = None
        while True:
            ladder = self._ladder()
            # Closed says nothing before the servers have been asked once.
            if ladder is not last and (self._cycles or ladder is not Ladder.CLOSED):
                last = ladder
                detail = f"the policy in force is {ladder}"
                updater.note(EventKind.LADDER, ladder, detail, alarm=ladder is not Ladder.FRESH)
            current, now = self._handed_over, self.clock.now()
            deadline = current.next_deadline(now) if current else None
            wait_s = LADDER_TICK_S if deadline is None else min(LADDER_TICK_S, deadline - now)
            await asyncio.sleep(max(wait_s, 0.01))

    async def _forever(self, updater: Updater, mirrors: list[Mirror], wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        reconciler = self._reconciler
        assert reconciler is not None  # noqa: S101 - `start` made it
        failures = 0
        reconciled = float("-inf")
        while True:
            began = loop.time()
            delay = self.config.poll_s
            try:
                if jump := self.clock.look():
                    detail = f"the wall clock moved by {jump.by_s:.0f} s"
                    updater.note(EventKind.CLOCK, "clock_suspect", detail, alarm=True)
                cycle = await self._cycle(updater, mirrors, wake)
                failures = 0 if cycle.ok else failures + 1
                held = loop.time() - began >= min(5.0, self.config.long_poll_s / 2)
                delay = self._delay(cycle, failures, held=held and bool(self.config.long_poll_s))
                full = began - reconciled >= self.config.reconcile_s
                reconciled = began if full else reconciled
                await reconciler.run(full=full)
                await updater.steady()
            except Exception:
                # This thread must go on; what is in force stays, and its deadlines go on without us.
                logger.exception("a sync cycle failed")
                updater.note(EventKind.INTERNAL, "internal_error", "the log says why", alarm=True)
                failures += 1
                delay = max(1.0, full_jitter(failures, self.config.backoff_base_s, self.config.backoff_max_s))
            self._cycles += 1
            if updater.retry_at is not None:
                delay = min(delay, max(0.0, updater.retry_at - self.clock.now()))
            await _sleep(max(delay, self.config.pause_s), wake)

    async def _cycle(self, updater: Updater, mirrors: list[Mirror], wake: asyncio.Event) -> Cycle:
        """One look at the servers, in order, until one of them has a head that is current."""
        cycle = Cycle(ok=not mirrors)
        for mirror in list(mirrors):
            wait_s = self.config.long_poll_s if mirror is mirrors[0] else 0.0
            cycle = await updater.refresh(mirror, wait_s=wait_s, interrupt=wake)
            self._reachable[str(mirror.fetcher.url)] = "ok" if cycle.ok else cycle.code
            if cycle.ok:
                mirrors.remove(mirror)
                mirrors.insert(0, mirror)  # stay with the one that works
                break
        return cycle

    def _delay(self, cycle: Cycle, failures: int, *, held: bool) -> float:
        if not cycle.ok:
            jittered = full_jitter(failures, self.config.backoff_base_s, self.config.backoff_max_s)
            return max(cycle.retry_after_s or 0.0, jittered)
        if self.config.urls and (cycle.changed or held):
            return self.config.pause_s
        return self.config.poll_s * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load, hides nothing


async def _sleep(delay_s: float, wake: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(delay_s):
            await wake.wait()
    except TimeoutError:
        pass
    wake.clear()


def _log(event: SyncEvent) -> None:
    level = logging.ERROR if event.alarm else logging.INFO
    logger.log(level, "%s %s: %s", event.kind, event.code, event.detail)


__all__ = ["Refusal", "StoreError", "SyncAgent", "SyncConfig"]
