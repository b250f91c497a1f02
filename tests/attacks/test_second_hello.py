"""A tunnel's handshake must not go on with another name: real TLS 1.3, real retry (RFC 8446, 4.1.4)."""

import asyncio
import contextlib
import ssl
import time

import pytest
from OpenSSL import SSL

from edgeguard.proxy.clienthello import HelloError
from edgeguard.proxy.retry import HELD_BYTES, RETRY_RANDOM, HelloWatch, asks_again, first_hello
from tests.fakes import client_hello

RULE = 'rules:\n  - {{id: good, effect: allow, to: ["good.test:{port}"], resolves_to: [127.0.0.0/8], rationale: r}}\n'
PLAIN = (
    '  - {{id: plain, effect: allow, to: ["good.test:{http}"], protocol: http, resolves_to: [127.0.0.0/8],'
    " rationale: r}}\n"
)


class Client:
    """TLS by hand, so that the name can be changed between the two hellos."""

    def __init__(self, first: str, second: str) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.tls.set_tlsext_host_name(first.encode())
        self.second = second

    async def shake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the handshake came to its end."""
        while True:
            with contextlib.suppress(SSL.WantReadError):
                self.tls.do_handshake()
                writer.write(self.tls.bio_read(65536))
                return True
            with contextlib.suppress(SSL.WantReadError):
                writer.write(self.tls.bio_read(65536))
            self.tls.set_tlsext_host_name(self.second.encode())
            try:
                data = await asyncio.wait_for(reader.read(65536), 5)
            except ConnectionResetError:
                data = b""
            if not data:
                return False
            self.tls.bio_write(data)


@pytest.fixture
def tenants(rig):
    """A server of several names that asks for another key share, and notes every name that it is asked for."""
    asked: list[str] = []

    async def start():
        server = await rig.upstream("good.test")
        other = rig.certificates.server("evil.test")
        server.context.set_ecdh_curve("secp384r1")

        def choose(tls: ssl.SSLObject, name: str, _: ssl.SSLContext) -> None:
            asked.append(name)
            if name == "evil.test":
                tls.context = other

        server.context.sni_callback = choose
        return server, asked

    return start


async def connected(rig, server, *, after: int | None):
    """A tunnel to good.test; `after` is the port of a plain server to be asked on the same connection before."""
    reader, writer = await rig.connect()
    if after is not None:
        writer.write(f"GET http://good.test:{after}/ HTTP/1.1\r\nHost: good.test:{after}\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 5)).startswith(b"HTTP/1.1 200")
    writer.write(
        f"CONNECT good.test:{server.port} HTTP/1.1\r\nHost: good.test:{server.port}\r\n\r\n".encode()
    )
    assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    return reader, writer


@pytest.mark.parametrize("door", ["edge", "regular"])
@pytest.mark.parametrize("engine", [False, True], ids=["first", "behind-a-request"])
@pytest.mark.parametrize("second", [pytest.param("evil.test", id="attack-A01-second-hello"), "good.test"])
async def test_the_second_hello_must_name_the_same(rig, tenants, engine, second):
    await rig.start()
    server, asked = await tenants()
    plain = await rig.upstream()
    rig.enforce((RULE + PLAIN).format(port=server.port, http=plain.port))
    reader, writer = await connected(rig, server, after=plain.port if engine else None)
    done = await Client("good.test", second).shake(reader, writer)
    assert done == (second == "good.test")
    assert asked == (["good.test", "good.test"] if done else ["good.test"])
    writer.transport.abort()
    await rig.idle()
    if not done:
        assert "misdirected_request" in {str(r.why or r.reason) for r in rig.records}


async def test_a_second_hello_that_does_not_wait_for_the_answer(rig, tenants):
    """attack-A01"""
    await rig.start()
    server, asked = await tenants()
    rig.enforce(RULE.format(port=server.port))
    reader, writer = await connected(rig, server, after=None)
    writer.write(client_hello("good.test") + b"\x14\x03\x03\x00\x01\x01" + client_hello("evil.test"))
    while await asyncio.wait_for(reader.read(65536), 5):
        pass
    assert asked == ["good.test"]
    await rig.idle()


def server_hello(random: bytes) -> bytes:
    body = b"\x02\x00\x00\x26\x03\x03" + random + b"\0" * 4
    return b"\x16\x03\x03" + len(body).to_bytes(2) + body


RETRY = server_hello(RETRY_RANDOM)
HELLO = server_hello(b"r" * 32)
GOOD, EVIL = client_hello("good.test"), client_hello("evil.test")


@pytest.mark.parametrize(
    ("answer", "asks"),
    [
        (RETRY, True),
        (HELLO, False),
        (b"\x15\x03\x03\x00\x02\x01\x70" + RETRY, True),
        (b"".join(b"\x16\x03\x03\x00\x01" + RETRY[i : i + 1] for i in range(5, len(RETRY))), True),
        (b"HTTP/1.1 400 Bad Request\r\n", False),
        (b"\x15\x03\x03\x00\x02\x02\x28", None),
        (b"\x16\x03\x03\x00\x04\x0b\x00\x00\x00", False),
    ],
)
def test_what_asks_again_however_it_is_cut(answer, asks):
    said = [asks_again(answer[:edge]) for edge in range(len(answer) + 1)]
    assert said[-1] is asks
    assert set(said) <= {None, asks}


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("between", [b"", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x02ab" * 3])
def test_a_same_name_goes_on_byte_for_byte(step, between):
    watch = HelloWatch("good.test", 16_384)
    assert watch.server(RETRY) == b""
    sent = between + GOOD
    out = b"".join(watch.client(sent[i : i + step]) for i in range(0, len(sent), step))
    assert (out, watch.done) == (sent, True)
    assert watch.client(b"more") == b"more"


@pytest.mark.parametrize("early", [True, False], ids=["before-the-answer", "after-it"])
@pytest.mark.parametrize(
    "second", [EVIL, client_hello(), GOOD[:43] + b"\xff" + GOOD[44:], b"\x15\x03\x03\x00\x02\x01\x00"]
)
def test_another_name_or_none_or_noise_is_refused(second, early):
    watch = HelloWatch("good.test", 16_384)
    first, then = (watch.client, watch.server) if early else (watch.server, watch.client)
    said = (second, RETRY) if early else (RETRY, second)
    assert first(said[0]) == b""
    with pytest.raises(HelloError):
        then(said[1])
    assert not watch.done


def test_without_a_retry_everything_goes_on_untouched():
    watch = HelloWatch("good.test", 16_384)
    assert watch.client(EVIL) == b""
    assert watch.server(HELLO) == EVIL
    assert watch.done


def test_what_waits_is_bounded():
    watch = HelloWatch("good.test", 16_384)
    with pytest.raises(HelloError):
        watch.client(b"x" * (HELD_BYTES + 1))
    watch = HelloWatch("good.test", 16_384)
    watch.server(RETRY)
    with pytest.raises(HelloError):
        watch.client((b"\x17\x03\x03\x40\x00" + b"x" * 16_384) * 5)


@pytest.mark.parametrize(
    "record",
    [b"\x15\x03\x03\x40\x00" + bytes(16_384), b"\x15\x03\x03\x00\x00", b"\x16\x03\x03\x00\x00"],
    ids=["large", "empty-alerts", "empty-messages"],
)
def test_a_server_that_never_says_hello_is_not_listened_to_for_ever(record):
    watch = HelloWatch("good.test", 16_384)
    with pytest.raises(HelloError):
        b"".join(map(watch.server, [record] * 100))


def test_empty_records_before_a_second_hello_are_read_once():
    watch = HelloWatch("good.test", 16_384)
    watch.server(RETRY)
    record = b"\x17\x03\x03\x00\x00"
    began = time.process_time()
    for _ in range(HELD_BYTES // len(record)):
        watch.client(record)
    assert time.process_time() - began < 1.0
    assert watch.client(GOOD).endswith(GOOD)


def test_where_a_hello_ends():
    assert first_hello(GOOD + b"rest") == len(GOOD)
    body = GOOD[5:]
    cut = b"".join(b"\x16\x03\x01\x00\x03" + body[i : i + 3] for i in range(0, len(body) - 3, 3))
    rest = body[len(body) - len(body) % 3 :] if len(body) % 3 else body[-3:]
    cut += b"\x16\x03\x01" + len(rest).to_bytes(2) + rest
    assert first_hello(cut + b"rest") == len(cut)
