"""Asking DNS servers: A and AAAA at once, over UDP, over TCP where an answer was cut (RFC 1035, RFC 7766).

Which server is asked next, and how often, is dnspython's business. How a server is asked is ours, for
two reasons: the socket is connected, so that the kernel drops what any other address sends and tells at
once when nobody is there; and an answer is cut to its first records before it is parsed, since parsing
costs the event loop some 50 µs for each of them, and whoever owns an allowed name writes them.

Names are absolute. Search domains are never applied: `api.internal` was allowed, not
`api.internal.example.com`.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.query
import dns.rdatatype
import dns.resolver

from edgeguard.policy.names import HostError, canonical_host

PAYLOAD_BYTES: Final = 1232
"""EDNS size that no path fragments (RFC 9715, appendix A)."""
RECORDS: Final = 64
"""Records of one answer that are looked at."""
RESOLUTION_DELAY_S: Final = 0.05
"""How long the other family is waited for once one has answered (RFC 8305, 3)."""
PARTIAL_TTL_S: Final = 5.0
"""How long an answer is kept that lacks a family only because no server told about it."""


class Answer(NamedTuple):
    """What a source says about a name."""

    addresses: tuple[str, ...]
    """As text, the preferred first; empty: there is no such name, or it has no address."""
    ttl_s: float
    """How long that may be remembered, in seconds."""
    aliases: tuple[str, ...] = ()
    """Canonical names that the name is an alias of (RFC 1034, 3.6.2), in the order of the chain."""


type Lookup = Callable[[str], Awaitable[Answer]]
"""The answer for a canonical name. Raises OSError when nobody knows."""


class Server(dns.nameserver.AddressAndPortNameserver):
    """One DNS server, asked through connected sockets."""

    def kind(self) -> str:
        return "Do53"

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,  # noqa: ASYNC109 - dnspython's signature
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: object,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """One attempt, `timeout` in seconds. Raises OSError, or DNSException as dnspython expects it."""
        ask = self._over_tcp if max_size else self._over_udp
        try:
            async with asyncio.timeout(timeout):
                return await ask(request)
        except TimeoutError:
            # An OSError would take the server out of the list: a lost packet is no reason.
            raise dns.exception.Timeout(timeout=timeout) from None  # type: ignore[no-untyped-call]

    async def _over_udp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        transport, asked = await loop.create_datagram_endpoint(
            lambda: _Asked(request, loop), remote_addr=(self.address, self.port)
        )
        try:
            transport.sendto(request.to_wire())
            return await asked.answer
        finally:
            transport.abort()

    async def _over_tcp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        reader, writer = await asyncio.open_connection(self.address, self.port)
        try:
            wire = request.to_wire()
            writer.write(struct.pack("!H", len(wire)) + wire)
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            answer = _parse(await reader.readexactly(size))
        finally:
            writer.transport.abort()
        if not request.is_response(answer):
            raise dns.query.BadResponse
        return answer


class _Asked(asyncio.DatagramProtocol):
    """A question under way: the first datagram that answers it counts, whatever else arrives."""

    def __init__(self, request: dns.message.QueryMessage, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[dns.message.Message] = loop.create_future()
        self._request = request
        self._id = struct.pack("!H", request.id)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.answer.done() or data[:2] != self._id:
            return
        try:
            answer = _parse(data)
            if self._request.is_response(answer):
                self.answer.set_result(answer)
        except dns.message.Truncated as cut:
            if self._request.is_response(cut.message()):  # type: ignore[no-untyped-call]
                self.answer.set_exception(cut)
        except dns.exception.DNSException:
            return  # garbage is not an answer; the real one may still come

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


def _parse(wire: bytes) -> dns.message.Message:
    """A message of at most `RECORDS` records. Raises DNSException; Truncated if the server cut it."""
    try:
        return dns.message.from_wire(_shortened(wire), raise_on_truncation=True, ignore_trailing=True)
    except (struct.error, IndexError, ValueError) as error:
        raise dns.exception.FormError(str(error)) from None  # type: ignore[no-untyped-call]


def _shortened(wire: bytes) -> bytes:
    """The message without the answers beyond `RECORDS`, and then without what follows them."""
    questions, *counts = struct.unpack_from("!4H", wire, 4)
    if sum(counts) <= RECORDS:
        return wire
    at, kept = 12, min(counts[0], RECORDS)
    for _ in range(questions):
        at = _after_name(wire, at) + 4
    for _ in range(kept):
        at = _after_name(wire, at) + 10
        at += int.from_bytes(wire[at - 2 : at])
    return wire[:4] + struct.pack("!4H", questions, kept, 0, 0) + wire[12:at]


def _after_name(wire: bytes, at: int) -> int:
    """Where a name that begins at `at` has ended (RFC 1035, 4.1.4). Raises IndexError."""
    while length := wire[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


def servers_lookup(
    servers: Sequence[tuple[str, int]], *, timeout_s: float, server_timeout_s: float, rotate: bool = False
) -> Lookup:
    """Asks DNS servers, in order.

    Args:
        servers: (address, port) pairs.
        timeout_s: Total time for one name, in seconds.
        server_timeout_s: Time that one server gets before the next is asked, in seconds.
        rotate: Begin with any of them.
    """
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [Server(address, port) for address, port in servers]
    resolver.use_edns(0, 0, PAYLOAD_BYTES)
    resolver.timeout, resolver.lifetime, resolver.rotate = server_timeout_s, timeout_s, rotate

    async def ask(name: dns.name.Name, kind: dns.rdatatype.RdataType) -> Answer:
        try:
            answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
            chain = answer.chaining_result
        except dns.resolver.NXDOMAIN as unknown:
            chain = unknown.response(name).resolve_chaining()  # type: ignore[no-untyped-call]
        except dns.exception.DNSException as error:
            raise OSError(str(error)) from error
        addresses = () if chain.answer is None else tuple(record.address for record in chain.answer)
        return Answer(addresses, float(chain.minimum_ttl), _aliases(chain))

    async def lookup(host: str) -> Answer:
        name = dns.name.from_text(host, dns.name.root)
        asked = [asyncio.ensure_future(ask(name, kind)) for kind in (dns.rdatatype.AAAA, dns.rdatatype.A)]
        try:
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                found = any(task.exception() is None and task.result().addresses for task in done)
                await asyncio.wait(waiting, timeout=RESOLUTION_DELAY_S if found else None)
        finally:
            for task in asked:
                task.cancel()
        return _joined(asked)

    return lookup


def _aliases(chain: dns.message.ChainingResult) -> tuple[str, ...]:
    names = []
    for link in chain.cnames:
        with suppress(HostError):  # what has no canonical form is in no rule
            names.append(canonical_host(link[0].target.to_text(omit_final_dot=True)))
    return tuple(names)


def _joined(asked: Sequence[asyncio.Future[Answer]]) -> Answer:
    """Both families in one answer. Raises OSError where too little is known."""
    told = [task.result() if _told(task) else None for task in asked]
    six, four = (() if answer is None else answer.addresses for answer in told)
    known = [answer for answer in told if answer is not None]
    if not six and not four and len(known) < len(told):
        raise OSError(next((str(task.exception()) for task in asked if not _told(task)), ""))
    ttl_s = min(answer.ttl_s for answer in known if answer.addresses or not (six or four))
    if len(known) < len(told):
        ttl_s = min(ttl_s, PARTIAL_TTL_S)
    aliases = tuple(dict.fromkeys(name for answer in known for name in answer.aliases))
    return Answer(six + four if has_route(six) or not four else four + six, ttl_s, aliases)


def _told(task: asyncio.Future[Answer]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def has_route(addresses: Sequence[str]) -> bool:
    """Whether this host has a source address towards the first IPv6 address (RFC 6724, rule 1). Sends nothing."""
    if not addresses:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((addresses[0], 53))
    except OSError:
        return False
    return True
