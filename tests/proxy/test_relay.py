"""The tunnel lane: half-close, back-pressure, counting, and every way to end."""

import asyncio
import contextlib
import resource

import pytest

from tests.fakes import Upstream, client_hello

HELLO = client_hello("good.test")
ANSWER = b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03" + b"r" * 36
"""As much of a ServerHello as is looked at: until it comes, what follows the hello waits."""


async def opened(running, client, server):
    running.guard.allow("good.test", server.port)
    assert (await client.connect(f"good.test:{server.port}")).startswith(b"HTTP/1.1 200 ")
    client.send(HELLO)


async def test_the_client_may_finish_first(running):
    async def count(reader, writer):
        data = await reader.readexactly(len(HELLO))
        writer.write(ANSWER)
        data += await reader.read()
        writer.write(f"{len(data)}".encode())
        await writer.drain()

    async with Upstream(count) as server, running.client() as client:
        await opened(running, client, server)
        assert await client.exactly(len(ANSWER)) == ANSWER
        client.send(b"x" * 1000)
        client.writer.write_eof()
        assert await client.rest() == f"{len(HELLO) + 1000}".encode()
    await running.idle()
    ((_, sent, received, why),) = running.guard.finished
    assert (sent, received, why) == (len(HELLO) + 1000, len(ANSWER) + len(str(sent)), "closed")


async def test_the_upstream_may_finish_first(running):
    got = asyncio.get_running_loop().create_future()

    async def finish(reader, writer):
        hello = await reader.readexactly(len(HELLO))
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(hello + await reader.read())

    async with Upstream(finish) as server, running.client() as client:
        await opened(running, client, server)
        assert await client.rest() == b"bye"
        client.send(b"after")
        client.writer.write_eof()
        assert await asyncio.wait_for(got, 5) == HELLO + b"after"
    await running.idle()


@pytest.fixture
def waiting():
    """An upstream handler that reads nothing until told."""
    go = asyncio.Event()

    async def handler(reader, writer):
        await reader.readexactly(len(HELLO))
        writer.write(ANSWER)
        await go.wait()
        while data := await reader.read(1 << 16):
            writer.write(data[:1])
            await writer.drain()

    return go, handler


async def test_a_reader_that_stalls_stops_the_sender_and_holds_little(running, waiting):
    """attack-S18"""
    go, handler = waiting
    async with Upstream(handler) as server, running.client() as client:
        await opened(running, client, server)
        await client.exactly(len(ANSWER))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sent = 0
        client.writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(1):
                while True:
                    client.send(b"x" * 65536)
                    sent += 65536
                    await client.writer.drain()
        except TimeoutError:
            pass
        (tunnel,) = running.door.tunnels
        held = tunnel.upstream.here.get_write_buffer_size()
        assert 0 < held <= running.door.bounds.relay_bytes * 7 // 4, "what may wait, and one more piece"
        assert tunnel.sent < 64 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        go.set()
        client.writer.write_eof()
        await client.rest()
    await running.idle()
    assert running.guard.finished[0][1] == len(HELLO) + sent


async def test_a_half_closed_tunnel_in_which_nothing_moves_is_ended(start_door):
    async def hold(reader, writer):
        await reader.read()
        await asyncio.sleep(30)

    async with start_door(half_closed_s=0.3) as running, Upstream(hold) as server, running.client() as client:
        await opened(running, client, server)
        client.writer.write_eof()
        assert await client.rest() == b""
        await running.idle()
        assert running.guard.finished[0][3] == "half_closed"


async def test_a_reset_upstream_ends_the_tunnel(running):
    async def reset(reader, writer):
        await reader.readexactly(len(HELLO))
        writer.transport.abort()

    async with Upstream(reset) as server, running.client() as client:
        await opened(running, client, server)
        assert await client.rest() == b""
        client.writer.write_eof()
        await running.idle()


async def test_a_client_that_resets_ends_only_its_own_tunnel(running, upstream):
    """attack-S16"""
    async with running.client() as stays:
        await opened(running, stays, upstream)
        await stays.exactly(len(HELLO))
        async with running.client() as leaves:
            await opened(running, leaves, upstream)
            await leaves.exactly(len(HELLO))
        stays.send(b"still here")
        assert await stays.exactly(10) == b"still here"
    await running.idle()
    assert len(running.guard.finished) == 2


async def test_an_upstream_that_leaves_before_the_hello(running):
    async def leave(reader, writer):
        writer.close()

    async with Upstream(leave) as server, running.client() as client:
        running.guard.allow("good.test", server.port)
        await client.connect(f"good.test:{server.port}")
        assert await client.rest() == b""
    await running.idle()


async def test_a_lot_arrives_unchanged_in_both_directions(running, upstream):
    """What is read through the shared buffer is written before the buffer is used again."""
    sent = bytes(range(256)) * 40_000
    async with running.client() as one, running.client() as two:
        for client in (one, two):
            await opened(running, client, upstream)
            assert await client.exactly(len(HELLO)) == HELLO
        mirrored = bytes(reversed(sent))
        one.send(sent)
        two.send(mirrored)
        back = await asyncio.gather(one.reader.readexactly(len(sent)), two.reader.readexactly(len(mirrored)))
        assert back == [sent, mirrored]
        for client in (one, two):
            client.writer.write_eof()
            assert await client.rest() == b""
    await running.idle()
    assert [entry[1:3] for entry in running.guard.finished] == [(len(sent) + len(HELLO),) * 2] * 2
    assert [entry[3] for entry in running.guard.finished] == ["closed"] * 2


async def test_a_tunnel_that_reads_much_ends_in_order_when_the_upstream_breaks(running):
    async def pour(reader, writer):
        await reader.readexactly(len(HELLO))
        writer.write(ANSWER + b"x" * 4_000_000)
        await writer.drain()
        writer.transport.abort()

    async with Upstream(pour) as server, running.client() as client:
        await opened(running, client, server)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(-1), 5)
    await running.idle()
    assert len(running.guard.finished) == 1
