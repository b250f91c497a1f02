"""The demo's processes and files: keys, repository, bundle server, head signer, upstreams, proxy.

Everything is done by the shipped command line, in processes of their own, in one folder that goes away.
"""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from edgeguard.demo.client import Client
from edgeguard.demo.tokens import Verifier, make_certificates

NAMES: Final = (
    "api.payments.example",
    "catalogue.example",
    "media.example",
    "status.example",
    "shipping.example",
    "inventory.example",
    "evil.example",
)
METADATA: Final = {"inventory.example": "169.254.169.254"}
START_S: Final = 20.0
REFUSAL_S: Final = 8.0
HEAD_LIFETIME_S: Final = 4
GRACE_S: Final = 3
POLICY: Final = Path(__file__).parent / "policy"


class DemoError(Exception):
    """The demo cannot go on; the message says which step failed and what it printed."""


class World:
    """All processes of the demo. Use as a context manager.

    Args:
        folder: Empty; receives keys, repository, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http, self.tls, self.proxy, self.admin, self.server = _free_ports(5)
        self.head_lifetime_s, self.grace_s = HEAD_LIFETIME_S, GRACE_S
        self.verifier = Verifier()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.repository = folder / "repository"
        self.decisions = folder / "decisions.jsonl"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._processes):
            self.stop(name)

    # Steps, in the order of a real roll-out

    def ceremony(self) -> None:
        """Two of three root keys, two release keys, a head key; a root for the environment `demo`."""
        for name in ("root-a", "root-b", "root-c", "release-a", "release-b", "head"):
            self.run("keygen", f"keys/{name}", "--no-passphrase")
        self.repository.mkdir()
        arguments = ["root", "init", "--environment", "demo", "--threshold", "2", "--widening", "2"]
        arguments += [f"--root-key=keys/root-{name}.key" for name in "abc"]
        arguments += [f"--release-key=keys/release-{name}.pub" for name in "ab"]
        arguments += ["--head-key=keys/head.pub", "--out", "root.msgpack"]
        self.run(*arguments)
        (self.repository / "root").mkdir()
        shutil.copy(self.folder / "root.msgpack", self.repository / "root/1.root")

    def write_policy(self, *modules: str) -> Path:
        """The sources with this run's ports and keys in them."""
        target = self.folder / "policy"
        target.mkdir(exist_ok=True)
        values = {"tls": str(self.tls), "http": str(self.http), "jwk": self.verifier.public_jwk()}
        for module in modules:
            text = string.Template((POLICY / f"{module}.yaml").read_text()).substitute(values)
            (target / f"{module}.yaml").write_text(text)
        return target

    def release(self, version: int, *, lifetime_s: int) -> Path:
        """Builds the sources, signs them with both release keys; returns the signed bundle."""
        signed = self.folder / f"bundle-{version}.signed"
        self.run(
            *("bundle", "build", "policy", "--environment", "demo", "--version", str(version)),
            *(
                "--lifetime",
                f"{lifetime_s}s",
                "--grace",
                f"{self.grace_s}s",
                "--out",
                f"bundle-{version}.payload",
            ),
        )
        self.run(
            *("bundle", "sign", f"bundle-{version}.payload", "--sources", "policy"),
            *("--key", "keys/release-a.key", "--key", "keys/release-b.key", "--out", signed.name),
        )
        return signed

    def publish(self, *files: Path) -> None:
        """Hands signed files to the bundle server."""
        self.run(
            *("publish", "--url", f"http://127.0.0.1:{self.server}/", "--token-file", "publish-token"),
            *(str(file) for file in files),
        )

    def start_server(self) -> None:
        token = self.folder / "publish-token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(os.urandom(24).hex() + "\n")
        self.start(
            "server",
            *("server", "--dir", "repository", "--listen", f"127.0.0.1:{self.server}"),
            *("--token-file", "publish-token"),
        )
        self.wait_for_port(self.server, "server")

    def start_head(self) -> None:
        """The head signer, a process of its own with the only online key."""
        self.start(
            "head",
            *("head", "--watch", "--dir", "repository", "--environment", "demo", "--key", "keys/head.key"),
            *("--lifetime", f"{self.head_lifetime_s}s", "--every", "1s"),
        )

    def start_upstreams(self) -> None:
        authority, leaf = make_certificates(self.folder, [*NAMES])
        self._spawn(
            "upstreams",
            [
                *(sys.executable, "-m", "edgeguard.demo.upstreams", "--http", str(self.http)),
                *("--tls", str(self.tls), "--certificate", str(leaf)),
            ],
        )
        self.wait_for_port(self.tls, "upstreams")
        self.upstream_authority = authority

    def start_proxy(self) -> Client:
        """The node under test; returns a client that uses it."""
        config = self.folder / "edgeguard.toml"
        config.write_text(self._config())
        self.start("proxy", "run", "--config", "edgeguard.toml")
        self.wait_for_port(self.proxy, "proxy")
        self.wait_until(lambda: self.status().get("ladder") == "fresh", "the proxy to enforce a fresh policy")
        authorities = self.folder / "client-authorities.pem"
        authorities.write_bytes(
            self.upstream_authority.read_bytes()
            + (self.folder / "state/ca/mitmproxy-ca-cert.pem").read_bytes()
        )
        return Client(self.proxy, authorities)

    def _config(self) -> str:
        table = "\n".join(f'"{name}" = ["{METADATA.get(name, "127.0.0.1")}"]' for name in NAMES)
        return f"""\
environment = "demo"
[listen]
address = "127.0.0.1:{self.proxy}"
[trust]
root = "root.msgpack"
state_dir = "state"
[sync]
urls = ["http://127.0.0.1:{self.server}/"]
poll_s = 1
long_poll_s = 5
deadline_s = 2
backoff_max_s = 1
[identity]
static = "checkout"
[user]
region = "DE"
[upstream]
ca_file = "upstream-ca.pem"
[interception]
ca_dir = "state/ca"
[evidence]
log = "{self.decisions}"
[admin]
address = "127.0.0.1:{self.admin}"
[resolver]
mode = "static"
[resolver.static]
{table}
"""

    # Tools

    def run(self, *arguments: str) -> str:
        """One command of the shipped command line; its standard output. Raises DemoError."""
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "edgeguard", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise DemoError(f"edgeguard {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self, name: str, *arguments: str) -> None:
        """Starts a long-lived command."""
        self._spawn(name, [sys.executable, "-m", "edgeguard", *arguments])

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Stops a process for the time of a `with` block."""
        self._processes[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._processes[name].send_signal(signal.SIGCONT)

    def status(self) -> dict[str, object]:
        """What the admin address says; empty while nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=2)
        try:
            connection.request("GET", "/status")
            document = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        finally:
            connection.close()
        return document if isinstance(document, dict) else {}

    def decision(self, verdict: str) -> dict[str, object]:
        """The newest allow or deny in the decision log."""
        # The log's writer is a thread of its own and may be a moment behind.
        time.sleep(0.2)
        for line in reversed(self.decisions.read_bytes().splitlines()):
            record = json.loads(line)
            if (
                isinstance(record, dict)
                and record.get("verdict") == verdict
                and record.get("kind") != "close"
            ):
                return record
        return {}

    def version(self) -> object:
        """The version of the bundle in force."""
        return self.status().get("bundle_version")

    def refusal(self, code: str) -> str:
        """Waits until sync has refused something for this reason; returns the last reason."""

        def last() -> str:
            sync = self.status().get("sync")
            refused = sync.get("last_refusal") if isinstance(sync, dict) else None
            return str(refused.get("code")) if isinstance(refused, dict) else "nothing"

        with contextlib.suppress(DemoError):
            self.wait_until(lambda: last() == code, f"the refusal {code}", within_s=REFUSAL_S)
        return last()

    def put_under_head(self, bundle: Path, *, tampered: bool) -> Path:
        """Names a bundle in a good head and writes it beside, the way whoever holds the server could.

        Returns the blob's file. A good head over bad bytes needs the head signer to have seen good ones, so
        it signs over a copy of the repository.
        """
        data = bundle.read_bytes()
        name = hashlib.sha256(data).hexdigest()
        copy = self.folder / "copy"
        shutil.copytree(self.repository, copy)
        (copy / "blobs" / name).write_bytes(data)
        self.run(
            *("head", "--dir", str(copy), "--environment", "demo", "--key", "keys/head.key"),
            *("--lifetime", f"{HEAD_LIFETIME_S * 8}s"),
        )
        if tampered:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        blob = self.repository / "blobs" / name
        blob.write_bytes(data)
        shutil.copy(copy / "demo/head", self.repository / "demo/head")
        return blob

    def wait_for_port(self, port: int, name: str) -> None:
        def listening() -> bool:
            process = self._processes[name]
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise DemoError(f"{name} ended with code {process.returncode}:\n{log}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.wait_until(listening, f"{name} to listen")

    def wait_until(self, true: Callable[[], bool], what: str, *, within_s: float = START_S) -> float:
        """Waits for a condition; returns the seconds it took. Raises DemoError."""
        start = time.monotonic()
        while not true():
            if time.monotonic() - start > within_s:
                raise DemoError(f"waited {within_s:.0f} s for {what}; logs are in {self.folder}")
            time.sleep(0.02)
        return time.monotonic() - start


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
