"""Requests to the explicit proxy, outside of tunnels."""

import asyncio
import json

import pytest

from edgeguard.policy.decision import Decision
from edgeguard.policy.reasons import Reason


@pytest.fixture(params=["regular", "edge"])
def door(request) -> str:
    """The addon alone, and behind the front door."""
    return request.param


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


def reason(reply: bytes) -> str | None:
    for line in reply.split(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(b"edgeguard-reason:"):
            return line.split(b":")[1].strip().decode()
    return None


def get(port: int, path: str = "/", host: str = "a.test", extra: str = "") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{extra}\r\n".encode()


async def test_an_allowed_request_goes_through_pinned(lane):
    await lane.start()
    up = await lane.upstream()
    reply = await lane.exchange(get(up.port, "/x?y=1"))
    assert status(reply) == 200
    assert up.heads[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    assert f"Host: a.test:{up.port}\r\n".encode() in up.heads[0]
    assert lane.names.asked == ["a.test"]
    facts = lane.guard.judged[0]
    assert (facts.host, facts.port, facts.protocol, facts.method, facts.target) == (
        "a.test",
        up.port,
        "http",
        "GET",
        "/x?y=1",
    )
    await asyncio.sleep(0.05)
    assert [(v.id, sent, got, why) for v, sent, got, why in lane.guard.finished] == [("d1", 0, 2, "done")]


async def test_keep_alive_reuses_one_pinned_connection(lane, respond):
    await lane.start()
    up = await lane.upstream()
    reader, writer = await lane.connect()
    for _ in range(5):
        writer.write(get(up.port))
        assert status(await respond(reader)) == 200
    assert up.connections == 1
    assert len(lane.guard.settled) == 5


async def test_a_refusal_resolves_and_dials_nothing(lane):
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: Decision(allow=False, reason=Reason.HOST_NOT_ALLOWED)
    reply = await lane.exchange(get(up.port))
    assert status(reply) == 403
    assert reason(reply) == "host_not_allowed"
    assert json.loads(reply.split(b"\r\n\r\n")[1])["reason"] == "host_not_allowed"
    assert lane.names.asked == []
    assert up.connections == 0


async def test_too_many_header_fields_are_refused(lane):
    await lane.start()
    up = await lane.upstream()
    fields = b"".join(b"X-%d: y\r\n" % number for number in range(250))
    reply = await lane.exchange(get(up.port).replace(b"\r\n", b"\r\n" + fields, 1))
    assert status(reply) == 431
    assert reason(reply) == "request_too_large"
    assert up.connections == 0


async def test_a_refused_address_is_not_dialled(lane):
    await lane.start()
    up = await lane.upstream()
    lane.guard.bad_address = {"127.0.0.1"}
    reply = await lane.exchange(get(up.port))
    assert reason(reply) == "address_not_allowed"
    assert up.connections == 0


async def test_a_name_that_does_not_resolve(lane):
    await lane.start()
    reply = await lane.exchange(get(80, host="nowhere.example"))
    assert status(reply) == 502
    assert reason(reply) == "upstream_unreachable"


async def test_an_upstream_that_does_not_answer_leaks_nothing(lane):
    await lane.start()
    up = await lane.upstream()
    await up.stop()
    reply = await lane.exchange(get(up.port))
    assert status(reply) == 502
    assert reason(reply) == "upstream_unreachable"
    assert b"Errno" not in reply
    assert b"mitmproxy" not in reply.lower()
    assert lane.guard.refusals() == [Reason.UPSTREAM_UNREACHABLE]


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        pytest.param(b"GET http://a.test:%d/ HTTP/1.1\r\nHost: b.test\r\n\r\n", 421, id="attack-A09"),
        pytest.param(b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:1\r\n\r\n", 421, id="attack-A08"),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400, id="attack-A11"
        ),
        pytest.param(b"GET http://a.test:%d/ HTTP/1.1\r\n\r\n", 400, id="attack-A12"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", (400, 421), id="attack-C07"),
        pytest.param(b"GET https://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", 403, id="attack-C10"),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="attack-S01-cl-te",
        ),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nContent-Length: 3\r\n"
            b"Content-Length: 4\r\n\r\nabc",
            400,
            id="attack-S02-two",
        ),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nContent-Length: x\r\n\r\n",
            400,
            id="attack-S02-letters",
        ),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            400,
            id="attack-S03-identity",
        ),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nTransfer-Encoding: chunked\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            400,
            id="attack-S03-two",
        ),
        pytest.param(
            b"POST http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nTransfer_Encoding: chunked\r\n\r\n",
            400,
            id="attack-S03-alias",
        ),
        pytest.param(b"GET http://a.test:%d/ HTTP/1.1\nHost: a.test:%d\r\n\r\n", 400, id="attack-S04-lf"),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nX : y\r\n\r\n", 400, id="attack-S04-space"
        ),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nX: y\r\n z\r\n\r\n",
            400,
            id="attack-S04-fold",
        ),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nX: a\x00b\r\n\r\n",
            400,
            id="attack-S04-nul",
        ),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nContent-Length: 3\r\n\r\nabc",
            400,
            id="attack-S05-get",
        ),
        pytest.param(
            b"HEAD http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="attack-S05-head",
        ),
        pytest.param(
            b"TRACE http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", 403, id="attack-S11-trace"
        ),
        pytest.param(
            b"track http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", 403, id="attack-S11-track"
        ),
        pytest.param(
            b"GET http://a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\nConnection: host\r\n\r\n",
            400,
            id="attack-S06-host",
        ),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="h2-prior-knowledge"),
        pytest.param(b"GET http://x@a.test:%d/ HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", 400, id="userinfo"),
        pytest.param(
            b"connect a.test:%d HTTP/1.1\r\nHost: a.test:%d\r\n\r\n", (400, 421), id="lower-case-connect"
        ),
        pytest.param(b"\x16\x03\x01\x00\x01\x00", 0, id="tls-nonsense"),
    ],
)
async def test_what_is_refused_at_the_head(lane, request_bytes, expected):
    await lane.start()
    up = await lane.upstream()
    count = request_bytes.count(b"%d")
    reply = await lane.exchange(request_bytes % ((up.port,) * count) if count else request_bytes)
    assert b"mitmproxy" not in reply.lower()
    if expected:
        assert status(reply) in expected if isinstance(expected, tuple) else status(reply) == expected
        assert reason(reply) is not None
        assert len(lane.guard.settled) == 1
        assert lane.guard.finished == []
    assert up.connections == 0
    assert lane.names.asked == []


async def test_identical_authorities_in_other_spellings_are_one(lane):
    await lane.start()
    up = await lane.upstream()
    reply = await lane.exchange(
        f"GET http://A.Test.:{up.port}/ HTTP/1.1\r\nHost: a.TEST:{up.port}\r\n\r\n".encode()
    )
    assert status(reply) == 200
    assert f"Host: a.test:{up.port}\r\n".encode() in up.heads[0]


@pytest.mark.parametrize(
    "field",
    [
        pytest.param("Proxy-Authorization: Bearer good", id="attack-S06-credential"),
        pytest.param("Proxy_Authorization: Bearer good", id="attack-S06-folded"),
        pytest.param("PROXY.Authorization: Bearer good", id="attack-S06-dots"),
        pytest.param("Proxy-Connection: keep-alive", id="attack-S06-proxy-connection"),
        pytest.param("Keep.Alive: 5", id="attack-S06-keep-alive"),
        pytest.param("TE: trailers", id="attack-S06-te"),
        pytest.param("Connection: x-secret\r\nX-Secret: 1", id="attack-S06-listed"),
        pytest.param("Connection: x-secret\r\nX_Secret: 1", id="attack-S06-listed-alias"),
        pytest.param("edgeguard-user: token", id="attack-S07-user"),
        pytest.param("Edgeguard_User: token", id="attack-S07-user-alias"),
        pytest.param("edgeguard.user: token", id="attack-S07-user-dots"),
        pytest.param(
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQ",
            id="attack-S08",
        ),
        pytest.param("X-Original-URL: /admin", id="original-url"),
        pytest.param("X-Upstream-Https-Proxy: http://evil.test:3128", id="attack-C13"),
        pytest.param("x_upstream.https-proxy: not a proxy", id="attack-C13-alias"),
    ],
)
async def test_what_never_reaches_the_upstream(lane, field):
    await lane.start()
    up = await lane.upstream()
    assert status(await lane.exchange(get(up.port, extra=f"{field}\r\nX-Kept: 1\r\n"))) == 200
    head = up.heads[0].lower()
    for line in field.split("\r\n"):
        name = line.split(":")[0].lower().encode()
        assert name + b":" not in head
    assert b"x-kept: 1" in head
    assert b"token" not in head


async def test_tokens_and_overrides_are_facts(lane):
    await lane.start()
    up = await lane.upstream()
    extra = "edgeguard-user: t1\r\nEdgeguard-User: t2\r\nX_HTTP_Method_Override: DELETE\r\n"
    await lane.exchange(get(up.port, extra=extra))
    assert lane.guard.judged[0].tokens == ("t1", "t2")
    assert lane.guard.judged[0].overrides == ("DELETE",)


async def test_wrong_credentials_are_challenged(lane):
    await lane.start()
    up = await lane.upstream()
    reply = await lane.exchange(get(up.port, extra="Proxy-Authorization: Bearer bad\r\n"))
    assert status(reply) == 407
    assert b'Proxy-Authenticate: Basic realm="edgeguard"' in reply
    assert up.connections == 0


async def test_answers_are_cleaned(lane):
    await lane.start()
    up = await lane.upstream()
    up.answer = lambda head: (
        b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAlt-Svc: h3=":443"\r\nAlt_Svc: x\r\nKeep-Alive: 5\r\n'
        b"edgeguard-reason: forged\r\nX-Kept: 1\r\n\r\nok"
    )
    reply = await lane.exchange(get(up.port))
    assert b"alt" not in reply.lower()
    assert b"forged" not in reply
    assert b"X-Kept: 1" in reply


@pytest.mark.parametrize(
    "fields", [b"", b"Upgrade: h2c\r\n", b"Upgrade: websocket\r\n"], ids=lambda f: f"attack-S09-{f!r}"
)
async def test_an_unsolicited_101_is_refused(lane, fields):
    await lane.start()
    up = await lane.upstream()
    up.answer = lambda head: (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" + fields + b"\r\nraw"
    )
    reply = await lane.exchange(get(up.port))
    assert status(reply) == 502
    assert b"raw" not in reply


async def test_interim_answers_are_not_the_answer(lane):
    await lane.start()
    up = await lane.upstream()
    up.answer = lambda head: (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    assert status(await lane.exchange(get(up.port))) == 200


async def test_each_pipelined_request_is_judged(lane, respond):
    """attack-S10"""
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: (
        Decision(allow=True)
        if facts.target == "/ok"
        else Decision(allow=False, reason=Reason.PATH_NOT_ALLOWED)
    )
    reader, writer = await lane.connect()
    writer.write(get(up.port, "/ok") + get(up.port, "/no") + get(up.port, "/ok"))
    assert [status(await respond(reader)) for _ in range(3)] == [200, 403, 200]
    assert len(up.heads) == 2


async def test_a_refusal_while_the_body_uploads(lane):
    """attack-S15: the whole refusal arrives at once, the rest is drained, the proxy goes on."""
    await lane.start()
    up = await lane.upstream()
    lane.guard.decide = lambda facts: Decision(allow=False, reason=Reason.PATH_NOT_ALLOWED)
    reader, writer = await lane.connect()
    size = 32 * 1024 * 1024
    writer.write(
        f"POST http://a.test:{up.port}/ HTTP/1.1\r\nHost: a.test:{up.port}\r\nContent-Length: {size}\r\n"
        "Expect: 100-continue\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert status(head) == 403
    chunk = b"x" * 65536
    for _ in range(size // len(chunk)):
        writer.write(chunk)
        await writer.drain()
    rest = await asyncio.wait_for(reader.read(), 10)
    assert json.loads(rest)["reason"] == "path_not_allowed"
    assert up.connections == 0
    lane.guard.decide = lambda facts: Decision(allow=True)
    assert status(await lane.exchange(get(up.port))) == 200


async def test_bodies_are_streamed_and_counted(lane, respond):
    await lane.start()
    up = await lane.upstream()
    size = 8 * 1024 * 1024
    up.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size
    reader, writer = await lane.connect()
    writer.write(
        f"POST http://a.test:{up.port}/ HTTP/1.1\r\nHost: a.test:{up.port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 2
        + b"0\r\nX-Trailer: 1\r\n\r\n"
    )
    reply = await respond(reader)
    assert status(reply) == 200
    assert up.body_bytes == 2 * 0x100000
    await asyncio.sleep(0.05)
    _, sent, received, why = lane.guard.finished[0]
    assert (sent, received, why) == (2 * 0x100000, size, "done")


async def test_a_head_without_end_is_cut(lane):
    await lane.start()
    up = await lane.upstream()
    reply = await lane.exchange(b"GET http://a.test/ HTTP/1.1\r\nX: " + b"a" * 100_000)
    assert status(reply) == 431
    assert reason(reply) == "request_too_large"
    assert up.connections == 0


async def test_a_client_that_resets_ends_alone(lane, respond):
    """attack-S16"""
    await lane.start()
    up = await lane.upstream()
    other, other_writer = await lane.connect()
    _, writer = await lane.connect()
    writer.write(
        f"POST http://a.test:{up.port}/ HTTP/1.1\r\nHost: a.test:{up.port}\r\nContent-Length: 9\r\n\r\nab".encode()
    )
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    other_writer.write(get(up.port))
    assert status(await respond(other)) == 200
    assert len(lane.passages) == 1
    assert "client_closed" in [entry[3] for entry in lane.guard.finished]


async def test_a_browser_gets_a_page(lane):
    await lane.start()
    lane.guard.decide = lambda facts: Decision(allow=False, reason=Reason.HOST_NOT_ALLOWED)
    reply = await lane.exchange(get(80, extra="Accept: text/html\r\n"))
    assert b"<!doctype html>" in reply


async def test_head_gets_no_body(lane, respond):
    await lane.start()
    lane.guard.decide = lambda facts: Decision(allow=False, reason=Reason.HOST_NOT_ALLOWED)
    reader, writer = await lane.connect()
    writer.write(b"HEAD http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert status(head) == 403
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)


@pytest.mark.parametrize(
    "first",
    [
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
    ],
)
async def test_a_client_that_leaves_while_its_name_is_resolved(lane, first):
    await lane.start()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(host):
        asked.set()
        await answer.wait()
        return ("127.0.0.1",)

    lane.names.resolve = slow
    _, writer = await lane.connect()
    writer.write(first.encode())
    await asyncio.wait_for(asked.wait(), 5)
    writer.transport.abort()
    await asyncio.sleep(0.1)
    answer.set()
    await asyncio.sleep(0.1)
    allowed = [verdict for verdict in lane.guard.settled if verdict.allow]
    assert len(allowed) == len(lane.guard.finished)
    assert len(lane.guard.forgone) == 1, "it is on record"
    assert len(lane.passages) == 0
