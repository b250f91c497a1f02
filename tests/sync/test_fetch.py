"""A hostile server on loopback, with real sockets: whatever it does, one fetch is bounded and says why."""

import asyncio
import gzip
import time

import pytest
import pytest_asyncio

from edgeguard.sync.fetch import (
    FetchCode,
    Fetcher,
    FetchError,
    FetchLimits,
    check_url,
    full_jitter,
    parse_retry_after,
)

LIMITS = FetchLimits(deadline_s=0.6, min_rate_bytes_s=1000, retry_after_cap_s=120)


class Hostile:
    """Answers each request with what `script` writes; remembers the request heads."""

    def __init__(self):
        self.script = None
        self.requests = []

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head.decode("latin-1"))
                await self.script(writer, head)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def replies(self, *raw):
        answers = list(raw)

        async def script(writer, _head):
            writer.write(answers.pop(0) if len(answers) > 1 else answers[0])

        self.script = script


@pytest_asyncio.fixture
async def hostile():
    server = Hostile()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{server.port}/base/"
    yield server
    listening.close()
    listening.close_clients()
    await listening.wait_closed()


@pytest_asyncio.fixture
async def fetcher(hostile):
    async with Fetcher(hostile.url, LIMITS) as fetcher:
        yield fetcher


def ok(body, *headers):
    fields = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


async def refused(fetching, code):
    began = time.monotonic()
    with pytest.raises(FetchError) as caught:
        await fetching
    assert caught.value.code is code
    assert time.monotonic() - began < 3
    return caught.value


async def test_a_plain_answer(hostile, fetcher):
    hostile.replies(ok(b"body", 'ETag: "v1"'))
    fetched = await fetcher.get("test/head", 10)
    assert fetched == (b"body", '"v1"', False)
    head = hostile.requests[0]
    assert head.startswith("GET /base/test/head HTTP/1.1\r\n")
    assert "Accept-Encoding: identity\r\n" in head
    assert "If-None-Match" not in head
    assert "Authorization" not in head


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(ok(b"x" * 11), id="fault-C1-announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", id="fault-C1-huge"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n",
            id="fault-C1-chunked",
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100, id="fault-C1-no-length"),
    ],
)
async def test_more_than_the_cap(hostile, fetcher, raw):
    hostile.replies(raw)
    await refused(fetcher.get("x", 10), FetchCode.TOO_BIG)
    hostile.replies(ok(b"x" * 10))
    assert (await fetcher.get("x", 10)).data == b"x" * 10


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C1-endless")])
async def test_an_endless_body(hostile, fetcher, case):
    sent = 0

    async def endless(writer, _head):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            sent += 4096
            await writer.drain()

    hostile.script = endless
    await refused(fetcher.get("x", 100_000), FetchCode.TOO_BIG)
    assert sent < 20_000_000


@pytest.mark.parametrize(
    "encoding", [pytest.param(name, id=f"fault-C2-{name}") for name in ("gzip", "deflate", "br", "zstd")]
)
async def test_compression_is_neither_asked_for_nor_taken(hostile, fetcher, encoding):
    hostile.replies(ok(gzip.compress(bytes(10_000_000)), f"Content-Encoding: {encoding}"))
    await refused(fetcher.get("x", 100_000), FetchCode.ENCODED)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx", id="fault-C3-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n", id="fault-C3-chunked"
        ),
    ],
)
async def test_a_body_that_breaks_off(hostile, fetcher, raw):
    async def cut(writer, _head):
        writer.write(raw)
        await writer.drain()
        writer.close()

    hostile.script = cut
    await refused(fetcher.get("x", 100), FetchCode.TRUNCATED)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C3-exact")])
async def test_a_member_has_exactly_the_length_that_its_head_says(hostile, fetcher, case):
    hostile.replies(ok(b"xxx"))
    await refused(fetcher.get("x", 4, exact=True), FetchCode.TRUNCATED)
    assert (await fetcher.get("x", 3, exact=True)).data == b"xxx"


async def drip(writer, parts, gap_s):
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(gap_s)


@pytest.mark.parametrize(
    "announced", [pytest.param(1000, id="fault-C4-body"), pytest.param(None, id="fault-C4-head")]
)
async def test_one_byte_at_a_time(hostile, fetcher, announced):
    async def slow(writer, _head):
        if announced:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n".encode())
            await drip(writer, [b"x"] * announced, 0.05)
        else:
            await drip(writer, [bytes([byte]) for byte in ok(b"x" * 100)], 0.05)

    hostile.script = slow
    await refused(fetcher.get("x", 1000), FetchCode.TOO_SLOW if announced else FetchCode.TIMEOUT)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C5")])
async def test_silence(hostile, fetcher, case):
    async def headers_only(writer, _head):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    async def nothing(_writer, _head):
        await asyncio.sleep(60)

    for script in (nothing, headers_only):
        hostile.script = script
        await refused(fetcher.get("x", 100), FetchCode.TIMEOUT)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C5-tls")])
async def test_silence_in_the_tls_handshake(hostile, case):
    async with Fetcher(f"https://127.0.0.1:{hostile.port}/", LIMITS) as fetcher:
        await refused(fetcher.get("x", 100), FetchCode.TIMEOUT)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C6")])
async def test_a_weak_link_that_keeps_the_minimum_rate_gets_its_time(hostile, fetcher, case):
    async def steady(writer, _head):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
        await drip(writer, [b"x" * 200] * 10, 0.12)

    hostile.script = steady
    began = time.monotonic()
    assert len((await fetcher.get("x", 2000)).data) == 2000
    assert time.monotonic() - began > LIMITS.deadline_s


@pytest.mark.parametrize(
    "status", [pytest.param(status, id=f"fault-C7-{status}") for status in (429, 500, 502, 503)]
)
async def test_a_server_in_trouble(hostile, fetcher, status):
    hostile.replies(f"HTTP/1.1 {status} X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n".encode())
    assert (await refused(fetcher.get("x", 100), FetchCode.UNAVAILABLE)).retry_after_s == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("7", 7),
        ("999999999999999999999", 120),
        ("-1", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 120),
        ("Wed, 21 Oct 2099 07:28:00", 120),
        ("\u0661", None),
    ],
)
def test_retry_after(value, expected):
    assert parse_retry_after(value, 120) == expected


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(403, FetchCode.MISSING, id="fault-C8-403"),
        pytest.param(404, FetchCode.MISSING, id="fault-C9-404"),
        pytest.param(401, FetchCode.STATUS, id="fault-C9-401"),
        pytest.param(206, FetchCode.STATUS, id="fault-C9-206"),
        pytest.param(204, FetchCode.STATUS, id="fault-C10-204"),
    ],
)
async def test_other_statuses(hostile, fetcher, status, code):
    hostile.replies(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
    await refused(fetcher.get("x", 100), code)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C10")])
async def test_an_empty_body(hostile, fetcher, case):
    hostile.replies(ok(b""))
    await refused(fetcher.get("x", 100), FetchCode.EMPTY)


NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n%s\r\n"


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C12")])
async def test_a_304_that_nobody_asked_for(hostile, fetcher, case):
    hostile.replies(NOT_MODIFIED % b'ETag: "v1"\r\n')
    await refused(fetcher.get("x", 100), FetchCode.NOT_MODIFIED)


@pytest.mark.parametrize(
    ("named", "doubtful"),
    [
        pytest.param(b'ETag: "other"\r\n', True, id="fault-C13"),
        pytest.param(b"", False, id="fault-C14"),
        pytest.param(b'ETag: "v1"\r\n', False, id="fault-C14-same"),
        pytest.param(b'ETag: W/"v1"\r\n', False, id="fault-C14-weak"),
    ],
)
async def test_the_validator_of_a_304_is_never_taken_over(hostile, fetcher, named, doubtful):
    hostile.replies(NOT_MODIFIED % named)
    assert await fetcher.get("x", 100, etag='"v1"') == (None, '"v1"', doubtful)
    assert 'If-None-Match: "v1"' in hostile.requests[0]


async def test_a_useless_validator_is_not_kept(hostile, fetcher):
    hostile.replies(ok(b"x", f'ETag: "{"v" * 300}"'))
    assert (await fetcher.get("x", 100)).etag is None


@pytest.mark.parametrize(
    "status", [pytest.param(status, id=f"fault-C17-{status}") for status in (301, 302, 303, 307, 308)]
)
async def test_redirects_on_the_origin_are_followed(hostile, fetcher, status):
    moved = f"HTTP/1.1 {status} X\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n".encode()
    hostile.replies(moved, moved, moved, ok(b"x"))
    assert (await fetcher.get("x", 100)).data == b"x"
    assert hostile.requests[1].startswith("GET /other ")
    hostile.replies(moved)
    await refused(fetcher.get("x", 100), FetchCode.REDIRECT)
    assert len(hostile.requests) == 8


@pytest.mark.parametrize(
    "location",
    [
        pytest.param(text, id=f"fault-C18-{number}")
        for number, text in enumerate(
            [
                "http://127.0.0.1:9/x",
                "http://127.0.0.2:{port}/x",
                "http://localhost:{port}/x",
                "https://127.0.0.1:{port}/x",
                "//127.0.0.2/x",
                "file:///etc/passwd",
                "ftp://127.0.0.1/x",
                "http://user@127.0.0.1:{port}/x",
                "http://[",
                "",
            ]
        )
    ],
)
async def test_redirects_away_are_not(hostile, location):
    location = location.format(port=hostile.port)
    hostile.replies(f"HTTP/1.1 302 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
    async with Fetcher(hostile.url, LIMITS, token="secret") as fetcher:
        await refused(fetcher.get("x", 100), FetchCode.REDIRECT)
    assert len(hostile.requests) == 1
    assert "Authorization: Bearer secret" in hostile.requests[0]


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C21")])
async def test_proxy_variables_are_ignored(hostile, monkeypatch, case):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    hostile.replies(ok(b"x"))
    async with Fetcher(hostile.url, LIMITS) as fetcher:
        assert (await fetcher.get("x", 100)).data == b"x"


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C22")])
async def test_a_long_poll_is_held_no_longer_than_asked(hostile, fetcher, case):
    async def hold(_writer, _head):
        await asyncio.sleep(60)

    hostile.script = hold
    began = time.monotonic()
    await refused(fetcher.get("x", 100, etag='"v"', wait_s=1), FetchCode.TIMEOUT)
    assert 1.4 < time.monotonic() - began < 2.5
    assert "Prefer: wait=1\r\n" in hostile.requests[0]


async def test_a_long_poll_without_a_validator_is_not_asked_for(hostile, fetcher):
    hostile.replies(ok(b"x"))
    await fetcher.get("x", 100, wait_s=1)
    assert "Prefer" not in hostile.requests[0]


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C23")])
def test_backoff_has_full_jitter(case):
    waits = [full_jitter(6, 0.5, 20) for _ in range(500)]
    assert min(waits) < 3
    assert 17 < max(waits) <= 20
    assert max(full_jitter(0, 0.5, 20) for _ in range(500)) <= 0.5
    assert full_jitter(10_000, 0.5, 20) <= 20


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C24")])
async def test_tls_that_is_not_tls(case):
    async def nonsense(_reader, writer):
        writer.write(b"nonsense" * 10)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listening = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    async with listening, Fetcher(url, LIMITS) as fetcher:
        await refused(fetcher.get("x", 100), FetchCode.TLS)


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http(hostile, fetcher, raw):
    hostile.replies(raw)
    await refused(fetcher.get("x", 100), FetchCode.UNREACHABLE)


async def test_nobody_there():
    async with Fetcher("http://127.0.0.1:9/", LIMITS) as fetcher:
        await refused(fetcher.get("x", 100), FetchCode.UNREACHABLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://bundles.example/", "plain http is for loopback only"),
        ("http://localhost.example/", "loopback"),
        ("http://10.0.0.1/", "loopback"),
        ("ftp://x/", "write https"),
        ("bundles.example", "write https"),
        ("https://u:p@x/", "credentials"),
        ("https://x/?a=b", "no query"),
    ],
)
def test_addresses_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=message):
        check_url(text)


def test_addresses_that_can():
    assert str(check_url("https://x/a")) == "https://x/a/"
    for text in ("http://localhost:1/", "http://127.0.0.1/", "http://[::1]:5/"):
        check_url(text)
