"""The served layout, conditional requests, long polls, and hostile names: over a real socket."""

import asyncio
import hashlib
import http.client
import socket
import time

import pytest

from edgeguard.server import run
from edgeguard.server.app import ServerLimits
from edgeguard.server.repository import Repository, RepositoryError, head_location, locate
from tests.sync.signing import place


def raw(port, head: str, *, timeout=5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        sock.sendall(head.encode("latin-1"))
        sock.settimeout(timeout)
        parts = []
        while chunk := sock.recv(65536):
            parts.append(chunk)
        return b"".join(parts)


async def test_head_has_a_strong_validator_and_answers_304(shared, http):
    async with http.get(f"{shared.url}test/head") as response:
        body = await response.read()
        assert response.status == 200
        assert body == (shared.directory / "test/head").read_bytes()
        etag = response.headers["ETag"]
        assert etag == f'"{hashlib.sha256(body).hexdigest()}"'
        assert response.headers["Cache-Control"] == "no-cache"
        assert "Server" not in response.headers
    for validator in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        async with http.get(f"{shared.url}test/head", headers={"If-None-Match": validator}) as response:
            assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", etag)
    async with http.get(f"{shared.url}test/head", headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200
    async with http.head(f"{shared.url}test/head") as response:
        assert (response.status, int(response.headers["Content-Length"])) == (200, len(body))


async def test_blobs_and_roots_are_immutable(shared, http):
    name = next((shared.directory / "blobs").iterdir()).name
    for path in (f"blobs/{name}", "root/1.root"):
        async with http.get(f"{shared.url}{path}") as response:
            assert response.status == 200
            assert "immutable" in response.headers["Cache-Control"]
            assert await response.read() == (shared.directory / path).read_bytes()
    async with http.get(f"{shared.url}root/2.root") as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["code"] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=f"fault-E12-{number}")
        for number, path in enumerate(
            [
                "/../secret",
                "/%2e%2e/secret",
                "/test/%2e%2e/%2e%2e/secret",
                "/root/..%2f..%2fsecret",
                "/root/../test/head",
                "//test/head",
                "/test//head",
                "/test/head/",
                "/t%65st/head",
                "/TEST/head",
                "/test/head%00",
                "/test/head%0a",
                "/test/head;x",
                "/test%3f/head",
                "/root/head",
                "/blobs/head",
                "/v1/head",
                "/healthz/head",
                "/-test/head",
                "/test-/head",
                "/root/01.root",
                "/root/0.root",
                "/root/-1.root",
                "/root/1e0.root",
                "/root/\uff11.root",
                "/blobs/" + "A" * 64,
                "/blobs/" + "a" * 63,
                "/.lock",
                "/",
                "",
            ]
        )
    ],
)
def test_a_name_has_one_spelling(shared, path):
    (shared.directory.parent / "secret").write_text("secret")
    (shared.directory / ".lock").write_text("secret")
    path = path.encode().decode("latin-1")
    answer = raw(shared.port, f"GET {path or '/'} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ", 2)[1] in {b"404", b"400"}
    assert b"secret" not in answer
    assert b"Traceback" not in answer


@pytest.mark.parametrize("path", ["root/1.root", "test/head", "blobs/" + "a" * 64])
def test_the_layout_is_found(path):
    location = locate(path)
    assert location is not None
    assert location.path == path


@pytest.mark.parametrize("name", ["root", "blobs", "v1", "../x", "", "a" * 33, "A", "a\n"])
def test_environment_names_that_the_layout_cannot_hold(name):
    with pytest.raises(ValueError, match="environment"):
        head_location(name)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RepositoryError, match="no such folder"):
        Repository(tmp_path / "none")


async def test_only_regular_files_are_served(running, http):
    import os

    os.mkfifo(running.directory / "root" / "2.root")
    (running.directory / "root" / "3.root").symlink_to("/etc/passwd")
    for name in ("2.root", "3.root"):
        async with http.get(f"{running.url}root/{name}") as response:
            assert response.status == 404


async def held(http, running, wait, etag):
    begin = time.monotonic()
    headers = {"If-None-Match": etag, "Prefer": f"respond-async, wait={wait}; x=1"}
    async with http.get(f"{running.url}test/head", headers=headers) as response:
        return response.status, await response.read(), time.monotonic() - begin, response.headers


async def etag_of(http, running):
    async with http.get(f"{running.url}test/head") as response:
        return response.headers["ETag"]


async def test_a_long_poll_is_woken_by_a_change_on_disk(running, http, authority):
    etag = await etag_of(http, running)
    waiting = [asyncio.get_running_loop().create_task(held(http, running, 5, etag)) for _ in range(20)]
    await asyncio.sleep(0.3)
    assert running.app.state.server.watch.waiting == 20
    renewed = authority.head(2, authority.bundle(1))
    place(running.directory / "test" / "head", renewed)
    for status, body, took_s, _ in await asyncio.gather(*waiting):
        assert (status, body) == (200, renewed)
        assert took_s < 2
    assert running.app.state.server.watch.waiting == 0


async def test_a_long_poll_ends_with_304_and_is_capped(served, start, http):
    running = start(served, limits=ServerLimits(wait_s=0.4))
    etag = await etag_of(http, running)
    status, _, took_s, headers = await held(http, running, 99999999, etag)
    assert status == 304
    assert 0.3 < took_s < 2
    assert headers["Preference-Applied"] == "wait=0"
    place(served / "test" / "head", (served / "test" / "head").read_bytes())  # touched, not changed
    status, _, _, _ = await held(http, running, 1, etag)
    assert status == 304


async def test_a_touched_head_does_not_end_a_long_poll(running, http):
    etag = await etag_of(http, running)
    task = asyncio.get_running_loop().create_task(held(http, running, 1, etag))
    await asyncio.sleep(0.3)
    place(running.directory / "test" / "head", (running.directory / "test" / "head").read_bytes())
    status, _, took_s, _ = await task
    assert status == 304
    assert took_s > 0.9


async def test_more_waiters_than_allowed_are_answered_at_once(served, start, http):
    running = start(served, limits=ServerLimits(wait_s=5, waiters=1))
    etag = await etag_of(http, running)
    first = asyncio.get_running_loop().create_task(held(http, running, 1, etag))
    await asyncio.sleep(0.2)
    status, _, took_s, _ = await held(http, running, 5, etag)
    assert (status, took_s < 0.5) == (304, True)
    assert (await first)[0] == 304


@pytest.mark.parametrize("prefer", ["wait=abc", "wait=-1", "wait=1e9", "wait", "", "wait=\u0661"])
async def test_a_preference_that_cannot_be_read_is_ignored(shared, http, prefer):
    etag = await etag_of(http, shared)
    begin = time.monotonic()
    headers = {"If-None-Match": etag, "Prefer": prefer}
    async with http.get(f"{shared.url}test/head", headers=headers) as response:
        assert response.status == 304
    assert time.monotonic() - begin < 0.5


async def test_stopping_lets_long_polls_go(served, start, http):
    running = start(served)
    etag = await etag_of(http, running)
    waiting = asyncio.get_running_loop().create_task(held(http, running, 30, etag))
    await asyncio.sleep(0.3)
    begin = time.monotonic()
    await asyncio.to_thread(running.stop)
    assert time.monotonic() - begin < 3
    assert (await waiting)[0] == 304


async def test_health(shared, http):
    async with http.get(f"{shared.url}healthz") as response:
        assert response.status == 200
        assert (await response.json())["root_version"] == 1


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
async def test_other_methods(shared, http, method):
    async with http.request(method, f"{shared.url}test/head") as response:
        assert response.status == 405
        assert response.content_type == "application/problem+json"


async def test_a_failure_shows_no_inside(running, http, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Repository, "read", broken)
    async with http.get(f"{running.url}test/head") as response:
        text = await response.text()
        assert response.status == 500
        assert "secret" not in text
        assert "Traceback" not in text


def test_a_slow_request_head_is_cut_off(served, start, monkeypatch):
    monkeypatch.setattr(run, "HEAD_S", 0.5)
    running = start(served)
    begin = time.monotonic()
    assert raw(running.port, "GET /test/head HTTP/1.1\r\nHost:") == b""
    assert time.monotonic() - begin < 3
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    assert connection.sock is not None
    connection.sock.sendall(b"GET /healthz HTTP/1.1\r\n")
    begin = time.monotonic()
    assert connection.sock.recv(1) == b""
    assert time.monotonic() - begin < 3
    connection.close()


def test_a_long_poll_outlives_the_head_deadline(served, start, monkeypatch):
    monkeypatch.setattr(run, "HEAD_S", 0.3)
    running = start(served)
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)
    connection.request("GET", "/test/head")
    response = connection.getresponse()
    response.read()
    connection.request(
        "GET", "/test/head", headers={"If-None-Match": response.headers["ETag"], "Prefer": "wait=1"}
    )
    assert connection.getresponse().status == 304
    connection.close()
