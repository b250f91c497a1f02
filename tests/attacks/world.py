"""Two running nodes under one signed policy, and everything around them that remembers.

`edge` is `edgeguard run`, `addon` is a stock mitmdump with `proxy/plain.py`: processes of their own, spoken to in raw bytes.
Each asks a DNS server of its own that writes down every question; upstreams live here and count.
"""

import asyncio
import contextlib
import functools
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

from edgeguard.demo.tokens import make_certificates
from edgeguard.dev.workshop import Workshop
from tests.attacks.names import NameServer
from tests.e2e.kit import Recorder, plain_environment, wait_until
from tests.ports import free_port

PLAIN = find_spec("edgeguard.proxy.plain").origin
WAYS = ("edge", "addon")
TIMEOUT_S = 5.0
RECORDED_WITHIN_S = 5.0

POLICY = """\
edgeguard: 1
module: attacks
owner: tests
rules:
  - {{id: tunnel, effect: allow, to: ["tunnel.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: site, effect: allow, to: ["site.test:{tls}"], methods: [GET, POST], paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: plain, effect: allow, to: ["plain.test:{http}"], protocol: http, paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: raw, effect: allow, to: ["raw.test:{raw}"], protocol: tcp, resolves_to: [127.0.0.0/8]}}
  - {{id: names, effect: allow, to: ["tunnel.test:443", "site.test:443"]}}
  - {{id: wild, effect: allow, to: ["*.wild.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: not-this, effect: deny, to: ["denied.wild.test", "xn--e1aybc.wild.test"]}}
  - {{id: odd, effect: allow, to: ["foo_bar.test:{tls}", "_srv._tcp.test:{tls}", "xn--e1aybc.test:{tls}", "xn--jv8h.test:{tls}"], resolves_to: [127.0.0.0/8]}}
  - {{id: answers, effect: allow, to: ["*.answers.test:{tls}"]}}
  - {{id: answers-plain, effect: allow, to: ["*.answers.test:{http}"], protocol: http}}
  - {{id: answers-seen, effect: allow, to: ["*.answers-seen.test:{tls}"], paths: ["/ok/**"]}}
  - {{id: private, effect: allow, to: ["*.private.test:{tls}"], resolves_to: [127.0.0.0/8, 10.0.0.0/8, 169.254.0.0/16]}}
  - {{id: flipping, effect: allow, to: ["*.flipping.test:{tls}"], paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: nowhere, effect: allow, to: ["nobody.answers.nowhere:{tls}"]}}
  - {{id: every, effect: allow, to: ["*.every.test:{tls}"], resolves_to: [0.0.0.0/0, "::/0"]}}
  - {{id: literals, effect: allow, to: ["0.0.0.0/0:{tls}", "[::/0]:{tls}"]}}
  - {{id: literals-plain, effect: allow, to: ["0.0.0.0/0:{http}", "[::/0]:{http}"], protocol: http}}
  - {{id: local, effect: allow, to: ["127.0.0.1:{open}"], paths: ["/ok/**"], resolves_to: [127.0.0.1/32]}}
  - {{id: localhosts, effect: allow, to: ["localhost:{tls}", "*.localhost:{tls}"], resolves_to: [0.0.0.0/0]}}
  - {{id: metadata, effect: allow, to: ["169.254.169.254:80", "metadata.google.internal:80", "metadata:80"], protocol: [tls, http], resolves_to: [0.0.0.0/0]}}
  - {{id: self, effect: allow, to: ["self.test:{edge}", "self.test:{addon}", "self.test:{admin}"], protocol: [tls, http, tcp], resolves_to: [127.0.0.0/8]}}
  - {{id: public, effect: allow, to: ["*.public.test:443"], paths: ["/ok/**"]}}
  - {{id: public-literals, effect: allow, to: ["0.0.0.0/0:444", "[::/0]:444"], paths: ["/ok/**"]}}
  - {{id: bytes, effect: allow, to: ["bytes.test:{raw}"], resolves_to: [127.0.0.0/8]}}
  - {{id: bytes-seen, effect: allow, to: ["inner.test:{raw}"], paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: not-there, effect: deny, to: ["10.1.0.0/16"]}}
  - {{id: not-once, effect: deny, to: ["denied-target.wild.test"]}}
  - {{id: not-inside, effect: deny, to: ["secret.wild.test"], paths: ["/ok/secret/**"]}}
  - {{id: web, effect: allow, to: ["web.test:80"], protocol: http}}
"""

CONFIG = """\
environment = "dev"
[listen]
address = "127.0.0.1:{edge}"
[trust]
root = "{root}"
state_dir = "{folder}/state"
[sync]
urls = ["http://127.0.0.1:{bundles}/"]
poll_s = 0.2
long_poll_s = 0
[identity]
static = "tester"
[resolver]
mode = "servers"
servers = ["127.0.0.1:{names}"]
nat64_prefixes = ["2a00:aa32::/32", "2a00:aa40:1100::/40", "2a00:aa48:1::/48", "2a00:aa56:1:1100::/56", "2a00:aa64:1:1::/64"]
[upstream]
ca_file = "{authority}"
[evidence]
log = "{folder}/decisions.jsonl"
[admin]
address = "{admin}"
[bounds]
head_s = 2
hello_s = 2
dial_s = 1
"""


class Reply(NamedTuple):
    """What came back."""

    status: int | None
    """None when no HTTP answer came."""
    reason: str | None
    raw: bytes
    """What followed the head, or all that there was."""

    @property
    def decision(self) -> str:
        return str(json.loads(self.raw)["decision"])


class Node:
    """One of the two processes."""

    def __init__(
        self, name: str, folder: Path, port: int, names: NameServer, process: "subprocess.Popen[bytes]"
    ) -> None:
        self.name, self.folder, self.port, self.process = name, folder, port, process
        self._names = names
        self._log = folder / "decisions.jsonl"

    @property
    def asked(self) -> list[str]:
        """Every name that was resolved, in order."""
        return self._names.asked

    def record(self, decision: str) -> dict[str, object]:
        """The record of a refusal, by the id that the reply told."""
        return self._find(0, lambda record: record.get("id") == decision)

    def mark(self, world: "World") -> int:
        """A place in the log behind everything that has been decided so far."""
        nowhere = world.get(self, "nowhere.test", "/")
        self.record(nowhere.decision)
        return self.size()

    def size(self) -> int:
        """Bytes of the log."""
        return self._log.stat().st_size

    def refusal(self, mark: int) -> dict[str, object]:
        """The first refusal behind `mark`."""
        return self._find(mark, lambda record: record.get("verdict") == "deny")

    def _find(self, start: int, wanted: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        end = time.monotonic() + RECORDED_WITHIN_S
        while time.monotonic() < end:
            with self._log.open("rb") as file:
                file.seek(start)
                for line in file:
                    if line.endswith(b"\n") and wanted(record := json.loads(line)):
                        return record
            time.sleep(0.005)
        raise AssertionError("it was not recorded")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)


class World:
    """The nodes, their upstreams and their policy. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self._stack = contextlib.ExitStack()
        self._probes = 0

    def __enter__(self) -> Self:
        try:
            self._begin(self.folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self, folder: Path) -> None:
        names = [
            "tunnel.test",
            "site.test",
            "plain.test",
            "a.private.test",
            "127.0.0.1",
            "*.wild.test",
            "*.private.test",
            "*.flipping.test",
        ]
        self.authority, leaf = make_certificates(folder, names)
        (folder / "files").mkdir()
        self.web = Recorder(leaf, folder / "files")
        self._stack.callback(self.web.close)
        self.raw = Raw()
        self._stack.callback(self.raw.close)
        self.ports = {
            "http": self.web.http,
            "tls": self.web.tls,
            "raw": self.raw.port,
            "open": free_port(),
            "edge": free_port(),
            "addon": free_port(),
            "reverse": free_port(),
            "admin": free_port(),
        }
        self.workshop = Workshop(folder / "workshop")
        policy = POLICY.format(**self.ports)
        asyncio.run(self._publish(policy.encode()))
        self.bundles = self._serve(folder / "workshop" / "repository")
        self._start("edge", [sys.executable, "-m", "edgeguard", "run", "--config", "edgeguard.toml"])
        mitmdump = Path(sys.executable).with_name("mitmdump")
        listen = ["--mode", f"regular@127.0.0.1:{self.ports['addon']}"]
        listen += ["--mode", f"reverse:http://plain.test:{self.web.http}@127.0.0.1:{self.ports['reverse']}"]
        self._start("addon", [str(mitmdump), "-s", PLAIN, *listen])
        for node in self.nodes.values():
            wait_until(functools.partial(self._ready, node), f"{node.name} to serve", within_s=30)

    def __exit__(self, *exception: object) -> None:
        for node in self.nodes.values():
            node.process.terminate()
        for node in self.nodes.values():
            node.process.wait(15)
        self._stack.close()

    async def _publish(self, policy: bytes) -> None:
        await self.workshop.ensure_root()
        await self.workshop.publish({"attacks.yaml": policy})

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

    def _start(self, name: str, command: list[str]) -> None:
        folder = self.folder / name
        folder.mkdir()
        names = NameServer()
        self._stack.callback(names.close)
        admin = f"127.0.0.1:{self.ports['admin']}" if name == "edge" else ""
        values = {**self.ports, "bundles": self.bundles, "root": self.workshop.root_file, "folder": folder}
        values |= {"authority": self.authority, "admin": admin, "names": names.port}
        (folder / "edgeguard.toml").write_text(CONFIG.format(**values))
        environ = {
            **plain_environment(),
            "PYTHONWARNINGS": "ignore",
            "EDGEGUARD_CONFIG": str(folder / "edgeguard.toml"),
        }
        with (folder / "output.log").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.nodes[name] = Node(name, folder, self.ports[name], names, process)

    def _ready(self, node: Node) -> bool:
        assert node.process.poll() is None, (node.folder / "output.log").read_text()
        with contextlib.suppress(OSError):
            return self.get(node, "plain.test", "/ok/").status == 200
        return False

    # Counting

    def counts(self, node: Node) -> tuple[int, int]:
        """Names resolved by the node, and connections that upstreams have accepted; `settle` finds what comes late."""
        return len(node.asked), self._accepted()

    def settle(self) -> int:
        """Connections of the nodes: whatever was made before a probe has been counted when the probe has."""
        for recorder, port in (
            (self.web, self.web.http),
            (self.web, self.web.tls),
            (self.raw, self.raw.port),
        ):
            with socket.create_connection(("127.0.0.1", port)) as probe:
                self._probes += 1
                name = (probe.getsockname()[1], port)
                end = time.monotonic() + TIMEOUT_S
                while name not in recorder.peers[-100:]:
                    assert time.monotonic() < end, "an upstream does not accept"
                    time.sleep(0.0005)
        return self._accepted()

    def _accepted(self) -> int:
        return len(self.web.peers) + len(self.raw.peers) - self._probes

    def trouble(self) -> str:
        """What the processes said that nobody should have to read."""
        texts = [(node.folder / "output.log").read_text() for node in self.nodes.values()]
        return "\n".join(text for text in texts if "Traceback" in text)

    # Asking

    def fill(self, text: str) -> str:
        """`{tls}` and its like become ports."""
        for name, port in self.ports.items():
            text = text.replace(f"{{{name}}}", str(port))
        return text

    def ask(self, node: Node, data: bytes | str, method: str = "GET") -> Reply:
        """Sends bytes on a new connection; reads one answer."""
        if isinstance(data, str):
            data = self.fill(data).encode("latin-1")
        with node.connect() as link:
            link.sendall(data)
            return answer(link, method)

    def connect(self, node: Node, authority: str, *fields: str, host: str | None = None) -> Reply:
        """A CONNECT, and its answer."""
        return self.ask(node, self.head(authority, *fields, host=host), "CONNECT")

    def head(self, authority: str, *fields: str, host: str | None = None) -> bytes:
        """The bytes of a CONNECT; characters above 127 in UTF-8."""
        lines = [
            f"CONNECT {authority} HTTP/1.1",
            f"Host: {authority if host is None else host}",
            *fields,
            "",
            "",
        ]
        return self.fill("\r\n".join(lines)).encode()

    def get(self, node: Node, host: str, path: str, port: int | None = None) -> Reply:
        """Plain HTTP in absolute form."""
        authority = f"{host}:{port or self.web.http}"
        return self.ask(
            node, f"GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        )

    @contextlib.contextmanager
    def tunnel(self, node: Node, authority: str) -> Iterator[socket.socket]:
        """An open tunnel, before its first byte."""
        with node.connect() as link:
            link.sendall(self.head(authority))
            reply = answer(link, "CONNECT")
            assert reply.status == 200, reply
            yield link

    @contextlib.contextmanager
    def secured(
        self, node: Node, authority: str, sni: str | None = None, alpn: str | None = None
    ) -> Iterator[ssl.SSLSocket]:
        """A tunnel with TLS in it; the name as in `authority` unless given."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols([alpn])
        name = sni if sni is not None else self.fill(authority).rpartition(":")[0]
        with (
            self.tunnel(node, authority) as link,
            context.wrap_socket(link, server_hostname=name) as secure,
        ):
            yield secure

    def inside(self, node: Node, authority: str, data: str, sni: str | None = None) -> Reply:
        """One request inside TLS inside a tunnel."""
        with self.secured(node, authority, sni) as secure:
            secure.sendall(self.fill(data).encode("latin-1"))
            return answer(secure)


class Raw:
    """A listener that keeps what arrives, and echoes it."""

    def __init__(self) -> None:
        self.peers: list[tuple[int, int]] = []
        self.received = bytearray()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, peer = self._server.accept()
                self.peers.append((peer[1], self.port))
                threading.Thread(target=self._echo, args=(link,), daemon=True).start()

    def _echo(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            while data := link.recv(65536):
                self.received += data
                link.sendall(data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def answer(link: socket.socket, method: str = "GET") -> Reply:
    """Reads one HTTP response; without one, what there is until the end."""
    response = http.client.HTTPResponse(link, method=method)
    try:
        response.begin()
        body = b"" if method == "CONNECT" and response.status == 200 else response.read()
    except (OSError, http.client.HTTPException):
        return Reply(None, None, b"")
    return Reply(response.status, response.getheader("edgeguard-reason"), body)


def rest(link: socket.socket) -> bytes:
    """Everything until the end; a reset is an end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := link.recv(65536):
            data += more
    return data
