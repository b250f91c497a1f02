"""Nothing is held for longer than it is used, and nothing is given back twice; budgets hold while bytes move."""

import asyncio
import contextlib
import time

import pytest

from tests.attacks.conftest import read_response
from tests.attacks.test_open_connections import allow, ended, get
from tests.fakes import client_hello

SEATS = 'rate_limits:\n  - {id: seats, match: {to: ["a.test"]}, limit: 2, unit: concurrent_tunnels, key: [client]}\n'
MEGABYTE = (
    'rate_limits:\n  - {id: volume, match: {to: ["a.test"]}, limit: 1MB/h, unit: bytes, key: [client]}\n'
)


@pytest.mark.parametrize("door", ["regular", "edge"])
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"SSH-2.0-x\r\n", id="attack-C04"),
        pytest.param(client_hello("evil.test"), id="attack-A01"),
    ],
)
async def test_a_refused_tunnel_gives_its_seat_back_once(rig, first):
    """On a connection that began with a request: there the engine answers CONNECT."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce(
        "rules:\n"
        + allow("a", "a.test", server.port)
        + allow("p", "p.test", server.port, ", protocol: http")
        + SEATS
    )

    async def tunnel():
        reader, writer = await rig.connect()
        writer.write(get("p.test", server.port))
        await read_response(reader)
        writer.write(f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
        return reader, writer, int((await read_response(reader)).split()[1])

    stays = await tunnel()
    for _ in range(3):
        reader, writer, status = await tunnel()
        assert status == 200
        writer.write(first)
        assert await ended(reader)
        writer.close()
    kept = [stays, *[await tunnel() for _ in range(3)]]
    assert [status for *_, status in kept] == [200, 200, 429, 429]
    for _, writer, _ in kept:
        writer.transport.abort()
    await rig.idle()


async def test_a_client_that_ends_and_reads_nothing_is_let_go(rig):
    rig.bounds["drain_s"] = 0.3
    await rig.start()
    server = await rig.upstream()
    size = 30_000_000
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    rig.enforce("rules:\n" + allow("p", "p.test", server.port, ", protocol: http"))
    _, writer = await rig.connect()
    writer.transport.pause_reading()
    writer.write(get("p.test", server.port))
    await asyncio.sleep(0.3)
    writer.write_eof()
    await rig.idle()


async def test_plain_http_is_held_to_its_budget_of_bytes(rig):
    """attack-L04"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http") + MEGABYTE)
    statuses = [(await rig.exchange(get("a.test", server.port))).split()[1] for _ in range(2)]
    assert statuses == [b"200", b"429"]


@pytest.mark.parametrize("inspect", [False, True], ids=["tunnel", "inspected"])
async def test_an_open_tunnel_ends_when_its_budget_is_used_up(rig, inspect):
    """attack-L04"""
    await rig.start()
    server = await rig.upstream("a.test")
    body = 200_000
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body + b"x" * body
    more = ", methods: [GET], paths: [/]" if inspect else ""
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, more) + MEGABYTE)
    reader, writer = await rig.tunnel("a.test", server.port, verify=False)
    got, end = 0, time.monotonic() + 10
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            writer.write(f"GET / HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
            answer = await read_response(reader)
            if len(answer) < body:
                break
            got += len(answer)
            await asyncio.sleep(0.1)
    assert body <= got < 3_000_000
    writer.transport.abort()
    await rig.idle()
    assert [r.why for r in rig.records if r.kind == "close" and r.method is None] == ["rate_limited"]
    taken = rig.guard._limiter._enforced["volume"]
    ((_, debt),) = taken.values.items()
    assert debt


@pytest.mark.parametrize("door", ["edge", "regular"])
async def test_a_second_head_that_drips_in_is_not_waited_for(rig):
    """attack-C12: nor is an idle connection between two requests cut off."""
    rig.bounds["head_s"] = 0.5
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("p", "p.test", server.port, ", protocol: http"))
    reader, writer = await rig.connect()
    request = get("p.test", server.port)
    for _ in range(2):
        writer.write(request[:20])
        await asyncio.sleep(0.1)
        writer.write(request[20:])
        assert b" 200 " in (await read_response(reader)).split(b"\r\n")[0]
        await asyncio.sleep(0.8)
    begin = time.monotonic()
    gone = asyncio.ensure_future(ended(reader))
    for byte in request[:-2]:
        if gone.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)
    assert await gone
    assert time.monotonic() - begin < 1.5
    writer.transport.abort()
    await rig.idle()


async def test_a_handshake_that_stops_is_not_waited_for(rig):
    """attack-C12"""
    rig.bounds["hello_s"] = 0.5
    await rig.start()
    server = await rig.upstream("a.test")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", methods: [GET], paths: [/x]"))
    reader, writer = await rig.connect()
    writer.write(f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(client_hello("a.test"))
    assert await ended(reader, 2)
    await rig.idle()
    stays, kept = await rig.tunnel("a.test", server.port)
    await asyncio.sleep(0.8)
    kept.write(f"GET /x HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    assert b" 200 " in (await read_response(stays)).split(b"\r\n")[0]
    kept.transport.abort()
    await rig.idle()
