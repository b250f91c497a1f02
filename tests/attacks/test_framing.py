"""Where a message begins and ends has one reading. Rows S, by every way in, and from upstreams.

What cannot be framed is refused before anything is dialled; an answer that two readers could cut apart differently
never reaches a client.
"""

import asyncio
import contextlib
import socket
import time

import pytest

from tests.attacks.conftest import read_response
from tests.attacks.test_open_connections import allow, get
from tests.attacks.world import answer, rest

BAD = (400, "malformed_request")
FINE = (200, None)
CHUNKED = "Transfer-Encoding: chunked\r\n"

HEADS = [
    pytest.param("POST", "Content-Length: 3\r\n" + CHUNKED, "0\r\n\r\n", id="attack-S01-cl-te"),
    pytest.param("POST", CHUNKED + "Content-Length: 3\r\n", "0\r\n\r\n", id="attack-S01-te-cl"),
    pytest.param("POST", "Content-Length: 0\r\n" + CHUNKED, "0\r\n\r\n", id="attack-S01-zero"),
    pytest.param("POST", CHUNKED + "Content_Length: 3\r\n", "0\r\n\r\n", id="attack-S01-alias"),
    pytest.param("POST", "Content-Length: 3\r\nContent-Length: 4\r\n", "abc", id="attack-S02-two"),
    pytest.param("POST", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc", id="attack-S02-twice"),
    pytest.param("POST", "Content-Length: 3\r\nContent-Length: x\r\n", "abc", id="attack-S02-then-bad"),
    *(
        pytest.param("POST", f"Content-Length: {value}\r\n", "abc", id=f"attack-S02-{name}")
        for name, value in {
            "plus": "+3",
            "minus": "-3",
            "list": "3,3",
            "other-list": "3, 4",
            "hex": "0x3",
            "octal": "03",
            "underscore": "1_0",
            "point": "3.0",
            "exponent": "3e0",
            "empty": "",
            "words": "3 3",
            "vertical-tab": "3\x0b",
            "form-feed": "\x0c3",
            "no-break-space": "\xa03",
            "superscript": "\xb3",
            "64-bits": "18446744073709551619",
            "huge": "9" * 5000,
        }.items()
    ),
    *(
        pytest.param("POST", f"Transfer-Encoding: {value}\r\n", "0\r\n\r\n", id=f"attack-S03-{name}")
        for name, value in {
            "identity": "identity",
            "both": "chunked, identity",
            "identity-first": "identity, chunked",
            "twice": "chunked, chunked",
            "unknown": "xchunked",
            "suffix": "chunkedx",
            "quoted": '"chunked"',
            "parameter": "chunked;q=1",
            "vertical-tab": "chunked\x0b",
            "vertical-tab-before": "\x0bchunked",
            "form-feed": "\x0cchunked",
            "no-break-space": "\xa0chunked",
            "comma-before": ", chunked",
            "comma-after": "chunked,",
            "cow": "cow, chunked",
            "empty": "",
            "dotless": "chun\u212aed".encode().decode("latin-1"),
            "gzip": "gzip",
            "trailers": "trailers, chunked",
        }.items()
    ),
    pytest.param("POST", CHUNKED + CHUNKED, "0\r\n\r\n", id="attack-S03-two-fields"),
    pytest.param("POST", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n", id="attack-S03-space-before-colon"),
    pytest.param("POST", "Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n", id="attack-S03-tab-before-colon"),
    pytest.param("POST", " Transfer-Encoding: chunked\r\n", "0\r\n\r\n", id="attack-S03-leading-space"),
    pytest.param("POST", "X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n", id="attack-S04-fold"),
    pytest.param("POST", "Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n", id="attack-S03-fold"),
    pytest.param("POST", "Transfer-Encoding:\n chunked\r\n", "0\r\n\r\n", id="attack-S03-bare-lf"),
    pytest.param("POST", "Transfer_Encoding: chunked\r\n", "0\r\n\r\n", id="attack-S03-underscore"),
    pytest.param("POST", "Transfer.Encoding: chunked\r\n", "0\r\n\r\n", id="attack-S03-dot"),
    pytest.param("POST", "Connection: transfer-encoding\r\n" + CHUNKED, "0\r\n\r\n", id="attack-S06-te"),
    pytest.param(
        "POST", "Connection: content-length\r\nContent-Length: 3\r\n", "abc", id="attack-S06-length"
    ),
    pytest.param("GET", "Connection: close, Host\r\n", "", id="attack-S06-host"),
    pytest.param("GET", "Connection: HOST\r\n", "", id="attack-S06-host-case"),
    pytest.param("GET", "X: y\nY: z\r\n", "", id="attack-S04-lf"),
    pytest.param("GET", "X: y\r\r\n", "", id="attack-S04-cr"),
    pytest.param("GET", "X: a\rHost: evil.test\r\n", "", id="attack-S04-cr-inside"),
    pytest.param("GET", "X: a\x00b\r\n", "", id="attack-S04-nul"),
    pytest.param("GET", "X\x00: a\r\n", "", id="attack-S04-nul-name"),
    pytest.param("GET", "X : y\r\n", "", id="attack-S04-space"),
    pytest.param("GET", "X y: z\r\n", "", id="attack-S04-space-inside"),
    pytest.param("GET", "X\xe9: y\r\n", "", id="attack-S04-name"),
    pytest.param("GET", ": y\r\n", "", id="attack-S04-empty-name"),
    pytest.param("GET", "no colon\r\n", "", id="attack-S04-no-colon"),
    pytest.param("GET", "Content-Length: 3\r\n", "abc", id="attack-S05-get"),
    pytest.param("GET", CHUNKED, "0\r\n\r\n", id="attack-S05-get-chunked"),
    pytest.param("HEAD", "Content-Length: 3\r\n", "abc", id="attack-S05-head"),
    pytest.param("OPTIONS", CHUNKED, "3\r\nabc\r\n0\r\n\r\n", id="attack-S05-options"),
]


def plain(world, node, method: str, fields: str, body: str, version: str = "1.1"):
    authority = f"plain.test:{world.web.http}"
    head = f"{method} http://{authority}/ok/x HTTP/{version}\r\nHost: {authority}\r\n"
    return world.ask(node, (head + fields + "\r\n" + body).encode("latin-1"), method)


def reverse(world, node, method: str, fields: str, body: str, version: str = "1.1"):
    with socket.create_connection(("127.0.0.1", world.ports["reverse"]), 5) as link:
        head = f"{method} /ok/x HTTP/{version}\r\nHost: own.test\r\n"
        link.sendall((head + fields + "\r\n" + body).encode("latin-1"))
        return answer(link, method)


def inspected(world, node, method: str, fields: str, body: str, version: str = "1.1"):
    head = f"{method} /ok/x HTTP/{version}\r\nHost: site.test:{{tls}}\r\n"
    with world.secured(node, "site.test:{tls}") as secure:
        secure.sendall(world.fill(head + fields + "\r\n" + body).encode("latin-1"))
        return answer(secure, method)


def ways(node):
    return [plain, inspected, *([reverse] if node.name == "addon" else [])]


@pytest.mark.parametrize(("method", "fields", "body"), HEADS)
def test_what_could_be_framed_two_ways_is_refused(world, node, method, fields, body):
    for way in ways(node):
        before = world.web.connections
        reply = way(world, node, method, fields, body)
        assert (reply.status, reply.reason) == BAD, way.__name__
        assert world.web.connections == before


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        pytest.param("POST", "Content-Length:  3 \r\n", "abc", id="attack-S02-spaces-allowed"),
        pytest.param("POST", "Transfer-Encoding: Chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", id="attack-S03-case-allowed"),
        pytest.param("POST", CHUNKED, "3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n", id="attack-S06-trailers-allowed"),
        pytest.param("POST", "Content-Length: 0\r\n", "", id="attack-S05-empty-allowed"),
        pytest.param("GET", "Content-Length: 0\r\n", "", id="attack-S05-zero-allowed"),
        pytest.param("POST", "Content-Length: 3\r\nExpect: 100-continue\r\n", "abc", id="attack-S15-expect-allowed"),
        pytest.param("GET", "X-\xc3\xa9: y\r\n".replace("\xc3\xa9", "e"), "", id="attack-S04-plain-allowed"),
        pytest.param("GET", "X: caf\xc3\xa9\r\n", "", id="attack-S04-utf-8-value-allowed"),
        pytest.param("GET", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQ\r\n", "", id="attack-S08"),
        pytest.param("GET", "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n", "", id="attack-S08-list"),
        pytest.param("GET", "Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n", "", id="attack-S08-tls"),
    ],
)  # fmt: skip
def test_what_has_one_reading_goes_on(world, node, method, fields, body):
    """Upgrades that nobody knows are left out, and the request is an ordinary one."""
    for way in ways(node):
        reply = way(world, node, method, fields, body)
        if reply.status == 100:
            continue
        assert (reply.status, reply.reason) == FINE, way.__name__


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("0x3\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-0x"),
        pytest.param("+3\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-plus"),
        pytest.param("-3\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-minus"),
        pytest.param("0_3\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-underscore"),
        pytest.param(" 3\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-space"),
        pytest.param("3\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-lf"),
        pytest.param("3\r\nabc\n0\r\n\r\n", id="attack-S03-chunk-end-lf"),
        pytest.param("3\r\nabcd\r\n0\r\n\r\n", id="attack-S03-chunk-longer"),
        pytest.param("3\rabc\r\n0\r\n\r\n", id="attack-S03-chunk-cr"),
        pytest.param("g\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-letter"),
        pytest.param("\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-empty"),
        pytest.param("1" + "0" * 24 + "\r\nabc\r\n0\r\n\r\n", id="attack-S03-chunk-overflow"),
    ],
)
def test_chunks_have_one_reading(world, node, body):
    """The upstream is under way by then: the connection ends, and nothing behind the chunk becomes a request."""
    follows = "GET /ok/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    for way in ways(node):
        before = len(world.web.requests)
        reply = way(world, node, "POST", CHUNKED, body + follows)
        assert reply.status in {None, 400, 502}, way.__name__
        assert len(world.web.requests) == before


@pytest.mark.parametrize("version", ["1.0", "1.2", "0.9", "2.0", "1.1 ", "01.1", "1.10"])
def test_versions(world, node, version):
    """attack-S03: a coding in HTTP/1.0 frames nothing for some readers."""
    for way in ways(node):
        reply = way(world, node, "POST", CHUNKED, "0\r\n\r\n", version)
        assert (reply.status, reply.reason) == BAD, way.__name__


def test_what_follows_a_refusal_is_judged_or_dropped(world, node):
    """attack-S10"""
    authority = f"plain.test:{world.web.http}"
    no = f"GET http://{authority}/secret HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    bad = f"GET http://{authority}/ok/\\ HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    yes = f"GET http://{authority}/ok/x HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    before = len(world.web.requests)
    with node.connect() as link:
        link.sendall((no + yes + no).encode())
        assert [answer_unbuffered(link) for _ in range(3)] == [403, 200, 403]
    assert len(world.web.requests) == before + 1
    with node.connect() as link:
        link.sendall((bad + yes).encode())
        assert rest(link).count(b"HTTP/1.1 ") == 1
    assert len(world.web.requests) == before + 1


def answer_unbuffered(link: socket.socket) -> int:
    """One response, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = link.recv(1)
        assert more
        head += more
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while length:
        length -= len(link.recv(length))
    return int(head.split()[1])


def test_a_refused_upload_is_drained_and_answered_whole(world, node):
    """attack-S15, attack-S18: and the process has not kept it."""
    size = 64 * 1024 * 1024
    peak = resident(node.process.pid)
    for way in ("plain", "tls"):
        with contextlib.ExitStack() as stack:
            if way == "plain":
                link = stack.enter_context(node.connect())
                authority, target = (
                    f"plain.test:{world.web.http}",
                    f"http://plain.test:{world.web.http}/secret",
                )
            else:
                link = stack.enter_context(world.secured(node, "site.test:{tls}"))
                authority, target = world.fill("site.test:{tls}"), "/secret"
            link.sendall(
                f"POST {target} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {size}\r\n\r\n".encode()
            )
            block = bytes(1 << 20)
            with contextlib.suppress(OSError):
                for _ in range(size // len(block)):
                    link.sendall(block)
            reply = answer(link)
            assert (reply.status, reply.reason) == (403, "path_not_allowed")
            assert b"path_not_allowed" in reply.raw
    assert resident(node.process.pid) - peak < 24
    assert plain(world, node, "GET", "", "").status == 200


def resident(pid: int) -> int:
    """Resident memory of a process, MiB."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123 - not a real file
        return int(file.read().split()[1]) // 256


# From upstreams

RULE = ", protocol: http"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

ANSWERS = [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="attack-S01-answer"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\nok", id="attack-S02-answer"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", id="attack-S02-answer-list"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", id="attack-S02-answer-plus"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", id="attack-S02-answer-space"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="attack-S03-answer"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", id="attack-S03-answer-twice"),
    pytest.param(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="attack-S03-answer-1.0"),
    pytest.param(b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="attack-S03-answer-204"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-fold"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-cr"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-lf"),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n", id="attack-S04-answer-lf-only"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-nul"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX y: a\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-name"),
    pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-no-colon"),
    pytest.param(b"HTTP/1.1 +200 OK\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-status"),
    pytest.param(b"HTTP/1.1 2_0_0 OK\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-underscore"),
    pytest.param(b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-999"),
    pytest.param(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-2.0"),
    pytest.param(b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok", id="attack-S04-answer-icy"),
    pytest.param(b"ok, no head at all\r\n\r\n", id="attack-S04-answer-0.9"),
    pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw", id="attack-S09"),
    pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nraw", id="attack-S09-h2c"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + LONG, id="attack-S18-interim-flood"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 10_000 + b"\r\n\r\n" + (b"HTTP/1.1 103 E\r\nX: " + b"x" * 10_000 + b"\r\n\r\n") * 31 + LONG, id="attack-S18-interim-bytes"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000 + b"Content-Length: 2\r\n\r\nok", id="attack-S18-head-bomb"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000 + b"\r\nContent-Length: 2\r\n\r\nok", id="attack-S18-field-bomb"),
]  # fmt: skip


@pytest.mark.parametrize("reply", ANSWERS)
async def test_an_answer_that_could_be_read_two_ways_is_not_passed_on(rig, reply):
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: reply
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE))
    begin = time.process_time()
    got = await rig.exchange(get("a.test", server.port))
    assert b" 502 " in got.split(b"\r\n")[0]
    assert b"upstream_unreachable" in got
    assert b"raw" not in got.split(b"\r\n\r\n")[1]
    assert time.process_time() - begin < 0.5
    rig.whole()


@pytest.mark.parametrize(
    ("method", "reply", "never"),
    [
        pytest.param("GET", b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 evil\r\nContent-Length: 0\r\n\r\n", b"content-length", id="attack-S02-204"),
        pytest.param("GET", b"HTTP/1.1 304 Same\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevil!\r\n0\r\n\r\n", b"transfer-encoding", id="attack-S03-304"),
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 evil\r\n\r\n", b"evil", id="attack-S05-head-answer"),
        pytest.param("GET", LONG + b"HTTP/1.1 200 evil\r\nContent-Length: 4\r\n\r\nevil", b"evil", id="attack-S10-answers"),
    ],
)  # fmt: skip
async def test_a_body_that_nobody_asked_for_is_no_answer(rig, method, reply, never):
    """Neither this request nor the next one gets it."""
    await rig.start()
    server = await rig.upstream()
    replies = iter([reply])
    server.answer = lambda head: next(replies, LONG)
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE + ", methods: [GET, HEAD]"))
    reader, writer = await rig.connect()
    request = get("a.test", server.port)
    writer.write(request.replace(b"GET", method.encode(), 1))
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    if method == "GET" and b"200" in first:
        first += await reader.readexactly(2)
    await asyncio.sleep(0.05)
    writer.write(request)
    second = await read_response(reader)
    assert never not in first.lower()
    assert b"evil" not in first + second
    assert second.endswith(b"\r\n\r\nok")
    writer.close()


async def test_trailers_of_an_answer_do_not_become_fields(rig):
    """attack-S06"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie\r\n\r\n2\r\nok\r\n0\r\n"
        b"Set-Cookie: evil=1\r\nContent-Length: 5\r\n\r\n"
    )
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE))
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port))
    got = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
    assert b"evil" not in got
    writer.close()


@pytest.mark.parametrize("fields", ["X-Forwarded-Host: evil.test", "x_forwarded_host: evil.test", "X-Host: evil.test",
    "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X.Original.URL: /admin", "X-Forwarded-Prefix: /admin",
    "X-HTTP-Host-Override: evil.test"], ids=lambda f: f"attack-S07-{f.split(':')[0]}")  # fmt: skip
async def test_another_host_or_path_in_a_field_does_not_go_on(rig, fields):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE))
    await rig.exchange(get("a.test", server.port)[:-2] + fields.encode() + b"\r\nX-Kept: 1\r\n\r\n")
    assert b"evil" not in server.heads[0]
    assert b"admin" not in server.heads[0]
    assert b"X-Kept" in server.heads[0]


async def test_an_upload_waits_for_its_verdict_outside_of_memory(rig):
    """attack-S18: while a name is resolved the client is not read on."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE))
    go, resolve = asyncio.Event(), rig.names.resolve

    async def slow(host: str) -> tuple[str, ...]:
        await go.wait()
        return await resolve(host)

    rig.names.resolve = slow
    reader, writer = await rig.connect()
    size = 48 * 1024 * 1024
    head = get("a.test", server.port).replace(b"GET", b"POST")[:-2] + b"Content-Length: %d\r\n\r\n" % size
    sent = 0

    async def upload() -> None:
        nonlocal sent
        writer.write(head)
        for _ in range(size // 65_536):
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    task = asyncio.ensure_future(upload())
    await asyncio.sleep(0.5)
    (connection,) = (kept for _, kept in rig.addon._desk.connections.items())
    assert connection.backlog() <= rig.settings.bounds.stream_bytes + 65_536
    assert sent < size // 2
    go.set()
    assert b" 200 " in (await read_response(reader)).split(b"\r\n")[0]
    await task
    assert server.body_bytes == size
    writer.close()
    await rig.idle()


async def test_one_answer_is_charged_while_it_moves(rig):
    """attack-L04: the budget of bytes ends a single answer, not only the next request."""
    await rig.start()
    server = await rig.upstream()
    size = 40_000_000
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    budget = (
        'rate_limits:\n  - {id: volume, match: {to: ["a.test"]}, limit: 1MB/h, unit: bytes, key: [client]}\n'
    )
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE) + budget)
    reader, writer = await rig.connect()
    writer.write(get("a.test", server.port))
    got = 0
    with contextlib.suppress(OSError):
        while data := await asyncio.wait_for(reader.read(1 << 20), 5):
            got += len(data)
    assert got < 4_000_000
    writer.close()
    await rig.idle()
    assert [r.why for r in rig.records if r.kind == "close"] == ["rate_limited"]


@pytest.mark.parametrize("door", ["edge", "regular"])
async def test_plain_http_in_a_tunnel_is_charged_once(rig, door):
    """attack-L04, attack-L05"""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + bytes(600_000)
    budget = (
        'rate_limits:\n  - {id: volume, match: {to: ["a.test"]}, limit: 1MB/h, unit: bytes, key: [client]}\n'
    )
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, RULE) + budget)
    reader, writer = await rig.connect()
    writer.write(f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    request = f"GET / HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode()
    writer.write(request)
    assert len(await read_response(reader)) > 600_000
    await asyncio.sleep(0.4)
    writer.write(request)
    got = 0
    with contextlib.suppress(OSError):
        while data := await asyncio.wait_for(reader.read(1 << 20), 5):
            got += len(data)
    assert (
        got > 300_000
    )  # the second goes past the budget, and ends it; charged twice it would not have begun
    writer.close()
    await rig.idle()
