"""Who asks, how often, and under which policy: rows R, Y, L and K, against the running data path."""

import asyncio
import time
from hashlib import sha256

import pytest

from tests.attacks.conftest import read_response
from tests.attacks.test_open_connections import allow, get

HTTP = ", protocol: http"
SECRETS = (
    {"client": "alice", "sha256": sha256(b"s3cret").hexdigest()},
    {"client": "bob", "sha256": sha256(b"0ther").hexdigest()},
)


def says(reply: bytes) -> tuple[int, str | None]:
    """Status and reason; 0 for an end without an answer."""
    if not reply:
        return 0, None
    head = reply.split(b"\r\n\r\n")[0]
    reason = [
        line.split(b":")[1].strip().decode()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"edgeguard-reason:")
    ]
    return int(head.split(b" ")[1]), reason[0] if reason else None


def with_fields(request: bytes, *fields: str) -> bytes:
    return request[:-2] + "".join(f"{field}\r\n" for field in fields).encode() + b"\r\n"


@pytest.fixture(params=["edge", "regular"])
def door(request) -> str:
    """Behind the front door, and the addon alone."""
    return request.param


@pytest.mark.parametrize("row", ["attack-R01"])
async def test_a_redirect_is_followed_by_the_client_and_judged(rig, row):
    """The proxy fetches nothing itself: each hop is a request of its own."""
    await rig.start()
    server = await rig.upstream()
    server.answer = lambda head: (
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    )
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP))
    reply = await rig.exchange(get("a.test", server.port))
    assert b" 302 " in reply
    assert b"169.254.169.254" in reply
    assert len(server.heads) == 1
    hop = await rig.exchange(b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
    assert says(hop)[0] == 403
    assert rig.names.asked == ["a.test"]


IDENTITIES = [
    pytest.param([], (407, "client_unknown"), id="attack-Y05-none"),
    pytest.param(["Proxy-Authorization: Bearer wrong"], (407, "client_unknown"), id="attack-Y05-wrong"),
    pytest.param(["Proxy-Authorization: Bearer "], (407, "client_unknown"), id="attack-Y05-empty"),
    pytest.param(["Proxy-Authorization: Negotiate s3cret"], (407, "client_unknown"), id="attack-Y05-scheme"),
    pytest.param(["Authorization: Bearer s3cret"], (407, "client_unknown"), id="attack-Y05-origin-field"),
    pytest.param(["Proxy_Authorization: Bearer s3cret"], (407, "client_unknown"), id="attack-Y05-alias"),
    pytest.param(["Proxy-Authorization: Bearer s3cret", "Proxy-Authorization: Bearer 0ther"], (407, "client_unknown"), id="attack-Y05-two"),
    pytest.param(["Proxy-Authorization: Bearer s3cret"], (200, None), id="attack-Y05-right"),
    pytest.param(["Proxy-Authorization: Bearer 0ther"], (403, "client_not_allowed"), id="attack-Y01-other"),
    pytest.param(["Proxy-Authorization: Bearer 0ther", "X-Client: alice", "X-Forwarded-User: alice", "X-Agent: alice", "Forwarded: for=alice"], (403, "client_not_allowed"), id="attack-Y03"),
    pytest.param(["User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/142.0"], (407, "client_unknown"), id="attack-Y04"),
    pytest.param(["Proxy-Authorization: Bearer 0ther", "User-Agent: Mozilla/5.0"], (403, "client_not_allowed"), id="attack-Y04-known"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "outcome"), IDENTITIES)
async def test_who_asks_is_what_was_proved(rig, fields, outcome):
    rig.identify(secret=SECRETS)
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP + ", clients: [alice]"))
    reply = await rig.exchange(with_fields(get("a.test", server.port), *fields))
    status, reason = says(reply)
    expected = {outcome}
    if outcome[0] == 407:
        expected.add((403, "client_unknown"))
    assert (status, reason) in expected
    assert len(server.heads) == (outcome[0] == 200)
    if status == 200:
        assert b"s3cret" not in server.heads[0]
        assert b"s3cret" not in b"".join(str(record).encode() for record in rig.records)


LIMIT = 'rate_limits:\n  - {id: calls, match: {to: ["**.a.test"]}, limit: 2/h, burst: 2, unit: requests, key: [client]}\n'


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda n: ("a.test", []), id="attack-L01"),
        pytest.param(lambda n: (f"s{n}.a.test", []), id="attack-L02"),
        pytest.param(lambda n: (f"s{n}.s{n}.A.TEST.", []), id="attack-L02-spelling"),
        pytest.param(lambda n: ("a.test", [f"User-Agent: agent-{n}", f"X-Client: c{n}", f"X-Forwarded-For: 10.0.0.{n}"]), id="attack-L03"),
    ],
)  # fmt: skip
async def test_a_limit_is_the_clients(rig, change):
    """429 with Retry-After, whatever else changes from one request to the next."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "**.a.test", server.port, HTTP) + LIMIT)
    replies = []
    for number in range(4):
        host, fields = change(number)
        replies.append(await rig.exchange(with_fields(get(host, server.port), *fields)))
    assert [says(reply) for reply in replies] == [
        (200, None),
        (200, None),
        (429, "rate_limited"),
        (429, "rate_limited"),
    ]
    assert b"Retry-After: " in replies[2]
    assert len(server.heads) == 2


@pytest.mark.parametrize("row", ["attack-L05"])
async def test_a_limit_is_one_for_every_way_in(rig, row):
    """Plain HTTP, plain HTTP inside a tunnel, keep-alive and new connections use one counter."""
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP) + LIMIT)
    assert says(await rig.exchange(get("a.test", server.port)))[0] == 200
    reader, writer = await rig.connect()
    writer.write(f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    statuses = []
    for _ in range(2):
        writer.write(f"GET / HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
        statuses.append(says(await read_response(reader))[0])
    assert statuses == [200, 429]
    assert says(await rig.exchange(get("a.test", server.port)))[0] == 429
    writer.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["attack-L04-length", "attack-L04-chunked"])
async def test_an_upload_is_held_to_its_budget(rig, chunked):
    """However its length is said, or not said: the connection ends when the budget is used up."""
    await rig.start()
    server = await rig.upstream()
    budget = (
        'rate_limits:\n  - {id: volume, match: {to: ["a.test"]}, limit: 1MB/h, unit: bytes, key: [client]}\n'
    )
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP) + budget)
    reader, writer = await rig.connect()
    size = 32_000_000
    head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    writer.write(with_fields(get("a.test", server.port).replace(b"GET", b"POST"), head))
    block = b"8000\r\n" + bytes(32_768) + b"\r\n" if chunked else bytes(32_768)
    with pytest.raises((OSError, asyncio.IncompleteReadError)):  # noqa: PT012 - at some point the connection is gone
        for _ in range(size // 32_768):
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.readexactly(1_000_000)
    assert server.body_bytes < 4_000_000
    await rig.idle()
    assert [r.why for r in rig.records if r.kind == "close"] == ["rate_limited"]


CLOSED = [
    pytest.param({}, "policy_missing", id="attack-K01"),
    pytest.param({"closed_at": -1}, "policy_expired", id="attack-K02"),
    pytest.param({"restricted_at": -1, "stale_at": -2}, "policy_restricted", id="attack-K02-restricted"),
]


@pytest.mark.parametrize(("changes", "reason"), CLOSED)
async def test_without_a_policy_that_holds_nothing_is_reached(rig, changes, reason):
    await rig.start()
    server = await rig.upstream()
    if changes:
        now = int(time.time())
        rig.enforce(
            "rules:\n" + allow("a", "a.test", server.port, HTTP), **{k: now + v for k, v in changes.items()}
        )
    for request in (
        get("a.test", server.port),
        f"CONNECT a.test:{server.port} HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode(),
    ):
        said = says(await rig.exchange(request))
        assert said == (503, reason) or (request.startswith(b"C") and reason == "policy_restricted"), said
        assert said[0] in {403, 503}
    assert rig.names.asked == []
    assert server.connections == 0


@pytest.mark.parametrize("row", ["attack-K03"])
async def test_a_policy_that_vanishes_inside_of_a_connection(rig, row):
    """Between the handshake and the request: the request is not made."""
    await rig.start()
    server = await rig.upstream("a.test")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, ", paths: [/x]"))
    reader, writer = await rig.tunnel("a.test", server.port)
    rig.guard.activate(None)
    writer.write(f"GET /x HTTP/1.1\r\nHost: a.test:{server.port}\r\n\r\n".encode())
    try:
        got = await asyncio.wait_for(reader.read(), 5)
    except OSError:
        got = b""
    assert b" 200 " not in got
    assert server.heads == []
    writer.transport.abort()
    await rig.idle()


@pytest.mark.parametrize("row", ["attack-K06"])
async def test_policies_that_follow_each_other_quickly(rig, row):
    """Requests meanwhile get the answer of one policy or of the next, and the last one stays."""
    await rig.start()
    server = await rig.upstream()
    fine = "rules:\n" + allow("a", "a.test", server.port, HTTP)
    other = "rules:\n" + allow("b", "b.test", server.port, HTTP)

    async def change() -> None:
        for number in range(20):
            rig.enforce(other if number % 2 else fine)
            await asyncio.sleep(0)

    rig.enforce(fine)
    changing = asyncio.ensure_future(change())
    seen = {says(await rig.exchange(get("a.test", server.port))) for _ in range(10)}
    await changing
    assert seen <= {(200, None), (403, "host_not_allowed"), (0, None)}  # what was under way may be cut off
    assert says(await rig.exchange(get("a.test", server.port))) == (403, "host_not_allowed")
    rig.whole()


@pytest.mark.parametrize("row", ["attack-K14"])
async def test_nothing_passes_that_cannot_be_recorded(rig, row):
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP))
    rig.log.full = True
    assert says(await rig.exchange(get("a.test", server.port))) == (503, "capacity_exceeded")
    rig.log.full = False
    assert says(await rig.exchange(get("a.test", server.port)))[0] == 200
    assert len(server.heads) == 1


@pytest.mark.parametrize("row", ["attack-Y05-shared"])
async def test_what_one_request_has_proved_counts_for_no_other(rig, row):
    rig.identify(secret=SECRETS)
    await rig.start()
    server = await rig.upstream()
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, HTTP + ", clients: [alice]"))
    reader, writer = await rig.connect()
    statuses = []
    for secret in ("s3cret", "0ther", "s3cret"):
        writer.write(with_fields(get("a.test", server.port), f"Proxy-Authorization: Bearer {secret}"))
        statuses.append(says(await read_response(reader))[0])
    assert statuses == [200, 403, 200]
    writer.close()
