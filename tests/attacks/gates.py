"""A site with age gates behind every door that looks inside, and the person who wants to get past them.

Four ways in, over HTTP/1.1 and HTTP/2: the front door of `edgeguard run` and its reverse door, a stock mitmdump with
`proxy/plain.py` in its modes regular and reverse. One policy; the origin keeps each head as it came, byte for byte.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

import h2.events
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from edgeguard.demo.tokens import make_certificates
from edgeguard.dev.workshop import Workshop
from tests.attacks.multiplex import Talk, request
from tests.e2e.kit import plain_environment, wait_until
from tests.ports import free_port

PLAIN = find_spec("edgeguard.proxy.plain").origin
WAYS = ("edge", "edge-reverse", "addon", "addon-reverse")
HOST = "media.test"
SUBJECT = "raw-subject-4711"
BIRTHDATE = "1987-06-05"
LISTED = "127.0.0.2"
"""Source address of the client whose plain headers count."""
TIMEOUT_S = 3.0

POLICY = """\
edgeguard: 1
module: gates
owner: tests
resources:
  restricted: {{to: ["media.test:{tls}"], paths: ["/restricted/**"]}}
issuers:
  - {{issuer: "https://age.test", audience: edgeguard, algorithms: [ES256], jwks_file: age.jwks, assurance: verified, leeway_s: 0}}
  - {{issuer: "https://typed.test", audience: edgeguard, algorithms: [ES256], jwks_file: age.jwks, typ: age+jwt}}
  - {{issuer: "https://down.test", audience: edgeguard, algorithms: [ES256], jwks_url: "https://keys.test:9/jwks"}}
rules:
  - {{id: site, effect: allow, clients: any, to: ["media.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: unread, effect: allow, clients: any, to: ["unread.test:{tls}"], tls: passthrough, resolves_to: [127.0.0.0/8]}}
  - {{id: keys, effect: allow, clients: [edgeguard], to: ["keys.test:9"], resolves_to: [127.0.0.0/8]}}
age_gates:
  - {{id: adults, match: {{resource: restricted}}, require: {{age: 18, assurance: estimated}}, rationale: r, legal_ref: l}}
  - {{id: viewing, match: {{to: ["media.test:{tls}"], paths: ["/viewing/**"], methods: [GET, HEAD]}}, require: {{age: 18}}, rationale: r, legal_ref: l}}
  - {{id: ordered, match: {{to: ["media.test:{tls}"], paths: ["/ordered/**"]}}, require: {{age: 18}}, rationale: r, legal_ref: l, legal_demand: true}}
  - {{id: trial, match: {{to: ["media.test:{tls}"], paths: ["/trial/**"]}}, require: {{age: 18}}, rationale: r, legal_ref: l, mode: report}}
  - {{id: part, match: {{to: ["media.test:{tls}"], paths: ["/part/**"]}}, require: {{age: 18}}, rationale: r, legal_ref: l, enforce_percent: {percent}}}
  - {{id: there, match: {{to: ["media.test:{tls}"], paths: ["/regional/**"]}}, regions: [DE], require: {{age: 18}}, rationale: r, legal_ref: l}}
  - {{id: unread-gate, match: {{to: ["unread.test"]}}, require: {{age: 18}}, rationale: r, legal_ref: l}}
"""
CONFIG = """\
environment = "dev"
[listen]
address = "127.0.0.1:{edge}"
reverse = "127.0.0.1:{edge-reverse}"
[[site]]
name = "media.test"
port = {tls}
certificate = "{leaf}"
origin = "https://127.0.0.1:{tls}"
[trust]
root = "{root}"
state_dir = "{folder}/state"
[sync]
urls = ["http://127.0.0.1:{bundles}/"]
poll_s = 0.2
long_poll_s = 0
[[identity.cidr]]
cidr = "127.0.0.2/32"
client = "gateway"
[user]
cookie = "eg-user"
jwks_cooldown_s = 1
[user.plain]
clients = ["gateway"]
headers = {{ "x-user-age" = "age_at_least", "x-age-assurance" = "age_assurance", "x-region" = "region" }}
[resolver]
mode = "static"
[resolver.static]
"media.test" = ["127.0.0.1"]
"unread.test" = ["127.0.0.1"]
"keys.test" = ["127.0.0.1"]
[upstream]
ca_file = "{authority}"
[replies]
help_url = "https://help.test/age"
blocked_by = "https://media.test/legal"
[evidence]
log = "{folder}/decisions.jsonl"
[admin]
address = "{admin}"
[bounds]
drain_s = 0.2
"""


class Reply(NamedTuple):
    """What came back; `status` None when nothing did."""

    status: int | None
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def reason(self) -> str | None:
        return self.field("edgeguard-reason")

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name), None)


NOTHING = Reply(None)


class Person:
    """An issuer of tokens, honest or not."""

    def __init__(self, kid: str = "a") -> None:
        self.kid = kid
        self.key = ECKey.generate_key("P-256", parameters={"kid": kid, "alg": "ES256", "use": "sig"})

    def jwk(self) -> dict[str, object]:
        return self.key.as_dict(private=False)

    def claims(self, **changes: object) -> dict[str, object]:
        """Of an adult; a change to None leaves a claim out."""
        now = int(time.time())
        claims = {"iss": "https://age.test", "aud": "edgeguard", "iat": now, "nbf": now - 1, "exp": now + 300}
        claims |= {"sub": SUBJECT, "birthdate": BIRTHDATE, "age_over_18": True, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, header: dict[str, object] | None = None, **changes: object) -> str:
        return self.sign(json.dumps(self.claims(**changes)).encode(), header)

    def sign(self, payload: bytes, header: dict[str, object] | None = None) -> str:
        head = {"alg": "ES256", "typ": "JWT", "kid": self.kid, **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        signed = f"{part(json.dumps(head).encode())}.{part(payload)}"
        signature = JWSRegistry.algorithms["ES256"].sign(signed.encode(), self.key)
        return f"{signed}.{part(signature)}"


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Origin:
    """Serves HTTP/1.1 over TLS: a WebSocket echo, a stream without end, and pages that any cache may keep."""

    def __init__(self, leaf: Path) -> None:
        self.heads: list[bytes] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        with (
            plain,
            contextlib.suppress(OSError, ValueError),
            self._context.wrap_socket(plain, server_side=True) as link,
        ):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = link.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                self.heads.append(head)
                path = head.split(b" ")[1]
                length = http.client.parse_headers(_lines(head)).get("content-length")
                while len(data) < int(length or 0):
                    data += link.recv(65536)
                data = data[int(length or 0) :]
                if b"upgrade: websocket" in head.lower():
                    self._websocket(link, head)
                elif b"endless" in path:
                    self._endless(link)
                elif b"soiled" in path:
                    link.sendall(_SOILED)
                else:
                    body = b"for adults only"
                    if head.startswith(b"HEAD"):
                        body = b""
                    link.sendall(_CACHEABLE % len(body) + body)

    def _websocket(self, link: ssl.SSLSocket, head: bytes) -> None:
        key = http.client.parse_headers(_lines(head))["sec-websocket-key"]
        accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        fields = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + base64.b64encode(
            accept
        )
        link.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\r\n")
        self._tick(link, b"\x81\x04tick")

    def _endless(self, link: ssl.SSLSocket) -> None:
        link.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self._tick(link, b"b\r\ndata: tick\n\r\n")

    def _tick(self, link: ssl.SSLSocket, data: bytes) -> None:
        while True:
            link.sendall(data)
            time.sleep(0.05)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


_CACHEABLE = (
    b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=600\r\nExpires: Fri, 31 Dec 2100 00:00:00 GMT\r\n"
    b"CDN-Cache-Control: max-age=600\r\nETag: x\r\nContent-Length: %d\r\n\r\n"
)
_SOILED = b'HTTP/1.1 200 OK\r\nedgeguard-user: x\r\nEdgeguard_User: x\r\nAlt-Svc: h3=":443"\r\nContent-Length: 0\r\n\r\n'


def _lines(head: bytes) -> object:
    import io

    return io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n")


class Way:
    """One door, over one version of HTTP."""

    def __init__(self, world: "World", name: str, port: int, alpn: str) -> None:
        self.world, self.name, self.port, self.alpn = world, name, port, alpn
        self.node = name.partition("-")[0]
        self._kept: ssl.SSLSocket | None = None
        self._talk: Talk | None = None

    @property
    def authority(self) -> str:
        return f"{HOST}:{self.world.origin.port}"

    def open(self, source: str = "127.0.0.1", sni: str = HOST) -> ssl.SSLSocket:
        """A connection on which the site answers."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([self.alpn])
        with contextlib.ExitStack() as stack:
            link = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S, (source, 0))
            stack.enter_context(link)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self.name.endswith("reverse"):
                link.sendall(f"CONNECT {self.authority} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode())
                assert b" 200 " in link.recv(4096)
            secure = stack.enter_context(context.wrap_socket(link, server_hostname=sni))
            assert secure.selected_alpn_protocol() == self.alpn
            stack.pop_all()
            return secure

    def raw(self, data: bytes) -> Reply:
        """Bytes on a connection of their own."""
        with self.open() as link:
            link.sendall(data)
            return read(link)

    def get(
        self, path: str, *fields: tuple[str, str], method: str = "GET", source: str = "127.0.0.1"
    ) -> Reply:
        """One request with these fields; the connection is kept for the next one where that is possible."""
        if self.alpn == "h2":
            return self._multiplexed(path, fields, method, source)
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.authority}",
            *(f"{k}: {v}" for k, v in fields),
            "",
            "",
        ]
        data = "\r\n".join(lines).encode("latin-1")
        if source != "127.0.0.1":
            with self.open(source) as link:
                link.sendall(data)
                return read(link, method)
        for _ in range(2):
            link, kept = self._kept or self.open(), self._kept is not None
            self._kept = None
            with contextlib.suppress(OSError):
                link.sendall(data)
            reply = read(link, method)
            if reply.status is None and kept:
                link.close()
                continue  # the last reply ended that connection
            if reply.status is not None and reply.field("connection") != "close":
                self._kept = link
            else:
                link.close()
            return reply
        return NOTHING

    def _multiplexed(self, path: str, fields: tuple[tuple[str, str], ...], method: str, source: str) -> Reply:
        lower = [(name.lower(), value) for name, value in fields]
        head = request(self.authority, path, *lower, method=method)
        if source != "127.0.0.1":
            with self.open(source) as link:
                return stream(Talk(link), head)
        for _ in range(2):
            kept = self._talk is not None
            talk = self._talk or Talk(self.open())
            self._talk = None
            reply = stream(talk, head)
            if reply.status is not None:
                self._talk = talk
                return reply
            talk.link.close()
            if not kept:
                break
        return NOTHING

    def close(self) -> None:
        for link in (self._kept, None if self._talk is None else self._talk.link):
            if link is not None:
                link.close()


def read(link: socket.socket, method: str = "GET") -> Reply:
    response = http.client.HTTPResponse(link, method=method)
    try:
        response.begin()
        return Reply(response.status, tuple(response.getheaders()), response.read())
    except (OSError, http.client.HTTPException):
        return NOTHING


def stream(talk: Talk, head: list[tuple[str, str]]) -> Reply:
    """One request over HTTP/2, to its end."""
    ident = talk.state.get_next_available_stream_id()
    status, fields, body = None, (), b""
    with contextlib.suppress(OSError):
        talk.state.send_headers(ident, head, end_stream=True)
        talk.flush()
        while data := talk.link.recv(65536):
            for event in talk.state.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return NOTHING
                if getattr(event, "stream_id", None) != ident:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    fields = tuple((k.decode(), v.decode("latin-1")) for k, v in event.headers)
                    status = int(dict(fields)[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    talk.flush()
                    return Reply(status, fields, body)
            talk.flush()
    return NOTHING


class World:
    """The nodes, the origin and the issuer. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.person = Person()
        self._stack = contextlib.ExitStack()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        folder = self.folder
        self.authority, self.leaf = make_certificates(folder, [HOST, "unread.test"])
        self.origin = Origin(self.leaf)
        self._stack.callback(self.origin.close)
        self.ports = {name: free_port() for name in (*WAYS, "admin")}
        workshop = Workshop(folder / "workshop")

        async def publish() -> None:
            await workshop.ensure_root()
            await workshop.publish({"gates.yaml": POLICY.format(tls=self.origin.port, percent=1).encode()})

        asyncio.run(publish())
        bundles = self._serve(folder / "workshop" / "repository")
        mitmdump = str(Path(sys.executable).with_name("mitmdump"))
        listen = ["--mode", f"regular@127.0.0.1:{self.ports['addon']}"]
        site = f"reverse:https://{HOST}:{self.origin.port}@127.0.0.1:{self.ports['addon-reverse']}"
        commands = {
            "edge": [sys.executable, "-m", "edgeguard", "run", "--config", "edgeguard.toml"],
            "addon": [mitmdump, "-s", PLAIN, *listen, "--mode", site],
        }
        for name, command in commands.items():
            self._start(name, command, workshop.root_file, bundles)
        self.ways = {
            (name, alpn): Way(self, name, self.ports[name], alpn)
            for name in WAYS
            for alpn in ("http/1.1", "h2")
        }
        for name in WAYS:
            wait_until(functools.partial(self._ready, name), f"{name} to serve", within_s=40)

    def _serve(self, folder: Path) -> int:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Quiet."""

        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return server.server_port

    def _start(self, name: str, command: list[str], root: Path, bundles: int) -> None:
        folder = self.folder / name
        (folder / "jwks").mkdir(parents=True)
        self.write_keys(name, self.person)
        values = {**self.ports, "folder": folder, "root": root, "bundles": bundles, "leaf": self.leaf}
        values |= {"authority": self.authority, "tls": self.origin.port}
        values["admin"] = f"127.0.0.1:{self.ports['admin']}" if name == "edge" else ""
        (folder / "edgeguard.toml").write_text(CONFIG.format(**values))
        environ = {
            **plain_environment(),
            "PYTHONWARNINGS": "ignore",
            "EDGEGUARD_CONFIG": str(folder / "edgeguard.toml"),
        }
        with (folder / "output.log").open("wb") as output:
            self._nodes[name] = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def write_keys(self, node: str, *people: Person) -> None:
        """The key file of a node, replaced as a whole."""
        file = self.folder / node / "jwks" / "age.jwks"
        file.with_suffix(".new").write_text(json.dumps({"keys": [person.jwk() for person in people]}))
        file.with_suffix(".new").replace(file)

    def _ready(self, name: str) -> bool:
        node = name.partition("-")[0]
        assert self._nodes[node].poll() is None, self.output(node)
        with contextlib.suppress(OSError, AssertionError):
            adult = ("edgeguard-user", self.person.token())
            return self.ways[name, "http/1.1"].get("/restricted/ready", adult).status == 200
        return False

    def output(self, node: str) -> str:
        """What a process said."""
        return (self.folder / node / "output.log").read_text(errors="replace")

    def records(self, node: str) -> list[dict[str, object]]:
        """Its decision log."""
        lines = (self.folder / node / "decisions.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    def admin(self, path: str) -> str:
        link = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=TIMEOUT_S)
        try:
            link.request("GET", path)
            return link.getresponse().read().decode()
        finally:
            link.close()

    def __exit__(self, *exception: object) -> None:
        for way in getattr(self, "ways", {}).values():
            way.close()
        for node in self._nodes.values():
            node.terminate()
        for node in self._nodes.values():
            node.wait(15)
        self._stack.close()
