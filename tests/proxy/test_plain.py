"""The addon under stock mitmdump, as a process of its own, with a really signed policy."""

import asyncio
import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgeguard.dev.workshop import Workshop
from edgeguard.proxy import plain
from tests.ports import free_port

MITMDUMP = Path(sys.executable).with_name("mitmdump")

POLICY = b"""\
edgeguard: 1
module: test
owner: tests
rules:
  - id: upstream
    effect: allow
    to: ["a.test:%d"]
    protocol: http
    methods: [GET]
    paths: ["/ok/**", "/ok"]
    resolves_to: ["127.0.0.0/8"]
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve_folder():
    """Serves a folder on loopback, as any static web server could serve a repository."""
    with contextlib.ExitStack() as stack:

        def serve(folder: Path) -> int:
            server = http.server.ThreadingHTTPServer(
                ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
            )
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server.server_port

        yield serve


@contextlib.asynccontextmanager
async def mitmdump(*arguments: str, environ: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        MITMDUMP,
        "-s",
        plain.__file__,
        *arguments,
        env={**os.environ, **environ, "PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.communicate(), 20)


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def until_answered(port: int, data: bytes, wanted: bytes) -> bytes:
    reply = b""
    for _ in range(150):
        with contextlib.suppress(OSError):
            reply = await ask(port, data)
            if wanted in reply:
                return reply
        await asyncio.sleep(0.1)
    raise AssertionError(f"never {wanted!r}, at last {reply!r}")


@pytest.fixture
async def node(tmp_path, serve_folder):
    """(config file, upstream port)"""
    site = tmp_path / "site"
    (site / "ok").mkdir(parents=True)
    (site / "ok" / "index.html").write_text("fine")
    (site / "no.html").write_text("never")
    upstream = serve_folder(site)
    workshop = Workshop(tmp_path / "workshop")
    await workshop.ensure_root()
    await workshop.publish({"policy.yaml": POLICY % upstream})
    bundles = serve_folder(workshop.root_file.parent.parent)
    config = tmp_path / "edgeguard.toml"
    config.write_text(
        f"""
environment = "dev"
[trust]
root = "{workshop.root_file}"
state_dir = "{tmp_path / "state"}"
[sync]
urls = ["http://127.0.0.1:{bundles}/"]
poll_s = 0.2
long_poll_s = 0
[identity]
static = "tester"
[resolver]
mode = "static"
[resolver.static]
"a.test" = ["127.0.0.1"]
[evidence]
log = "{tmp_path / "decisions.jsonl"}"
[admin]
address = ""
"""
    )
    return config, upstream


async def test_regular_mode(node, tmp_path):
    config, upstream = node
    port = free_port()
    async with mitmdump(
        "--listen-host", "127.0.0.1", "-p", str(port), environ={plain.VARIABLE: str(config)}
    ) as process:
        head = f"HTTP/1.1\r\nHost: a.test:{upstream}\r\nConnection: close\r\n\r\n"
        fine = await until_answered(port, f"GET http://a.test:{upstream}/ok/ {head}".encode(), b"200 OK")
        assert fine.endswith(b"fine")
        refused = await ask(port, f"GET http://a.test:{upstream}/no.html {head}".encode())
        assert b"edgeguard-reason: path_not_allowed" in refused
        elsewhere = await ask(
            port, b"GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n"
        )
        assert b"edgeguard-reason: host_not_allowed" in elsewhere
        connect = await ask(port, b"CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n")
        assert b"edgeguard-reason: host_not_allowed" in connect
        process.terminate()
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    for line in plain.NOT_GUARANTEED:
        assert line in output.decode()
    assert len((tmp_path / "decisions.jsonl").read_bytes().splitlines()) >= 4


async def test_reverse_mode(node):
    config, upstream = node
    port = free_port()
    arguments = ("--mode", f"reverse:http://a.test:{upstream}@127.0.0.1:{port}")
    async with mitmdump(*arguments, environ={plain.VARIABLE: str(config)}):
        fine = await until_answered(
            port, b"GET /ok/ HTTP/1.1\r\nHost: own.example\r\nConnection: close\r\n\r\n", b"200 OK"
        )
        assert fine.endswith(b"fine")
        refused = await ask(port, b"GET /no.html HTTP/1.1\r\nHost: own.example\r\nConnection: close\r\n\r\n")
        assert b"edgeguard-reason: path_not_allowed" in refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--set", "ssl_insecure=true"), "", id="insecure-is-overridden"),
        pytest.param(("--mode", "upstream:http://127.0.0.1:1"), "parent proxy would resolve", id="upstream"),
        pytest.param(("--mode", "dns"), "covers the modes", id="dns"),
        pytest.param(("--mode", "reverse:tcp://127.0.0.1:1"), "is not HTTP", id="reverse-tcp"),
        pytest.param(("--listen-host", "0.0.0.0"), "loopback only", id="exposed"),
        pytest.param(("--set", "edgeguard_config=/nowhere.toml"), "/nowhere.toml", id="no-file"),
    ],
)
async def test_what_does_not_start(node, arguments, says):
    config, upstream = node
    port = free_port()
    environ = {plain.VARIABLE: str(config)}
    async with mitmdump(
        "--listen-host", "127.0.0.1", "-p", str(port), *arguments, environ=environ
    ) as process:
        if not says:
            head = f"HTTP/1.1\r\nHost: a.test:{upstream}\r\nConnection: close\r\n\r\n"
            await until_answered(port, f"GET http://a.test:{upstream}/ok/ {head}".encode(), b"200 OK")
            return
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode != 0
    assert says in output.decode()


async def test_without_settings_nothing_is_served():
    port = free_port()
    async with mitmdump(
        "--listen-host", "127.0.0.1", "-p", str(port), environ={plain.VARIABLE: ""}
    ) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode != 0
    assert "EDGEGUARD_CONFIG" in output.decode()


def test_the_module_says_where_it_is():
    out = subprocess.run(
        [sys.executable, "-m", "edgeguard.proxy.plain"], capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(r"/.+/plain\.py\n", out)
