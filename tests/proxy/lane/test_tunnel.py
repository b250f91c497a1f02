"""CONNECT, TLS and what is inside, with the addon alone (no front door)."""

import asyncio
import contextlib
import hashlib
import ssl

import h2.config
import h2.connection
import h2.events
import pytest

from edgeguard.policy.decision import Decision, Lane
from edgeguard.policy.reasons import Reason

ALLOW = Decision(allow=True, lane=Lane.INSPECT)
THROUGH = Decision(allow=True, lane=Lane.TUNNEL)


@pytest.fixture(params=["regular", "edge"])
def door(request) -> str:
    """The addon alone, and behind the front door."""
    return request.param


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


def refused(reason: Reason) -> Decision:
    return Decision(allow=False, reason=reason)


async def test_an_inspected_request(lane, respond):
    await lane.start()
    up = await lane.upstream("a.test")
    reader, writer = await lane.tunnel("a.test", up.port)
    writer.write(f"GET /p HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    assert status(await respond(reader)) == 200
    assert up.heads[0].startswith(b"GET /p HTTP/1.1\r\n")
    assert lane.names.asked == ["a.test"]
    connect, request = lane.guard.judged
    assert (connect.method, connect.protocol) == (None, "tls")
    assert (request.method, request.target, request.protocol) == ("GET", "/p", "tls")
    assert "a.test" in request.names
    presented = writer.get_extra_info("peercert")
    assert ("DNS", "a.test") in presented["subjectAltName"]


async def test_keep_alive_inside_a_tunnel_uses_one_connection(lane, respond):
    await lane.start()
    up = await lane.upstream("a.test")
    reader, writer = await lane.tunnel("a.test", up.port)
    for _ in range(5):
        writer.write(f"GET / HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
        assert status(await respond(reader)) == 200
    assert up.connections == 1


async def test_the_tunnel_lane_leaves_tls_alone(lane, respond):
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: THROUGH
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    context = ssl.create_default_context(cafile=lane.certificates.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the test authority is a plain one
    await writer.start_tls(context, server_hostname="a.test")
    writer.write(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
    assert status(await respond(reader)) == 200
    writer.close()
    await asyncio.sleep(0.1)
    ((_, sent, received, _),) = lane.guard.finished
    assert sent > 200
    assert received > 200


@pytest.mark.parametrize(
    ("authority", "id_"),
    [pytest.param("no.test:443", "C01", id="attack-C01"), pytest.param("a.test:22", "C02", id="attack-C02")],
)
async def test_a_refused_connect_resolves_nothing(lane, authority, id_, respond):
    await lane.start()
    lane.guard.decide = lambda facts: refused(Reason.HOST_NOT_ALLOWED)
    reply = await lane.exchange(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    assert status(reply) == 403
    assert b"Connection: close" in reply
    assert lane.names.asked == []


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param("CONNECT a.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n", 421, id="host-differs"),
        pytest.param(
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 4\r\n\r\nabcd", 400, id="body"
        ),
        pytest.param("CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, id="no-port"),
        pytest.param("CONNECT http://a.test:443/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, id="url"),
    ],
)
async def test_a_malformed_connect(lane, head, expected):
    await lane.start()
    assert status(await lane.exchange(head.encode())) == expected
    assert lane.names.asked == []


@pytest.mark.parametrize(
    ("sni", "ok"),
    [
        pytest.param("evil.test", False, id="attack-A01"),
        pytest.param("A.TEST", True, id="attack-A02-case"),
        pytest.param(None, False, id="attack-A03"),
    ],
)
@pytest.mark.parametrize("lane_of", [ALLOW, THROUGH], ids=["inspect", "tunnel"])
async def test_sni_is_bound_to_connect(lane, sni, ok, lane_of):
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: (
        refused(Reason.PROTOCOL_NOT_ALLOWED) if facts.protocol == "tcp" else lane_of
    )
    if ok:
        await lane.tunnel("a.test", up.port, sni=sni, verify=False)
        return
    with pytest.raises((ssl.SSLError, OSError)):
        await lane.tunnel("a.test", up.port, sni=sni)
    assert up.received == b""
    assert Reason.MISDIRECTED_REQUEST in lane.guard.refusals()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="attack-C04-ssh"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", id="attack-C04-http"),
        pytest.param(b"\x00\x01\x02\x03\x04", id="attack-C21"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", id="attack-A04-truncated"),
        pytest.param(b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", id="attack-A04-not-a-hello"),
        pytest.param(b"\x16\x03\x01\xff\xff" + b"\x01" * 70_000, id="attack-A06-oversize"),
    ],
)
@pytest.mark.parametrize("lane_of", [ALLOW, THROUGH], ids=["inspect", "tunnel"])
async def test_what_is_not_tls_gets_an_alert(lane, first, lane_of):
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: (
        lane_of if facts.protocol == "tls" else refused(Reason.PROTOCOL_NOT_ALLOWED)
    )
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(first)
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        rest = await asyncio.wait_for(reader.read(), 5)
    assert rest in {b"", b"\x15\x03\x03\x00\x02\x02\x31"}
    assert up.received == b""  # the front door's tunnel lane has dialled by then, and sent nothing
    assert up.connections == 0 or (lane.modes[0].startswith("edge") and lane_of is THROUGH)


async def test_a_rule_for_tcp_lets_other_protocols_through(lane):
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: (
        THROUGH if facts.protocol == "tcp" else refused(Reason.PROTOCOL_NOT_ALLOWED)
    )
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"PING\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"ok"), 5)
    assert up.received == b"PING\r\n\r\n"


async def test_a_tunnel_that_turns_out_to_carry_raw_bytes_is_one_tunnel(lane):
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: THROUGH if facts.protocol == "tcp" else ALLOW
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"PING\r\n\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"ok"), 5)
    assert [verdict.facts.protocol for verdict in lane.guard.replaced] == ["tls"]


async def test_plain_http_in_a_tunnel_is_judged_as_that(lane, respond):
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: (
        ALLOW if facts.protocol == "http" else refused(Reason.PROTOCOL_NOT_ALLOWED)
    )
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(f"GET /p HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    assert status(await respond(reader)) == 200
    assert lane.guard.judged[-1][3:5] == (up.port, "http")
    assert lane.guard.judged[-1].target == "/p"
    writer.write(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
    assert status(await respond(reader)) == 421
    assert len(up.heads) == 1


async def test_tls_where_only_plain_http_is_allowed(lane):
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: (
        THROUGH if facts.protocol == "http" else refused(Reason.PROTOCOL_NOT_ALLOWED)
    )
    with pytest.raises((ssl.SSLError, OSError)):
        await lane.tunnel("a.test", up.port)
    assert up.heads == []


async def test_a_hello_byte_by_byte(lane):
    """attack-A05"""
    await lane.start()
    up = await lane.upstream("a.test")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = lane.trust().wrap_bio(incoming, outgoing, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    reader, writer = await lane.connect()
    writer.write(f"CONNECT a.test:{up.port} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    for byte in outgoing.read():
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    incoming.write(await asyncio.wait_for(reader.read(65536), 5))
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    assert incoming.pending == 0


@pytest.mark.parametrize(
    ("request_text", "expected", "reason"),
    [
        pytest.param(
            "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421, "misdirected_request", id="attack-A07"
        ),
        pytest.param("GET / HTTP/1.1\r\nHost: a.test:1\r\n\r\n", 421, "misdirected_request", id="attack-A08"),
        pytest.param(
            "GET https://evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            400,
            "malformed_request",
            id="attack-A10",
        ),
        pytest.param(
            "GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            400,
            "malformed_request",
            id="attack-A10-same",
        ),
        pytest.param(
            "GET / HTTP/1.1\r\nHost: a.test\r\nHost: evil.test\r\n\r\n",
            400,
            "malformed_request",
            id="attack-A11",
        ),
        pytest.param("GET / HTTP/1.1\r\n\r\n", 400, "malformed_request", id="attack-A12"),
        pytest.param(
            "CONNECT evil.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
            400,
            "malformed_request",
            id="attack-C05",
        ),
        pytest.param("GET / HTTP/1.1\r\nHost: a.test\r\n b\r\n\r\n", 400, "malformed_request", id="fold"),
        pytest.param("TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n", 403, "method_not_allowed", id="attack-S11"),
    ],
)
async def test_what_is_refused_inside(lane, request_text, expected, reason, respond):
    await lane.start()
    up = await lane.upstream("a.test")
    reader, writer = await lane.tunnel("a.test", up.port)
    writer.write(request_text.encode())
    reply = await respond(reader)
    assert status(reply) == expected
    assert f"edgeguard-reason: {reason}".encode() in reply
    assert b"mitmproxy" not in reply.lower()
    assert up.connections == 0


async def test_an_untrusted_upstream(lane, respond):
    """attack-K11"""
    await lane.start()
    up = await lane.upstream("wrong.test")
    reader, writer = await lane.tunnel("a.test", up.port)
    writer.write(f"GET / HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
    reply = await respond(reader)
    assert status(reply) == 502
    assert b"edgeguard-reason: upstream_untrusted" in reply
    assert b"verify" not in reply
    assert up.heads == []


async def test_an_address_needs_no_sni(lane, respond):
    await lane.start()
    up = await lane.upstream("127.0.0.1")
    reader, writer = await lane.tunnel("127.0.0.1", up.port, sni=None)
    writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{up.port}\r\n\r\n".encode())
    assert status(await respond(reader)) == 200


async def test_a_policy_change_ends_a_tunnel(lane):
    """attack-C11"""
    await lane.start()
    up = await lane.upstream("a.test")
    reader, _ = await lane.tunnel("a.test", up.port)
    lane.guard.decide = lambda facts: refused(Reason.DENIED_BY_RULE)
    for callback in lane.guard.callbacks:
        callback()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    await asyncio.sleep(0.05)
    assert [entry[3] for entry in lane.guard.finished] == ["denied_by_rule"]
    assert len(lane.passages) == 0


# WebSocket


def upgrade(port: int, host: str = "a.test") -> bytes:
    return (
        f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def test_websocket_needs_its_own_allow(lane, respond):
    """attack-X01"""
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: (
        refused(Reason.PROTOCOL_NOT_ALLOWED) if facts.protocol == "websocket" else ALLOW
    )
    reader, writer = await lane.tunnel("a.test", up.port)
    writer.write(upgrade(up.port))
    assert b"protocol_not_allowed" in await respond(reader)
    assert up.connections == 0


async def test_an_allowed_websocket_is_relayed_and_counted(lane):
    await lane.start()
    up = await lane.upstream("a.test")
    up.answer = lambda head: (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )

    async def echo(reader, writer):
        """Frames of one size, unmasked."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(14)
                writer.write(b"\x82\x7f" + head[2:10] + await reader.readexactly(131_072))
                await writer.drain()

    up.after = echo
    reader, writer = await lane.tunnel("a.test", up.port)
    writer.write(upgrade(up.port))
    head = await reader.readuntil(b"\r\n\r\n")
    assert status(head) == 101
    assert b"Upgrade: websocket" in head
    assert b"Upgrade: websocket" in up.heads[0]
    blob = b"\x82\xff" + (131_072).to_bytes(8) + b"mask" + hashlib.sha256(b"x").digest() * 4096
    for _ in range(8):
        writer.write(blob)
        back = await asyncio.wait_for(reader.readexactly(len(blob) - 4), 5)
        assert back == b"\x82\x7f" + blob[2:10] + blob[14:]
    writer.close()
    await asyncio.sleep(0.2)
    entry = next(e for e in lane.guard.finished if e[0].facts.protocol == "websocket")
    assert entry[1:3] == (8 * len(blob), 8 * (len(blob) - 4))


# HTTP/2


class H2:
    """A minimal HTTP/2 client."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer
        self.conn = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.conn.initiate_connection()
        self.answers: dict[int, list] = {}

    def send(self, path: str, authority: str | None, *more, method="GET", body: bytes | None = None) -> int:
        stream = self.conn.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":path", path)]
        if authority is not None:
            fields.insert(1, (":authority", authority))
        self.conn.send_headers(stream, fields + list(more), end_stream=body is None)
        if body is not None:
            self.conn.send_data(stream, body, end_stream=True)
        self.answers[stream] = [None, b"", False]
        self.writer.write(self.conn.data_to_send())
        return stream

    async def settle(self) -> dict[int, list]:
        while not all(entry[2] for entry in self.answers.values()):
            data = await asyncio.wait_for(self.reader.read(65536), 5)
            if not data:
                break
            for event in self.conn.receive_data(data):
                stream = getattr(event, "stream_id", None)
                if isinstance(event, h2.events.ResponseReceived):
                    self.answers[stream][0] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self.answers[stream][1] += event.data
                    self.conn.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    self.answers[stream][2] = True
                elif isinstance(event, h2.events.ConnectionTerminated):
                    return self.answers
            self.writer.write(self.conn.data_to_send())
        return self.answers


async def test_every_stream_is_judged(lane):
    """attack-A13, attack-A14"""
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: refused(Reason.PATH_NOT_ALLOWED) if facts.target == "/no" else ALLOW
    reader, writer = await lane.tunnel("a.test", up.port, alpn=("h2",))
    client = H2(reader, writer)
    own = f"a.test:{up.port}"
    ids = [
        client.send("/1", own),
        client.send("/no", own),
        client.send("/2", own),
        client.send("/3", f"evil.test:{up.port}"),
        client.send("/4", None, ("host", f"evil.test:{up.port}")),
        client.send("/ok", None, ("host", own)),
        client.send("/5", own, method="GET", body=b"x"),
    ]
    answers = await client.settle()
    statuses = [int(answers[i][0][b":status"]) for i in ids]
    assert statuses == [200, 403, 200, 421, 421, 200, 400]
    assert answers[ids[1]][0][b"edgeguard-reason"] == b"path_not_allowed"
    assert b"connection" not in answers[ids[1]][0]
    assert sorted(head.split(b" ")[1] for head in up.heads) == [b"/1", b"/2", b"/ok"]


async def test_an_h2_body_without_length_is_framed_upstream(lane):
    await lane.start()
    up = await lane.upstream("a.test")
    reader, writer = await lane.tunnel("a.test", up.port, alpn=("h2",))
    client = H2(reader, writer)
    body = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
    client.send("/post", f"a.test:{up.port}", method="POST", body=body)
    answers = await client.settle()
    assert int(answers[1][0][b":status"]) == 200
    assert len(up.heads) == 1
    assert up.body_bytes == len(body)


async def test_a_refused_h2_upload_leaves_the_others_alone(lane):
    """attack-S15 on one stream of several"""
    await lane.start()
    up = await lane.upstream("a.test")
    lane.guard.decide = lambda facts: refused(Reason.PATH_NOT_ALLOWED) if facts.target == "/no" else ALLOW
    reader, writer = await lane.tunnel("a.test", up.port, alpn=("h2",))
    client = H2(reader, writer)
    first = client.send("/no", f"a.test:{up.port}", method="POST", body=b"x" * 16_000)
    second = client.send("/yes", f"a.test:{up.port}")
    answers = await client.settle()
    assert int(answers[first][0][b":status"]) == 403
    assert int(answers[second][0][b":status"]) == 200
