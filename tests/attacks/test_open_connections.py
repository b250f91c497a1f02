"""What is open is judged again, on what it really is: rules that end, addresses, names that are resolved meanwhile."""

import asyncio
import datetime as dt
import time
from hashlib import sha256

import pytest

from tests.attacks.conftest import read_response


def allow(ident: str, host: str, port: int, more: str = "", networks: str = "127.0.0.0/8") -> str:
    return f'  - {{id: {ident}, effect: allow, to: ["{host}:{port}"], resolves_to: [{networks}], rationale: r{more}}}\n'


async def ended(reader: asyncio.StreamReader, within_s: float = 5.0) -> bool:
    """Whether the connection ends."""
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(65536):
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def get(host: str, port: int, path: str = "/") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


async def test_a_policy_that_changes_while_a_name_is_resolved_counts(rig):
    """attack-C11"""
    await rig.start()
    server = await rig.upstream()
    go, resolve = asyncio.Event(), rig.names.resolve

    async def slow(host: str) -> tuple[str, ...]:
        await go.wait()
        return await resolve(host)

    rig.names.resolve = slow
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port))
    await asyncio.sleep(0.1)
    rig.enforce("rules:\n" + allow("b", "b.test", 443))
    await asyncio.sleep(0.05)
    go.set()
    assert b" 403 " in (await read_response(reader)).split(b"\r\n")[0]
    assert server.connections == 0
    writer.close()
    await rig.idle()


@pytest.mark.parametrize("door", ["edge", "regular"])
async def test_an_answer_under_way_ends_with_the_rule_that_allowed_it(rig):
    """attack-C11"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    server.after = lambda reader, writer: reader.read()
    ends = int(time.time()) + 2
    until = dt.datetime.fromtimestamp(ends, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, f", protocol: http, expires: {until}"))
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port))
    await asyncio.wait_for(reader.readuntil(b"a\r\n"), 2)
    assert await ended(reader)
    assert ends - 0.1 <= time.time() <= ends + 0.5
    await rig.idle()
    assert "host_not_allowed" in {r.why for r in rig.records}
    writer.close()


@pytest.mark.parametrize("inspect", [False, True], ids=["tunnel", "inspected"])
async def test_a_tunnel_is_judged_again_on_the_address_that_it_has(rig, inspect):
    """attack-D02"""
    await rig.start()
    server = await rig.upstream("a.test")
    rig.names.table["a.test"] = ("127.0.0.1", "127.0.0.2")  # nobody listens on the second
    more = ", methods: [GET], paths: [/x]" if inspect else ""
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, more))
    reader, writer = await rig.tunnel("a.test", server.port, verify=False)
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, more))
    assert not await ended(reader, 0.3)
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, more, "127.0.0.2/32"))
    assert await ended(reader)
    writer.transport.abort()
    await rig.idle()
    assert "address_not_allowed" in {r.why for r in rig.records}


async def test_a_request_under_way_is_judged_again_on_the_address_that_it_has(rig):
    """attack-D02"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    server.after = lambda reader, writer: reader.read()
    rig.names.table["a.test"] = ("127.0.0.1", "127.0.0.2")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port))
    await asyncio.wait_for(reader.readuntil(b"a\r\n"), 2)
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http", "127.0.0.2/32"))
    assert await ended(reader)
    writer.close()
    await rig.idle()


async def test_each_request_of_a_connection_shows_who_asks(rig):
    """attack-Y05"""
    rig.identify(secret=({"client": "alice", "sha256": sha256(b"s3cret").hexdigest()},))
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    request = get("a.test", server.port)
    reader, writer = await rig.connect()
    writer.write(request[:-2] + b"Proxy-Authorization: Bearer s3cret\r\n\r\n")
    assert b" 200 " in (await read_response(reader)).split(b"\r\n")[0]
    writer.write(request)
    assert b" 407 " in (await read_response(reader)).split(b"\r\n")[0]
    assert len(server.heads) == 1
    writer.close()
    await rig.idle()


async def test_a_connection_ends_with_the_answer_when_its_client_says_so(rig):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port)[:-2] + b"Connection: close\r\n\r\n")
    assert b"connection: close" in (await read_response(reader)).lower()
    assert await ended(reader, 2)
    writer.close()
    await rig.idle()


async def test_a_request_without_host_goes_on_with_the_name_that_was_judged(rig):
    """attack-A12: otherwise the server would choose whom it answers for."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: http"))
    assert b" 200 " in await rig.exchange(f"GET http://A.test.:{server.port}/ HTTP/1.0\r\n\r\n".encode())
    assert server.heads == [f"GET / HTTP/1.0\r\nHost: a.test:{server.port}\r\n\r\n".encode()]


@pytest.mark.parametrize("door", ["edge", "regular"])
async def test_raw_bytes_end_with_the_rule_that_allowed_them(rig):
    """attack-C11, attack-C21: a rule for TLS that stays does not keep them."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", protocol: tcp"))
    reader, writer = await rig.connect()
    writer.write(f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.write(b"hello\r\n\r\n")
    assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"ok"), 5)
    rig.enforce("rules:\n" + allow("a", "a.test", server.port))
    assert await asyncio.wait_for(ended(reader), 5)
    writer.close()
    await rig.idle()
