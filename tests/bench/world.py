"""What a lane is measured with: keys, a signed bundle, its server, a real node, and the peers, each in a process of its own.

The proxy under test has core 0 to itself; the load and its upstream share core 1 (`load.py`).
"""

import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from edgeguard.bundle.build import build_bundle
from edgeguard.bundle.documents import BlobRef, Caps, Environment, Head, Kind, Quorum, Root, media_type
from edgeguard.bundle.envelope import seal
from edgeguard.bundle.keys import SigningKey
from edgeguard.demo.tokens import make_certificates
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.model import Module, Policy
from tests.ports import free_ports

ENVIRONMENT = "bench"
TUNNEL_NAME = "tunnel.bench.example"
PLAIN_RULES = 1000
"""Rules of the corpus that stand beside the ones that the load uses."""
PROXY_CORE, LOAD_CORE = 0, 1
START_S = 30.0
LIFETIME_S = 6 * 3600


class Absent(Exception):
    """Something that a figure needs is not on this machine. Says what, and how to get it."""


class BenchError(RuntimeError):
    """The measurement is not valid."""


def two_cores() -> None:
    """Raises Absent unless proxy and load can have a core each."""
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise Absent("needs two processor cores, 0 and 1: one for the proxy, one for the load")
    if shutil.which("taskset") is None:
        raise Absent("needs taskset (Debian package util-linux)")


class Repository:
    """A signed repository and the static web server in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self._root, self._release, self._head = (SigningKey(os.urandom(32)) for _ in range(3))
        self._version = 0
        quorum = lambda key: Quorum((key.public,), 1)  # noqa: E731
        now = int(time.time())
        environment = Environment(
            quorum(self._release), 1, quorum(self._head), Caps(head_lifetime_s=LIFETIME_S)
        )
        root = Root(1, now - 60, now + 86400, quorum(self._root), {ENVIRONMENT: environment})
        self.root = folder / "root.msgpack"
        self.root.write_bytes(seal(media_type(Kind.ROOT), root.to_payload(), [self._root]))
        for part in ("root", ENVIRONMENT, "blobs"):
            (self.folder / part).mkdir(parents=True)
        handler = functools.partial(_Quiet, directory=str(self.folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def publish(self, sections: dict, *, lifetime_s: int = LIFETIME_S) -> int:
        """The next version of the bundle and a head for it; returns its expiry (Unix seconds)."""
        self._version += 1
        now = int(time.time())
        bundle, head = signed(
            sections,
            self._version,
            now=now,
            lifetime_s=lifetime_s,
            release=self._release,
            head=self._head,
        )
        (self.folder / "blobs" / hashlib.sha256(bundle).hexdigest()).write_bytes(bundle)
        fresh = self.folder / ENVIRONMENT / "head.new"
        fresh.write_bytes(head)
        fresh.rename(self.folder / ENVIRONMENT / "head")
        return now + lifetime_s

    @property
    def version(self) -> int:
        return self._version

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """The table is the log."""


def signed(
    sections: dict, version: int, *, now: int, lifetime_s: int, release: SigningKey, head: SigningKey
) -> tuple[bytes, bytes]:
    """The envelopes of a bundle and of a head that names it."""
    payload = build_bundle(
        sections,
        environment=ENVIRONMENT,
        version=version,
        issued_at=now,
        not_before=now - 1,
        expires_at=now + lifetime_s,
    )
    bundle = seal(media_type(Kind.BUNDLE, ENVIRONMENT), payload, [release])
    ref = BlobRef(version, hashlib.sha256(bundle).hexdigest(), len(bundle))
    document = Head(ENVIRONMENT, version, now, now + LIFETIME_S, {"bundle": ref})
    return bundle, seal(media_type(Kind.HEAD, ENVIRONMENT), document.to_payload(), [head])


def node_policy(tunnel_port: int, https_port: int, scope: str | None = "process") -> dict:
    """Sections: the corpus, a destination for each lane, and a limit of some scope on each of the two, or none."""
    from tests.bench.policies import named

    module = {
        "edgeguard": 1,
        "module": "bench",
        "owner": "bench",
        "rules": [
            {
                "id": "bench-tunnel",
                "effect": "allow",
                "clients": ["bench"],
                "to": [f"{TUNNEL_NAME}:{tunnel_port}"],
                "resolves_to": ["127.0.0.0/8"],
            },
            {
                "id": "bench-https",
                "effect": "allow",
                "clients": ["bench"],
                "to": [f"localhost:{https_port}"],
                "methods": ["GET", "HEAD"],
                "paths": ["/bench/**"],
                "resolves_to": ["127.0.0.0/8"],
            },
        ],
        "rate_limits": [
            {
                "id": "bench-tunnels",
                "match": {"rules": ["bench-tunnel"]},
                "limit": "10000000/s",
                "burst": 10_000_000,
                "unit": "tunnels",
            },
            {
                "id": "bench-requests",
                "match": {"rules": ["bench-https"]},
                "limit": "10000000/s",
                "burst": 10_000_000,
                "unit": "requests",
            },
        ],
    }
    if scope is None:
        del module["rate_limits"]
    for limit in module.get("rate_limits", ()):
        limit["scope"] = scope
    modules = (*named(PLAIN_RULES).policy().modules, Module.model_validate(module))
    return compile_policy(Policy(modules=tuple(sorted(modules, key=lambda one: one.module))))


class Peers:
    """The folder, the repository and the processes of one measurement. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.folder = folder
        self.tunnel_port, self.https_port = free_ports(2)
        self.repository = Repository(folder)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.upstream_authority, self.upstream_leaf = make_certificates(folder, ["localhost"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._processes):
            self.stop(name)
        self.repository.close()

    def spawn(self, name: str, command: Sequence[str], *, core: int | str = PROXY_CORE) -> int:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._processes[name] = process
        return process.pid

    def stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_for(self, name: str, true: Callable[[], bool], what: str, *, within_s: float = START_S) -> None:
        deadline = time.monotonic() + within_s
        while not true():
            process = self._processes[name]
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise BenchError(f"{name}: no {what}\n{log}")
            time.sleep(0.01)

    def edgeguard(self, *, workers: int = 1, cores: int | str = PROXY_CORE, store: str = "") -> "Node":
        return Node(self, workers, cores, store)

    def mitmdump(self) -> tuple[int, int, Path]:
        """Stock mitmdump, quiet, no addon of anybody's; (pid, port, what its clients have to trust)."""
        (port,) = free_ports(1)
        home = self.folder / "mitmdump"
        command = [str(Path(sys.executable).parent / "mitmdump"), "-q", "--listen-host", "127.0.0.1"]
        command += ["--listen-port", str(port), "--set", f"confdir={home}"]
        command += ["--set", f"ssl_verify_upstream_trusted_ca={self.upstream_authority}"]
        pid = self.spawn("mitmdump", command)
        self.wait_for("mitmdump", lambda: listens(port), f"listener on port {port}")
        return pid, port, home / "mitmproxy-ca-cert.pem"

    def squid(self, *, logs: bool) -> tuple[int, int]:
        """squid with an allowlist of one name and port, with or without its access log; (pid, port)."""
        binary = ensure_squid()
        name = f"squid-{'logged' if logs else 'unlogged'}"
        (port,) = free_ports(1)
        home = self.folder / name
        home.mkdir()
        home.chmod(0o777)  # squid gives up root and still writes here
        (home / "hosts").write_text(f"127.0.0.1 {TUNNEL_NAME}\n")
        (home / "squid.conf").write_text(f"""\
http_port 127.0.0.1:{port}
acl bench_name dstdomain {TUNNEL_NAME}
acl bench_port port {self.tunnel_port}
http_access allow CONNECT bench_name bench_port
http_access deny all
hosts_file {home}/hosts
dns_nameservers 127.0.0.1
access_log {f"stdio:{home}/access.log" if logs else "none"}
cache_log {home}/cache.log
pid_filename {home}/squid.pid
coredump_dir {home}
cache_mem 8 MB
cache deny all
max_filedescriptors 16384
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname bench
""")
        pid = self.spawn(name, [binary, "-N", "-f", str(home / "squid.conf")])
        self.wait_for(name, lambda: listens(port), f"listener on port {port}")
        return pid, port


class Node:
    """`edgeguard run` with the node policy in force, its decision log in a file."""

    def __init__(
        self, peers: Peers, workers: int = 1, cores: int | str = PROXY_CORE, store: str = ""
    ) -> None:
        self._peers = peers
        self.workers = workers
        self.port, self.admin = free_ports(2)
        self.decisions = peers.folder / "decisions.jsonl"
        self.authority = peers.folder / "state/ca/mitmproxy-ca-cert.pem"
        config = peers.folder / "edgeguard.toml"
        config.write_text(f"""\
environment = "{ENVIRONMENT}"
workers = {workers}
[listen]
address = "127.0.0.1:{self.port}"
[trust]
root = "{peers.repository.root}"
state_dir = "state"
[sync]
urls = ["{peers.repository.url}"]
poll_s = 1
long_poll_s = 0
[identity]
static = "bench"
[upstream]
ca_file = "{peers.upstream_authority}"
[evidence]
log = "{self.decisions}"
[admin]
address = "127.0.0.1:{self.admin}"
[resolver]
mode = "static"
[resolver.static]
"localhost" = ["127.0.0.1"]
"{TUNNEL_NAME}" = ["127.0.0.1"]
[limits]
store = "{store}"
[bounds]
connections = 20000
tunnels = 20000
tunnels_per_client = 20000
""")
        self.pid = peers.spawn(
            "edgeguard", [sys.executable, "-m", "edgeguard", "run", "--config", str(config)], core=cores
        )
        self.wait_for_version(peers.repository.version)

    def wait_for_version(self, version: int) -> None:
        def current() -> bool:
            status = self.status()
            enforcing = status.get("supervision", {"enforcing": 1})["enforcing"]
            current = status.get("ladder") == "fresh" and status.get("bundle_version") == version
            return current and enforcing == self.workers

        self._peers.wait_for("edgeguard", current, f"version {version} in force")

    def status(self) -> dict:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/status", timeout=2) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def pids(self) -> list[int]:
        """The processes that carry traffic."""
        return [one["pid"] for one in self.status().get("workers", [])] or [self.pid]

    def rss_kb(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise BenchError("the node is gone")

    def stop(self) -> None:
        self._peers.stop("edgeguard")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ensure_squid() -> str:
    """squid from the distribution, installed if that is possible. Raises Absent."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    found = shutil.which("squid", path=path)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = "apt-get install -y -qq --no-install-recommends squid"
        for attempt in (command, f"apt-get update -qq && {command}"):
            subprocess.run(attempt, shell=True, check=False, capture_output=True, env=environment)
            found = shutil.which("squid", path=path)
            if found is not None:
                break
    if found is None:
        raise Absent("squid is not installed; as root: apt-get install squid")
    return found


def run_load(kind: str, *, core: int | str = LOAD_CORE, **plan: object) -> dict:
    """One run of the load generator on its core; its result. Raises BenchError if anything failed."""
    done = subprocess.run(
        ["taskset", "-c", str(core), sys.executable, "-m", "tests.bench.load", kind, json.dumps(plan)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode != 0:
        raise BenchError(f"load {kind}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)
