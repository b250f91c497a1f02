"""The ways out, each tried once: what came back, and from whom.

A way is *open* only if bytes came back that the far end alone can have sent, since behind a redirect every
connection opens. It is *shut* where this host itself says so: EPERM from the packet filter, a capability
that is missing, the proxy's own refusal. Silence, a reset and an unreachable network prove neither.
"""

import contextlib
import errno
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from edgeguard.netfilter.kernel import CAP_NET_ADMIN, capable

type Outcome = Literal["open", "shut", "nothing"]
type Target = tuple[str, int]

NAME: Final = "edgeguard-verify.invalid"
"""No policy allows it (RFC 6761)."""
ACCESS_DENIED: Final = b"\x15\x03"
"""How a TLS alert begins. With description 49 it is the door's."""


class Seen(NamedTuple):
    """What came of a try."""

    outcome: Outcome
    detail: str


class Way(NamedTuple):
    """One way out."""

    name: str
    about: str
    target: str
    """`address:port`, `address` for ICMP, `host:port` for CONNECT; empty: it has to be given, or there is none."""
    attempt: Callable[[Target, float], Seen]
    own: bool = False
    """It is about this process and needs no target."""


def tcp(target: Target, timeout_s: float) -> socket.socket:
    """A connection. Raises OSError."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout_s)
        link.connect(target)
    except OSError:
        link.close()
        raise
    return link


def tls(target: Target, timeout_s: float, name: str | None = NAME) -> Seen:
    """A ClientHello; any answer but the door's alert comes from the far end."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with tcp(target, timeout_s) as link:
        link.sendall(outgoing.read())
        data = link.recv(1024)
    if data[:2] == ACCESS_DENIED and data[6:7] == b"\x31":
        return Seen("shut", "the proxy's door refused it")
    return Seen("open", "TLS answered") if data[:1] in {b"\x15", b"\x16"} else _bytes(data)


def unnamed(target: Target, timeout_s: float) -> Seen:
    return tls(target, timeout_s, None)


def http(target: Target, timeout_s: float) -> Seen:
    with tcp(target, timeout_s) as link:
        link.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        return _bytes(link.recv(4096))


def banner(target: Target, timeout_s: float) -> Seen:
    """What the server says first."""
    with tcp(target, timeout_s) as link:
        return _bytes(link.recv(256))


def _bytes(data: bytes) -> Seen:
    if b"edgeguard-reason:" in data.lower():
        return Seen("shut", "the proxy's door refused it")
    return Seen("open", f"{len(data)} bytes came back") if data else Seen("nothing", "the connection ended")


def _question() -> bytes:
    return os.urandom(2) + b"\x01\x00\x00\x01" + bytes(6) + b"\x07example\x03com\x00\x00\x01\x00\x01"


def dns_udp(target: Target, timeout_s: float) -> Seen:
    question = _question()
    return _datagram(target, timeout_s, question, lambda data: data[:2] == question[:2])


def dns_tcp(target: Target, timeout_s: float) -> Seen:
    question = _question()
    with tcp(target, timeout_s) as link:
        link.sendall(struct.pack("!H", len(question)) + question)
        data = link.recv(512)
    answered = data[2:4] == question[:2]
    return Seen("open", "DNS answered") if answered else Seen("nothing", "no DNS answer came")


def quic(target: Target, timeout_s: float) -> Seen:
    """A long header of a version that nobody speaks: a server has to answer it (RFC 9000, 6.1)."""
    first = b"\xc0\x1a\x2a\x3a\x4a\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    return _datagram(target, timeout_s, first.ljust(1200, b"\x00"), lambda data: data[:1] >= b"\x80")


def _datagram(target: Target, timeout_s: float, data: bytes, fits: Callable[[bytes], bool]) -> Seen:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.settimeout(timeout_s)
        link.connect(target)
        link.send(data)
        answer = link.recv(2048)
    return (
        Seen("open", "an answer came back") if fits(answer) else Seen("nothing", "something else came back")
    )


def icmp(target: Target, timeout_s: float) -> Seen:
    """An echo request, by a ping socket or a raw one (icmp(7), raw(7))."""
    six = ":" in target[0]
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    try:
        link = socket.socket(family, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        try:
            link = socket.socket(family, socket.SOCK_RAW, protocol)
        except PermissionError:
            return Seen("shut", "this user may open no socket for it")
    token = os.urandom(8)
    echo = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xFFFF, 1) + token
    with link:
        link.settimeout(timeout_s)
        link.connect((target[0], 0))
        link.send(echo[:2] + _checksum(echo) + echo[4:])
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            data = link.recv(2048)
            if data.endswith(token) and data[-16:-15] in {b"\x00", b"\x81"}:
                return Seen("open", "an echo came back")
    return Seen("nothing", "no echo came back")


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


# What this process may do itself


def packet_socket(_: Target, __: float) -> Seen:
    """A packet socket (packet(7)) sends beside every rule of the table."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        return Seen("shut", "without CAP_NET_RAW there are none")
    return Seen("open", "it holds CAP_NET_RAW: frames pass beside the packet filter")


def net_admin(_: Target, __: float) -> Seen:
    if capable(CAP_NET_ADMIN):
        return Seen("open", "it holds CAP_NET_ADMIN: it can take the rules away")
    return Seen("shut", "it does not hold CAP_NET_ADMIN")


def become(user: int) -> Seen:
    """Whether this process can take the proxy's user id, or has it. It has it afterwards."""
    if os.geteuid() == user:
        return Seen("open", f"it runs as user {user}, and that is the proxy's")
    try:
        os.setresuid(user, user, user)
    except PermissionError:
        return Seen("shut", "it may not change its user id")
    return Seen("open", f"it can become user {user}, and that is the proxy's")


WAYS: Final = (
    Way("https", "direct HTTPS", "1.1.1.1:443", tls),
    Way("address", "TLS to an address, without a name", "1.1.1.1:443", unnamed),
    Way("http", "direct HTTP", "1.1.1.1:80", http),
    Way("dns-udp", "another DNS server, UDP", "8.8.8.8:53", dns_udp),
    Way("dns-tcp", "another DNS server, TCP", "8.8.8.8:53", dns_tcp),
    Way("dot", "DNS over TLS", "8.8.8.8:853", tls),
    Way("imds", "metadata service", "169.254.169.254:80", http),
    Way("imds6", "metadata service, IPv6", "[fd00:ec2::254]:80", http),
    Way("private", "a private address", "", tls),
    Way("ssh", "SSH", "", banner),
    Way("port", "another TCP port, HTTP", "", http),
    Way("quic", "QUIC, UDP 443", "1.1.1.1:443", quic),
    Way("icmp", "ICMP echo", "1.1.1.1", icmp),
    Way("icmp6", "ICMPv6 echo", "2606:4700:4700::1111", icmp),
    Way("ipv6", "HTTPS over IPv6", "[2606:4700:4700::1111]:443", tls),
    Way("packet-socket", "frames beside the packet filter", "", packet_socket, own=True),
    Way("net-admin", "taking the rules away", "", net_admin, own=True),
)
PROBES: Final[Mapping[str, Way]] = MappingProxyType({way.name: way for way in WAYS})


def attempt(way: Way, target: Target, timeout_s: float) -> Seen:
    """Tries one way; every failure is an outcome."""
    try:
        return way.attempt(target, timeout_s)
    except TimeoutError:
        return Seen("nothing", "no answer")
    except ConnectionError:
        return Seen("nothing", "reset or refused")
    except OSError as error:
        if error.errno == errno.EPERM:
            return Seen("shut", "the packet filter of this host")
        return Seen("nothing", error.strerror or type(error).__name__)
