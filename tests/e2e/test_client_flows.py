"""Real clients that bring credentials, and what they do besides a GET: uploads, streams, ranges, gRPC, browsers' habits.

Every client takes the proxy with its user and password from the environment.
"""

import base64
import contextlib
import hashlib
import socket
import sys
import textwrap
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.flows import LARGE, PAUSE_S, RANGE, Server
from tests.e2e.kit import Place, wait_until
from tests.ports import free_port

RULES = """\
edgeguard: 1
module: flows
owner: tests
rules:
  - id: flows-tunnel
    effect: allow
    to: ["tunnel.example:{flows}", "tunnel.example:{grpc}"]
    clients: [alice]
    resolves_to: ["127.0.0.0/8"]
    rationale: Host and port settle it.
  - id: flows
    effect: allow
    to: ["site.example:{flows}"]
    clients: [alice]
    methods: [GET, HEAD, POST, PUT]
    paths: ["/ok/**"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Method and path matter.
  - id: rpc
    effect: allow
    to: ["site.example:{grpc}"]
    clients: [alice]
    methods: [POST]
    paths: ["/test.Echo/Echo", "/test.Echo/Count", "/test.Echo/Fails", "/test.Echo/Talk"]
    resolves_to: ["127.0.0.0/8"]
    rationale: Some methods of one service.
"""
LANES = ("tunnel.example", "site.example")
"""Relayed unread, and inspected."""


class Secured(Place):
    """A place whose clients have to say who they are."""

    def _config(self) -> str:
        digest = hashlib.sha256(b"open sesame").hexdigest()
        secret = f'[[identity.secret]]\nclient = "alice"\nsha256 = "{digest}"\n'
        return super()._config().replace('[identity]\nstatic = "checkout"\n', secret)

    @property
    def url(self) -> str:
        return f"http://alice:open%20sesame@127.0.0.1:{self.proxy}"


class Bridge:
    """A door without credentials that adds those of the place's client, for programs that take none."""

    def __init__(self, proxy: int) -> None:
        self._proxy = proxy
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._talk, args=self._server.accept()[:1], daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        credentials = base64.b64encode(b"alice:open sesame")
        with (
            client,
            socket.create_connection(("127.0.0.1", self._proxy)) as proxy,
            contextlib.suppress(OSError),
        ):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            line, _, rest = head.partition(b"\r\n")
            proxy.sendall(line + b"\r\nProxy-Authorization: Basic " + credentials + b"\r\n" + rest)
            threading.Thread(target=_pump, args=(proxy, client), daemon=True).start()
            _pump(client, proxy)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def place(tmp_path_factory, keys):
    rpc = free_port()
    server = Server()
    with Secured(tmp_path_factory.mktemp("flows"), keys) as running:
        running.write("flows", RULES.format(flows=server.server_port, grpc=rpc))
        server.begin(running.leaf)
        running._spawn("grpc", [sys.executable, "-m", "tests.e2e.flows", str(rpc), str(running.leaf)])
        running.start_all()
        running.wait_for_port(rpc, "grpc")
        running.flows, running.rpc = server, rpc
        yield running
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def curl(place, needs):
    program = needs("curl")

    def run(*words, **options):
        return place.command(program, "-sS", "--max-time", "30", *words, **options)

    return run


@pytest.fixture(params=LANES)
def origin(request, place):
    return f"https://{request.param}:{place.flows.server_port}/ok"


def memory_kb(place):
    """The most that the proxy ever held."""
    status = Path(f"/proc/{place._processes['proxy'].pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


# Who asks


def test_without_credentials_and_with_wrong_ones(place, curl):
    url = f"https://tunnel.example:{place.flows.server_port}/ok/hello"
    for proxy in (
        (f"http://127.0.0.1:{place.proxy}",),
        (f"http://127.0.0.1:{place.proxy}", "-U", "alice:wrong"),
    ):
        done = curl("-v", "-x", *proxy, url)
        assert "response 407" in done.stderr
        assert "Proxy-Authenticate: Basic" in done.stderr
        assert "client_unknown" in done.stderr
    done = curl("-x", f"http://127.0.0.1:{place.proxy}", "-U", "alice:open sesame", url)
    assert done.stdout == "hello", done.stderr
    # A client that waits to be asked, and then answers on the same or another connection.
    done = curl("--proxy-anyauth", "-x", f"http://127.0.0.1:{place.proxy}", "-U", "alice:open sesame", url)
    assert done.stdout == "hello", done.stderr


def test_git_says_that_credentials_are_missing(place, needs):
    done = place.command(
        needs("git"),
        *("-c", f"http.proxy=http://127.0.0.1:{place.proxy}"),
        *("clone", "-q", f"https://tunnel.example:{place.flows.server_port}/project.git", "nothing"),
    )
    assert done.returncode == 128
    assert "407" in done.stderr


# curl


def test_a_large_upload_waits_for_its_go_ahead(place, curl, origin):
    """Expect: 100-continue, 20 MB."""
    (place.folder / "upload").write_bytes(b"u" * 20_000_000)
    done = curl("-H", "Expect: 100-continue", "-T", "upload", f"{origin}/upload")
    assert done.stdout == "20000000", done.stderr
    done = curl("-H", "Transfer-Encoding: chunked", "-T", "upload", f"{origin}/upload")
    assert done.stdout == "20000000", done.stderr


def test_a_refused_upload_is_not_sent(place, curl):
    done = curl(
        *("-v", "-H", "Expect: 100-continue", "-T", "upload", "--http1.1"),
        f"https://site.example:{place.flows.server_port}/secret",
        cwd=place.folder,
    )
    assert "path_not_allowed" in done.stdout
    assert "100 Continue" not in done.stderr


@pytest.mark.long
def test_a_large_download_in_bounded_memory(place, curl, origin):
    before = memory_kb(place)
    done = curl("-o", "/dev/null", "-w", "%{size_download}", f"{origin}/large")
    assert done.stdout == str(LARGE), done.stderr
    assert memory_kb(place) - before < 40_000


def test_small_things_of_http(curl, origin):
    assert curl("--compressed", f"{origin}/gzip").stdout == "squeezed" * 1000
    assert curl("-r", "10-19", "-w", "%{http_code}", "-o", "part", f"{origin}/range").stdout == "206"
    head = curl("-I", f"{origin}/hello").stdout.lower()
    assert "content-length: 5" in head
    assert curl(f"{origin}/hello", f"{origin}/hello").stdout == "hellohello"


def test_a_part_is_the_part(place, curl, origin):
    curl("-r", "1000-1999", "-o", "part", f"{origin}/range")
    assert (place.folder / "part").read_bytes() == RANGE[1000:2000]


def test_a_redirect_to_a_denied_host_ends_there(curl, origin):
    done = curl("-L", "-v", f"{origin}/redirect")
    assert done.returncode != 0
    assert "evil.example" in done.stderr
    assert "host_not_allowed" in done.stderr


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_connection_goes_on_after_a_refusal(place, curl, version):
    site = f"https://site.example:{place.flows.server_port}"
    urls = [f"{site}/ok/hello", f"{site}/secret", f"{site}/ok/hello"]
    done = curl(
        version, "-o", "/dev/null", *[w for u in urls for w in ("-w", "%{http_code} %{num_connects}\n", u)]
    )
    done = curl(version, "-w", "\n%{http_code} %{num_connects}\n", *urls)
    counts = [line for line in done.stdout.splitlines() if line[:4] in {"200 ", "403 "}]
    assert counts == ["200 1", "403 0", "200 0"], done.stdout


def test_no_proxy_goes_straight(place, curl):
    """A client's own exception never reaches us; the network rule beside the proxy is what catches it."""

    def asked():
        return sum(record["kind"] != "close" for record in place.records())

    wait_until(lambda: place.status()["decisions"]["waiting"] == 0, "the log")
    since = asked()
    port = place.flows.server_port
    resolve = ("--resolve", f"tunnel.example:{port}:127.0.0.1")
    done = curl("--noproxy", "tunnel.example", *resolve, f"https://tunnel.example:{port}/ok/hello")
    assert done.stdout == "hello", done.stderr
    assert asked() == since


def test_wget(place, needs, origin):
    program = needs("wget")

    def wget(url):
        trust = f"--ca-certificate={place.folder / 'client-authorities.pem'}"
        return place.command(program, "-nv", "-O", "-", "--tries=1", trust, url)

    done = wget(f"{origin}/hello")
    assert done.stdout == "hello", done.stderr
    if "site.example" in origin:
        done = wget(origin.replace("/ok", "/secret"))
        assert done.returncode == 8
        assert "403" in done.stderr
    done = wget(f"https://evil.example:{place.flows.server_port}/")
    assert done.returncode != 0
    assert "host_not_allowed" in done.stderr


# Python

STREAM = """
import time, requests
began = time.monotonic()
with requests.get(url + "/events", stream=True, timeout=20) as response:
    for line in response.iter_lines():
        if line:
            print(line.decode(), round(time.monotonic() - began, 2))
began = time.monotonic()
print(requests.get(url + "/poll", timeout=20).text, round(time.monotonic() - began, 2))
"""

REQUESTS = """
import requests
with requests.Session() as session:
    for path in ("/ok/hello", "/secret", "/ok/gzip"):
        response = session.get(url.removesuffix("/ok") + path, timeout=20)
        print(response.status_code, response.headers.get("edgeguard-reason") or len(response.content))
    print(session.post(url + "/upload", data=(b"x" * 1000 for _ in range(50)), timeout=20).text)
    try:
        session.get(url.replace("site.", "evil."), timeout=20)
    except requests.exceptions.ProxyError as error:
        print(error)
"""

URLLIB3 = """
import os, urllib3
from urllib.parse import urlsplit, unquote
proxy = urlsplit(os.environ["HTTPS_PROXY"])
headers = urllib3.make_headers(proxy_basic_auth=f"{proxy.username}:{unquote(proxy.password)}")
with urllib3.ProxyManager(f"http://{proxy.hostname}:{proxy.port}", proxy_headers=headers,
                          ca_certs=os.environ["SSL_CERT_FILE"]) as pool:
    print(pool.request("GET", url + "/hello").data.decode())
    print(pool.request("GET", url.removesuffix("/ok") + "/secret").headers["edgeguard-reason"])
"""


def python(place, program, url, *more):
    done = place.command(sys.executable, "-c", f"url = {url!r}\n{textwrap.dedent(program)}", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_events_arrive_as_they_happen(place, origin):
    *events, poll = python(place, STREAM, origin)
    assert [line.split()[1] for line in events] == ["0", "1", "2"]
    times = [float(line.split()[-1]) for line in events]
    assert times[2] - times[0] > PAUSE_S * 0.7
    assert times[1] - times[0] > PAUSE_S * 0.25
    assert poll.startswith("at last ")


def test_requests(place):
    url = f"https://site.example:{place.flows.server_port}/ok"
    hello, secret, squeezed, uploaded, elsewhere = python(place, REQUESTS, url)
    assert (hello, secret, squeezed, uploaded) == ("200 5", "403 path_not_allowed", "200 8000", "50000")
    assert "403" in elsewhere
    assert "host_not_allowed" in elsewhere


def test_urllib3(place):
    url = f"https://site.example:{place.flows.server_port}/ok"
    assert python(place, URLLIB3, url) == ["hello", "path_not_allowed"]


# gRPC

GRPC = """
import os, sys, grpc
with open(os.environ["SSL_CERT_FILE"], "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
with grpc.secure_channel(url, credentials, options=[("grpc.http_proxy", os.environ["HTTPS_PROXY"])]) as channel:
    echo = channel.unary_unary("/test.Echo/Echo")
    answer, call = echo.with_call(b"hello" * 10_000, timeout=10)
    print(len(answer), dict(call.trailing_metadata()).get("kind"))
    count = channel.unary_stream("/test.Echo/Count")(b"5", timeout=10)
    print(b" ".join(count).decode(), dict(count.trailing_metadata()).get("kind"))
    print(b" ".join(channel.stream_stream("/test.Echo/Talk")(iter([b"a", b"b"]), timeout=10)).decode())
    for method in ("Fails", "Secret"):
        try:
            print(channel.unary_unary("/test.Echo/" + method)(b"", timeout=10))
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""


@pytest.mark.parametrize("host", LANES)
def test_grpc(place, host):
    unary, stream, talk, fails, secret = python(place, GRPC, f"{host}:{place.rpc}")
    assert unary == "50000 unary"
    assert stream == "0 1 2 3 4 stream"
    assert talk == "heard a heard b"
    assert fails == "NOT_FOUND no such thing"
    if host == "site.example":
        assert secret.startswith("PERMISSION_DENIED")
    else:
        assert secret == "b''"


def test_grpc_is_refused_elsewhere(place):
    done = place.command(sys.executable, "-c", f"url = 'evil.example:{place.rpc}'\n{GRPC}")
    assert done.returncode != 0
    assert "UNAVAILABLE" in done.stderr


# A browser, and Node


@pytest.mark.long
@pytest.mark.parametrize(("path", "shows"), [("/ok/hello", "hello"), ("/secret", "path_not_allowed")])
def test_chromium(place, needs, tmp_path, path, shows):
    """Headless, through a bridge without credentials: a browser asks its user for them."""
    url = f"https://site.example:{place.flows.server_port}{path}"
    with Bridge(place.proxy) as bridge:
        done = place.command(
            needs("chromium"),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={tmp_path}", f"--proxy-server=http://127.0.0.1:{bridge.port}"),
            *("--ignore-certificate-errors", "--virtual-time-budget=5000", "--dump-dom", url),
            timeout=60,
        )
    assert shows in done.stdout, done.stderr


NODE = """
const http = require("node:http"), https = require("node:https"), tls = require("node:tls");
const proxy = new URL(process.env.HTTPS_PROXY), url = new URL(process.argv[1]);
const user = decodeURIComponent(proxy.username) + ":" + decodeURIComponent(proxy.password);
const asked = http.request({
  host: proxy.hostname, port: proxy.port, method: "CONNECT", path: url.host,
  headers: {"Host": url.host, "Proxy-Authorization": "Basic " + Buffer.from(user).toString("base64")},
});
asked.on("connect", (answer, socket) => {
  if (answer.statusCode !== 200) { console.log(answer.statusCode, answer.headers["edgeguard-reason"]); socket.destroy(); return; }
  const agent = new https.Agent({keepAlive: false});
  agent.createConnection = () => tls.connect({socket, servername: url.hostname});
  https.get(url, {agent}, (response) => {
    let body = "";
    response.on("data", (part) => body += part);
    response.on("end", () => console.log(response.statusCode, response.headers["edgeguard-reason"] || body));
  });
});
asked.end();
"""


@pytest.mark.parametrize(
    ("host", "path", "says"),
    [
        ("tunnel.example", "/ok/hello", "200 hello"),
        ("site.example", "/ok/hello", "200 hello"),
        ("site.example", "/secret", "403 path_not_allowed"),
        ("evil.example", "/", "403 host_not_allowed"),
    ],
)
def test_node(place, needs, host, path, says):
    done = place.command(needs("node"), "-e", NODE, f"https://{host}:{place.flows.server_port}{path}")
    assert done.stdout.strip() == says, done.stderr
