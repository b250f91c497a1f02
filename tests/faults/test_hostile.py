"""A hostile bundle server, and what the traffic beside it notices: nothing."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from edgeguard.bundle.snapshot import Ladder
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.sync.agent import SyncAgent
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import FetchLimits
from edgeguard.verdict import Facts
from tests.faults.hostile import MODES
from tests.sync.signing import place
from tests.test_guard import Bench

QUESTION = Facts("c", Client("x", identified=True), "one.example", 443)


class World:
    """A guard on this loop, its agent in its own thread, and a server in a process of its own."""

    def __init__(self, directory, state, authority, url):
        self.directory, self.authority = directory, authority
        self.bench = Bench()
        self.guard = self.bench.guard
        self.clock = TrustedClock()
        self.guard._clock = self.clock.now
        config = SyncConfig(
            authority.env,
            state,
            (url,),
            long_poll_s=0,
            poll_s=0.05,
            pause_s=0.02,
            backoff_base_s=0.02,
            backoff_max_s=0.05,
            fetch=FetchLimits(deadline_s=0.5),
        )
        self.events = []
        self.agent = SyncAgent(
            config,
            authority.root(),
            self.guard.activate,
            self.events.append,
            clock=self.clock,
            enforced=lambda: self.guard.snapshot,
        )

    async def until(self, condition, seconds=5.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what happens in another thread
                await asyncio.sleep(0.005)

    async def traffic(self, seconds):
        """A decision every millisecond on the traffic's loop; how late each was (seconds), sorted."""
        late = []
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (now := loop.time()) < until:
            await asyncio.sleep(0.001)
            assert self.guard.judge(QUESTION).allow
            late.append(loop.time() - now - 0.001)
        return sorted(late)


@pytest_asyncio.fixture
async def world(served, tmp_path, authority):
    program = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(served)]
    server = subprocess.Popen(program, stdout=subprocess.PIPE)  # noqa: ASYNC220 - a test may wait
    port = int(server.stdout.readline())
    world = World(served, tmp_path / "state", authority, f"http://127.0.0.1:{port}/")
    await asyncio.to_thread(world.agent.start)
    world.guard.start()
    try:
        await world.until(lambda: world.guard.ladder() is Ladder.FRESH)
        yield world
    finally:
        world.guard.stop()
        await asyncio.to_thread(world.agent.stop)
        server.kill()
        server.communicate()


def quantile(values, share):
    return values[int(len(values) * share)]


@pytest.mark.parametrize("mode", [pytest.param(name, id=f"fault-C25-{name}") for name in MODES])
async def test_traffic_notices_nothing(world, mode):
    quiet = await world.traffic(0.4)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (world.directory / "mode").write_text(mode)
    failures = len([event for event in world.events if event.kind in {"failed", "refused"}])
    loud = await world.traffic(1.2)
    await world.until(lambda: len([e for e in world.events if e.kind in {"failed", "refused"}]) > failures)
    assert world.guard.ladder() is Ladder.FRESH
    assert world.guard.snapshot.bundle_version == 1
    assert not any(event.kind == "internal" for event in world.events)
    # The interpreter's switch interval is 5 ms: nothing here may cost more than a few of them.
    assert quantile(loud, 0.5) < quantile(quiet, 0.5) + 0.002, (quantile(quiet, 0.5), quantile(loud, 0.5))
    assert quantile(loud, 0.99) < quantile(quiet, 0.99) + 0.025
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 40_000  # kB
    (world.directory / "mode").unlink()
    recovered = world.agent.last_success
    await world.until(lambda: world.agent.last_success > recovered)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-F20-E8-one-poll")])
async def test_a_quarantine_takes_effect_within_one_poll_on_a_full_disk(world, monkeypatch, case):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    authority = world.authority
    began = time.monotonic()
    place(world.directory / "test" / "head", authority.head(2, authority.bundle(1), quarantine=1))
    await world.until(lambda: world.guard.judge(QUESTION).reason is Reason.QUARANTINED)
    assert time.monotonic() - began < 1.0  # the poll is 50 ms here
    await world.until(lambda: not world.agent.persisted)  # what tightens comes before what is stored
    assert world.agent.status()["persisted"] is False
    monkeypatch.undo()
    await world.until(lambda: world.agent.persisted)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-B21-guard")])
async def test_expiry_to_first_refusal(world, case):
    """With the server gone: the timer wakes the subscribers, and each decision compares for itself."""
    (world.directory / "mode").write_text("silent")
    now = int(time.time())
    snapshot = replace(world.guard.snapshot, stale_at=now + 2, restricted_at=now + 2, closed_at=now + 2)
    woken = []
    world.guard.subscribe(lambda: woken.append(time.time()))
    await asyncio.to_thread(world.agent.stop)
    world.guard.activate(snapshot)
    while world.guard.judge(QUESTION).allow:  # noqa: ASYNC110 - what is measured
        await asyncio.sleep(0.001)
    refused = time.time()
    assert 0 <= refused - (now + 2) < 0.05
    await world.until(lambda: any(at >= now + 2 for at in woken), 1)
    assert next(at for at in woken if at >= now + 2) - (now + 2) < 0.05
    assert world.guard.judge(QUESTION).reason is Reason.POLICY_EXPIRED
