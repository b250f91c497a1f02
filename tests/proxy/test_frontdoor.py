"""The front door over real sockets: what is answered, what is dialled, what is kept."""

import asyncio
import contextlib
import socket

import pytest

from edgeguard.policy.decision import Lane, LimitHit
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.proxy.clienthello import ACCESS_DENIED
from edgeguard.proxy.dial import Dialer
from tests.fakes import Upstream, client_hello
from tests.ports import free_port

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_an_allowed_tunnel_carries_bytes_both_ways_and_reports_them(running, upstream):
    running.guard.allow("good.test", upstream.port)
    hello = client_hello("good.test")
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(hello)
        assert await client.exactly(len(hello)) == hello
        client.send(b"x" * 100_000)
        assert await client.exactly(100_000) == b"x" * 100_000
        client.writer.write_eof()
        assert await client.rest() == b""
    await running.idle()
    ((verdict, sent, received, why),) = running.guard.finished
    assert (verdict.allow, sent, received, why) == (
        True,
        len(hello) + 100_000,
        len(hello) + 100_000,
        "closed",
    )


async def test_the_hello_may_come_with_the_connect_and_byte_by_byte(running, upstream):
    running.guard.allow("good.test", upstream.port)
    hello = client_hello("good.test")
    authority = f"good.test:{upstream.port}"
    everything = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode() + hello
    async with running.client() as client:
        client.send(everything)
        assert await client.exactly(len(OK) + len(hello)) == OK + hello
    async with running.client() as client:
        for byte in everything:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.exactly(len(OK) + len(hello)) == OK + hello
    await running.idle()


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        pytest.param("evil.test:443", Reason.HOST_NOT_ALLOWED, id="attack-C01-awf-A1"),
        pytest.param("good.test:22", Reason.PORT_NOT_ALLOWED, id="attack-C02-awf-A5"),
        pytest.param("good.test:5432", Reason.PORT_NOT_ALLOWED, id="attack-C03"),
        pytest.param("xgood.test:443", Reason.HOST_NOT_ALLOWED, id="attack-H19"),
        pytest.param("good.test.evil.test:443", Reason.HOST_NOT_ALLOWED, id="attack-H19-suffix"),
    ],
)
async def test_what_is_denied_is_neither_resolved_nor_dialled(running, upstream, authority, reason):
    """attack-D07: zero queries and zero connects."""
    running.guard.allow("good.test", 443)
    running.resolver.table["evil.test"] = ("127.0.0.1",)
    async with running.client() as client:
        head = await client.connect(authority)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert f"edgeguard-reason: {reason.value}\r\n".encode() in head
        assert b"Connection: close\r\n" in head
        await client.rest()
    assert running.guard.refusals == [reason]
    assert running.resolver.asked == []
    assert upstream.connections == 0
    await running.idle()


@pytest.mark.parametrize(
    ("spelling", "status"),
    [
        pytest.param("GOOD.test.:{port}", 200, id="attack-H03"),
        pytest.param("[[good.test]]:{port}", 400, id="attack-H04"),
        pytest.param("good.test", 400, id="attack-H06-no-port"),
        pytest.param(":", 400, id="attack-H06-empty"),
        pytest.param("good.test:0x1bb", 400, id="attack-H07-hex"),
        pytest.param("good.test:99999", 400, id="attack-H07-range"),
        pytest.param("good%2etest:{port}", 400, id="attack-H12-escape"),
        pytest.param("good.test..:{port}", 400, id="attack-H12-dots"),
        pytest.param("user@good.test:{port}", 400, id="attack-H23"),
    ],
)
async def test_spellings_of_the_authority(running, upstream, spelling, status):
    running.guard.allow("good.test", upstream.port)
    async with running.client() as client:
        head = await client.connect(spelling.format(port=upstream.port))
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
    if status != 200:
        assert running.resolver.asked == []
    await running.idle()


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n", 421, "misdirected_request", id="attack-A09"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:444\r\n\r\n", 421, "misdirected_request", id="attack-A08"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n", 400, "malformed_request", id="attack-A11"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\n\r\n", 400, "malformed_request", id="attack-A12"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\nContent-Length: 5\r\n\r\nhello", 400, "malformed_request", id="connect-with-body"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed_request", id="attack-S03"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\nHost: good.test:443\n\r\n\r\n", 400, "malformed_request", id="attack-S04-bare-lf"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n folded\r\n\r\n", 400, "malformed_request", id="obs-fold"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.1\r\nHost : good.test:443\r\n\r\n", 400, "malformed_request", id="space-before-colon"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request", id="h2-prior-knowledge"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", 421, "misdirected_request", id="attack-C07-origin-form"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n", 421, "misdirected_request", id="asterisk-form"),
        pytest.param(b"GET ftp://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 421, "misdirected_request", id="other-scheme"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", 400, "malformed_request", id="tls-to-the-door"),
        pytest.param(b"\x05\x01\x00", 400, "malformed_request", id="socks5"),
    ],
)  # fmt: skip
async def test_heads_that_are_refused(running, head, status, reason):
    running.guard.allow("good.test", 443)
    async with running.client() as client:
        client.send(head)
        reply = await client.head()
        assert reply.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"edgeguard-reason: {reason}\r\n".encode() in reply
        await client.rest()
    assert running.resolver.asked == []
    assert running.guard.refusals == [Reason(reason)]
    await running.idle()


async def test_a_connect_from_an_http_1_0_client_needs_no_host(running, upstream):
    running.guard.allow("good.test", upstream.port)
    async with running.client() as client:
        client.send(f"CONNECT good.test:{upstream.port} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
        assert await client.head() == OK
    await running.idle()


async def test_too_many_header_fields_are_refused(start_door):
    async with start_door(headers=5) as running:
        running.guard.allow("good.test", 443)
        for count, status in ((5, b"HTTP/1.1 502 "), (6, b"HTTP/1.1 431 ")):
            fields = b"Host: good.test:443\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(count - 1))
            async with running.client() as client:
                client.send(b"CONNECT good.test:443 HTTP/1.1\r\n" + fields + b"\r\n")
                assert (await client.head()).startswith(status)


async def test_a_connect_brings_the_user_token(start_door):
    async with start_door() as running:
        async with running.client() as client:
            client.send(
                b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\nEdgeguard-User: t0ken\r\n\r\n"
            )
            await client.head()
        assert running.guard.judged[-1].tokens == ("t0ken",)


async def test_a_head_without_end_is_refused_at_the_limit(start_door):
    async with start_door(head_bytes=1024) as running:
        async with running.client() as client:
            client.send(b"GET http://good.test/ HTTP/1.1\r\nX: " + b"a" * 2000)
            assert (await client.head()).startswith(b"HTTP/1.1 431 ")
        assert running.guard.refusals == [Reason.REQUEST_TOO_LARGE]
        await running.idle()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        pytest.param(("other.test",), Reason.MISDIRECTED_REQUEST, id="attack-A01"),
        pytest.param((None,), Reason.MISDIRECTED_REQUEST, id="attack-A03"),
        pytest.param(("evil.good.test",), Reason.MISDIRECTED_REQUEST, id="attack-A01-subdomain"),
    ],
)
async def test_a_hello_that_names_another_host_gets_an_alert(running, upstream, names, reason):
    running.guard.allow("good.test", upstream.port)
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(client_hello(*names))
        assert await client.rest() == ACCESS_DENIED
    assert running.guard.refusals == [reason]
    assert upstream.received == b""
    await running.idle()


async def test_a_hello_may_differ_in_case(running, upstream):
    """attack-A02"""
    running.guard.allow("good.test", upstream.port)
    hello = client_hello("GOOD.test")
    async with running.client() as client:
        await client.connect(f"Good.Test:{upstream.port}")
        client.send(hello)
        assert await client.exactly(len(hello)) == hello
    await running.idle()


async def test_a_hello_with_a_trailing_dot_is_refused(running, upstream):
    """attack-A02: RFC 6066 has no trailing dot; the stricter reading."""
    running.guard.allow("good.test", upstream.port)
    async with running.client() as client:
        await client.connect(f"good.test:{upstream.port}")
        client.send(client_hello("goodXtest.").replace(b"goodXtest.", b"good.test."))
        assert await client.rest() == ACCESS_DENIED
    assert upstream.received == b""
    await running.idle()


async def test_an_address_expects_no_server_name(running, upstream):
    running.guard.allow("127.0.0.1", upstream.port)
    running.resolver.table["127.0.0.1"] = ("127.0.0.1",)
    hello = client_hello(None)
    async with running.client() as client:
        assert await client.connect(f"127.0.0.1:{upstream.port}") == OK
        client.send(hello)
        assert await client.exactly(len(hello)) == hello
    async with running.client() as client:
        assert await client.connect(f"127.0.0.1:{upstream.port}") == OK
        client.send(client_hello("good.test"))
        assert await client.rest() == ACCESS_DENIED
    await running.idle()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="attack-C04-ssh"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", id="attack-C04-http"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="h2-in-a-tunnel"),
        pytest.param(b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n", id="attack-C05"),
        pytest.param(b"\x00\x01\x02", id="attack-C21"),
    ],
)
async def test_bytes_that_are_not_tls_are_refused(running, upstream, data):
    running.guard.allow("good.test", upstream.port)
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(data)
        assert await client.rest() == b""
    assert running.guard.refusals == [Reason.OPAQUE_TUNNEL]
    assert upstream.received == b""
    await running.idle()


async def test_tcp_is_relayed_where_a_rule_says_so_even_if_the_server_speaks_first(running):
    async def greet(reader, writer):
        writer.write(b"220 ready\r\n")
        writer.write(await reader.readexactly(4))
        await writer.drain()

    async with Upstream(greet) as server:
        running.guard.allow("good.test", server.port, "tcp")
        async with running.client() as client:
            assert await client.connect(f"good.test:{server.port}") == OK
            assert await client.exactly(11) == b"220 ready\r\n"
            client.send(b"EHLO")
            assert await client.rest() == b"EHLO"
        await running.idle()
        # The same where TLS is allowed, too, and only the first bytes tell.
        running.guard.allow("good.test", server.port, "tls")
        async with running.client() as client:
            assert await client.connect(f"good.test:{server.port}") == OK
            assert await client.exactly(11) == b"220 ready\r\n"
        await running.idle()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(client_hello(None), id="tls-without-sni"),
        pytest.param(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", id="unreadable-hello"),
        pytest.param(b"PING\r\n", id="text"),
        pytest.param(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", id="binary"),
    ],
)
async def test_where_a_rule_allows_tcp_bytes_need_no_name(running, upstream, data):
    for protocol in ("tls", "http", "tcp"):
        running.guard.allow("good.test", upstream.port, protocol)
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(data)
        assert await client.exactly(len(data)) == data
    await running.idle()
    assert next(entry[3] for entry in running.guard.finished) == "protocol_changed"


async def test_a_wrong_name_is_refused_even_where_a_rule_allows_tcp(running, upstream):
    """attack-A01"""
    for protocol in ("tls", "tcp"):
        running.guard.allow("good.test", upstream.port, protocol)
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(client_hello("other.test"))
        assert await client.rest() == ACCESS_DENIED
    assert upstream.received == b""
    await running.idle()


async def test_a_server_that_speaks_first_is_refused_where_tls_is_expected(running):
    async def greet(reader, writer):
        writer.write(b"220 ready\r\n")
        await reader.read()

    async with Upstream(greet) as server:
        running.guard.allow("good.test", server.port)
        async with running.client() as client:
            assert await client.connect(f"good.test:{server.port}") == OK
            assert await client.rest() == b""
        assert running.guard.refusals == [Reason.OPAQUE_TUNNEL]
        await running.idle()


async def test_addresses_that_may_not_be_reached(running, upstream):
    """attack-D01"""
    running.guard.allow("good.test", upstream.port)
    running.guard.refused_addresses = {"127.0.0.1"}
    async with running.client() as client:
        head = await client.connect(f"good.test:{upstream.port}")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"edgeguard-reason: address_not_allowed\r\n" in head
    assert upstream.connections == 0
    await running.idle()


async def test_only_checked_addresses_are_dialled(running, upstream):
    """attack-D03"""
    running.guard.allow("good.test", upstream.port)
    running.resolver.table["good.test"] = ("127.0.0.2", "127.0.0.1")
    running.guard.refused_addresses = {"127.0.0.2"}
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
    assert running.guard.settled[0].addresses == ("127.0.0.1",)
    await running.idle()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"], ids=["attack-C06", "attack-C06-unspecified"])
async def test_the_door_does_not_dial_itself(running, address):
    running.guard.allow("good.test", running.port)
    running.resolver.table["good.test"] = (address,)
    async with running.client() as client:
        head = await client.connect(f"good.test:{running.port}")
        assert b"edgeguard-reason: address_not_allowed\r\n" in head
    await running.idle()


async def test_unknown_names_and_dead_ports_are_502(running):
    dead = free_port()
    running.guard.allow("good.test", dead)
    running.guard.allow("nowhere.test", 443)
    for authority in (f"good.test:{dead}", "nowhere.test:443"):
        async with running.client() as client:
            head = await client.connect(authority)
            assert head.startswith(b"HTTP/1.1 502 ")
            assert b"edgeguard-reason: upstream_unreachable\r\n" in head
    await running.idle()


async def test_a_rate_limit_is_429_before_anything_is_dialled(running, upstream):
    running.guard.allow("good.test", upstream.port)
    running.guard.quota = 0
    async with running.client() as client:
        assert (await client.connect(f"good.test:{upstream.port}")).startswith(b"HTTP/1.1 429 ")
    assert upstream.connections == 0
    await running.idle()


async def test_tunnels_are_capped_in_total_and_per_client(start_door, upstream):
    """attack-C12"""
    async with start_door(tunnels=2, tunnels_per_client=1) as running:
        running.guard.allow("good.test", upstream.port)
        authority = f"good.test:{upstream.port}"
        async with running.client() as one, running.client() as two, running.client() as three:
            assert await one.connect(authority) == OK
            head = await two.connect(authority)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"edgeguard-reason: capacity_exceeded\r\n" in head
            running.guard.client = Client("another", identified=True)
            assert await three.connect(authority) == OK
            running.guard.client = Client("third", identified=True)
            async with running.client() as four:
                assert (await four.connect(authority)).startswith(b"HTTP/1.1 503 ")
        await running.idle()
        async with running.client() as again:
            assert await again.connect(authority) == OK
        await running.idle()


async def test_connections_are_capped(start_door):
    async with start_door(connections=1) as running:
        async with running.client() as one, running.client() as two:
            await asyncio.sleep(0.05)
            assert await two.rest() == b""
            one.send(b"nonsense\r\n\r\n")
            assert (await one.head()).startswith(b"HTTP/1.1 400 ")
        assert running.door.turned_away == 1
        await running.idle()


async def test_credentials(start_door, upstream):
    identity = {"secret": ({"client": "team", "sha256": "0" * 64},)}
    async with start_door(identity=identity) as running:
        running.guard.allow("good.test", upstream.port)
        running.guard.credentials["Bearer right"] = Client("team", identified=True)
        authority = f"good.test:{upstream.port}"
        async with running.client() as client:
            head = await client.connect(authority, "Proxy-Authorization: Bearer wrong")
            assert head.startswith(b"HTTP/1.1 407 ")
            assert b"Proxy-Authenticate: Basic" in head
        assert running.resolver.asked == []
        hello = client_hello("good.test")
        async with running.client() as client:
            assert await client.connect(authority, "Proxy-Authorization: Bearer right") == OK
            client.send(hello)
            await client.exactly(len(hello))
        assert b"right" not in upstream.received
        assert running.guard.settled[-1].facts.client.name == "team"
        await running.idle()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(b"", b"", id="silent"),
        pytest.param(b"CONNECT good.te", b"HTTP/1.1 408 ", id="attack-C12-head"),
    ],
)
async def test_a_slow_head_meets_its_deadline(start_door, sent, expected):
    async with start_door(head_s=0.2) as running:
        async with running.client() as client:
            client.send(sent)
            assert (await client.rest()).startswith(expected)
        await running.idle()


async def test_a_missing_hello_meets_its_deadline(start_door, upstream):
    """attack-A06"""
    async with start_door(hello_s=0.2) as running:
        running.guard.allow("good.test", upstream.port)
        async with running.client() as client:
            assert await client.connect(f"good.test:{upstream.port}") == OK
            client.send(client_hello("good.test")[:20])
            assert await client.rest() == b""
        assert [entry[3] for entry in running.guard.finished] == ["hello_deadline"]
        await running.idle()


async def test_a_slow_resolver_meets_the_dial_deadline(start_door, upstream):
    async with start_door(dial_s=0.2) as running:
        running.guard.allow("good.test", upstream.port)
        running.resolver.delay_s = 30
        async with running.client() as client:
            head = await client.connect(f"good.test:{upstream.port}")
            assert head.startswith(b"HTTP/1.1 504 ")
            assert b"edgeguard-reason: upstream_unreachable\r\n" in head
        await running.idle()


async def test_a_client_that_leaves_while_the_way_is_opened(start_door, upstream):
    async with start_door() as running:
        running.guard.allow("good.test", upstream.port)
        running.resolver.delay_s = 30
        async with running.client() as client:
            client.send(f"CONNECT good.test:{upstream.port} HTTP/1.0\r\n\r\n".encode())
            await asyncio.sleep(0.05)
        await running.idle()
        assert upstream.connections == 0
        assert [verdict.host for verdict in running.guard.forgone] == ["good.test"], "it is on record"


async def test_an_idle_tunnel_is_closed_and_a_busy_one_is_not(start_door, upstream):
    async with start_door(idle_s=0.4) as running:
        running.guard.allow("good.test", upstream.port)
        hello = client_hello("good.test")
        async with running.client() as quiet, running.client() as busy:
            for client in (quiet, busy):
                await client.connect(f"good.test:{upstream.port}")
                client.send(hello)
                await client.exactly(len(hello))
            for _ in range(8):
                await asyncio.sleep(0.1)
                busy.send(b"tick")
                assert await busy.exactly(4) == b"tick"
            assert await quiet.rest() == b""
            busy.send(b"tick")
            assert await busy.exactly(4) == b"tick"
        await running.idle()
        assert max(entry[3] for entry in running.guard.finished) == "idle"


async def test_a_policy_change_closes_what_it_no_longer_allows(running, upstream):
    """attack-C11"""
    running.guard.allow("good.test", upstream.port)
    running.guard.allow("other.test", upstream.port)
    async with running.client() as one, running.client() as two, running.client() as opening:
        for client, name in ((one, "good.test"), (two, "other.test")):
            hello = client_hello(name)
            await client.connect(f"{name}:{upstream.port}")
            client.send(hello)
            await client.exactly(len(hello))
        assert await opening.connect(f"good.test:{upstream.port}") == OK
        del running.guard.allowed["good.test", upstream.port, "tls"]
        running.guard.changed()
        assert await one.rest() == b""
        await opening.rest()
        two.send(b"still here")
        assert await two.exactly(10) == b"still here"
    await running.idle()
    assert ("host_not_allowed") in [entry[3] for entry in running.guard.finished]


async def test_a_policy_that_now_wants_to_inspect_closes_the_tunnel(running, upstream):
    running.guard.allow("good.test", upstream.port)
    hello = client_hello("good.test")
    async with running.client() as client:
        await client.connect(f"good.test:{upstream.port}")
        client.send(hello)
        await client.exactly(len(hello))
        running.guard.allow("good.test", upstream.port, lane=Lane.INSPECT)
        running.guard.changed()
        assert await client.rest() == b""
    await running.idle()


async def test_a_change_during_resolving_is_judged_again(running, upstream):
    running.guard.allow("good.test", upstream.port)
    running.resolver.delay_s = 0.1
    async with running.client() as client:
        client.send(f"CONNECT good.test:{upstream.port} HTTP/1.0\r\n\r\n".encode())
        await asyncio.sleep(0.03)
        running.guard.allowed.clear()
        running.guard.changed()
        assert (await client.head()).startswith(b"HTTP/1.1 403 ")
    assert upstream.connections == 0
    await running.idle()


async def test_a_tunnel_is_judged_again_when_time_alone_may_change_the_verdict(running, upstream):
    running.guard.allow("good.test", upstream.port)
    running.guard.until = 999.0  # in the past of the fixture's clock
    hello = client_hello("good.test")
    async with running.client() as client:
        await client.connect(f"good.test:{upstream.port}")
        client.send(hello)
        await client.exactly(len(hello))
        running.guard.allowed.clear()
        assert await client.rest() == b""
    await running.idle()


@pytest.mark.parametrize("where", ["identify", "judge", "admit", "settle"])
async def test_a_guard_that_raises_lets_nobody_through(running, upstream, where):
    running.guard.allow("good.test", upstream.port)
    running.guard.raise_in = {where}
    async with running.client() as client:
        assert not (await client.connect(f"good.test:{upstream.port}")).startswith(b"HTTP/1.1 200")
    assert upstream.connections == 0
    running.guard.raise_in = set()
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK


async def test_a_refusal_is_delivered_while_the_client_is_still_sending(running):
    """attack-S15"""
    async with running.client() as client:
        client.send(b"CONNECT evil.test:443 HTTP/1.0\r\n\r\n")
        for _ in range(50):
            client.send(b"x" * 65536)
            await asyncio.sleep(0)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 403 ")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert len(await client.exactly(length)) == length
    await running.idle()


async def test_a_refused_client_that_does_not_leave_is_cut_off(start_door):
    async with start_door(drain_s=0.2) as running, running.client() as client:
        client.send(b"CONNECT evil.test:443 HTTP/1.0\r\n\r\n")
        await client.rest()
        await running.idle()


async def test_a_door_that_stops_lets_open_tunnels_finish_until_its_deadline(start_door, upstream):
    async with start_door(drain_s=0.4) as running:
        running.guard.allow("good.test", upstream.port)
        hello = client_hello("good.test")
        async with running.client() as client, running.client() as silent:
            await client.connect(f"good.test:{upstream.port}")
            client.send(hello)
            await client.exactly(len(hello))
            await running.instance.stop()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", running.port)
            client.send(b"still here")
            assert await client.exactly(10) == b"still here"
            assert running.servers.working == 2
            assert await client.rest() == b""
            assert await silent.rest() == b""
        await running.idle()
        assert running.door.closed
        assert [entry[3] for entry in running.guard.finished] == ["shutdown"]


async def test_everything_can_be_ended_at_once(start_door, upstream):
    async with start_door(drain_s=30) as running:
        running.guard.allow("good.test", upstream.port)
        async with running.client() as client:
            await client.connect(f"good.test:{upstream.port}")
            running.servers.close_all()
            assert await client.rest() == b""
        await running.idle()
        assert running.servers.working == 0


async def test_several_addresses_are_raced(start_door, upstream):
    async with start_door(dialer=Dialer(head_start_s=0.05)) as running:
        running.resolver.table["good.test"] = ("127.0.0.3", "127.0.0.1")
        running.guard.allow("good.test", upstream.port)
        async with running.client() as client:
            assert await client.connect(f"good.test:{upstream.port}") == OK
        await running.idle()


@pytest.fixture
def silent():
    """A port whose connections are never completed: its queue of waiting ones is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_a_connection_that_does_not_come_about_meets_the_dial_deadline(start_door, silent):
    async with start_door(dial_s=0.2) as running:
        running.guard.allow("good.test", silent)
        async with running.client() as client:
            head = await client.connect(f"good.test:{silent}")
            assert head.startswith(b"HTTP/1.1 504 ")
        await running.idle()
        assert running.guard.refusals == [Reason.UPSTREAM_UNREACHABLE]


async def test_a_client_that_leaves_while_the_upstream_is_dialled(running, silent):
    running.guard.allow("good.test", silent)
    async with running.client() as client:
        client.send(f"CONNECT good.test:{silent} HTTP/1.0\r\n\r\n".encode())
        await asyncio.sleep(0.05)
        assert running.door.held == 1
    await running.idle()
    assert [entry[3] for entry in running.guard.finished] == ["client_lost"]


async def test_a_policy_change_while_the_upstream_is_dialled(running, silent):
    running.guard.allow("good.test", silent)
    async with running.client() as client:
        client.send(f"CONNECT good.test:{silent} HTTP/1.0\r\n\r\n".encode())
        await asyncio.sleep(0.05)
        running.guard.allowed.clear()
        running.guard.changed()
        assert (await client.head()).startswith(b"HTTP/1.1 403 ")
    await running.idle()


async def test_a_connection_made_in_the_moment_in_which_the_client_leaves_is_closed(running, upstream):
    running.guard.allow("good.test", upstream.port)
    for _ in range(20):
        async with running.client() as client:
            client.send(f"CONNECT good.test:{upstream.port} HTTP/1.0\r\n\r\n".encode())
            await asyncio.sleep(0)
            client.writer.transport.abort()
    await running.idle()


@pytest.mark.parametrize("data", [b"PING\r\n", b"\x00\x01\x02"], ids=["text", "binary"])
async def test_raw_bytes_are_relayed_where_tls_would_be_inspected(running, upstream, data):
    running.guard.allow("good.test", upstream.port, "tls", Lane.INSPECT)
    running.guard.allow("good.test", upstream.port, "tcp")
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        assert upstream.connections == 0, "the other lane dials when it is needed"
        for byte in data:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.exactly(len(data)) == data
        client.send(b"more")
        assert await client.exactly(4) == b"more"
    await running.idle()
    assert next(entry[3] for entry in running.guard.finished) == "protocol_changed"
    assert upstream.connections == 1


async def test_raw_bytes_for_an_upstream_that_is_not_there(running):
    dead = free_port()
    running.guard.allow("good.test", dead, "tls", Lane.INSPECT)
    running.guard.allow("good.test", dead, "tcp")
    async with running.client() as client:
        assert await client.connect(f"good.test:{dead}") == OK
        client.send(b"\x00\x01\x02")
        assert await client.rest() == b""
    await running.idle()
    assert running.guard.refusals == [Reason.UPSTREAM_UNREACHABLE]


async def test_a_client_that_leaves_while_its_raw_bytes_wait_for_the_upstream(running, silent):
    running.guard.allow("good.test", silent, "tls", Lane.INSPECT)
    running.guard.allow("good.test", silent, "tcp")
    async with running.client() as client:
        assert await client.connect(f"good.test:{silent}") == OK
        client.send(b"\x00\x01\x02")
        await asyncio.sleep(0.05)
        client.send(b"\x03")
        await asyncio.sleep(0.05)
    await running.idle()


async def test_much_that_a_client_says_while_its_raw_bytes_wait_for_the_upstream(running, upstream):
    running.guard.allow("good.test", upstream.port, "tls", Lane.INSPECT)
    running.guard.allow("good.test", upstream.port, "tcp")
    size = 2_000_000
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(bytes(size))
        assert await client.exactly(size) == bytes(size)
    await running.idle()


async def test_trouble_with_one_deadline_keeps_no_other_from_striking(start_door, upstream, monkeypatch):
    async with start_door(hello_s=0.2) as running:
        running.guard.allow("good.test", upstream.port)

        def broken(*_, **__):
            raise RuntimeError("told to raise")

        monkeypatch.setattr(running.guard, "finish", broken)
        async with running.client() as one, running.client() as two:
            for client in (one, two):
                assert await client.connect(f"good.test:{upstream.port}") == OK
            assert [await client.rest() for client in (one, two)] == [b"", b""]


async def test_bytes_that_cannot_be_charged_do_not_go_on(running, upstream):
    running.guard.allow("good.test", upstream.port)
    running.guard.limits = (LimitHit("b", "k", "bytes", 10, 10, 10, "process", True),)
    async with running.client() as client:
        assert await client.connect(f"good.test:{upstream.port}") == OK
        client.send(client_hello("good.test"))
        await client.rest()  # the double has no `spend`, so asking for it raises
    await running.idle()
    assert running.guard.finished[-1][3] == "rate_limited"


async def test_unknown_clients_of_one_network_share_their_places(start_door):
    async with start_door(tunnels_per_client=1) as running:
        take = running.door.take
        assert take(Client(address="2001:db8::1")) is not None
        assert take(Client(address="2001:db8::2")) is None
        assert take(Client(address="2001:db8:0:1::1")) is not None
        assert take(Client("2001:db8::2", identified=True)) is not None
