"""Reaching upstreams through a parent proxy: CONNECT with the address that was checked (RFC 9110, 9.3.6).

The name never goes to the parent: it could resolve it to something else, and the check of the addresses
would be about nothing. Where the parent stands is checked like a destination, each time its name is
resolved. A parent that refuses, fails, or is slow makes the upstream unreachable; the log says which.
"""

import asyncio
import base64
import ipaddress
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final

import certifi

from edgeguard.policy.names import is_address
from edgeguard.proxy.dial import Dialer, DialError, interleave
from edgeguard.settings import ParentProxy
from edgeguard.settings.values import parent_permitted

logger = logging.getLogger(__name__)

HEAD_BYTES: Final = 16_384
"""Largest head of the parent's answer."""
QUIET_S: Final = 10.0
"""The same complaint about the parent is logged once in this time."""
KINDS: Final = 100
"""Complaints that are remembered."""
_TO: Final = " to CONNECT "
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")
_MEANING: Final = {
    403: "it refuses the destination; does it allow addresses?",
    407: "it wants other credentials",
}


class ParentError(DialError):
    """The parent itself is the reason, so no other address of the upstream would do."""


class ParentDialer(Dialer):
    """A dialer that goes through the parent, except to what `no_proxy` names.

    Args:
        settings: The parent's. `address` must be given.
        resolve: Resolves the parent's own name.
    """

    __slots__ = (
        "_authorization",
        "_direct",
        "_exact",
        "_head_bytes",
        "_networks",
        "_resolve",
        "_said",
        "_settings",
        "_suffixes",
        "_tls",
    )
    at_once = False

    def __init__(
        self,
        settings: ParentProxy,
        resolve: Callable[[str], Awaitable[Sequence[str]]],
        *,
        attempt_s: float = 5.0,
        head_bytes: int = HEAD_BYTES,
    ) -> None:
        super().__init__(attempt_s=attempt_s)
        self._settings = settings
        self._resolve = resolve
        self._head_bytes = head_bytes
        self._said: dict[str, float] = {}
        self._direct = Dialer(attempt_s=attempt_s)
        self._direct._own = self._own
        self._tls = _tls_context(settings) if settings.tls else None
        self._authorization = b""
        if settings.credentials is not None:
            basic = base64.b64encode(settings.credentials.get_secret_value().encode())
            self._authorization = b"Proxy-Authorization: Basic " + basic + b"\r\n"
        hosts = [entry for entry in settings.no_proxy if "/" not in entry]
        self._exact = frozenset(host.removeprefix("**.") for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(f".{host.lstrip('*.')}" for host in hosts if host.startswith("*"))
        self._networks = tuple(ipaddress.ip_network(entry) for entry in settings.no_proxy if "/" in entry)

    def towards(self, host: str) -> Dialer:
        return self._direct if host in self._exact or host.endswith(self._suffixes) else self

    async def check(self) -> None:
        """Raises ParentError if the parent stands where it must not; a name that does not resolve yet is no reason."""
        if is_address(self._settings.host):
            return  # the settings checked it
        try:
            await self._where()
        except ParentError:
            raise
        except OSError as error:
            self._complain(f"the parent proxy's name does not resolve: {error}")

    async def dial[P: asyncio.Protocol](
        self, factory: Callable[[], P], addresses: Sequence[str], port: int
    ) -> tuple[asyncio.Transport, P, str]:
        """As `Dialer.dial`, through the parent: one address after the other, until the parent reaches one.

        `factory` is called for the connection that was made. Raises DialError.
        """
        addresses = self.permitted(addresses, port)
        near = [address for address in addresses if self._is_near(address)]
        if near or not addresses:
            return await super().dial(factory, near, port)
        failure = ""
        for address in interleave(addresses):
            try:
                # Of several addresses none may use up the time of the others; the total is the caller's.
                async with asyncio.timeout(self._attempt_s if len(addresses) > 1 else None):
                    transport, protocol = await self._through(factory, address, port)
            except ParentError as error:
                self._complain(str(error))
                raise
            except OSError as error:
                failure = str(error) or f"the parent proxy did not answer in {self._attempt_s} s"
                self._complain(failure)
            else:
                return transport, protocol, address
        raise DialError(failure)

    async def _through[P: asyncio.Protocol](
        self, factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.Transport, P]:
        """One CONNECT. Raises DialError, ParentError where no other address would help."""
        try:
            where = await self._where()
            transport, asked, _ = await super().dial(
                lambda: _Asked(self._head_bytes), where, self._settings.port
            )
        except DialError as error:
            raise ParentError(f"the parent proxy cannot be reached: {error}") from error
        try:
            if self._tls is not None:
                transport = await self._encrypt(transport, asked)
            authority = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            target = authority.encode()
            transport.write(
                b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (target, target, self._authorization)
            )
            length = await asked.answered
            _agreed(asked.read[:length], authority)
            if transport.is_closing() or asked.ended:
                raise DialError("the parent proxy hung up after its answer")
            protocol = factory()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            if early := asked.read[length:]:
                protocol.data_received(early)  # what follows the head is the upstream's
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    async def _encrypt(self, transport: asyncio.Transport, asked: "_Asked") -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        assert self._tls is not None  # noqa: S101 - for the type checker
        try:
            secured = await loop.start_tls(transport, asked, self._tls, server_hostname=self._settings.host)
        except OSError as error:  # SSLError is one
            raise ParentError(f"TLS to the parent proxy failed: {error}") from error
        if secured is None:
            raise ParentError("TLS to the parent proxy failed: it hung up")
        return secured

    async def _where(self) -> tuple[str, ...]:
        """Where the parent stands now. Raises ParentError where it must not."""
        host, internal = self._settings.host, self._settings.allow_internal
        addresses = (host,) if is_address(host) else await self._resolve(host)
        found = tuple(address for address in addresses if parent_permitted(address, internal=internal))
        if not found:
            raise ParentError(
                f"the parent proxy {host} stands at {', '.join(addresses)}, which is not public; "
                "if that is meant, set upstream.proxy.allow_internal = true"
            )
        return found

    def _is_near(self, address: str) -> bool:
        if not self._networks:
            return False
        ip = ipaddress.ip_address(address)
        return any(ip in network for network in self._networks)

    def _complain(self, text: str) -> None:
        now, kind = monotonic(), text.partition(_TO)[0]
        if now - self._said.get(kind, float("-inf")) >= QUIET_S:
            if len(self._said) >= KINDS:
                self._said.clear()
            self._said[kind] = now
            logger.warning("%s", text)


def _agreed(head: bytes, authority: str) -> None:
    """Raises DialError unless the head says that the tunnel is open."""
    status = _STATUS.match(head)
    if status is None:
        raise ParentError("the parent proxy's answer is not HTTP/1")
    code = int(status[1])
    if code // 100 == 2:
        return
    kind = ParentError if code in {401, 405, 407} else DialError
    meaning = f" ({_MEANING[code]})" if code in _MEANING else ""
    raise kind(f"the parent proxy answered {code}{_TO}{authority}{meaning}")


class _Asked(asyncio.Protocol):
    """A connection to the parent, up to the end of the answer's head."""

    def __init__(self, head_bytes: int) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """How long the head is."""
        self.read = b""
        self.ended = False
        self._head_bytes = head_bytes

    def data_received(self, data: bytes) -> None:
        self.read += data
        if self.answered.done():
            return
        length = self.read.find(b"\r\n\r\n") + 4
        if length > self._head_bytes or (length < 4 and len(self.read) > self._head_bytes):
            self._fail("the head of the parent proxy's answer is too large")
        elif length >= 4:
            self.answered.set_result(length)

    def eof_received(self) -> None:
        self.ended = True
        self._fail("the parent proxy hung up without an answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof_received()

    def _fail(self, why: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(DialError(why))
            self.answered.exception()  # whoever waited may be gone


def _tls_context(settings: ParentProxy) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(settings.ca_file or certifi.where()))
    context.set_alpn_protocols(["http/1.1"])
    return context
