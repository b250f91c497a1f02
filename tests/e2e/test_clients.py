"""Real clients through a real proxy: what is allowed works, what is not is refused in words that they show."""

import asyncio
import json
import queue
import ssl
import sys
import textwrap
import threading
import zipfile

import pytest
from websockets.asyncio.server import serve

from tests.e2e.kit import Place

CHATS = """\
edgeguard: 1
module: chats
owner: tests
rules:
  - id: chat-tunnel
    effect: allow
    to: ["tunnel.example:{wss}"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Host and port settle it, WebSocket included.
  - id: chat-plain
    effect: allow
    to: ["chat.example:{ws}"]
    protocol: [websocket, http]
    paths: ["/room"]
    resolves_to: ["127.0.0.0/8"]
    rationale: One room, in the clear.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("clients")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def talk(connection):
        async for message in connection:
            await connection.send(f"heard {message}")

    begun = queue.SimpleQueue()

    async def listen():
        end = asyncio.Event()
        async with serve(talk, "127.0.0.1", 0, ssl=context) as one, serve(talk, "127.0.0.1", 0) as other:
            ports = [next(iter(server.sockets)).getsockname()[1] for server in (one, other)]
            begun.put((asyncio.get_running_loop(), end, *ports))
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    loop, end, chat, plain_chat = begun.get(timeout=10)
    with Place(folder, keys, websocket_port=chat) as running:
        context.load_cert_chain(running.leaf)
        running.plain_chat = plain_chat
        running.write("chats", CHATS.format(wss=running.websocket_port, ws=running.plain_chat))
        running.client = running.start_all()
        yield running
    loop.call_soon_threadsafe(end.set)
    thread.join(10)


# curl


@pytest.fixture(scope="module")
def curl(place, needs):
    program = needs("curl")

    def run(*words):
        return place.command(program, "-sS", "--max-time", "20", *words)

    return run


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(("host", "path"), [("tunnel.example", "/any"), ("site.example", "/ok/page")])
def test_curl_https(place, curl, version, host, path):
    done = curl(version, "-w", "\n%{http_version}", f"https://{host}:{place.tls}{path}")
    assert done.returncode == 0, done.stderr
    body, spoken = done.stdout.rsplit("\n", 1)
    assert json.loads(body)["host"] == f"{host}:{place.tls}"
    inspected = host == "site.example"
    # In the tunnel lane the upstream answers, which speaks HTTP/1.1 only.
    assert spoken == ("2" if version == "--http2" and inspected else "1.1")


def test_curl_posts_a_body_that_arrives_whole(place, curl):
    (place.folder / "body").write_bytes(b"x" * 300_000)
    done = curl("--data-binary", "@body", f"https://site.example:{place.tls}/ok/upload")
    assert json.loads(done.stdout)["body"] == 300_000, done.stderr


def test_curl_plain_http(place, curl):
    done = curl(f"http://plain.example:{place.http}/ok/page")
    assert json.loads(done.stdout)["path"] == "/ok/page", done.stderr


def test_curl_is_told_why_a_tunnel_is_refused(place, curl):
    done = curl("-v", f"https://evil.example:{place.tls}/")
    assert done.returncode != 0
    assert "CONNECT tunnel failed, response 403" in done.stderr
    assert "edgeguard-reason: host_not_allowed" in done.stderr


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_is_told_why_a_request_is_refused(place, curl, version):
    done = curl(version, "-w", "\n%{http_code}", f"https://site.example:{place.tls}/secret")
    body, code = done.stdout.rsplit("\n", 1)
    problem = json.loads(body)
    assert (code, problem["status"]) == ("403", 403)
    assert problem["reason"] == "path_not_allowed"
    assert f"site.example:{place.tls}" in problem["detail"]
    failed = curl("--fail", f"https://site.example:{place.tls}/secret")
    assert failed.returncode == 22
    assert "403" in failed.stderr


def test_curl_sees_the_refusal_of_plain_http(place, curl):
    problem = json.loads(curl(f"http://plain.example:{place.http}/secret").stdout)
    assert problem["reason"] == "path_not_allowed"
    problem = json.loads(curl(f"http://evil.example:{place.http}/").stdout)
    assert problem["reason"] == "host_not_allowed"


# git


@pytest.fixture(scope="module")
def git(place, needs):
    program = needs("git")
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")

    def run(*words, cwd=None):
        return place.command(program, *identity, *words, cwd=cwd)

    work = place.folder / "work"
    for words in (
        ("init", "-q", "-b", "main", work),
        ("-C", work, "commit", "-q", "--allow-empty", "-m", "one"),
    ):
        done = run(*words)
        assert done.returncode == 0, done.stderr
    (work / "README").write_text("hello\n" * 1000)
    for words in (
        ("-C", work, "add", "README"),
        ("-C", work, "commit", "-q", "-m", "two"),
        ("clone", "-q", "--bare", work, place.files / "project.git"),
        ("-C", place.files / "project.git", "config", "http.receivepack", "true"),
    ):
        done = run(*words)
        assert done.returncode == 0, done.stderr
    return run


def test_git_clones_and_fetches(place, git):
    url = f"https://git.example:{place.tls}/project.git"
    done = git("clone", "-q", url, "cloned")
    assert done.returncode == 0, done.stderr
    assert (place.folder / "cloned/README").read_text().startswith("hello")
    assert git("-C", place.folder / "cloned", "fetch", "-q").returncode == 0


@pytest.mark.parametrize("_id", [pytest.param(None, id="attack-P16")])
def test_git_may_not_push(place, git, _id):
    url = f"https://git.example:{place.tls}/project.git"
    work = place.folder / "work"
    assert git("-C", work, "commit", "-q", "--allow-empty", "-m", "three").returncode == 0
    done = git("-C", work, "push", "-q", url, "main")
    assert done.returncode != 0
    assert "403" in done.stderr
    assert (
        "POST",
        f"git.example:{place.tls}",
        "/project.git/git-receive-pack",
    ) not in place.upstream.requests


def test_git_is_refused_elsewhere(place, git):
    done = git("clone", "-q", f"https://evil.example:{place.tls}/project.git", "nothing")
    assert done.returncode == 128
    assert "CONNECT tunnel failed, response 403" in done.stderr


# pip


@pytest.fixture(scope="module")
def index(place):
    files = place.files / "files"
    files.mkdir()
    wheel = files / "sample_package-1.0-py3-none-any.whl"
    info = "sample_package-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sample_package.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sample-package\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"sample_package.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    page = place.files / "simple/sample-package"
    page.mkdir(parents=True)
    (page / "index.html").write_text(
        f'<!DOCTYPE html><html><body><a href="/files/{wheel.name}">{wheel.name}</a></body></html>'
    )
    return f"https://index.example:{place.tls}/simple/"


def pip(place, *words):
    options = ("--disable-pip-version-check", "--no-cache-dir", "--retries", "1", "--timeout", "10")
    return place.command(sys.executable, "-m", "pip", *words, *options)


@pytest.mark.parametrize("host", ["index.example", "tunnel.example"])
def test_pip_installs_from_an_allowed_index(place, index, host):
    target = place.folder / "installed" / host
    index = index.replace("index.example", host)
    done = pip(place, "install", "--index-url", index, "--no-deps", "--target", target, "sample-package")
    assert done.returncode == 0, done.stderr
    assert "ANSWER" in (target / "sample_package.py").read_text()


def test_pip_is_refused_elsewhere(place, index):
    elsewhere = index.replace("index.example", "evil.example")
    done = pip(place, "download", "--index-url", elsewhere, "--no-deps", "-d", "downloads", "sample-package")
    assert done.returncode != 0
    assert "403 Forbidden: edgeguard host_not_allowed" in done.stdout + done.stderr


# Python's HTTP clients: each takes the proxy and the authorities from the environment.

CLIENTS = {
    "urllib": """
        import urllib.error, urllib.request
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                print(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            print(error.code, error.headers["edgeguard-reason"])
        """,
    "http.client": """
        import http.client, os, ssl
        from urllib.parse import urlsplit
        proxy, to = urlsplit(os.environ["HTTPS_PROXY"]), urlsplit(url)
        connection = http.client.HTTPSConnection(
            proxy.hostname, proxy.port, context=ssl.create_default_context(), timeout=20)
        connection.set_tunnel(to.hostname, to.port)
        connection.request("GET", to.path)
        response = connection.getresponse()
        print(response.status, response.headers["edgeguard-reason"] or response.read().decode())
        """,
    "httpx": """
        import httpx
        response = httpx.get(url, timeout=20)
        print(response.status_code, response.headers.get("edgeguard-reason") or response.text)
        """,
    "httpx-http2": """
        import httpx, ssl
        with httpx.Client(http2=True, timeout=20) as client:
            response = client.get(url)
        print(response.status_code, response.headers.get("edgeguard-reason") or response.text)
        """,
    "aiohttp": """
        import aiohttp, asyncio
        async def main():
            async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as response:
                print(response.status, response.headers.get("edgeguard-reason") or await response.text())
        asyncio.run(main())
        """,
}


def python(place, name, url):
    program = f"url = {url!r}\n{textwrap.dedent(CLIENTS[name])}"
    return place.command(sys.executable, "-c", program)


@pytest.mark.parametrize("name", CLIENTS)
def test_python_clients(place, name):
    for host, path in (("tunnel.example", "/any"), ("site.example", "/ok/page")):
        done = python(place, name, f"https://{host}:{place.tls}{path}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("200 "), done.stdout
        assert f"{host}:{place.tls}" in done.stdout
    done = python(place, name, f"https://site.example:{place.tls}/secret")
    assert done.stdout == "403 path_not_allowed\n", done.stderr


@pytest.mark.parametrize("name", CLIENTS)
def test_python_clients_say_why_a_tunnel_is_refused(place, name):
    """All of them raise, and show the status line of the refusal."""
    done = python(place, name, f"https://evil.example:{place.tls}/")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "403" in message
    assert "host_not_allowed" in message


WEBSOCKET = """
import asyncio, faulthandler, sys
faulthandler.dump_traceback_later(15, exit=True)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

async def main():
    try:
        async with connect(sys.argv[1], open_timeout=10) as chat:
            await chat.send("hello")
            print(await asyncio.wait_for(chat.recv(), 10))
    except InvalidStatus as error:
        print(error.response.status_code, error.response.headers["edgeguard-reason"])

asyncio.run(main())
"""
"""On one thread: with a reader and a writer on two, one TLS object of Python 3.13 loses a request in a thousand."""


def test_a_websocket_by_rule(place):
    done = place.command(sys.executable, "-c", WEBSOCKET, f"wss://chat.example:{place.websocket_port}/room")
    assert done.stdout == "heard hello\n", done.stderr


def test_a_websocket_in_a_tunnel_and_in_the_clear(place):
    for url in (
        f"wss://tunnel.example:{place.websocket_port}/anywhere",
        f"ws://chat.example:{place.plain_chat}/room",
    ):
        done = place.command(sys.executable, "-c", WEBSOCKET, url)
        assert done.stdout == "heard hello\n", done.stderr
    done = place.command(sys.executable, "-c", WEBSOCKET, f"ws://chat.example:{place.plain_chat}/other")
    assert done.stdout == "403 path_not_allowed\n", done.stderr


def test_no_websocket_without_a_rule(place):
    """A rule for pages opens no WebSocket; nor does the rule of another path."""
    done = place.command(sys.executable, "-c", WEBSOCKET, f"wss://chat.example:{place.websocket_port}/other")
    assert done.stdout.startswith("403 "), done.stderr
    assert "protocol_not_allowed" in done.stdout or "path_not_allowed" in done.stdout
    done = place.command(sys.executable, "-c", WEBSOCKET, f"wss://site.example:{place.tls}/ok/room")
    assert done.stdout == "403 protocol_not_allowed\n", done.stderr


def test_a_browser_gets_a_page(place, curl):
    done = curl("-H", "Accept: text/html", f"http://evil.example:{place.http}/")
    assert done.stdout.startswith("<!")
    assert "host_not_allowed" in done.stdout
