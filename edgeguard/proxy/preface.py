"""The PROXY header with which a load balancer says for whom it connects (versions 1 and 2).

The header stands before everything else, TLS included, and what follows it may share its segment. So it
is read off the raw socket, and never a byte more than is certain to belong to it: a version 2 header
says its length after 16 bytes, a version 1 header is at least 15 bytes long and ends with CRLF.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

import asyncio
import ipaddress
import re
import socket
from struct import Struct
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V1_START: Final = b"PROXY "
V1_LEAST_BYTES: Final = 15
"""`PROXY UNKNOWN` and CRLF."""
V1_MOST_BYTES: Final = 107
V2_FIXED_BYTES: Final = 16
V2_MOST_BYTES: Final = V2_FIXED_BYTES + 2048
"""Addresses, and what else a balancer may add (names, TLS details), which is not read here."""
_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?|(TCP4|TCP6) (\S+) (\S+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n"
)
_fixed: Final = Struct("!12sBBH").unpack
_ADDRESS_BYTES: Final = {1: 4, 2: 16}
_LOCAL: Final = 0x20
_PROXIED: Final = 0x21


class PrefaceError(Exception):
    """No PROXY header that can be believed stands there."""


class Preface(NamedTuple):
    """What the header says."""

    address: str | None
    """Canonical source address; None for the balancer's own connections, and those whose source it does not know."""


async def read_preface(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> Preface:
    """Reads exactly the header off a non-blocking socket. The deadline is the caller's: it cancels.

    Raises:
        PrefaceError: What arrives is no header, or ends within it. OSError: The connection broke.
    """
    data = await _exactly(loop, connection, V1_LEAST_BYTES)
    if data[:12] == SIGNATURE:
        data += await _exactly(loop, connection, V2_FIXED_BYTES - len(data))
        _, _, _, length = _fixed(data)
        if V2_FIXED_BYTES + length > V2_MOST_BYTES:
            raise PrefaceError("the header is too long")
        return parse_v2(data + await _exactly(loop, connection, length))
    if not data.startswith(V1_START):
        raise PrefaceError("the connection does not begin with a PROXY header")
    while not data.endswith(b"\r\n"):
        if len(data) >= V1_MOST_BYTES:
            raise PrefaceError("the header has no end")
        # One byte after a carriage return, since only a line feed can follow; otherwise up to the next one.
        more = 1
        if not data.endswith(b"\r"):
            waiting = await _peek(loop, connection, V1_MOST_BYTES - len(data))
            more = waiting.find(b"\r") + 1 or len(waiting)
        data += await _exactly(loop, connection, more)
    return parse_v1(data)


def parse_v1(data: bytes) -> Preface:
    """A whole header of version 1, its CRLF included. Raises PrefaceError."""
    found = _V1.fullmatch(data)
    if found is None or len(data) > V1_MOST_BYTES:
        raise PrefaceError("not a PROXY header of version 1")
    if found[1] is None:
        return Preface(None)
    version = 4 if found[1] == b"TCP4" else 6
    try:
        source, target = (ipaddress.ip_address(found[i].decode("ascii")) for i in (2, 3))
    except ValueError:
        raise PrefaceError("not an address") from None
    if source.version != version or target.version != version or "%" in str(source):
        raise PrefaceError("an address of another family than the header says")
    if any(int(found[i]) > 65_535 or (found[i][:1] == b"0" and found[i] != b"0") for i in (4, 5)):
        raise PrefaceError("not a port")
    return Preface(str(source))


def parse_v2(data: bytes) -> Preface:
    """A whole header of version 2. Raises PrefaceError."""
    if len(data) < V2_FIXED_BYTES:
        raise PrefaceError("the header is cut off")
    signature, command, family, length = _fixed(data[:V2_FIXED_BYTES])
    body = data[V2_FIXED_BYTES:]
    if signature != SIGNATURE or command not in {_LOCAL, _PROXIED} or len(body) != length:
        raise PrefaceError("not a PROXY header of version 2")
    if command == _LOCAL:
        return Preface(None)  # whatever addresses stand there are to be ignored
    if family == 0:
        return Preface(None)
    size = _ADDRESS_BYTES.get(family >> 4)
    if size is None or family & 0xF != 1:
        raise PrefaceError("not a TCP connection")
    if length < 2 * size + 4:
        raise PrefaceError("the addresses are cut off")
    return Preface(str(ipaddress.ip_address(body[:size])))


async def _exactly(loop: asyncio.AbstractEventLoop, connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(connection, count - len(data))
        if not more:
            raise PrefaceError("the connection ended within the header")
        data += more
    return data


async def _peek(loop: asyncio.AbstractEventLoop, connection: socket.socket, limit: int) -> bytes:
    """What has arrived, at least a byte of it, which stays there to be read."""
    while True:
        try:
            data = connection.recv(limit, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(loop, connection)
            continue
        if not data:
            raise PrefaceError("the connection ended within the header")
        return data


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
