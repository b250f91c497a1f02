"""Accepting where something is learnt before the first byte of the client's own protocol.

TLS to the proxy, a PROXY header, the user at the other end of a unix socket, the destination of a
redirected connection: all of it is known before a protocol object sees the connection. So connections
are accepted and counted here, and the caps of the door hold during a handshake, which has one deadline.
"""

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from edgeguard.identity.certificates import read_names
from edgeguard.identity.clients import Proof
from edgeguard.proxy.client import ClientSide
from edgeguard.proxy.door import Door
from edgeguard.proxy.doortls import DoorTls
from edgeguard.proxy.listeners import Listener
from edgeguard.proxy.origin import Origin
from edgeguard.proxy.preface import PrefaceError, read_preface

logger = logging.getLogger(__name__)

SLICE: Final = 64
"""Connections that are accepted before others get their turn."""
PAUSE_S: Final = 0.5
"""How long nothing is accepted when descriptors have run out."""
SO_ORIGINAL_DST: Final = 80
"""linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h; Python does not name it."""
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")
_UCRED: Final = struct.Struct("3i")
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

type Make = Callable[[Origin], ClientSide]


class Acceptor:
    """Serves one listener on the running loop.

    Args:
        listener: Its socket is closed with this.
        door: Caps, and what became of connections that never got as far as a request.
        make: The protocol for a connection.
        tls: TLS to the proxy; None: the clients' protocol comes in clear.
        headers_from: Networks whose connections begin with a PROXY header.
    """

    def __init__(
        self,
        listener: Listener,
        door: Door,
        make: Make,
        *,
        backlog: int,
        tls: DoorTls | None = None,
        headers_from: Sequence[str] = (),
    ) -> None:
        self._listener = listener
        self._door = door
        self._make = make
        self._tls = tls
        self._headers_from = [ipaddress.ip_network(network) for network in headers_from]
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        listener.socket.setblocking(False)
        listener.socket.listen(backlog)
        self._resume()

    def close(self) -> None:
        """Stops accepting; handshakes that are under way end."""
        if self._open:
            self._open = False
            self._door.loop.remove_reader(self._listener.socket)
            self._listener.socket.close()
            for task in tuple(self._tasks):
                task.cancel()

    def _resume(self) -> None:
        if self._open:
            self._door.loop.add_reader(self._listener.socket, self._accept)

    def _accept(self) -> None:
        door = self._door
        for _ in range(SLICE):
            try:
                connection, _ = self._listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                logger.error("cannot accept connections: %s", os.strerror(error.errno or 0))  # noqa: TRY400
                door.loop.remove_reader(self._listener.socket)
                door.loop.call_later(PAUSE_S, self._resume)
                return
            if door.connections >= door.bounds.connections or door.draining:
                door.turned_away += 1
                connection.close()
                continue
            door.connections += 1
            connection.setblocking(False)
            task = door.loop.create_task(self._admit(connection))
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _admit(self, connection: socket.socket) -> None:
        """From an accepted socket to its protocol. Whoever is not ready in time is cut off, and counted."""
        door = self._door
        made: list[ClientSide] = []
        why = "preface"
        try:
            deadline = door.loop.time() + door.bounds.handshake_s
            origin = await self._origin(connection, deadline)
            why = "handshake"
            await self._transport(connection, origin, made, deadline)
        except (OSError, PrefaceError) as error:  # TimeoutError and SSLError are OSErrors
            door.failed[why] += 1
            logger.debug("a client failed before its first request (%s): %s", why, error)
        except Exception:
            # Fail closed: what could not be set up in order is not served.
            door.failed[why] += 1
            logger.exception("setting up a client connection failed")
        finally:
            if not made or made[0].here is None:
                # No protocol has seen it, so none will give its place back.
                door.connections -= 1
                connection.close()

    async def _origin(self, connection: socket.socket, deadline: float) -> Origin:
        if self._listener.unix:
            pid, uid, gid = _UCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            # The kernel does not know processes of another user namespace; nor do we then.
            return Origin(proof=Proof(uid=uid, gid=gid) if pid else None)
        peer = connection.getpeername()[0].partition("%")[0]
        if self._listener.kind == "transparent":
            return Origin(peer, destination=original_destination(connection))
        address = ipaddress.ip_address(peer)
        if any(address in network for network in self._headers_from):
            async with asyncio.timeout_at(deadline):
                preface = await read_preface(self._door.loop, connection)
            return Origin(preface.address or peer)
        return Origin(peer)

    async def _transport(
        self, connection: socket.socket, origin: Origin, made: list[ClientSide], deadline: float
    ) -> None:
        loop = self._door.loop
        if self._tls is None:
            made.append(self._make(origin))
            await loop.connect_accepted_socket(lambda: made[0], connection)
            return
        await loop.connect_accepted_socket(
            lambda: _Shaking(self, origin, made),
            connection,
            ssl=self._tls.context(),
            ssl_handshake_timeout=max(0.01, deadline - loop.time()),
            ssl_shutdown_timeout=self._door.bounds.drain_s,
        )

    def shaken(self, transport: asyncio.Transport, origin: Origin, made: list[ClientSide]) -> None:
        """The handshake is done: the names of the certificate are known, and the protocol begins."""
        try:
            der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if der is not None:
                origin = origin._replace(proof=Proof(certificate=read_names(der)))
            protocol = self._make(origin)
            transport.set_protocol(protocol)
        except Exception:
            # Fail closed: whoever could not be told apart is not served; `_admit` gives the place back.
            logger.exception("setting up a client connection failed")
            self._door.failed["handshake"] += 1
            transport.abort()
            return
        made.append(protocol)
        protocol.connection_made(transport)


class _Shaking(asyncio.Protocol):
    """Stands in until the handshake is done, since the names in a certificate are not known before."""

    def __init__(self, acceptor: Acceptor, origin: Origin, made: list[ClientSide]) -> None:
        self._told = (origin, made)
        self._acceptor = acceptor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._acceptor.shaken(transport, *self._told)  # type: ignore[arg-type]  # uvloop's do not inherit from Transport


def original_destination(connection: socket.socket) -> tuple[str, int] | None:
    """Where a redirected client wanted to go, as canonical address and port; None when nobody knows.

    REDIRECT and DNAT rules leave it with the connection tracker; with TPROXY it is the address of the socket itself.
    """
    try:
        if connection.family == socket.AF_INET6:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(raw)
        else:
            raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, packed = _SOCKADDR_IN.unpack(raw)
        return str(ipaddress.ip_address(packed)), port
    except OSError:
        pass
    try:
        host, port = connection.getsockname()[:2]
    except OSError:
        return None
    return str(ipaddress.ip_address(host.partition("%")[0])), port
