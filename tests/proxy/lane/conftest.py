"""A real engine in the test's process, between raw sockets and upstreams that remember."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeguard.bundle.snapshot import Ladder
from edgeguard.identity.clients import CredentialsInvalid
from edgeguard.policy.decision import Decision, Lane
from edgeguard.policy.names import HostError, canonical_host, split_authority
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request
from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.authority import ensure_authority
from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.door import Services
from edgeguard.proxy.frontdoor import EdgeServers
from edgeguard.proxy.listeners import bind
from edgeguard.proxy.master import EdgeMaster, serve
from edgeguard.proxy.passages import Passages
from edgeguard.settings import Settings
from edgeguard.verdict import Facts, Verdict

KNOWN = Client(name="tester", identified=True, address="127.0.0.1")


class ScriptedGuard:
    """The interface of `guard.Guard` over one function, with a memory."""

    def __init__(self) -> None:
        self.decide: Callable[[Facts], Decision] = lambda facts: Decision(allow=True, lane=Lane.INSPECT)
        self.raises: str | None = None
        self.ids = itertools.count(1)
        self.judged: list[Facts] = []
        self.settled: list[Verdict] = []
        self.replaced: list[Verdict] = []
        self.forgone: list[Verdict] = []
        self.finished: list[tuple[Verdict, int, int, str]] = []
        self.callbacks: list[Callable[[], None]] = []
        self.bad_address: set[str] = set()

    def now(self) -> float:
        return 1.0

    def refusals(self) -> list[Reason]:
        return [verdict.reason for verdict in self.settled if not verdict.allow]

    def _trip(self, name: str) -> None:
        if self.raises == name:
            raise RuntimeError(f"{name} was told to fail")

    def subscribe(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def identify(self, peer: str | None, credentials=(), proof=None) -> Client:
        self._trip("identify")
        if credentials and credentials[0] != "Bearer good":
            raise CredentialsInvalid
        return KNOWN

    def judge(self, facts: Facts) -> Verdict:
        self._trip("judge")
        self.judged.append(facts)
        request, decision = None, Decision(allow=False, reason=Reason.MALFORMED_REQUEST)
        with contextlib.suppress(HostError):
            host = canonical_host(facts.host)
            claimed = [split_authority(name, facts.port) for name in facts.names]
            request = Request(
                facts.client,
                host,
                facts.port,
                facts.protocol,
                facts.method,
                facts.target,
                None,
                facts.overrides,
            )
            if any(claim != (host, facts.port) for claim in claimed):
                decision = Decision(allow=False, reason=Reason.MISDIRECTED_REQUEST)
            else:
                decision = self.decide(facts._replace(host=host))
        return Verdict(f"d{next(self.ids)}", 1.0, facts, request, decision, None, Ladder.FRESH)

    def admit(self, verdict: Verdict, addresses) -> Verdict:
        self._trip("admit")
        if not verdict.allow:
            return verdict
        kept = tuple(a for a in addresses if a not in self.bad_address)
        if not kept:
            return self._refused(verdict, Reason.ADDRESS_NOT_ALLOWED)
        return verdict._replace(addresses=kept)

    def reserve(self, verdict: Verdict) -> None:
        """Nothing has to be awaited."""

    def forgo(self, verdict: Verdict) -> None:
        self.forgone.append(verdict)

    def settle(self, verdict: Verdict, *, before: Verdict | None = None) -> Verdict:
        self._trip("settle")
        self.settled.append(verdict)
        if before is not None:
            self.replaced.append(before)
        return verdict

    def _refused(self, verdict: Verdict, reason: Reason) -> Verdict:
        return verdict._replace(decision=Decision(allow=False, reason=reason))

    def refuse(self, verdict: Verdict, reason: Reason, rule: str | None = None) -> Verdict:
        return self.settle(self._refused(verdict, reason))

    def rejudge(self, verdict: Verdict) -> Verdict:
        return self.judge(verdict.facts)

    def finish(self, verdict: Verdict, *, sent: int, received: int, why: str, charged: int = 0) -> None:
        self.finished.append((verdict, sent, received, why))


class Names:
    """A resolver that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.table: dict[str, tuple[str, ...]] = {}

    def known(self, host: str) -> None:
        """Nothing is remembered."""

    async def resolve(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        if host in self.table:
            return self.table[host]
        if host.endswith(".test"):
            return ("127.0.0.1",)
        with contextlib.suppress(ValueError):
            return (str(ipaddress.ip_address(host)),)
        raise OSError(f"no such name: {host}")


class Upstream:
    """A server that keeps every byte it got, and answers each request with `answer(head, body)`."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.received = b""
        self.heads: list[bytes] = []
        self.body_bytes = 0
        self.answer: Callable[[bytes], bytes] = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.after: Callable | None = None

    async def start(self) -> "Upstream":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.received += head
                self.heads.append(head)
                lower = head.lower()
                if b"content-length:" in lower:
                    left = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
                    while left > 0:
                        data = await reader.read(min(left, 65536))
                        if not data:
                            raise ConnectionResetError
                        left -= len(data)
                        self.body_bytes += len(data)
                elif b"transfer-encoding: chunked" in lower:
                    while True:
                        size = int(await reader.readuntil(b"\r\n"), 16)
                        await reader.readexactly(size + 2)
                        self.body_bytes += size
                        if size == 0:
                            break
                writer.write(self.answer(head))
                await writer.drain()
                if self.after is not None:
                    await self.after(reader, writer)
                    break
        writer.close()

    async def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


class Certificates:
    """A certificate authority for upstreams."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("test root", self.key, ca=True)
        self.ca_file = directory / "root.pem"
        self.ca_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.certificate.subject
        now = dt.datetime.now(dt.UTC)
        try:
            san: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            san = x509.DNSName(name.replace(" ", "-"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([san]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def server(self, name: str, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._sign(name, key, ca=False)
        file = self.directory / f"{name}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + leaf.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


class Engine:
    """The engine under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guard = ScriptedGuard()
        self.names = Names()
        self.passages = Passages()
        self.certificates = Certificates(directory)
        self.authority = ensure_authority(directory / "ca")
        self.bounds: dict[str, object] = {"drain_s": 0.05, "half_closed_s": 2.0}
        self.extra: list[object] = []
        self.modes = ["regular@127.0.0.1:0"]
        self.stack = contextlib.AsyncExitStack()
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> "Engine":
        self.settings = Settings.model_validate(
            {
                "environment": "test",
                "listen": {"address": "127.0.0.1:0"},
                "identity": {"secret": ({"client": "tester", "sha256": "0" * 64},)},
                "upstream": {"ca_file": self.certificates.ca_file},
                "bounds": self.bounds,
            }
        )
        self.addon = EdgeguardAddon(self.guard, self.names, self.passages, self.settings)
        servers = None
        if self.modes == ["edge"]:
            services = Services(self.guard, self.names, Dialer(), self.passages, self.settings, time.time)
            servers = EdgeServers(services, bind(self.settings))
        self.master = EdgeMaster(self.addon, self.settings, self.authority, self.modes, servers)
        for addon in self.extra:
            self.master.addons.add(addon)
        loop = asyncio.get_running_loop()
        opened = loop.create_future()
        self.task = loop.create_task(serve(self.master, ready=opened.set_result))
        await asyncio.wait({self.task, opened}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            task = self.task
            del self.task
            await task
        self.port = opened.result()[0][1]
        return self

    async def stop(self) -> None:
        if hasattr(self, "task"):
            self.master.shutdown()
            await asyncio.wait_for(self.task, 10)
        await self.stack.aclose()

    async def upstream(self, name: str | None = None, *, alpn: tuple[str, ...] = ()) -> Upstream:
        context = None if name is None else self.certificates.server(name, alpn=alpn)
        upstream = await Upstream(context).start()
        self.stack.push_async_callback(upstream.stop)
        return upstream

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)  # a collected writer closes its connection
        self.stack.callback(writer.transport.abort)
        return reader, writer

    async def exchange(self, data: bytes) -> bytes:
        """Sends `data` on a new connection and reads one response, or to the end."""
        reader, writer = await self.connect()
        writer.write(data)
        return await read_response(reader)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.certificate_pem.decode())

    async def tunnel(
        self, host: str, port: int, *, sni: str | None = "", alpn: tuple[str, ...] = (), verify: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """CONNECT, then TLS. `sni` defaults to the host; None sends none."""
        reader, writer = await self.connect()
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise ConnectionRefusedError(head.decode())
        context = self.trust()
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if sni is None or sni not in {"", host} or not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        name = host if sni == "" else sni
        await asyncio.wait_for(writer.start_tls(context, server_hostname=name or ""), 5)
        return reader, writer


async def read_response(reader: asyncio.StreamReader) -> bytes:
    """One whole HTTP/1.1 response, as long as it says or to the end."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except OSError:
        return b""
    lower = head.lower()
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        with contextlib.suppress(asyncio.IncompleteReadError):
            return head + await asyncio.wait_for(reader.readexactly(length), 5)
    return head


@pytest.fixture
def door() -> str:
    """Which mode listens."""
    return "regular"


@pytest.fixture
async def lane(tmp_path: Path, door: str) -> AsyncIterator[Engine]:
    """Not started: the test may set it up first."""
    lane = Engine(tmp_path)
    lane.modes = ["edge" if door == "edge" else f"{door}@127.0.0.1:0"]
    try:
        yield lane
    finally:
        await lane.stop()


@pytest.fixture
def respond() -> Callable:
    return read_response
