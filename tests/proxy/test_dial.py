"""Dialling: the given addresses, raced; never ourselves."""

import asyncio

import pytest

from edgeguard.proxy.dial import Dialer, DialError, interleave
from tests.fakes import Upstream
from tests.ports import free_port


async def test_one_address(upstream):
    transport, protocol, address = await Dialer().dial(asyncio.Protocol, ["127.0.0.1"], upstream.port)
    assert isinstance(protocol, asyncio.Protocol)
    assert address == "127.0.0.1"
    transport.abort()


async def test_a_dead_address_does_not_hold_up_the_living(upstream):
    dialer = Dialer(head_start_s=5)
    transport, _, address = await asyncio.wait_for(
        dialer.dial(asyncio.Protocol, ["127.0.0.9", "127.0.0.1"], upstream.port), 2
    )
    assert address == "127.0.0.1", "a refused attempt starts the next one at once"
    transport.abort()


async def test_a_silent_address_gets_only_a_head_start(upstream, monkeypatch):
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    class Slow:
        def __getattr__(self, name):
            return getattr(loop, name)

        async def create_connection(self, factory, address, port):
            if address == "127.0.0.9":
                await asyncio.sleep(30)
            return await connect(factory, address, port)

    monkeypatch.setattr("edgeguard.proxy.dial.asyncio.get_running_loop", Slow)
    transport, _, address = await Dialer(head_start_s=0.05).dial(
        asyncio.Protocol, ["127.0.0.9", "127.0.0.1"], upstream.port
    )
    assert address == "127.0.0.1"
    transport.abort()
    with pytest.raises(DialError):
        await Dialer(head_start_s=0.01, attempt_s=0.05).dial(
            asyncio.Protocol, ["127.0.0.9", "127.0.0.8"], upstream.port
        )


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], []])
async def test_nobody_answers(addresses):
    with pytest.raises(DialError):
        await Dialer().dial(asyncio.Protocol, addresses, free_port())


async def test_the_preferred_address_is_remembered(upstream):
    dialer = Dialer()
    assert await dialer.preferred(["192.0.2.1"], 1) == "192.0.2.1", "the only one is not tried"
    for _ in range(3):
        assert await dialer.preferred(["127.0.0.9", "127.0.0.1"], upstream.port) == "127.0.0.1"
    await asyncio.sleep(0.01)
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("listening", "address", "own"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.2", True),
        ("::", "127.0.0.1", True),
        ("0.0.0.0", "192.0.2.1", False),
    ],
)
async def test_our_own_listeners(listening, address, own):
    """attack-C06, attack-D05: local addresses are looked up at the moment of the question."""
    dialer = Dialer()
    dialer.forbid(listening, 3128)
    assert dialer.is_own(address, 3128) is own
    assert not dialer.is_own(address, 3129)
    if own:
        with pytest.raises(DialError):
            await dialer.dial(asyncio.Protocol, [address], 3128)


async def test_a_race_that_is_cancelled_leaves_nothing_behind():
    async with Upstream() as server:
        task = asyncio.ensure_future(Dialer().dial(asyncio.Protocol, ["127.0.0.1", "127.0.0.2"], server.port))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_families_alternate():
    assert interleave(["a:", "b:", "1", "2", "3"]) == ["a:", "1", "b:", "2", "3"]
    assert interleave(["1", "2", "a:"]) == ["1", "a:", "2"]
    assert interleave([]) == []
