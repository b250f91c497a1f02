"""From a bundle's bytes to a policy in force, and what that does to the traffic's loop meanwhile."""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from edgeguard.bundle.build import decode_section
from edgeguard.bundle.documents import Environment, Kind, Quorum, Root, media_type
from edgeguard.bundle.envelope import seal
from edgeguard.bundle.keys import SigningKey
from edgeguard.bundle.trust import Activate, BundleOffered, HeadOffered, Refuse, TrustState, step
from edgeguard.evidence.log import DecisionLog
from edgeguard.guard import Guard
from edgeguard.identity.clients import ClientDirectory
from edgeguard.limits.process import ProcessLimiter
from edgeguard.settings.model import Identity
from edgeguard.sync.gentle import gently, set_aside
from tests.bench.policies import section
from tests.bench.run import Run
from tests.bench.world import ENVIRONMENT, signed

TICK_S = 0.001


def measure(run: Run) -> dict[str, float]:
    figures: dict[str, float] = {}
    for size in run.pick((1000,), (1000, 10_000, 100_000)):
        took, stalls = [], []
        section(size)
        set_aside()  # as a node does before it serves
        for _ in range(run.pick(2, 2 if size > 10_000 else 5)):
            one, stall = uvloop.run(_once(size))
            took.append(one)
            stalls.append(stall)
        figures[f"activate.ms.{size}"] = statistics.median(took)
        figures[f"activate.stall_ms.{size}"] = statistics.median(stalls)
        run.raw[f"raw.activate.ms.{size}"] = took
        run.raw[f"raw.activate.stall_ms.{size}"] = stalls
    calm = [uvloop.run(_calm()) for _ in range(3)]
    run.raw["raw.activate.stall_ms.nothing"] = calm
    figures["activate.stall_ms.nothing"] = statistics.median(calm)
    return figures


async def _once(size: int) -> tuple[float, float]:
    """Milliseconds, and the longest delay of a 1 kHz timer, while version 2 replaces version 1."""
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder:
        log = DecisionLog(Path(folder) / "decisions.jsonl", 1024)
        try:
            guard = Guard(
                clients=ClientDirectory(Identity(static="bench")), limiter=ProcessLimiter(1024), log=log
            )
            return await _replace(size, guard)
        finally:
            log.close()


async def _replace(size: int, guard: Guard) -> tuple[float, float]:
    state, offers = _offers(size)
    guard.start()
    try:
        now = time.time()
        state = _offer(state, offers[0], guard, now)
        took = 0.0

        def work() -> None:  # what the sync thread does once the bytes have come
            nonlocal took
            start = time.perf_counter()
            _offer(state, offers[1], guard, now)
            took = (time.perf_counter() - start) * 1000

        await asyncio.sleep(0.05)
        ticker = _Ticker()
        await asyncio.to_thread(work)
        await asyncio.sleep(0.02)
        stall = ticker.stop()
    finally:
        guard.stop()
    return took, stall


async def _calm() -> float:
    ticker = _Ticker()
    await asyncio.sleep(0.2)
    return ticker.stop()


class _Ticker:
    """A 1 kHz timer on the loop that remembers its longest delay."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = time.perf_counter() + TICK_S
        self._worst = 0.0
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.perf_counter()
        self._worst = max(self._worst, now - self._due)
        self._due = now + TICK_S
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> float:
        """Milliseconds of the longest delay."""
        self._timer.cancel()
        return self._worst * 1000


type Offer = tuple[bytes, bytes]


def _offers(size: int) -> tuple[TrustState, list[Offer]]:
    """A node's state at its first contact, and two versions of (head, bundle)."""
    root_key, release, head_key = (SigningKey(os.urandom(32)) for _ in range(3))
    now = int(time.time())
    environment = Environment(Quorum((release.public,), 1), 1, Quorum((head_key.public,), 1))
    root = Root(1, now - 60, now + 86400, Quorum((root_key.public,), 1), {ENVIRONMENT: environment})
    envelope = seal(media_type(Kind.ROOT), root.to_payload(), [root_key])
    offers = []
    for version in (1, 2):
        bundle, head = signed(
            decode_section(section(size)), version, now=now, lifetime_s=3600, release=release, head=head_key
        )
        offers.append((head, bundle))
    return TrustState.start(envelope, ENVIRONMENT, audience=""), offers


def _offer(state: TrustState, offer: Offer, guard: Guard, now: float) -> TrustState:
    head, bundle = offer
    activated = False
    for event in (HeadOffered(head), BundleOffered(bundle)):
        with gently():  # as `sync/update.py` does
            state, effects = step(state, event, now)
        for effect in effects:
            if isinstance(effect, Refuse):
                raise effect.refusal
            if isinstance(effect, Activate):
                guard.activate(effect.snapshot)
                activated = True
    if not activated:
        raise RuntimeError("the bundle was taken and not activated")
    return state
