"""One worker as its supervisor sees it: started, listened to, watched, ended."""

import asyncio
import base64
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from edgeguard.evidence.totals import Family, Totals
from edgeguard.proxy.workers.control import Channel, Message
from edgeguard.sync.follow import Followed
from edgeguard.sync.report import EventKind, SyncEvent
from edgeguard.sync.standing import Standing

logger = logging.getLogger(__name__)

START_S: Final = 60.0
"""Time that a worker has until it serves: a second or two where nothing else wants the processor."""
LOAD_S: Final = 30.0
"""Time that a worker has to enforce what it was told."""
FOLLOW_S: Final = 2.0
"""Time after which one that has not confirmed it no longer counts as enforcing it."""
HANG_S: Final = 5.0
"""A worker that says nothing for so long does not run, and is killed."""
END_S: Final = 5.0
"""Time between the end of a worker's channel and its own."""
PACKAGE: Final = "edgeguard.proxy.workers"


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Outfit:
    """What every worker gets."""

    config: str
    """Text of the configuration."""
    path: str
    """Where it was read, which its relative paths start from."""
    root: bytes
    listeners: tuple[int, ...]
    """Descriptors of the bound sockets, in the order of `listeners.bind`."""
    turnstile: int
    """Descriptor of the turnstile before standard output."""
    lock: int
    """Descriptor that says, as long as it is open somewhere, that workers live."""
    admin: str
    level: int
    """Of logging."""

    @property
    def inherited(self) -> tuple[int, ...]:
        return (*self.listeners, self.turnstile, self.lock)


class Worker:
    """One process.

    Args:
        number: Names its decision log and its metrics; no two living workers of a node share one.
        totals: Where its metrics go.
        on_event: Called with what its follower noticed.
    """

    def __init__(self, number: int, totals: Totals, on_event: Callable[[SyncEvent], None]) -> None:
        self.number = number
        self.state = State.STARTING
        self.followed = Followed(None, "nothing was loaded yet")
        self.figures: dict[str, Any] = {}
        """What it said of itself last: `connections`, `written`, `waiting`, `refused`, `broken`."""
        self.ended = asyncio.Event()
        self.serving = asyncio.Event()
        """Set when it serves, and when it has ended without."""
        self.started_at = time.time()
        self.failure = ""
        """Why the supervisor ended it."""
        self._totals = totals
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._born = self._heard = self._loop.time()
        self._named_at: float | None = None
        """When it was told what it has not confirmed yet (loop time)."""
        self._named: Standing | None = None
        """What it was told last."""
        self._answered = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return self._loop.time() - self._born

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self._process.returncode if self._process is not None else None

    async def start(self, outfit: Outfit, named: Callable[[], tuple[Standing | None, float]]) -> None:
        """Starts the process, without waiting until it serves. Raises OSError if there can be none.

        `named` answers what is in force, and the floor of trusted time, in the moment in which it can be told.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    PACKAGE,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *outfit.inherited),
                )
            except BaseException:
                ours.close()
                raise
        channel = await Channel.over(ours)
        standing, floor = named()
        channel.send(
            "start",
            number=self.number,
            config=outfit.config,
            path=outfit.path,
            root=base64.b64encode(outfit.root).decode(),
            listeners=outfit.listeners,
            turnstile=outfit.turnstile,
            admin=outfit.admin,
            level=outfit.level,
            standing=standing,
            floor=floor,
        )
        self._channel, self._named, self._named_at = channel, standing, self._loop.time()
        self._task = self._loop.create_task(self._attend(channel, self._process))

    def expect(self, standing: Standing | None, floor: float) -> None:
        """Says what is in force."""
        if self._channel is not None and self.state is not State.ENDED:
            self._channel.send("expect", standing=standing, floor=floor)
            self._named, self._named_at = standing, self._loop.time()

    async def ask(self, within_s: float) -> None:
        """Waits for figures that are of now, no longer than `within_s`."""
        if self._channel is None or self.state not in {State.SERVING, State.DRAINING}:
            return
        self._answered.clear()
        self._channel.send("figures", all=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._answered.wait()

    def ping(self) -> None:
        """Asks for what it has counted, which also shows that it runs."""
        if self._channel is not None:
            self._channel.send("figures", all=False)

    def drain(self) -> None:
        """Lets it stop accepting and finish open work."""
        if self._channel is not None and self.state is not State.ENDED:
            self.state = State.DRAINING
            self._channel.send("drain")

    def kill(self, why: str) -> None:
        """Ends it at once."""
        if self._process is None or self.ended.is_set() or self._process.returncode is not None:
            return
        if why:
            self.failure = self.failure or why
            logger.error("worker %d (process %d) is killed: %s", self.number, self.pid, why)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def look(self) -> None:
        """Kills a worker that does not run, does not start or does not follow."""
        now = self._loop.time()
        if self.state is State.ENDED:
            return
        if self.state is State.STARTING:
            if now - self._born >= START_S:
                self.kill(f"it did not serve within {START_S:.0f} s")
        elif now - self._heard >= HANG_S:
            self.kill(f"it has said nothing for {HANG_S:.0f} s")
        elif self._named_at is not None and now - self._named_at >= LOAD_S:
            self.kill(f"it did not enforce what is in force within {LOAD_S:.0f} s")

    def enforces(self, standing: Standing | None, now: float) -> bool:
        """Whether it serves under `standing` and can record what it decides."""
        mine, now_s = self.followed.enforced, self._loop.time()
        if self.state is not State.SERVING or self.figures.get("broken") or standing is None or mine is None:
            return False
        if now_s - self._heard >= HANG_S:
            return False
        # What was named a moment ago takes a moment to load: until then the policy before it is still enforced.
        return mine.agrees(standing, now) or (
            self._named_at is not None and now_s - self._named_at < FOLLOW_S
        )

    def _settled(self) -> bool:
        """Whether what it says is about what it was told last, and not about what came before."""
        enforced, problem, waiting = self.followed
        if waiting:
            return False
        if problem or enforced is None or self._named is None:
            return True
        return enforced.agrees(self._named, time.time())

    async def _attend(self, channel: Channel, process: asyncio.subprocess.Process) -> None:
        try:
            while (message := await channel.receive()) is not None:
                self._heard = self._loop.time()
                self._take(message)
            # Without a channel it can be told nothing any more: it ends by itself, or is ended.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await process.wait()
            self.kill("it has left its supervisor")
            await process.wait()
        finally:
            channel.close()
            self.state = State.ENDED
            self._totals.retire(str(id(self)))
            self._answered.set()
            self.serving.set()
            self.ended.set()

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "serving":
                if self.state is State.STARTING:
                    self.state = State.SERVING
                self.serving.set()
            case "followed":
                enforced = message["enforced"]
                self.followed = Followed(
                    Standing(*enforced) if enforced is not None else None,
                    message["problem"],
                    message["waiting"],
                )
                if self._settled():
                    self._named_at = None
            case "figures":
                self._totals.update(str(id(self)), [Family(*family) for family in message["metrics"]])
                self.figures = message["figures"]
                self._answered.set()
            case "event":
                kind, code, detail, at, alarm = message["event"]
                self._on_event(SyncEvent(EventKind(kind), code, f"worker {self.number}: {detail}", at, alarm))
