"""From the front door into the mitmproxy lane: pinned, granted, and nothing kept afterwards."""

import asyncio
import contextlib
import ssl

import pytest
from mitmproxy import http

from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from tests.fakes import Upstream, client_hello, server_context

REQUEST = b"GET /x HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n"


async def answer(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await writer.drain()
    await reader.read()


class Watch:
    """An addon that notes what the lane was given, and lets only grants be dialled."""

    def __init__(self) -> None:
        self.passages = None
        self.seen: list[tuple] = []

    def server_connect(self, data) -> None:
        passage = self.passages.get(data.client.id)
        address, port = data.server.address
        granted = self.passages.holds(data.client.id, address, port)
        self.seen.append((passage.host, passage.port, passage.sni, address, data.server.sni, granted))
        if not granted:
            data.server.error = "not granted"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/refused":
            flow.response = http.Response.make(403, b"x" * 100_000, {"Connection": "close"})


@pytest.fixture
async def https(tmp_path):
    async with Upstream(answer, tls=server_context(tmp_path, "good.test")) as server:
        yield server


async def tls_client(running, authority: str, name: str | None):
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await writer.start_tls(context, server_hostname=name)
    return reader, writer


async def test_an_inspected_tunnel(start_door, https):
    watch = Watch()
    async with start_door(addons=(watch,)) as running:
        watch.passages = running.passages
        running.guard.allow("good.test", https.port, lane=Lane.INSPECT)
        reader, writer = await tls_client(running, f"good.test:{https.port}", "good.test")
        writer.write(REQUEST)
        assert (await reader.read()).endswith(b"hi")
        writer.transport.abort()
        await running.idle()
        assert watch.seen == [("good.test", https.port, "good.test", "127.0.0.1", "good.test", True)]
        ((verdict, sent, received, why),) = running.guard.finished
        assert verdict.lane is Lane.INSPECT
        assert sent > len(REQUEST)
        assert received > 500
        assert why == "closed"


async def test_a_plain_request_is_handed_over_with_every_byte_and_without_a_grant(start_door, upstream):
    watch = Watch()
    async with start_door(addons=(watch,)) as running:
        watch.passages = running.passages
        async with running.client() as client:
            request = (
                f"GET http://127.0.0.1:{upstream.port}/x HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n"
            )
            for byte in request.encode():
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        await running.idle()
        assert upstream.connections == 0
        assert watch.seen == [(None, None, None, "127.0.0.1", None, False)]
        assert running.guard.finished == []


async def test_a_plain_response_is_delivered_to_its_end_while_the_client_still_sends(start_door):
    """attack-S15: closing must not take the refusal away."""
    watch = Watch()
    async with start_door(addons=(watch,)) as running:
        watch.passages = running.passages
        async with running.client() as client:
            client.send(b"GET http://good.test/refused HTTP/1.1\r\nHost: good.test\r\n\r\n")
            head = await client.head()
            client.send(b"more" * 10_000)
            assert head.startswith(b"HTTP/1.1 403 ")
            assert len(await client.rest()) == 100_000
        await running.idle()


async def test_plain_http_in_a_tunnel_is_inspected_where_a_rule_allows_http(start_door):
    watch = Watch()
    async with start_door(addons=(watch,)) as running, Upstream(answer) as server:
        watch.passages = running.passages
        running.guard.allow("good.test", server.port, "http")
        async with running.client() as client:
            await client.connect(f"good.test:{server.port}")
            client.send(REQUEST)
            assert (await client.rest()).endswith(b"hi")
        await running.idle()
        assert watch.seen == [("good.test", server.port, None, "127.0.0.1", None, True)]
        # TLS is not what that rule allows.
        async with running.client() as client:
            await client.connect(f"good.test:{server.port}")
            client.send(b"\x16\x03\x01\x00\x05")
            await asyncio.sleep(0.05)
        await running.idle()


async def test_a_policy_change_ends_an_inspected_connection(start_door, https):
    """attack-C11"""
    watch = Watch()
    async with start_door(addons=(watch,)) as running:
        watch.passages = running.passages
        running.guard.allow("good.test", https.port, lane=Lane.INSPECT)
        reader, writer = await tls_client(running, f"good.test:{https.port}", "good.test")
        running.guard.allowed.clear()
        running.guard.changed()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
        await running.idle()
        assert [entry[3] for entry in running.guard.finished] == [Reason.HOST_NOT_ALLOWED.value]


@pytest.mark.parametrize("lane", [Lane.TUNNEL, Lane.INSPECT])
async def test_nothing_is_kept_whatever_the_client_does(start_door, https, lane):
    watch = Watch()
    async with start_door(addons=(watch,), hello_s=0.3) as running:
        watch.passages = running.passages
        running.guard.allow("good.test", https.port, lane=lane)
        authority = f"good.test:{https.port}"
        for cut in range(0, 800, 40):
            data = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
            data += client_hello("good.test")
            async with running.client() as client:
                client.send(data[:cut])
                await asyncio.sleep(0.002)
                if cut % 80:
                    client.writer.write_eof()
        await running.idle()
