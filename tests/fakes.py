"""Doubles for what stands outside of the proxy: a guard by table, upstreams and a resolver that remember."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from edgeguard.bundle.snapshot import Ladder
from edgeguard.identity.clients import CredentialsInvalid, Proof
from edgeguard.policy.decision import Decision, Lane, LimitHit
from edgeguard.policy.names import HostError, canonical_host, split_authority
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request
from edgeguard.proxy.resolver import ResolveError
from edgeguard.verdict import Facts, Verdict


class FakeGuard:
    """Follows the interface of `guard.Guard`: allows what is in its table, and remembers every call.

    Attributes:
        allowed: (canonical host, port, protocol) → lane.
        refused_addresses: addresses that `admit` drops.
        quota: how many more allows `settle` lets through; None: all.
    """

    def __init__(self, allowed: dict[tuple[str, int, str], Lane] | None = None) -> None:
        self.allowed = dict(allowed or {})
        self.refused_addresses: set[str] = set()
        self.quota: int | None = None
        self.limits: tuple[LimitHit, ...] = ()
        self.far: Callable[[Verdict], Awaitable[Verdict]] | None = None
        """What `reserve` lets adapters wait for, if the decision has limits."""
        self.until: float | None = None
        self.client = Client("workload", identified=True, address="127.0.0.1")
        self.credentials: dict[str, Client] = {}
        self.judged: list[Facts] = []
        self.settled: list[Verdict] = []
        self.forgone: list[Verdict] = []
        self.finished: list[tuple[Verdict, int, int, str]] = []
        self.open = 0
        self.raise_in: set[str] = set()
        self.callbacks: list[Callable[[], None]] = []
        self._ids = itertools.count(1)

    def allow(self, host: str, port: int, protocol: str = "tls", lane: Lane = Lane.TUNNEL) -> None:
        self.allowed[host, port, protocol] = lane

    def changed(self) -> None:
        for callback in self.callbacks:
            callback()

    @property
    def refusals(self) -> list[Reason]:
        return [verdict.reason for verdict in self.settled if verdict.reason is not None]

    def _trip(self, name: str) -> None:
        if name in self.raise_in:
            raise RuntimeError(f"{name} was told to raise")

    def identify(
        self, peer: str | None, proxy_authorization: Sequence[str] = (), proof: Proof | None = None
    ) -> Client:
        self._trip("identify")
        if not proxy_authorization:
            return self.client
        try:
            return self.credentials[proxy_authorization[0]]
        except KeyError:
            raise CredentialsInvalid("wrong credentials") from None

    def judge(self, facts: Facts) -> Verdict:
        self._trip("judge")
        self.judged.append(facts)
        request, decision = self._decide(facts)
        return Verdict(f"d-{next(self._ids)}", 1000.0, facts, request, decision, None, Ladder.FRESH)

    def _decide(self, facts: Facts) -> tuple[Request | None, Decision]:
        try:
            host = canonical_host(facts.host)
            names = [split_authority(name, facts.port) for name in facts.names]
        except HostError:
            return None, Decision(allow=False, reason=Reason.MALFORMED_REQUEST)
        request = Request(facts.client, host, facts.port, facts.protocol, facts.method, facts.target)
        if any(name != (host, facts.port) for name in names):
            return request, Decision(allow=False, reason=Reason.MISDIRECTED_REQUEST)
        lane = self.allowed.get((host, facts.port, facts.protocol))
        if lane is not None:
            return request, Decision(
                allow=True, rule="fake-allow", lane=lane, until=self.until, limits=self.limits
            )
        if any(key[:2] == (host, facts.port) for key in self.allowed):
            return request, Decision(allow=False, reason=Reason.PROTOCOL_NOT_ALLOWED)
        if any(key[0] == host for key in self.allowed):
            return request, Decision(allow=False, reason=Reason.PORT_NOT_ALLOWED)
        return request, Decision(allow=False, reason=Reason.HOST_NOT_ALLOWED)

    def admit(self, verdict: Verdict, addresses: Sequence[str]) -> Verdict:
        self._trip("admit")
        if not verdict.allow:
            return verdict
        kept = tuple(address for address in addresses if address not in self.refused_addresses)
        if not kept:
            return _refused(verdict, Reason.ADDRESS_NOT_ALLOWED)
        return verdict._replace(addresses=kept)

    def reserve(self, verdict: Verdict) -> Awaitable[Verdict] | None:
        return self.far(verdict) if self.far is not None and verdict.allow else None

    def forgo(self, verdict: Verdict) -> None:
        self.forgone.append(verdict)

    def settle(self, verdict: Verdict, *, before: Verdict | None = None) -> Verdict:
        self._trip("settle")
        if verdict.allow and self.quota is not None:
            if self.quota <= 0:
                verdict = _refused(verdict, Reason.RATE_LIMITED)
            else:
                self.quota -= 1
        self.settled.append(verdict)
        self.open += verdict.allow
        return verdict

    def refuse(self, verdict: Verdict, reason: Reason, rule: str | None = None) -> Verdict:
        if any(verdict.id == settled.id for settled in self.settled) and verdict.allow:
            self.open -= 1
        verdict = _refused(verdict, reason)
        self.settled.append(verdict)
        return verdict

    def rejudge(self, verdict: Verdict) -> Verdict:
        self._trip("rejudge")
        again = self.judge(verdict.facts)
        return self.admit(again, verdict.addresses) if verdict.addresses else again

    def finish(self, verdict: Verdict, *, sent: int, received: int, why: str, charged: int = 0) -> None:
        self.open -= 1
        self.finished.append((verdict, sent, received, why))

    def subscribe(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)


def _refused(verdict: Verdict, reason: Reason) -> Verdict:
    return verdict._replace(decision=verdict.decision._replace(allow=False, reason=reason), addresses=())


class RecordingResolver:
    """Answers from a table and remembers every question. `delay_s` holds each answer back."""

    def __init__(self, table: dict[str, Iterable[str]] | None = None) -> None:
        self.table = {name: tuple(found) for name, found in (table or {}).items()}
        self.asked: list[str] = []
        self.delay_s = 0.0

    def known(self, host: str) -> tuple[str, ...] | None:
        """Answers that are at hand, as long as none is held back."""
        found = None if self.delay_s else self.table.get(host)
        if found:
            self.asked.append(host)
        return found or None

    async def resolve(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        found = self.table.get(host)
        if not found:
            raise ResolveError(f"{host} is not in the table")
        return found


class Upstream:
    """A TCP server on 127.0.0.1 that remembers its connections. Echoes, unless given another handler.

    Use as an async context manager; `port` is known inside.
    """

    def __init__(
        self,
        handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.connections = 0
        self.received = bytearray()
        self.port = 0
        self._handler = handler
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await settle_loop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._handler is not None:
                await self._handler(reader, writer)
            else:
                await self._echo(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.received += data
            writer.write(data)
            await writer.drain()


async def settle_loop() -> None:
    """Lets transports that were closed run their last callbacks."""
    for _ in range(10):
        await asyncio.sleep(0)


def client_hello(name: str | None = None) -> bytes:
    """The first flight of OpenSSL for `name`, or without a server name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def server_context(directory: Path, *names: str) -> ssl.SSLContext:
    """A TLS server context with a fresh certificate for `names`; its own authority, `directory/ca.pem`."""
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "ca.pem").write_bytes(pem)
    (directory / "server.pem").write_bytes(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context
