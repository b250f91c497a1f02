"""A parent proxy: what it is told, where it may stand, and what its failures become."""

import asyncio
import contextlib
import logging
import re
import socket
import time
from pathlib import Path

import pytest

from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.proxy.dial import Dialer, DialError
from edgeguard.proxy.parent import ParentDialer, ParentError
from edgeguard.settings import ParentProxy
from tests.fakes import RecordingResolver, Upstream, client_hello, server_context
from tests.ports import free_port
from tests.proxy.test_frontdoor_handover import REQUEST, Watch, answer, tls_client

CONTEXT = {"base": Path("/"), "environ": {"CREDENTIALS": "user:pass"}}
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Parent(Upstream):
    """A recording parent on 127.0.0.1. Relays to the port of the CONNECT, at `to`; or replies and hangs up.

    Attributes:
        heads: Every request head, as lines.
        reply: What it answers instead of relaying.
        status: What it opens a tunnel with.
        delay_s: How long it thinks first.
    """

    def __init__(self, *, tls=None):
        super().__init__(self._speak, tls=tls)
        self.heads = []
        self.reply = None
        self.status = OPEN
        self.delay_s = 0.0

    @property
    def targets(self):
        return [head[0] for head in self.heads]

    async def _speak(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode().split("\r\n")[:-2])
        await asyncio.sleep(self.delay_s)
        if self.reply is not None:
            writer.write(self.reply)
            await writer.drain()
            return
        host, _, port = self.targets[-1].split()[1].rpartition(":")
        there, back = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(self.status)

        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
            with contextlib.suppress(OSError, NotImplementedError):
                sink.write_eof()

        await asyncio.gather(pump(reader, back), pump(there, writer))
        back.close()


@pytest.fixture
async def parent():
    async with Parent() as parent:
        yield parent


def dialer(parent, names=None, **settings):
    given = {"address": f"127.0.0.1:{parent.port}", "allow_internal": True, **settings}
    names = names or RecordingResolver({"parent.test": ["127.0.0.1"]})
    return ParentDialer(ParentProxy.model_validate(given, context=CONTEXT), names.resolve, attempt_s=0.3)


class Heard(asyncio.Protocol):
    def __init__(self):
        self.data = b""
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data

    def connection_lost(self, exc):
        self.lost.set_result(exc)


# Where the parent may stand


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "[::1]", "[fd00::1]", "100.64.0.1"])
def test_an_internal_parent_has_to_be_said(address):
    """attack-C20"""
    with pytest.raises(ValueError, match="set allow_internal = true"):
        ParentProxy(address=f"{address}:3128")
    assert ParentProxy(address=f"{address}:3128", allow_internal=True).port == 3128


@pytest.mark.parametrize("address", ["169.254.169.254", "[fd00:ec2::254]", "0.0.0.0", "224.0.0.1", "[::]"])
def test_some_addresses_are_no_parents_at_all(address):
    with pytest.raises(ValueError, match="no address of a proxy"):
        ParentProxy(address=f"{address}:80", allow_internal=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_proxy": ("a.test",)}, "needs address"),
        ({"address": "parent.test"}, "port is missing"),
        ({"address": "socks5://parent.test:1080"}, "no scheme of a proxy"),
        ({"address": "http://user:pw@parent.test:3128"}, "write it like"),
        ({"address": "http://parent.test:3128/path"}, "write it like"),
        ({"address": "parent.test:3128", "ca_file": Path("ca.pem")}, "speaks TLS"),
        ({"address": "parent.test:3128", "no_proxy": ("a b",)}, "not a host name"),
    ],
)
def test_what_cannot_be_a_parent(settings, message):
    with pytest.raises(ValueError, match=message):
        ParentProxy.model_validate(settings)


async def test_attack_C20_the_parents_name_is_checked_whenever_it_resolves(parent):
    names = RecordingResolver({"parent.test": ["127.0.0.1"]})
    through = dialer(parent, names, address=f"parent.test:{parent.port}", allow_internal=False)
    with pytest.raises(ParentError, match="not public"):
        await through.check()
    with pytest.raises(DialError, match="allow_internal"):
        await through.dial(Heard, ["93.184.216.34"], 443)
    assert parent.connections == 0
    names.table["parent.test"] = ("93.184.216.34",)
    await through.check()
    names.table.clear()
    await through.check()  # resolves one day


async def test_a_parent_that_is_this_very_proxy_is_not_asked(parent):
    through = dialer(parent)
    through.forbid("127.0.0.1", parent.port)
    with pytest.raises(DialError):
        await through.dial(Heard, ["93.184.216.34"], 443)
    assert parent.connections == 0


# What it is told


async def test_attack_C19_the_address_and_never_the_name(start_door, upstream, parent):
    async with start_door(dialer=dialer(parent, credentials={"env": "CREDENTIALS"})) as running:
        running.guard.allow("good.test", upstream.port)
        async with running.client() as client:
            extra = ("X-Upstream-Https-Proxy: http://evil.test:3128", "Proxy-Authorization: Basic Zm9v")
            running.guard.credentials["Basic Zm9v"] = running.guard.client
            head = await client.connect(f"good.test:{upstream.port}", *extra)
            assert head.startswith(b"HTTP/1.1 200 ")
            hello = client_hello("good.test")
            client.send(hello)
            assert await client.exactly(len(hello)) == hello
        await running.idle()
    assert parent.heads == [
        [
            f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1",
            f"Host: 127.0.0.1:{upstream.port}",
            "Proxy-Authorization: Basic dXNlcjpwYXNz",
        ]
    ]


async def test_a_target_of_the_sixth_version_has_brackets(parent):
    parent.reply = b"HTTP/1.1 502 no\r\n\r\n"
    with pytest.raises(DialError):
        await dialer(parent).dial(Heard, ["2606:4700::1111"], 443)
    assert parent.targets == ["CONNECT [2606:4700::1111]:443 HTTP/1.1"]


async def test_the_inspected_lane_goes_through_it_too(start_door, parent, tmp_path):
    watch = Watch()
    async with (
        Upstream(answer, tls=server_context(tmp_path, "good.test")) as https,
        start_door(addons=(watch,), dialer=dialer(parent)) as running,
    ):
        watch.passages = running.passages
        running.guard.allow("good.test", https.port, lane=Lane.INSPECT)
        _, writer = streams = await tls_client(running, f"good.test:{https.port}", "good.test")
        writer.write(REQUEST)
        assert (await streams[0].read()).endswith(b"hi")
        writer.transport.abort()
        await running.idle()
        assert parent.targets == [f"CONNECT 127.0.0.1:{https.port} HTTP/1.1"]
        assert watch.seen[0][-1] is True


@pytest.mark.parametrize("how", ["refuses", "hangs", "is gone"])
async def test_a_parent_that_fails_in_the_inspected_lane(start_door, parent, how):
    """The engine dials when the client is in the tunnel already: what it then says names no parent."""
    watch = Watch()
    parent.reply = b"HTTP/1.1 503 no\r\n\r\n"
    parent.delay_s = 30.0 if how == "hangs" else 0.0
    through = dialer(parent, address=f"127.0.0.1:{free_port()}") if how == "is gone" else dialer(parent)
    async with start_door(addons=(watch,), dialer=through) as running:
        watch.passages = running.passages
        running.guard.allow("good.test", 443, lane=Lane.INSPECT)
        _, writer = streams = await tls_client(running, "good.test:443", "good.test")
        writer.write(REQUEST)
        if how != "hangs":
            async with asyncio.timeout(5):
                assert (await streams[0].read()).startswith(b"HTTP/1.1 502 ")
        else:
            while not parent.heads:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        writer.transport.abort()
        await running.idle()
        assert watch.seen


async def test_the_gate_holds_before_the_parent(start_door, parent, tmp_path):
    class Shut(Watch):
        def server_connect(self, data):
            data.server.error = "not granted"

    async with start_door(addons=(Shut(),), dialer=dialer(parent)) as running:
        running.guard.allow("good.test", 443, lane=Lane.INSPECT)
        _, writer = streams = await tls_client(running, "good.test:443", "good.test")
        writer.write(REQUEST)
        await streams[0].read()
        writer.transport.abort()
        await running.idle()
    assert parent.connections == 0


async def test_what_is_refused_here_never_reaches_it(start_door, parent):
    async with start_door(dialer=dialer(parent)) as running:
        running.guard.allow("good.test", 443)
        running.guard.refused_addresses = {"127.0.0.1"}
        async with running.client() as client:
            assert (await client.connect("good.test:443")).startswith(b"HTTP/1.1 403 ")
        async with running.client() as client:
            assert (await client.connect("evil.test:443")).startswith(b"HTTP/1.1 403 ")
        await running.idle()
    assert parent.connections == 0


@pytest.mark.parametrize("near", ["good.test", "**.good.test", "*.test", "127.0.0.0/8", "127.0.0.1"])
async def test_what_is_near_is_dialled_directly(start_door, upstream, parent, near):
    async with start_door(dialer=dialer(parent, no_proxy=(near,))) as running:
        running.guard.allow("good.test", upstream.port)
        async with running.client() as client:
            assert (await client.connect(f"good.test:{upstream.port}")).startswith(b"HTTP/1.1 200 ")
        await running.idle()
    assert parent.connections == 0
    assert upstream.connections == 1


@pytest.mark.parametrize("near", ["*.good.test", "xgood.test", "od.test", "10.0.0.0/8"])
async def test_what_only_looks_near_is_not(parent, near):
    through = dialer(parent, no_proxy=(near,))
    assert through.towards("good.test") is through
    parent.reply = b"HTTP/1.1 503 no\r\n\r\n"
    with pytest.raises(DialError, match="503"):
        await through.dial(Heard, ["127.0.0.1"], 9)


# What it answers


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nX: y\r\n\r\nno", "answered 403 to CONNECT .* does it allow addresses"),
        (b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\n\r\n", "answered 407 .*other credentials"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "answered 502"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "answered 101"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP/1"),
        (b"ICY 200 OK\r\n\r\n", "not HTTP/1"),
        (b"\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 200 OK\nX: y\n\n", "hung up without an answer"),
        (b"HTTP/1.1 200 OK\r\n", "hung up without an answer"),
        (b"", "hung up without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "too large"),
        (b"x" * 20_000, "too large"),
    ],
    ids=lambda value: repr(value[:16]) if isinstance(value, bytes) else "",
)
async def test_a_parent_that_does_not_open_the_tunnel(start_door, parent, caplog, reply, said):
    parent.reply = reply
    caplog.set_level(logging.WARNING, "edgeguard.proxy.parent")
    async with start_door(dialer=dialer(parent)) as running:
        running.guard.allow("good.test", 443)
        for _ in range(2):
            async with running.client() as client:
                head = await client.connect("good.test:443")
                assert head.startswith(b"HTTP/1.1 502 ")
                assert b"edgeguard-reason: upstream_unreachable" in head
                assert b"evil" not in head + await client.rest()
        await running.idle()
    assert running.guard.refusals == [Reason.UPSTREAM_UNREACHABLE] * 2
    (record,) = caplog.records  # once for both
    assert re.search(said, record.getMessage())


async def test_a_parent_that_is_not_there(start_door, parent, caplog):
    gone = dialer(parent, address=f"127.0.0.1:{free_port()}")
    async with start_door(dialer=gone) as running:
        running.guard.allow("good.test", 443)
        async with running.client() as client:
            assert (await client.connect("good.test:443")).startswith(b"HTTP/1.1 502 ")
        await running.idle()
    assert "the parent proxy cannot be reached" in caplog.text


@pytest.mark.parametrize("lane", [Lane.TUNNEL, Lane.INSPECT])
async def test_a_parent_that_takes_its_time_is_held_to_the_deadline(start_door, parent, lane):
    parent.delay_s = 30.0
    async with start_door(dialer=dialer(parent), dial_s=0.2) as running:
        running.resolver.table["good.test"] = ("127.0.0.1", "127.0.0.2")
        running.guard.allow("good.test", 443, lane=lane)
        before = time.monotonic()
        async with running.client() as client:
            head = await client.connect("good.test:443")
            assert b"edgeguard-reason: upstream_unreachable" in head
        assert time.monotonic() - before < 3
        await running.idle()


async def test_the_next_address_when_the_parent_cannot_reach_the_first(upstream, parent):
    closed = free_port()
    with socket.create_server(("127.0.0.2", closed)):
        _, protocol, address = await dialer(parent).dial(Heard, ["127.0.0.1", "127.0.0.2"], closed)
        assert address == "127.0.0.2"
        assert len(parent.targets) == 2
        protocol.transport.abort()


async def test_a_parent_that_wants_credentials_is_asked_once_only(parent):
    parent.reply = b"HTTP/1.1 407 no\r\n\r\n"
    with pytest.raises(ParentError):
        await dialer(parent).dial(Heard, ["127.0.0.1", "127.0.0.2"], 443)
    assert len(parent.targets) == 1


async def test_bytes_after_the_answer_are_the_upstreams(parent):
    parent.status = OPEN + b"220 mail"

    async def greet(reader, writer):
        writer.write(b".test ready\r\n")
        await reader.read()

    async with Upstream(greet) as server:
        _, protocol, address = await dialer(parent).dial(Heard, ["127.0.0.1"], server.port)
        assert address == "127.0.0.1"
        while len(protocol.data) < 21:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        assert protocol.data == b"220 mail.test ready\r\n"
        protocol.transport.abort()
        await protocol.lost


async def test_a_tunnel_whose_server_speaks_first(start_door, parent):
    async def greet(reader, writer):
        writer.write(b"SSH-2.0-x\r\n")
        assert await reader.read() == b"SSH-2.0-me\r\n"
        writer.write(b"bye")

    async with Upstream(greet) as server, start_door(dialer=dialer(parent)) as running:
        running.guard.allow("good.test", server.port, protocol="tcp")
        async with running.client() as client:
            assert (await client.connect(f"good.test:{server.port}")).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(11) == b"SSH-2.0-x\r\n"
            client.send(b"SSH-2.0-me\r\n")
            client.writer.write_eof()
            assert await client.rest() == b"bye"
        await running.idle()


async def test_an_answer_and_then_the_end(start_door, parent):
    parent.reply = OPEN
    async with start_door(dialer=dialer(parent)) as running:
        running.guard.allow("good.test", 443)
        async with running.client() as client:
            await client.connect("good.test:443")
            await client.rest()
        await running.idle()


async def test_who_leaves_takes_the_connection_to_the_parent_along(start_door, parent):
    parent.delay_s = 30.0
    async with start_door(dialer=dialer(parent)) as running:
        running.guard.allow("good.test", 443)
        async with running.client() as client:
            client.send(b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n")
            while not parent.heads:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await running.idle()


# TLS to the parent


@pytest.mark.parametrize("lane", [Lane.TUNNEL, Lane.INSPECT])
async def test_a_parent_that_speaks_tls(start_door, tmp_path, lane):
    context = server_context(tmp_path, "parent.test")
    (tmp_path / "ca.pem").rename(tmp_path / "parent-ca.pem")
    watch = Watch()
    async with (
        Parent(tls=context) as parent,
        Upstream(answer, tls=server_context(tmp_path, "good.test")) as https,
    ):
        through = dialer(
            parent, address=f"https://parent.test:{parent.port}", ca_file=tmp_path / "parent-ca.pem"
        )
        async with start_door(dialer=through, addons=(watch,)) as running:
            watch.passages = running.passages
            running.guard.allow("good.test", https.port, lane=lane)
            _, writer = streams = await tls_client(running, f"good.test:{https.port}", "good.test")
            writer.write(REQUEST)
            assert (await streams[0].readuntil(b"hi")).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()
            await running.idle()
        assert parent.targets == [f"CONNECT 127.0.0.1:{https.port} HTTP/1.1"]


@pytest.mark.parametrize("wrong", ["authority", "name", "no-tls"])
async def test_a_parent_that_cannot_be_trusted(tmp_path, caplog, wrong):
    context = server_context(tmp_path, "other.test" if wrong == "name" else "parent.test")
    trusted = None if wrong == "authority" else tmp_path / "ca.pem"
    async with Upstream() if wrong == "no-tls" else Parent(tls=context) as parent:
        through = dialer(parent, address=f"https://parent.test:{parent.port}", ca_file=trusted)
        with pytest.raises(ParentError, match="TLS to the parent proxy failed"):
            async with asyncio.timeout(5):
                await through.dial(Heard, ["127.0.0.1"], 443)
        assert b"CONNECT" not in parent.received
        assert not getattr(parent, "heads", None)


async def test_without_a_parent_nothing_changes():
    direct = Dialer()
    assert direct.towards("any.test") is direct
    assert direct.at_once
