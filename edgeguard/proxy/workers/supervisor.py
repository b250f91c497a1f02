"""The parent of the workers: binds the doors, takes the lock, fetches policy, answers for the node.

It enforces nothing itself and never touches traffic. Policy reaches the workers through the state folder:
sync verifies and stores, then every worker is told which documents are in force, verifies them again and
says what it enforces. One that enforces anything else is replaced.
"""

import asyncio
import importlib.metadata
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edgeguard import __version__
from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.metrics import Metrics
from edgeguard.evidence.totals import Family, Totals, families, of_metric
from edgeguard.evidence.turnstile import new_turnstile
from edgeguard.proxy.admin import AdminServer
from edgeguard.proxy.listeners import Listener, bind, release
from edgeguard.proxy.preflight import NodeError, preflight, remember_authority
from edgeguard.proxy.report import READY_STATES, policy_report
from edgeguard.proxy.workers.locks import Locks
from edgeguard.proxy.workers.process import Outfit, State, Worker
from edgeguard.proxy.workers.seats import Seats
from edgeguard.settings import Settings, SettingsError
from edgeguard.settings.load import parse_settings, read_file
from edgeguard.sync.agent import SyncAgent
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.standing import Standing
from edgeguard.sync.store import Store

logger = logging.getLogger(__name__)

PING_S: Final = 1.0
"""Time between two questions to a worker; how much of its counting a worker that is killed may take along."""
ANSWER_S: Final = 0.5
"""Longest that `/status` and `/metrics` wait for a worker."""
SLACK_S: Final = 5.0
"""Time beyond `bounds.drain_s` that a worker gets to write its last records."""
FIXED: Final = ("environment", "workers", "listen", "trust", "sync", "admin", "alerts", "interception")
"""Settings that the supervisor itself stands on, or that workers of before and after must share."""


class Supervisor:
    """A node of several processes.

    Args:
        settings: From `text`.
        text: Of the configuration file, as it was read.
        path: Of the configuration file.
        environ: Where secrets of the form `{ env = "NAME" }` come from.

    Raises:
        OSError, NodeError, AuthorityError: root or authority cannot be used; as their messages say.
    """

    def __init__(self, settings: Settings, text: str, path: Path, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.clock = TrustedClock()
        self._text = text
        self._path = path
        self._environ = environ
        self._grounds = preflight(settings)
        self.sync = SyncAgent(settings, self._grounds.root, self._snapshot_came, clock=self.clock)
        self._own = Metrics()
        self._own.watch_policy(lambda: self._snapshot, self.clock.now, lambda: self.ready()[0])
        self._own.watch_sync(self.sync)
        self._totals = Totals()
        self._snapshot: Snapshot | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[Worker] = []
        self._seats = Seats(settings.workers, self._spawn)
        self._outfit: Outfit | None = None
        self._ending = asyncio.Event()
        self._started = time.time()
        self._rolled = 0
        self._rolling: asyncio.Task[None] | None = None
        self.doors: tuple[str, ...] = ()

    @property
    def standing(self) -> Standing | None:
        """What is in force."""
        return Standing.of(self._snapshot)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Every worker that lives, those that drain included."""
        return tuple(self._workers)

    async def run(self, ready: Callable[["Supervisor"], None] | None = None) -> None:
        """Serves until `stop`.

        Args:
            ready: Called once, when the first worker serves.

        Raises:
            ListenError: a door cannot be opened. StoreError, Refusal: the state folder or the root cannot be
            used. NodeError: another process serves, or no worker came to serve at the start.
        """
        settings = self.settings
        self._loop = asyncio.get_running_loop()
        Store.open(settings.trust.state_dir).close()
        locks = await asyncio.to_thread(
            Locks, settings.trust.state_dir, settings.bounds.drain_s + 2 * SLACK_S
        )
        listeners: tuple[Listener, ...] = ()
        admin = AdminServer(settings.admin, self.status, self.ready, self._totals, refresh=self._refresh)
        turnstile = new_turnstile()
        try:
            listeners = bind(settings)
            self.doors = tuple(map(str, listeners))
            await asyncio.to_thread(self.sync.start)
            if not self.sync.writable:
                raise NodeError(
                    f"{settings.trust.state_dir}: another process is using this state folder; "
                    "stop it first, or set trust.state_dir to another folder"
                )
            await asyncio.to_thread(remember_authority, settings)
            await admin.start()
            self._outfit = Outfit(
                config=self._text,
                path=str(self._path.absolute()),
                root=self._grounds.root,
                listeners=tuple(listener.socket.fileno() for listener in listeners),
                turnstile=turnstile,
                lock=locks.workers,
                admin=admin.address,
                level=logging.getLogger().getEffectiveLevel(),
            )
            await self._serve(ready)
        finally:
            await admin.stop()
            await asyncio.to_thread(self.sync.stop)
            release(listeners)
            locks.close()

    def stop(self) -> None:
        """Lets the workers stop accepting and finish open work; `run` ends after `bounds.drain_s` at the latest."""
        self._ending.set()

    def kill(self) -> None:
        """Ends the workers at once."""
        self._ending.set()
        for worker in self.workers:
            worker.kill("")

    def roll(self) -> None:
        """Reads the configuration again and replaces the workers one after the other."""
        if self._loop is None or self._outfit is None or self._ending.is_set():
            return
        if self._rolling is not None and not self._rolling.done():
            logger.warning("a replacement of the workers is under way; ask again when it has ended")
            return
        try:
            text = read_file(self._path)
            settings = parse_settings(text, self._path, self._environ)
        except SettingsError as error:
            logger.error("the workers stay as they are: %s", error)  # noqa: TRY400 - the message says it all
            return
        if fixed := [name for name in FIXED if getattr(settings, name) != getattr(self.settings, name)]:
            logger.error(
                "the workers stay as they are: a change of %s takes a restart of edgeguard", ", ".join(fixed)
            )
            return
        before = self._outfit, self.settings
        self._outfit = replace(self._outfit, config=text)
        self.settings = settings
        self._rolling = self._loop.create_task(self._roll(before))

    async def _roll(self, before: tuple[Outfit, Settings]) -> None:
        if await self._seats.replace():
            self._rolled += 1
            logger.warning("the workers have been replaced")
        elif not self._ending.is_set():
            self._outfit, self.settings = before

    async def _serve(self, ready: Callable[["Supervisor"], None] | None) -> None:
        loop = asyncio.get_running_loop()
        self._seats.start()
        watch = loop.create_task(self._watch())
        try:
            await self._first()
            if not self._ending.is_set() and ready is not None:
                ready(self)
            await self._ending.wait()
        finally:
            self._seats.stop()
            if self._rolling is not None:
                self._rolling.cancel()
            await self._drained()
            watch.cancel()

    async def _first(self) -> None:
        """Waits until a worker serves. Raises NodeError if each seat has failed without."""
        while not self._ending.is_set():
            if any(worker.state is State.SERVING for worker in self._workers):
                return
            if all(seat.failures for seat in self._seats.seats):
                raise NodeError("no worker came to serve; the lines above say why")
            await asyncio.sleep(0.02)

    async def _drained(self) -> None:
        for worker in self.workers:
            worker.drain()
        try:
            async with asyncio.timeout(self.settings.bounds.drain_s + SLACK_S):
                for worker in self.workers:
                    await worker.ended.wait()
        except TimeoutError:
            for worker in self.workers:
                worker.kill("it did not end in time")
        for worker in self.workers:
            await worker.ended.wait()

    async def _spawn(self) -> Worker:
        if self._outfit is None:
            raise RuntimeError("workers are started by `run`")
        self._workers = [worker for worker in self._workers if worker.state is not State.ENDED]
        taken = {worker.number for worker in self._workers}
        number = next(number for number in itertools.count(1) if number not in taken)
        worker = Worker(number, self._totals, self.sync.relay)
        self._workers.append(worker)
        try:
            await worker.start(self._outfit, lambda: (self.standing, self.clock.floor))
        except BaseException:
            self._workers.remove(worker)
            raise
        return worker

    async def _watch(self) -> None:
        while True:
            for worker in self.workers:
                if worker.state is State.ENDED:
                    if worker in self._workers:
                        self._workers.remove(worker)
                    continue
                worker.ping()
                worker.look()
                followed = worker.followed
                if worker.state is State.SERVING and followed.problem and not followed.waiting:
                    logger.error("worker %d serves nothing: %s", worker.number, followed.problem)
                    worker.failure = followed.problem
                    worker.drain()
            for seat in self._seats.seats:
                seat.settle()
            await asyncio.sleep(PING_S)

    # Policy

    def _snapshot_came(self, snapshot: Snapshot | None) -> None:
        """On the sync thread: what it has stored is in force from now on."""
        self._snapshot = snapshot
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        standing, floor = self.standing, self.clock.floor
        for worker in self.workers:
            worker.expect(standing, floor)

    # What the node says

    @property
    def enforcing(self) -> int:
        """Workers that enforce what is in force."""
        standing, now = self.standing, self.clock.now()
        return sum(worker.enforces(standing, now) for worker in self._workers)

    def ladder(self) -> Ladder:
        """Of what is in force."""
        return Ladder.CLOSED if self._snapshot is None else self._snapshot.ladder(self.clock.now())

    def ready(self) -> tuple[bool, str]:
        """Whether workers enforce a verified policy, and how many; or what is wrong."""
        ladder = self.ladder()
        if self._ending.is_set():
            return False, "ending"
        if ladder not in READY_STATES:
            return False, str(ladder)
        count = f"{self.enforcing} of {self.settings.workers} workers"
        if self._seats.crash_looping:
            return False, f"workers do not stay up; {count} enforce the policy"
        if not self.enforcing:
            return False, f"{count} enforce the policy"
        return True, f"{ladder}, {count}"

    async def _refresh(self) -> None:
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(worker.ask(ANSWER_S))
        self._totals.update("supervisor", families(self._own.registry.collect()))
        self._totals.update("workers", self._of_workers())

    def status(self) -> dict[str, object]:
        """As a single process says it, with the sums of all workers, and each worker. Times are Unix seconds."""
        now = self.clock.now()
        ready, why = self.ready()
        workers = sorted(self._workers, key=lambda worker: worker.number)
        return {
            "ready": ready,
            "why": why,
            "ladder": str(self.ladder()),
            "environment": self.settings.environment,
            "doors": list(self.doors),
            **policy_report(self._snapshot, now),
            "decisions": {
                **{
                    name: sum(worker.figures.get(name, 0) for worker in workers)
                    for name in ("written", "waiting", "refused")
                },
                "log": self.settings.evidence.log,
            },
            "sync": self.sync.status(),
            "limits": [worker.figures["limits"] for worker in workers if "limits" in worker.figures],
            "interception": {"fingerprint": self._grounds.authority.fingerprint},
            "process": {
                "edgeguard": __version__,
                "mitmproxy": importlib.metadata.version("mitmproxy"),
                "started_at": self._started,
                "now": now,
            },
            "supervision": {
                "workers": self.settings.workers,
                "enforcing": self.enforcing,
                "restarts": self._seats.restarts,
                "crash_looping": self._seats.crash_looping,
                "replacements": self._rolled,
            },
            "workers": [_worker_report(worker) for worker in workers],
        }

    def _of_workers(self) -> list[Family]:
        states = GaugeMetricFamily("edgeguard_workers", "Worker processes by state.", labels=["state"])
        for state in State:
            if state is not State.ENDED:
                states.add_metric([state], sum(worker.state is state for worker in self._workers))
        found = [
            states,
            GaugeMetricFamily(
                "edgeguard_workers_enforcing", "Workers that enforce what is in force.", self.enforcing
            ),
            GaugeMetricFamily(
                "edgeguard_workers_crash_looping",
                "Places whose workers keep ending.",
                self._seats.crash_looping,
            ),
            CounterMetricFamily(
                "edgeguard_worker_restarts", "Workers that ended without being asked.", self._seats.restarts
            ),
        ]
        return [of_metric(metric) for metric in found]


def _worker_report(worker: Worker) -> dict[str, object]:
    enforced = worker.followed.enforced
    return {
        "worker": worker.number,
        "pid": worker.pid,
        "state": str(worker.state),
        "started_at": worker.started_at,
        "uptime_s": round(worker.age_s, 3),
        "bundle_version": enforced.bundle_version if enforced else None,
        "head_version": enforced.head_version if enforced else None,
        "policy_hash": enforced.policy_hash if enforced else None,
        "problem": worker.followed.problem or None,
        "connections": worker.figures.get("connections", 0),
        "decisions": {
            name: worker.figures.get(name) for name in ("written", "waiting", "refused", "broken", "log")
        },
    }
