"""Running nodes with every kind of door, one policy and one set of upstreams, and a client for each door.

Three processes, since a node has one HTTP door: `plain` (with SOCKS5 and redirected connections beside it),
`tls`, and `unix`. Redirecting is real: a packet filter's rule for sockets that carry a mark.
"""

import asyncio
import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from edgeguard.demo.tokens import make_certificates
from edgeguard.dev.workshop import Workshop
from tests.doors.certificates import Authority
from tests.e2e.kit import Recorder, plain_environment, wait_until
from tests.ports import free_port

TIMEOUT_S: Final = 5.0
SO_MARK: Final = 36
MARK: Final = 0x65000000 | os.getpid() & 0xFFFFFF
"""Of this process: several run these tests side by side."""
SECRET: Final = hashlib.sha256(b"secret").hexdigest()
DOORS: Final = ("connect", "socks", "transparent", "tls", "unix")

POLICY = """\
edgeguard: 1
module: doors
owner: tests
rules:
  - {{id: tunnel, effect: allow, to: ["tunnel.test:{tls}", "*.wild.test:{tls}"], resolves_to: [127.0.0.1/32]}}
  - {{id: denied, effect: deny, to: ["denied.wild.test"]}}
  - {{id: site, effect: allow, to: ["site.test:{tls}"], paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: plain, effect: allow, to: ["plain.test:{http}"], protocol: http, paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: private, effect: allow, to: ["private.test:{tls}"]}}
  - {{id: other, effect: allow, clients: [somebody], to: ["other.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: claim, effect: allow, claims: [special], to: ["claim.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: literal, effect: allow, to: ["127.0.0.1/32:{tls}"], resolves_to: [127.0.0.1/32]}}
  - {{id: raw, effect: allow, to: ["127.0.0.1/32:{raw}"], protocol: tcp, resolves_to: [127.0.0.1/32]}}
  - {{id: gone, effect: allow, to: ["gone.test:{closed}"], resolves_to: [127.0.0.0/8]}}
  - {{id: self, effect: allow, to: ["self.test:{connect}", "self.test:{socks}", "self.test:{secure}"], resolves_to: [127.0.0.0/8]}}
  - {{id: certified, effect: allow, clients: [runner], to: ["runner.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: agents, effect: allow, clients: [agent], to: ["agent.test:{tls}"], resolves_to: [127.0.0.0/8]}}
rate_limits:
  - {{id: once, match: {{rules: [limited]}}, limit: 1/h, burst: 1, unit: tunnels, key: [client], scope: process}}
"""
POLICY = POLICY.replace(
    "rate_limits:",
    '  - {{id: limited, effect: allow, to: ["limited.test:{tls}"], resolves_to: [127.0.0.0/8]}}\nrate_limits:',
)

NAMES = """\
"tunnel.test" = ["127.0.0.1"]
"a.wild.test" = ["127.0.0.1"]
"denied.wild.test" = ["127.0.0.1"]
"elsewhere.wild.test" = ["127.0.0.7"]
"site.test" = ["127.0.0.1"]
"plain.test" = ["127.0.0.1"]
"private.test" = ["127.0.0.1"]
"other.test" = ["127.0.0.1"]
"claim.test" = ["127.0.0.1"]
"gone.test" = ["127.0.0.1"]
"self.test" = ["127.0.0.1"]
"limited.test" = ["127.0.0.1"]
"runner.test" = ["127.0.0.1"]
"agent.test" = ["127.0.0.1"]
"evil.test" = ["127.0.0.1"]
"""

CONFIG = """\
environment = "dev"
[listen]
{listen}
[trust]
root = "{root}"
state_dir = "{folder}/state"
[sync]
urls = ["http://127.0.0.1:{bundles}/"]
poll_s = 0.5
long_poll_s = 0
{identity}
[resolver]
mode = "static"
[resolver.static]
{names}
[upstream]
ca_file = "{authority}"
[evidence]
log = "{folder}/decisions.jsonl"
[admin]
address = "unix:{folder}/admin.sock"
[bounds]
head_s = 0.8
hello_s = 0.8
dial_s = 2.0
handshake_s = 0.8
server_first_s = 0.3
connections = 300
"""


class Refused(Exception):
    """The door said no. `status` is what it said: an HTTP status, a SOCKS code, or None."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class Wire(Protocol):
    """What bytes go over."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Tls:
    """TLS over any wire, also over TLS."""

    def __init__(self, wire: Wire, context: ssl.SSLContext, name: str | None) -> None:
        self._wire = wire
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._pump(self.object.do_handshake)

    def _pump(self, call):
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._wire.recv(65_536)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
                continue
            self._flush()
            return result

    def _flush(self) -> None:
        if data := self._out.read():
            self._wire.sendall(data)

    def sendall(self, data: bytes) -> None:
        self.object.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        try:
            return self._pump(lambda: self.object.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def close(self) -> None:
        self._wire.close()


def exactly(wire: Wire, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = wire.recv(count - len(data))
        if not more:
            raise Refused(None)
        data += more
    return data


def head(wire: Wire) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += exactly(wire, 1)
    return data


def rest(wire: Wire) -> bytes:
    """Everything up to the end; a reset is an end."""
    data = b""
    with contextlib.suppress(OSError):
        while more := wire.recv(65_536):
            data += more
    return data


class Answer(NamedTuple):
    """What came of trying to reach a destination through a door."""

    allowed: bool
    """The upstream itself answered."""
    reason: str | None
    """Of the refusal that the decision log has."""
    rule: str | None
    lane: str | None
    status: int | None
    """What the door said before it closed."""


class Node:
    """One process."""

    def __init__(self, name: str, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.name, self.folder, self.process = name, folder, process
        self.log = folder / "decisions.jsonl"

    def records(self, mark: int = 0) -> list[dict[str, object]]:
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(mark)
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def mark(self) -> int:
        """Where the log ends, once it has come to rest; its writer gathers records for 20 ms."""
        size = -1
        while size != (size := self.log.stat().st_size if self.log.exists() else 0):
            time.sleep(0.03)
        return size

    def record(self, mark: int, verdict: str) -> dict[str, object]:
        """The first record after `mark` with this verdict that is not the end of something."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            for record in self.records(mark):
                if record["verdict"] == verdict and record["kind"] != "close":
                    return record
            time.sleep(0.01)
        raise AssertionError(f"no {verdict} was recorded: {self.records(mark)}")

    def status(self) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.folder / "admin.sock"))
            link.sendall(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return json.loads(rest(link).partition(b"\r\n\r\n")[2])

    def memory_kb(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4


class World:
    """The nodes, their upstreams, their policy. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        folder = self.folder
        names = [line.partition('"')[2].partition('"')[0] for line in NAMES.splitlines()]
        self.authority, leaf = make_certificates(folder, [*names, "127.0.0.1"])
        (folder / "files").mkdir()
        self.upstream = Recorder(leaf, folder / "files")
        self._stack.callback(self.upstream.close)
        self.raw = _greeter()
        self._stack.callback(self.raw.close)
        self.clients = Authority(folder / "clients")
        self.strangers = Authority(folder / "strangers")
        proxies = Authority(folder / "proxies")
        self.proxy_authority = proxies.file
        self._server = proxies.issue("proxy", dns=["localhost"], ips=["127.0.0.1"])
        self.ports = {
            "tls": self.upstream.tls,
            "http": self.upstream.http,
            "raw": self.raw.getsockname()[1],
            **{name: free_port() for name in ("closed", "connect", "socks", "transparent", "secure")},
        }
        self.socket = folder / "proxy.sock"
        workshop = Workshop(folder / "workshop")
        asyncio.run(self._publish(workshop, POLICY.format(**self.ports).encode()))
        self._root = workshop.root_file
        self._bundles = self._serve(folder / "workshop" / "repository")
        self._redirect()

    def _configured(self, name: str) -> tuple[str, str]:
        """`[listen]` and `[identity]` of a node."""
        ports = self.ports
        if name == "plain":
            return (
                (
                    f'address = "127.0.0.1:{ports["connect"]}"\nsocks = "127.0.0.1:{ports["socks"]}"\n'
                    f'transparent = "127.0.0.1:{ports["transparent"]}"\nproxy_protocol_from = ["127.0.0.77/32"]'
                ),
                (
                    '[identity]\nstatic = "tester"\n'
                    '[[identity.cidr]]\ncidr = "192.0.2.0/24"\nclient = "somebody"\n'
                    '[[identity.cidr]]\ncidr = "2001:db8::/32"\nclient = "somebody"\n'
                    f'[[identity.secret]]\nclient = "runner"\nsha256 = "{SECRET}"\n'
                ),
            )
        if name == "tls":
            return (
                (
                    f'address = "127.0.0.1:{ports["secure"]}"\nproxy_protocol_from = ["127.0.0.77/32"]\n'
                    f'[listen.tls]\ncertificate = "{self._server}"\nkey = "{self._server}"\nclient_auth = "optional"\n'
                    f'client_ca = "{self.clients.file}"\nclient_crl = "{self.clients.revoked_file}"'
                ),
                (
                    '[identity]\nstatic = "tester"\n'
                    '[[identity.certificate]]\nuri = "spiffe://example.org/runner"\nclient = "runner"\n'
                    '[[identity.certificate]]\ndns = "tester.example.org"\nclient = "tester"\n'
                    f'[[identity.secret]]\nclient = "agent"\nsha256 = "{SECRET}"\n'
                ),
            )
        return (
            f'address = "unix:{self.socket}"',
            '[identity]\nstatic = "tester"\n[[identity.peer]]\nuid = 4321\nclient = "agent"\n',
        )

    def serve(self, *names: str) -> None:
        """Starts nodes that do not run yet, together."""
        begun = [self._begin_node(name) for name in names if name not in self.nodes]
        for node in begun:
            wait_until(functools.partial(self._ready, node), f"{node.name} to serve", within_s=30)

    def _begin_node(self, name: str) -> Node:
        folder = self.folder / name
        folder.mkdir()
        listen, identity = self._configured(name)
        values = {"listen": listen, "identity": identity, "root": self._root, "folder": folder}
        values |= {"bundles": self._bundles, "names": NAMES, "authority": self.authority}
        (folder / "edgeguard.toml").write_text(CONFIG.format(**values))
        with (folder / "output.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgeguard", "run", "--config", "edgeguard.toml"],
                cwd=folder,
                env={**plain_environment(), "COLUMNS": "200"},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        node = self.nodes[name] = Node(name, folder, process)
        return node

    def _redirect(self) -> None:
        """Sends what marked sockets dial on loopback, and only that, to the transparent door."""
        table = f"edgeguard_test_{os.getpid()}"
        rules = (
            f"table ip {table} {{\nchain out {{\ntype nat hook output priority -100;\n"
            f"meta mark {MARK} ip daddr 127.0.0.0/8 ip protocol tcp redirect to :{self.ports['transparent']}\n}}\n}}\n"
        )
        done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False)
        self.redirects = done.returncode == 0
        if self.redirects:
            self._stack.callback(subprocess.run, ["nft", "delete", "table", "ip", table], check=False)

    async def _publish(self, workshop: Workshop, policy: bytes) -> None:
        await workshop.ensure_root()
        await workshop.publish({"doors.yaml": policy})

    def _serve(self, folder: Path) -> int:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return server.server_port

    def _ready(self, node: Node) -> bool:
        assert node.process.poll() is None, (node.folder / "output.log").read_text()
        with contextlib.suppress(OSError, ValueError):
            return bool(node.status()["ready"])
        return False

    def __exit__(self, *exception: object) -> None:
        for node in self.nodes.values():
            node.process.terminate()
        for node in self.nodes.values():
            node.process.wait(15)
        self._stack.close()

    def trouble(self) -> str:
        """What the processes said that nobody should have to read."""
        texts = [(node.folder / "output.log").read_text() for node in self.nodes.values()]
        return "\n".join(text for text in texts if "Traceback" in text or "returning true" in text)

    # Ways in

    def node_of(self, door: str) -> Node:
        """The process behind a door, which may have to be started."""
        name = door if door in {"tls", "unix"} else "plain"
        self.serve(name)
        return self.nodes[name]

    def link(self, door: str, *, source: str = "127.0.0.1") -> socket.socket:
        """A connection to a door, before anything is said."""
        self.node_of(door)
        if door == "unix":
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(TIMEOUT_S)
            link.connect(str(self.socket))
            return link
        port = self.ports["secure" if door == "tls" else door]
        return socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(source, 0))

    def context(self, certificate: Path | None = None) -> ssl.SSLContext:
        """For TLS to the proxy."""
        context = ssl.create_default_context(cafile=str(self.proxy_authority))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def wire(self, door: str, certificate: Path | None = None) -> Wire:
        """A connection on which a proxy's request can be sent."""
        link = self.link(door)
        if door != "tls":
            return link
        try:
            return Tls(link, self.context(certificate), "localhost")
        except OSError:
            link.close()
            raise

    def dial(self, address: str, port: int) -> socket.socket:
        """A connection to an address that the packet filter redirects."""
        self.node_of("transparent")
        link = socket.socket()
        link.settimeout(TIMEOUT_S)
        link.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
        link.connect((address, port))
        return link

    def open(
        self, door: str, host: str, port: int, *, dialled: str = "127.0.0.1", certificate: Path | None = None
    ) -> Wire:
        """A way to a destination; a redirected client just dials. Raises Refused."""
        if door == "transparent":
            return self.dial(dialled, port)
        wire = self.wire(door, certificate)
        try:
            return self._asked(wire, door, host, port)
        except BaseException:
            wire.close()
            raise

    def _asked(self, wire: Wire, door: str, host: str, port: int) -> Wire:
        if door == "socks":
            wire.sendall(b"\x05\x01\x00")
            assert exactly(wire, 2) == b"\x05\x00"
            wire.sendall(socks_request(host, port))
            reply = exactly(wire, 10)
            if reply[1]:
                assert rest(wire) == b""
                raise Refused(reply[1])
            return wire
        wire.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        reply = head(wire)
        status = int(reply.split()[1])
        if status != 200:
            rest(wire)
            raise Refused(status)
        return wire

    def fill(self, port: str | int) -> int:
        """The number of a port that has a name."""
        return self.ports[port] if isinstance(port, str) else port

    def trust(self, door: str) -> ssl.SSLContext:
        """What a client behind a node trusts: the upstreams' authority and the node's own."""
        context = ssl.create_default_context(cafile=str(self.authority))
        own = self.node_of(door).folder / "state/ca/mitmproxy-ca-cert.pem"
        context.load_verify_locations(own)
        return context

    def get(
        self,
        door: str,
        host: str,
        port: str | int = "tls",
        *,
        path: str = "/ok/",
        sni: str | None = "",
        dialled: str = "127.0.0.1",
        certificate: Path | None = None,
    ) -> Answer:
        """One request over TLS through a door. `sni` is the host unless given; None: no name."""
        node = self.node_of(door)
        mark = node.mark()
        status: int | None = None
        body = b""
        wire: Wire | None = None
        try:
            wire = self.open(door, host, self.fill(port), dialled=dialled, certificate=certificate)
            context = self.trust(door)
            name = host if sni == "" else sni
            if name is None:
                context.check_hostname = False
            secure = Tls(wire, context, name)
            secure.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {host}:{self.fill(port)}\r\nConnection: close\r\n\r\n".encode()
            )
            body = rest(secure)
        except Refused as refused:
            status = refused.status
        except (OSError, ssl.SSLError):
            pass
        finally:
            if wire is not None:
                wire.close()
        if body.startswith(b"HTTP/1.1 200 "):
            record = node.record(mark, "allow")
            return Answer(True, None, record["rule"], record["lane"], 200)
        if body:
            status = int(body.split()[1])
        record = node.record(mark, "deny")
        return Answer(False, record["reason"], record.get("rule"), record.get("lane"), status)


def socks_request(host: str | bytes, port: int, *, command: int = 1, kind: int | None = None) -> bytes:
    """A SOCKS5 request; addresses by their type, unless another is asked for."""
    raw = host.encode() if isinstance(host, str) else host
    if kind is None and isinstance(host, str):
        for family, number in ((socket.AF_INET, 1), (socket.AF_INET6, 4)):
            with contextlib.suppress(OSError):
                raw, kind = socket.inet_pton(family, host), number
    body = raw if kind in {1, 4} else bytes((len(raw),)) + raw
    return bytes((5, command, 0, kind or 3)) + body + port.to_bytes(2)


def _greeter() -> socket.socket:
    """A server that speaks first, then echoes one message."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                threading.Thread(target=talk, args=(link,), daemon=True).start()

    def talk(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            link.settimeout(TIMEOUT_S)
            link.sendall(b"220 hello\r\n")
            link.sendall(link.recv(1000))

    threading.Thread(target=serve, daemon=True).start()
    return listener


def has_nft() -> bool:
    return shutil.which("nft") is not None and os.geteuid() == 0
