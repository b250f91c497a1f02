"""A tunnel whose limits are counted elsewhere: it waits for the answer, and nothing happens before."""

import asyncio

import pytest

from edgeguard.policy.decision import LimitHit
from edgeguard.policy.reasons import Reason

HIT = LimitHit("shared", "workload", "tunnels", 1, 10**9, 1, "fleet", True)


@pytest.fixture
def far(running, upstream):
    """The door with an allow that waits for `go`; `left` is set when the waiting was cancelled."""
    running.guard.allow("good.example", upstream.port)
    running.guard.limits = (HIT,)
    running.resolver.table["good.example"] = ("127.0.0.1",)
    go, left = asyncio.Event(), asyncio.Event()

    async def wait(verdict):
        try:
            await go.wait()
        except asyncio.CancelledError:
            left.set()
            raise
        return verdict

    running.guard.far = wait
    running.go, running.left = go, left
    return running


async def test_a_tunnel_waits_for_its_limits_and_dials_after_them(far, upstream):
    async with far.client() as client:
        answer = asyncio.ensure_future(client.connect(f"good.example:{upstream.port}"))
        await asyncio.sleep(0.05)
        assert not answer.done()
        assert not far.guard.settled
        assert upstream.connections == 0
        far.go.set()
        assert b" 200 " in await answer
        assert far.guard.open == 1


async def test_a_limit_that_is_used_up_is_429_after_the_wait(far, upstream):
    far.guard.quota = 0
    far.go.set()
    async with far.client() as client:
        assert b" 429 " in await client.connect(f"good.example:{upstream.port}")
    assert upstream.connections == 0


async def test_whoever_leaves_while_it_waits_is_not_charged(far, upstream):
    async with far.client() as client:
        client.send(
            f"CONNECT good.example:{upstream.port} HTTP/1.1\r\nHost: good.example:{upstream.port}\r\n\r\n".encode()
        )
        await asyncio.sleep(0.05)
    await asyncio.wait_for(far.left.wait(), 5)
    assert not far.guard.settled
    assert far.door.held == 0


async def test_an_answer_under_another_policy_is_what_counts(far, upstream):
    """What was judged anew while it waited takes the place of the first verdict."""

    async def denied(verdict):
        decision = verdict.decision._replace(allow=False, reason=Reason.DENIED_BY_RULE)
        return verdict._replace(decision=decision)

    far.guard.far = denied
    async with far.client() as client:
        answer = await client.connect(f"good.example:{upstream.port}")
    assert b" 403 " in answer
    assert b"denied_by_rule" in answer
    assert upstream.connections == 0


async def test_waiting_that_fails_refuses(far, upstream):
    async def broken(verdict):
        raise RuntimeError("out of order")

    far.guard.far = broken
    async with far.client() as client:
        assert b" 500 " in await client.connect(f"good.example:{upstream.port}")
    assert upstream.connections == 0
