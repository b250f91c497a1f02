"""One policy behind every mode of a stock mitmdump: the processes, and a client for each way in.

The transparent one runs in a network namespace of its own, where connections with a mark are
redirected to it, so that mitmproxy's own look-up of the original destination is what is tested.
"""

import contextlib
import functools
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Self

from edgeguard.demo.client import Client, Seen, _exchange
from tests.e2e.kit import Place, Recorder, plain_environment, wait_until
from tests.ports import free_port

MITMDUMP = Path(sys.executable).with_name("mitmdump")
CHAOS = Path(__file__).with_name("chaos.py")
SO_MARK = 36
MARK = 42
NFT = """
table ip edgeguard {{
  chain output {{
    type nat hook output priority -100;
    meta mark {mark} tcp dport 1-65535 redirect to :{port}
  }}
}}
"""


class Raw:
    """A server that speaks first, then echoes; remembers what it received."""

    def __init__(self, port: int = 0) -> None:
        self.received = b""
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"hello\n")
            while data := connection.recv(65_536):
                self.received += data
                connection.sendall(data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


class Namespace:
    """A network namespace with a loopback interface."""

    def __init__(self) -> None:
        self.name = f"edgeguard-{os.getpid()}"

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.command("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def command(self, *words: str, stdin: str = "") -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *words], input=stdin, text=True, check=True)

    def inside[T](self, make: Callable[[], T]) -> T:
        """Calls `make` in the namespace: the sockets that it opens belong there."""
        result: list[T] = []
        problem: list[Exception] = []

        def run() -> None:
            try:
                with open(f"/run/netns/{self.name}") as handle:  # noqa: PTH123 - a handle for setns
                    os.setns(handle.fileno(), os.CLONE_NEWNET)
                result.append(make())
            except Exception as error:  # noqa: BLE001 - raised again by the caller
                problem.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return result[0]


@dataclass
class Mode:
    """One mitmdump and how to go through it."""

    name: str
    place: Place
    folder: Path
    upstream: Recorder
    raw: Raw
    ports: dict[object, int]
    """Where it listens: one port, or one for each origin in front of which it stands."""
    namespace: Namespace | None = None

    @property
    def decisions(self) -> Path:
        return self.folder / "decisions.jsonl"

    @property
    def flag(self) -> Path:
        return self.folder / "chaos"

    @property
    def log(self) -> str:
        return (self.folder / "mitmdump.log").read_text(errors="replace")

    def connect(self, scheme: str, host: str, port: int, address: str = "127.0.0.1") -> socket.socket:
        """A connection on which the destination is what answers. Raises OSError when it is refused."""
        if self.name == "reverse":
            return socket.create_connection(("127.0.0.1", self.ports[scheme, host, port]), timeout=10)
        if self.name == "transparent":

            def marked() -> socket.socket:
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
                connection.settimeout(10)
                connection.connect((address, port))
                return connection

            assert self.namespace is not None
            return self.namespace.inside(marked)
        connection = socket.create_connection(("127.0.0.1", self.ports[None]), timeout=10)
        try:
            if self.name == "socks5":
                connection.sendall(b"\x05\x01\x00")
                greeting = connection.recv(2)
                name = host.encode()
                connection.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2))
                reply = connection.recv(10)
                if greeting + reply[:2] != b"\x05\x00\x05\x00":
                    raise ConnectionRefusedError(f"SOCKS {reply[1:2].hex()}")
            else:
                authority = f"{host}:{port}"
                connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                if b" 200 " not in connection.recv(4096):
                    raise ConnectionRefusedError("CONNECT")
        except OSError:
            connection.close()
            raise
        return connection

    def https(self, host: str, port: int, path: str = "/", *, method: str = "GET", **where: str) -> Seen:
        if self.name == "regular":
            return self._explicit().https(host, port, path, method=method)
        context = ssl.create_default_context(cafile=self.folder / "both.pem")
        try:
            with (
                self.connect("https", host, port, **where) as plain,
                context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                return _exchange(secure, method, path, f"{host}:{port}", {})
        except (OSError, HTTPException) as error:
            return Seen(error=str(error))

    def http(self, host: str, port: int, path: str = "/", *, method: str = "GET", **where: str) -> Seen:
        if self.name == "regular":
            return self._explicit().http(host, port, path, method=method)
        try:
            with self.connect("http", host, port, **where) as plain:
                return _exchange(plain, method, path, f"{host}:{port}", {})
        except (OSError, HTTPException) as error:
            return Seen(error=str(error))

    def _explicit(self) -> Client:
        return Client(self.ports[None], self.folder / "both.pem")


@contextlib.contextmanager
def mode(
    name: str, place: Place, raw: Raw, folder: Path, origins: set[tuple[str, str, int]]
) -> Iterator[Mode]:
    """A mitmdump in one mode. `origins`: what the reverse proxies stand in front of."""
    with contextlib.ExitStack() as stack:
        for file in ("root.msgpack", "upstream-ca.pem"):
            shutil.copy(place.folder / file, folder / file)
        text = (place.folder / "edgeguard.toml").read_text()
        text = text.replace(str(place.decisions), str(folder / "decisions.jsonl"))
        text = text.replace(f'"127.0.0.1:{place.admin}"', f'"127.0.0.1:{free_port()}"')
        (folder / "edgeguard.toml").write_text(text)
        command: list[object] = []
        namespace, upstream = None, place.upstream
        if name == "transparent":
            namespace = stack.enter_context(Namespace())
            command += ["ip", "netns", "exec", namespace.name]
            upstream = namespace.inside(
                lambda: Recorder(place.leaf, place.files, http=place.http, tls=place.tls)
            )
            stack.callback(upstream.close)
            raw = namespace.inside(functools.partial(Raw, raw.port))
            stack.callback(raw.close)
            served = _serve_folder(namespace, place.repository, place.server)
            stack.callback(served.server_close)
            stack.callback(served.shutdown)
        ports: dict[object, int] = {None: free_port()}
        command += [MITMDUMP, "-s", CHAOS, "--listen-host", "127.0.0.1"]
        if name == "reverse":
            ports = {origin: free_port() for origin in sorted(origins)}
            for (scheme, host, port), listen in ports.items():
                command += ["--mode", f"reverse:{scheme}://{host}:{port}@127.0.0.1:{listen}"]
        else:
            command += ["--mode", name, "--listen-port", ports[None]]
        if namespace is not None:
            namespace.command("nft", "-f", "-", stdin=NFT.format(mark=MARK, port=ports[None]))
        log = stack.enter_context((folder / "mitmdump.log").open("wb"))
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={
                **plain_environment(),
                "EDGEGUARD_CONFIG": str(folder / "edgeguard.toml"),
                "CHAOS": str(folder / "chaos"),
            },
            stdout=log,
            stderr=log,
        )

        def stop() -> None:
            process.terminate()
            process.wait(20)

        stack.callback(stop)
        yield Mode(name, place, folder, upstream, raw, ports, namespace)
        assert process.poll() is None, (folder / "mitmdump.log").read_text()


def wait_for(running: Mode) -> None:
    """Until it enforces."""
    own = running.folder / "state/ca/mitmproxy-ca-cert.pem"
    wait_until(own.exists, f"the authority of {running.name}", within_s=20)
    authorities = running.place.upstream_authority.read_bytes() + own.read_bytes()
    (running.folder / "both.pem").write_bytes(authorities)
    site = ("site.example", running.place.tls, "/ok/page")
    wait_until(lambda: running.https(*site).status == 200, f"mitmdump, {running.name}", within_s=20)


def _serve_folder(namespace: Namespace, folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A static web server in the namespace: the repository under the address that the configuration names."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Quiet."""

    handler = functools.partial(Quiet, directory=str(folder))
    server = namespace.inside(lambda: http.server.ThreadingHTTPServer(("127.0.0.1", port), handler))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
