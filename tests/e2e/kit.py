"""A running edgeguard for the end-to-end tests: the demo's processes with the tests' own policy and upstreams.

The upstreams live in the test process, so that a test sees exactly what was dialled and what arrived.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from edgeguard.demo.client import Client
from edgeguard.demo.tokens import make_certificates
from edgeguard.demo.world import World
from edgeguard.dev.environment import child_environment

type Done = subprocess.CompletedProcess[str]

NAMES = (
    "tunnel.example",
    "site.example",
    "plain.example",
    "git.example",
    "index.example",
    "chat.example",
    "evil.example",
    "later.example",
    "raw.example",
    "twin.example",
    "localhost",
)
ADDRESSES = {"twin.example": ["127.0.0.2", "127.0.0.1"]}
"""Names with other addresses than 127.0.0.1; at the first of these nobody listens."""

POLICY = """\
edgeguard: 1
module: e2e
owner: tests
rules:
  - id: tunnel
    effect: allow
    to: ["tunnel.example:{tls}"]
    resolves_to: ["127.0.0.0/8"]
    survive_offline: true
    rationale: Host and port settle it.
  - id: site
    effect: allow
    to: ["site.example:{tls}"]
    methods: [GET, POST]
    paths: ["/ok/**"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Method and path matter.
  - id: plain
    effect: allow
    to: ["plain.example:{http}"]
    protocol: http
    paths: ["/ok/**"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Plain HTTP.
  - id: git-read
    effect: allow
    to: ["git.example:{tls}"]
    methods: [GET, POST]
    paths: ["/project.git/info/refs", "/project.git/git-upload-pack"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Cloning and fetching, no pushing.
  - id: packages
    effect: allow
    to: ["index.example:{tls}"]
    methods: [GET, HEAD]
    paths: ["/simple/**", "/files/**"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Installing packages.
  - id: chat-room
    effect: allow
    to: ["chat.example:{ws}"]
    protocol: websocket
    paths: ["/room"]
    resolves_to: ["127.0.0.0/8"]
    rationale: One room.
  - id: chat-pages
    effect: allow
    to: ["chat.example:{ws}"]
    paths: ["/**"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Pages may be read; that opens no WebSocket.
"""

LATER = """\
edgeguard: 1
module: later
owner: tests
rules:
  - id: later
    effect: allow
    to: ["later.example:{tls}"]
    resolves_to: ["127.0.0.0/8"]
    rationale: What a second version adds.
"""


class Recorder:
    """HTTP upstreams, plain and TLS, that remember connections and requests.

    Attributes:
        connections: Accepted connections.
        peers: Client's and server's port of each of them.
        requests: (method, Host, path) of each request.
    """

    def __init__(self, certificate: Path, files: Path, *, http: int = 0, tls: int = 0) -> None:
        self.connections = 0
        self.peers: list[tuple[int, int]] = []
        self.requests: list[tuple[str, str, str]] = []
        self.files = files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._servers = [self._serve(http, None), self._serve(tls, context)]
        self.http, self.tls = (server.server_address[1] for server in self._servers)

    def _serve(self, port: int, context: ssl.SSLContext | None) -> ThreadingHTTPServer:
        recorder = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request, client_address):
                recorder.connections += 1
                recorder.peers.append((client_address[1], self.server_address[1]))
                super().process_request(request, client_address)

            def handle_error(self, request, client_address):
                """Clients of these tests break off on purpose."""

        server = Server(("127.0.0.1", port), type("Handler", (_Handler,), {"recorder": recorder}))
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Static files below `/simple/` and `/files/`, git's own CGI below `/project.git/`, an echo elsewhere."""

    protocol_version = "HTTP/1.1"
    recorder: Recorder

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
        self.recorder.requests.append((self.command, self.headers.get("host", ""), self.path))
        if self.path.startswith("/project.git/"):
            status, headers, reply = self._git(body)
        elif self.path.startswith(("/simple/", "/files/")):
            file = self.recorder.files / self.path.strip("/")
            file = file / "index.html" if file.is_dir() else file
            status = 200 if file.is_file() else 404
            kind = "text/html" if file.suffix == ".html" else "application/octet-stream"
            headers, reply = {"Content-Type": kind}, file.read_bytes() if status == 200 else b""
        else:
            seen = {
                "host": self.headers.get("host"),
                "method": self.command,
                "path": self.path,
                "body": len(body),
            }
            status, headers, reply = 200, {"Content-Type": "application/json"}, json.dumps(seen).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _git(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "GIT_PROJECT_ROOT": str(self.recorder.files),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            },
        )
        head, _, reply = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        return int(headers.pop("Status", "200").split()[0]), headers, reply

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Quiet."""


class Place(World):
    """A world with the tests' names, upstreams and policy.

    Args:
        folder: Empty.
        keys: A folder with the keys and the root of `make_keys`.
        resolver: Replaces the static table in the configuration.
    """

    def __init__(self, folder: Path, keys: Path, *, websocket_port: int = 443, resolver: str = "") -> None:
        super().__init__(folder)
        self.head_lifetime_s, self.grace_s = 60, 3
        shutil.copytree(keys, folder, dirs_exist_ok=True)
        self.files = folder / "files"
        self.files.mkdir()
        self.upstream_authority, leaf = make_certificates(folder, [*NAMES])
        self.leaf = leaf
        self.upstream = Recorder(leaf, self.files)
        self.http, self.tls = self.upstream.http, self.upstream.tls
        self.websocket_port = websocket_port
        self._resolver = resolver

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.upstream.close()

    def write(self, module: str, text: str) -> None:
        """One policy module, with the ports filled in."""
        folder = self.folder / "policy"
        folder.mkdir(exist_ok=True)
        values = {"tls": self.tls, "http": self.http, "ws": self.websocket_port}
        (folder / f"{module}.yaml").write_text(text.format(**values))

    def start_all(self, *, lifetime_s: int = 600) -> Client:
        """Server, head signer and proxy with version 1 of the tests' policy."""
        self.write("e2e", POLICY)
        bundle = self.release(1, lifetime_s=lifetime_s)
        self.start_server()
        self.publish(bundle)
        self.start_head()
        return self.start_proxy()

    def client_of(self) -> Client:
        """The demo's client, for a proxy that has no policy yet."""
        return Client(self.proxy, self.authorities())

    def authorities(self) -> Path:
        """What clients trust: the upstreams' authority and the proxy's own."""
        both = self.folder / "client-authorities.pem"
        own = self.folder / "state/ca/mitmproxy-ca-cert.pem"
        both.write_bytes(self.upstream_authority.read_bytes() + own.read_bytes())
        return both

    def _config(self) -> str:
        text = super()._config()
        before, _, _ = text.partition("[resolver]")
        found = {name: ADDRESSES.get(name, ["127.0.0.1"]) for name in NAMES}
        table = "\n".join(f'"{name}" = {json.dumps(addresses)}' for name, addresses in found.items())
        return before + (self._resolver or f'[resolver]\nmode = "static"\n[resolver.static]\n{table}\n')

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy}"

    def environment(self) -> dict[str, str]:
        """What `edgeguard dev -- COMMAND` would set, for commands of the tests."""
        return child_environment(plain_environment(), self.url, self.folder / "client-authorities.pem")

    def command(self, *words: object, cwd: Path | None = None, timeout: float = 30) -> Done:
        """Runs a client behind the proxy."""
        return run(*words, env=self.environment(), cwd=cwd or self.folder, timeout=timeout)

    def records(self) -> list[dict[str, object]]:
        """The decision log."""
        return [json.loads(line) for line in self.decisions.read_bytes().splitlines()]

    def running(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None


def plain_environment() -> dict[str, str]:
    """This process's environment without settings that would change what the clients do."""
    unwanted = ("PIP_", "GIT_", "EDGEGUARD_", "COVERAGE_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


def run(*words: object, env: dict[str, str], cwd: Path, timeout: float = 30, stdin: str = "") -> Done:
    return subprocess.run(
        [str(word) for word in words],
        env=env,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def edgeguard(*words: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 30) -> Done:
    """One command of the shipped command line, wide enough not to wrap."""
    environment = {**plain_environment(), "COLUMNS": "200", **(env or {})}
    return run(sys.executable, "-m", "edgeguard", *words, env=environment, cwd=cwd, timeout=timeout)


def make_keys(folder: Path) -> None:
    """The demo's key ceremony; the result can be copied into any number of worlds."""
    World(folder).ceremony()


def wait_until(true, what: str, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"waited {within_s} s for {what}"
        time.sleep(0.02)
