"""Locks, channel, backoff, and what of the settings is one worker's."""

import asyncio
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edgeguard.proxy.preflight import NodeError
from edgeguard.proxy.workers.control import Channel
from edgeguard.proxy.workers.locks import WORKERS, Locks
from edgeguard.proxy.workers.process import State
from edgeguard.proxy.workers.seats import BACKOFF_MAX_S, CRASH_LOOP, STABLE_S, Seat, Seats, backoff_s
from edgeguard.proxy.workers.worker import listen, log_of, share
from edgeguard.settings import Settings

HOLD = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"


def test_one_supervisor(tmp_path):
    first = Locks(tmp_path, 0)
    with pytest.raises(NodeError, match=rf"another edgeguard \(process {os.getpid()}\) serves"):
        Locks(tmp_path, 0)
    first.close()
    first.close()
    Locks(tmp_path, 0).close()


def test_workers_of_before_are_waited_for(tmp_path):
    first = Locks(tmp_path, 0)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(first.workers,),
    ) as child:
        child.stdout.read(1)
        first.close()
        with pytest.raises(NodeError, match=f"workers of an edgeguard that has died.*{WORKERS}"):
            Locks(tmp_path, 0.1)
        child.stdin.close()
        Locks(tmp_path, 5).close()


async def test_the_channel():
    ours, theirs = socket.socketpair()
    one, two = await Channel.over(ours), await Channel.over(theirs)
    one.send("expect", standing=None, floor=float("-inf"))
    two.send("event", event=["kind", "x" * 200_000])
    assert await two.receive() == {"kind": "expect", "standing": None, "floor": float("-inf")}
    assert len((await one.receive())["event"][1]) == 200_000
    two.send("figures", metrics=["x" * 2_000_000])  # more than the kernel takes at once
    ending = asyncio.ensure_future(two.finish())
    assert len((await one.receive())["metrics"][0]) == 2_000_000
    await ending
    assert await one.receive() is None
    one.close()
    one.send("into the void")
    await one.finish()


def test_pauses_grow_and_have_a_limit():
    for failures in (1, 2, 3, 8, 100):
        pauses = [backoff_s(failures) for _ in range(50)]
        longest = min(BACKOFF_MAX_S, 0.2 * 2 ** min(failures - 1, 10))
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


class Short:
    """A worker that ends when it is told, or at once."""

    number, pid, code, failure = 1, 2, 1, ""

    def __init__(self, age_s=0.0, state=State.SERVING, *, ended=False):
        self.age_s, self.state = age_s, state
        self.ended, self.serving = asyncio.Event(), asyncio.Event()
        self.serving.set()
        if ended:
            self.ended.set()

    def drain(self):
        self.ended.set()


async def test_short_lives_are_counted_until_one_lasts(monkeypatch):
    monkeypatch.setattr("edgeguard.proxy.workers.seats.BACKOFF_S", 0.001)
    lives = iter([Short(ended=True) for _ in range(CRASH_LOOP)] + [lasting := Short()])

    async def spawn():
        return next(lives)

    seats = Seats(1, spawn)
    seats.start()
    (seat,) = seats.seats
    async with asyncio.timeout(5):
        while seat.worker is not lasting:  # noqa: ASYNC110 - the pause is what is tested
            await asyncio.sleep(0.001)
    assert (seats.restarts, seats.crash_looping) == (CRASH_LOOP, 1)
    seat.settle()
    assert seats.crash_looping == 1, "it has to last"
    lasting.age_s = STABLE_S
    seat.settle()
    assert seats.crash_looping == 0
    seats.stop()
    await asyncio.sleep(0)


async def test_a_replacement_that_does_not_serve_leaves_the_others():
    first = [Short(), Short()]
    lives = iter([*first, fresh := Short(), Short(state=State.ENDED)])

    async def spawn():
        return next(lives)

    seats = Seats(2, spawn)
    seats.start()
    await asyncio.sleep(0.01)
    assert not await seats.replace()
    assert [seat.worker for seat in seats.seats] == [fresh, first[1]]
    assert (first[0].ended.is_set(), first[1].ended.is_set()) == (True, False)
    seats.stop()
    await asyncio.sleep(0)


def test_an_empty_seat_settles_nothing():
    seat = Seat()
    seat.failures = CRASH_LOOP
    seat.settle()
    assert seat.crash_looping


def test_what_is_one_workers():
    settings = Settings.model_validate(
        {
            "environment": "prod",
            "workers": 3,
            "bounds": {"tunnels": 10, "connections": 2},
            "evidence": {"log": "/var/log/edgeguard/decisions.jsonl"},
        }
    )
    mine = share(settings, 2)
    assert (mine.bounds.tunnels, mine.bounds.connections) == (3, 1)
    assert mine.bounds.tunnels_per_client == settings.bounds.tunnels_per_client // 3
    assert mine.evidence.log == "/var/log/edgeguard/decisions.2.jsonl"
    assert mine.admin.address == ""
    assert mine.bounds.drain_s == settings.bounds.drain_s
    assert [log_of(name, 1) for name in ("-", "d", "a.b/c.log")] == ["-", "d.1", "a.b/c.1.log"]


async def test_a_worker_that_cannot_listen_any_more_ends():
    ours, theirs = socket.socketpair()
    stopped = []

    def follow(*_):
        raise RuntimeError("told to raise")

    node = SimpleNamespace(
        follow=follow,
        stop=lambda: stopped.append(True),
        settings=Settings.model_validate({"environment": "dev"}),
    )
    one, other = await Channel.over(ours), await Channel.over(theirs)
    one.send("expect", standing=None, floor=0)
    async with asyncio.timeout(5):
        await listen(other, node)
    assert stopped
    for end in (one, other):
        await end.finish()
