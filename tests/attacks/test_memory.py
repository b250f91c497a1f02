"""What one client can make the engine gather is bounded, and costs what it is worth."""

import asyncio
import contextlib
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from edgeguard.proxy import heads
from edgeguard.proxy.http1 import EdgeHttp1Server
from edgeguard.proxy.pace import waiting
from tests.attacks.conftest import read_response
from tests.attacks.test_open_connections import allow, get

LARGEST = 200_000
"""What a client connection may hold: a bound, and one read past it."""


@pytest.fixture
def gathered(monkeypatch) -> list[int]:
    """How much each HTTP/1 connection of a client holds after each event, in bytes."""
    sizes: list[int] = []
    stock = EdgeHttp1Server._handle_event

    def handle(self, event):
        yield from stock(self, event)
        sizes.append(len(self.buf))

    monkeypatch.setattr(EdgeHttp1Server, "_handle_event", handle)
    return sizes


async def flood(rig, first: bytes) -> None:
    """Sends `first`, then noise, as long as somebody takes it."""
    _, writer = await rig.connect()
    writer.transport.set_write_buffer_limits(0)
    writer.write(first)
    with contextlib.suppress(OSError, TimeoutError):
        for _ in range(64):
            writer.write(b"x" * 65_536)
            async with asyncio.timeout(1):
                await writer.drain()
    writer.transport.abort()
    await rig.idle()


@pytest.mark.parametrize("begin", [b"5;", b"0\r\n", b"0\r\nname: "], ids=["extension", "trailers", "trailer"])
async def test_the_framing_of_a_chunk_is_not_gathered_without_end(rig, gathered, begin):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    head = get("a.test", server.port).replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    await flood(rig, head + begin)
    assert max(gathered) < LARGEST


async def test_what_is_pipelined_is_not_gathered_without_end(rig, gathered):
    """attack-S10"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: b""
    server.after = lambda reader, writer: reader.read()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    await flood(rig, get("a.test", server.port))
    assert max(gathered) < LARGEST


async def test_a_shut_window_stops_the_upstream(rig):
    """attack-S18: and an open one lets everything through."""
    await rig.start()
    server = await rig.upstream("a.test")
    size = 40_000_000
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", methods: [GET], paths: [/x, /y]"))
    reader, writer = await rig.tunnel("a.test", server.port, alpn=("h2",))
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", f"a.test:{server.port}"),
        (":path", "/x"),
    ]
    client.send_headers(1, fields, end_stream=True)
    writer.write(client.data_to_send())
    await asyncio.sleep(1.5)
    limit = rig.settings.bounds.waiting_bytes
    (connection,) = (kept for _, kept in rig.addon._desk.connections.items())
    assert limit < waiting(connection.h2) < limit + 200_000
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    client.increment_flow_control_window(2**31 - 1 - 65_535)
    writer.write(client.data_to_send())
    got = 0
    async with asyncio.timeout(10):
        while got < size:
            for event in client.receive_data(await reader.read(1 << 20)):
                got += len(event.data) if isinstance(event, h2.events.DataReceived) else 0
    writer.transport.abort()
    await rig.idle()


async def test_empty_lines_before_a_request_are_cheap(rig):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    reader, writer = await rig.connect()
    for before in (b"", b"\r\n", b"\r", b"\n"):
        writer.write(before)
        if before == b"\r":
            await asyncio.sleep(0.05)  # cut between CR and LF
            continue
        writer.write(get("a.test", server.port))
        assert b" 200 " in (await read_response(reader)).split(b"\r\n")[0]
    begin = time.process_time()
    writer.write(b"\r\n" * 200_000)
    assert b" 400 " in (await read_response(reader)).split(b"\r\n")[0]
    assert time.process_time() - begin < 0.2
    writer.close()
    await rig.idle()


async def test_no_secret_of_a_request_is_kept(rig):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    for name in (b"Authorization", b"Cookie", b"edgeguard-user", b"Proxy-Authorization"):
        secret = name + b": t0ken\r\n\r\n"
        await rig.exchange(get("a.test", server.port)[:-2] + secret)
        connect = f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n".encode()
        await rig.exchange(connect + secret)
    assert not [head for head in heads._seen if b"t0ken" in head]
