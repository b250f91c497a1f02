"""WebSocket behind an inspected allow: the handshake, the frames, and what a refusal does to a client. Rows X01 to X04, P17."""

import asyncio
import contextlib
import hashlib
import os
import ssl
import time

import pytest
import websockets
from websockets.asyncio.client import connect

from edgeguard.proxy.websocket import FrameError, Frames, accept_of, close_frame
from tests.attacks.test_open_connections import allow

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ANSWER = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {accept_of(KEY)}\r\n"
)
WS = ", protocol: websocket, paths: [/ws]"
BOTH = ', protocol: [tls, websocket], paths: ["/ws"]'


def upgrade(port: int, *fields: str, path: str = "/ws", method: str = "GET", version: str = "1.1") -> bytes:
    base = [
        f"{method} {path} HTTP/{version}",
        f"Host: a.test:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
    ]
    return "\r\n".join([*base, *fields, "", ""]).encode()


HONEST = (f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


def frame(first: int, payload: bytes = b"", *, masked: bool = True, length: bytes | None = None) -> bytes:
    """RFC 6455, 5.2; `length` in place of the shortest form."""
    bit = 0x80 if masked else 0
    if length is None:
        size = len(payload)
        length = (
            bytes([size])
            if size < 126
            else b"\x7e" + size.to_bytes(2)
            if size < 65536
            else b"\x7f" + size.to_bytes(8)
        )
    mask = b"\x11\x22\x33\x44" if masked else b""
    body = bytes(b ^ mask[i % 4] for i, b in enumerate(payload)) if masked else payload
    return bytes([first, bit | length[0]]) + length[1:] + mask + body


class Server:
    """Answers the handshake, keeps what comes after it, says what it is told."""

    def __init__(self, rig) -> None:
        self.received = bytearray()
        self.say: list[bytes] = []
        self.answer = ANSWER + "\r\n"
        self.ended = asyncio.Event()
        self._rig = rig

    async def start(self) -> "Server":
        self.up = await self._rig.upstream("a.test")
        self.up.answer = lambda head: self.answer.encode()
        self.up.after = self._talk
        self.port = self.up.port
        return self

    async def _talk(self, reader, writer) -> None:
        for data in self.say:
            writer.write(data)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.received += data
        self.ended.set()


@pytest.fixture
async def server(rig):
    await rig.start()
    server = await Server(rig).start()
    rig.enforce("rules:\n" + allow("ws", "a.test", server.port, BOTH))
    return server


async def opened(rig, server):
    reader, writer = await rig.tunnel("a.test", server.port)
    writer.write(upgrade(server.port, *HONEST))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b" 101 " in head.split(b"\r\n")[0]
    return reader, writer


async def rest(reader) -> bytes:
    data = b""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(3):
            while more := await reader.read(65536):
                data += more
    return data


BROKEN = [
    pytest.param(0xC1, b"x", {}, id="attack-X02-rsv1"),
    pytest.param(0xA1, b"x", {}, id="attack-X02-rsv2"),
    pytest.param(0x91, b"x", {}, id="attack-X02-rsv3"),
    pytest.param(0xC9, b"", {}, id="attack-X02-rsv-control"),
    pytest.param(0x83, b"x", {}, id="attack-X02-opcode-3"),
    pytest.param(0x87, b"x", {}, id="attack-X02-opcode-7"),
    pytest.param(0x8B, b"", {}, id="attack-X02-opcode-11"),
    pytest.param(0x8F, b"", {}, id="attack-X02-opcode-15"),
    pytest.param(0x09, b"", {}, id="attack-X02-fragmented-ping"),
    pytest.param(0x08, b"", {}, id="attack-X02-fragmented-close"),
    pytest.param(0x89, b"x" * 126, {}, id="attack-X02-long-ping"),
    pytest.param(0x88, b"\x03\xe8" + b"x" * 124, {}, id="attack-X02-long-close"),
    pytest.param(0x81, b"x", {"length": b"\x7e\x00\x01"}, id="attack-X02-16-bits-for-one"),
    pytest.param(0x81, b"x" * 125, {"length": b"\x7e\x00\x7d"}, id="attack-X02-16-bits-for-125"),
    pytest.param(0x81, b"x", {"length": b"\x7f" + bytes(7) + b"\x01"}, id="attack-X02-64-bits-for-one"),
    pytest.param(0x81, b"x", {"length": b"\x7f" + b"\xff" * 8}, id="attack-X02-negative"),
    pytest.param(0x80, b"x", {}, id="attack-X02-continuation"),
    pytest.param(0x88, b"x", {}, id="attack-X02-close-one-byte"),
    *(
        pytest.param(0x88, code.to_bytes(2), {}, id=f"attack-X02-close-{code}")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    ),
    pytest.param(0x88, b"\x03\xe8\xff", {}, id="attack-X02-close-reason"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "payload", "more"), BROKEN)
def test_broken_frames(first, payload, more):
    """In both directions, at once and byte by byte; what came before them goes on."""
    good = [0x01, 0x00, 0x89, 0x80]
    for masked in (True, False):
        before = b"".join(frame(head, b"ok", masked=masked) for head in good)
        bad = frame(first, payload, masked=masked, **more)
        with pytest.raises(FrameError) as caught:
            Frames(masked=masked).feed(before + bad + frame(0x81, b"more", masked=masked))
        assert caught.value.good == before
        frames, passed = Frames(masked=masked), b""
        with pytest.raises(FrameError):  # noqa: PT012 - somewhere in it
            for byte in before + bad:
                passed += frames.feed(bytes([byte]))
        assert passed == before


@pytest.mark.parametrize("masked", [True, False])
def test_whole_frames_pass_however_they_are_cut(masked):
    """attack-X03: fragments, binary, any size, control frames in between."""
    data = b"".join(
        [
            frame(0x01, b"a" * 3, masked=masked),
            frame(0x89, b"ping", masked=masked),
            frame(0x00, b"b" * 200, masked=masked),
            frame(0x8A, b"", masked=masked),
            frame(0x80, b"c" * 70_000, masked=masked),
            frame(0x82, b"", masked=masked),
            frame(0x82, os.urandom(125), masked=masked),
            frame(0x88, b"\x0f\xa0bye", masked=masked),
        ]
    )
    for size in (1, 2, 3, 7, 64, 65_535, len(data)):
        frames = Frames(masked=masked)
        out = b"".join(frames.feed(data[at : at + size]) for at in range(0, len(data), size))
        assert out == data
        assert frames.between
        assert frames.closed
        with pytest.raises(FrameError):
            frames.feed(b"\x81\x80" + bytes(4))


@pytest.mark.parametrize("masked", [True, False])
def test_masks_are_the_clients(masked):
    """attack-X02"""
    with pytest.raises(FrameError):
        Frames(masked=masked).feed(frame(0x81, b"x", masked=not masked))


async def test_a_client_that_breaks_the_framing_is_closed(rig, server):
    """attack-X02: with 1002, on record, and nothing of it has arrived."""
    reader, writer = await opened(rig, server)
    good = frame(0x81, b"hello")
    writer.write(good + frame(0xC1, b"evil"))
    assert await rest(reader) == close_frame(1002)
    await asyncio.wait_for(server.ended.wait(), 5)
    assert server.received.startswith(good)
    told = bytes(server.received[len(good) :])
    assert told[:2] == b"\x88\x82"
    assert int.from_bytes(bytes(a ^ b for a, b in zip(told[6:], told[2:4], strict=True))) == 1001
    writer.close()
    await rig.idle()
    (end,) = [r for r in rig.records if r.kind == "close" and r.method is not None]
    assert (end.why, end.sent) == ("malformed_request", len(good))


async def test_a_server_that_breaks_the_framing_is_closed(rig, server):
    """attack-X02"""
    server.say = [frame(0x81, b"hello", masked=False), frame(0x81, b"evil", masked=True)]
    reader, writer = await opened(rig, server)
    assert await rest(reader) == frame(0x81, b"hello", masked=False) + close_frame(1002)
    await asyncio.wait_for(server.ended.wait(), 5)
    assert server.received[:2] == b"\x88\x82"
    writer.close()
    await rig.idle()
    (end,) = [r for r in rig.records if r.kind == "close" and r.method is not None]
    assert end.why == "upstream_unreachable"


async def test_a_close_frame_does_not_land_inside_another_frame(rig, server):
    """attack-X02: the server is in the middle of a frame, so its reader just sees the end."""
    whole = frame(0x82, b"x" * 1000, masked=False)
    server.say = [whole[:500]]
    reader, writer = await opened(rig, server)
    assert await asyncio.wait_for(reader.readexactly(500), 5) == whole[:500]
    writer.write(frame(0x83))
    assert await rest(reader) == b""
    writer.close()
    await rig.idle()


async def test_a_frame_of_any_size_streams_through(rig, server):
    """attack-X03, attack-S18: nothing of it is gathered, and every byte is counted."""
    _, writer = await opened(rig, server)
    size = 24 * 1024 * 1024
    writer.write(b"\x82\xff" + size.to_bytes(8) + bytes(4))
    seen = hashlib.sha256()
    block = os.urandom(65_536)
    for _ in range(size // len(block)):
        writer.write(block)
        seen.update(block)
        await writer.drain()
    writer.write(frame(0x88, b"\x03\xe8"))
    for _ in range(200):
        if len(server.received) >= size + 14 + 8:
            break
        await asyncio.sleep(0.02)
    assert hashlib.sha256(server.received[14 : size + 14]).digest() == seen.digest()
    writer.close()
    await rig.idle()
    (end,) = [r for r in rig.records if r.kind == "close" and r.method is not None]
    assert end.sent == size + 14 + 8


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(lambda p: upgrade(p, HONEST[1]), id="attack-X04-no-key"),
        pytest.param(lambda p: upgrade(p, HONEST[0]), id="attack-X04-no-version"),
        pytest.param(lambda p: upgrade(p, HONEST[0], "Sec-WebSocket-Version: 8"), id="attack-X04-version-8"),
        pytest.param(lambda p: upgrade(p, HONEST[0], "Sec-WebSocket-Version: 13, 8"), id="attack-X04-versions"),
        pytest.param(lambda p: upgrade(p, *HONEST, HONEST[1]), id="attack-X04-two-versions"),
        pytest.param(lambda p: upgrade(p, *HONEST, HONEST[0]), id="attack-X04-two-keys"),
        pytest.param(lambda p: upgrade(p, "Sec-WebSocket-Key: c2hvcnQ=", HONEST[1]), id="attack-X04-short-key"),
        pytest.param(lambda p: upgrade(p, "Sec-WebSocket-Key: " + "A" * 24, HONEST[1]), id="attack-X04-no-base64"),
        pytest.param(lambda p: upgrade(p, *HONEST, method="POST"), id="attack-X04-post"),
        pytest.param(lambda p: upgrade(p, *HONEST, version="1.0"), id="attack-X04-1.0"),
        pytest.param(lambda p: upgrade(p, *HONEST, "Content-Length: 3") + b"abc", id="attack-X04-body"),
    ],
)  # fmt: skip
async def test_a_malformed_upgrade_is_refused(rig, server, request_bytes):
    rig.enforce("rules:\n" + allow("ws", "a.test", server.port, ", tls: inspect"))
    reader, writer = await rig.tunnel("a.test", server.port)
    writer.write(request_bytes(server.port))
    got = await rest(reader)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"malformed_request" in got
    assert server.up.connections == 0
    writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ANSWER.replace(accept_of(KEY), accept_of("x")) + "\r\n", id="attack-X04-wrong-accept"),
        pytest.param(ANSWER.replace("Sec-WebSocket-Accept", "X") + "\r\n", id="attack-X04-no-accept"),
        pytest.param(ANSWER + f"Sec-WebSocket-Accept: {accept_of(KEY)}\r\n\r\n", id="attack-X04-two-accepts"),
        pytest.param(ANSWER.replace("Connection: Upgrade", "X: y") + "\r\n", id="attack-X04-no-connection"),
        pytest.param(ANSWER.replace("Upgrade: websocket", "Upgrade: h2c") + "\r\n", id="attack-X04-h2c"),
        pytest.param(
            ANSWER + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", id="attack-X03-unasked"
        ),
        pytest.param(ANSWER + "Sec-WebSocket-Protocol: chat\r\n\r\n", id="attack-X04-protocol-unasked"),
    ],
)
async def test_an_answer_to_another_handshake_is_refused(rig, server, answer):
    server.answer = answer
    reader, writer = await rig.tunnel("a.test", server.port)
    writer.write(upgrade(server.port, *HONEST))
    assert (await rest(reader)).startswith(b"HTTP/1.1 502 ")
    writer.close()
    await rig.idle()


async def test_no_extension_is_offered(rig, server):
    """attack-X03, under any alias."""
    reader, writer = await rig.tunnel("a.test", server.port)
    extensions = ("Sec-WebSocket-Extensions: permessage-deflate", "Sec_WebSocket_Extensions: x")
    writer.write(upgrade(server.port, *HONEST, *extensions, "Sec-WebSocket-Protocol: chat"))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b"deflate" not in server.up.heads[0]
    assert b"xtensions" not in server.up.heads[0]
    assert b"Sec-WebSocket-Protocol: chat" in server.up.heads[0]
    writer.close()


@pytest.mark.parametrize(
    ("rule", "path", "reason"),
    [
        pytest.param(", paths: [/ws]", "/ws", b"protocol_not_allowed", id="attack-X01"),
        pytest.param(WS, "/ws/../secret", b"path_not_allowed", id="attack-P17"),
        pytest.param(WS, "/ws/%2e%2e/secret", b"path_not_allowed", id="attack-P17-escaped"),
    ],
)
async def test_an_upgrade_needs_its_own_allow(rig, server, rule, path, reason):
    rig.enforce(
        "rules:\n"
        + allow("ws", "a.test", server.port, rule)
        + allow("x", "a.test", server.port, ", paths: [/x]")
    )
    reader, writer = await rig.tunnel("a.test", server.port)
    writer.write(upgrade(server.port, *HONEST, path=path))
    begin = time.monotonic()
    got = await rest(reader)
    assert reason in got
    assert b"Connection: close" in got
    assert time.monotonic() - begin < 2  # the connection has ended, as such clients expect
    assert server.up.connections == 0
    writer.close()


async def test_a_client_library_is_refused_without_waiting(rig, server):
    """A refusal without the end of the connection keeps such a client until its own deadlines."""
    rig.enforce("rules:\n" + allow("x", "a.test", server.port, ", paths: [/x]"))
    context = rig.trust()
    for _ in range(12):
        begin = time.monotonic()
        with pytest.raises((websockets.exceptions.InvalidStatus, ssl.SSLError)):
            await connect(
                f"wss://a.test:{server.port}/ws",
                ssl=context,
                proxy=f"http://127.0.0.1:{rig.port}",
                open_timeout=10,
            )
        assert time.monotonic() - begin < 2


async def test_what_follows_an_upgrade_is_no_request(rig, server):
    """attack-S10: bytes behind a 101 are frames, whatever they look like."""
    reader, writer = await opened(rig, server)
    writer.write(f"GET /secret HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    assert await rest(reader) == close_frame(1002)
    assert b"secret" not in server.received
    writer.close()
