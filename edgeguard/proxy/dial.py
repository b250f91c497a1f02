"""Connecting to upstreams: checked addresses only, several of them raced.

The race follows RFC 8305 (happy eyeballs): families alternate, each attempt gets a head start,
the first connection wins. There are no names here, so nothing can be resolved a second time. The
proxy's own listeners are never dialled: a loop through ourselves would be judged as somebody else.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

logger = logging.getLogger(__name__)

HEAD_START_S: Final = 0.25
"""RFC 8305, 5: recommended delay between attempts."""

PREFERRED_S: Final = 30.0
PREFERRED_ENTRIES: Final = 1024


class DialError(OSError):
    """No address could be connected to."""


class Announcing(asyncio.Protocol):
    """A protocol that says when it is connected and when no longer: what `connecting` is for, if it is set."""

    __slots__ = ()
    connecting: "Connecting[Any] | None"


type Dialled[P] = Callable[[P | None, str], None]
"""Takes the protocol of a connection that was made and the address that won; None: nobody answers."""


class Dialer:
    """Opens TCP connections to addresses that were judged.

    The total deadline is the caller's: it cancels. `attempt_s` bounds one address of several, in seconds.
    """

    __slots__ = ("_attempt_s", "_head_start_s", "_own", "_preferred")
    at_once: ClassVar[bool] = True
    """A connection to one address is a connection, and nothing has to be said on it first."""

    def __init__(self, *, attempt_s: float = 5.0, head_start_s: float = HEAD_START_S) -> None:
        self._attempt_s = attempt_s
        self._head_start_s = head_start_s
        self._own: dict[int, set[str]] = {}
        self._preferred: dict[tuple[tuple[str, ...], int], tuple[float, str]] = {}

    def forbid(self, address: str, port: int) -> None:
        """Notes an address that this process listens on; `0.0.0.0` and `::` stand for every local one."""
        self._own.setdefault(port, set()).add(str(ipaddress.ip_address(address)))

    def is_own(self, address: str, port: int) -> bool:
        """Whether a connection to this address would end in this very process."""
        listening = self._own.get(port)
        if listening is None:
            return False
        ip = ipaddress.ip_address(address)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if str(ip) in listening or ip.is_unspecified:
            return True
        return ("0.0.0.0" in listening or "::" in listening) and _is_local(ip)  # noqa: S104

    def permitted(self, addresses: Sequence[str], port: int) -> tuple[str, ...]:
        """The addresses that are not our own, in the given order."""
        if port not in self._own:
            return tuple(addresses)
        return tuple(address for address in addresses if not self.is_own(address, port))

    def towards(self, host: str) -> "Dialer":
        """The dialer for the addresses of a canonical host."""
        return self

    def connect[P: Announcing](
        self, factory: Callable[[], P], addresses: Sequence[str], port: int, done: "Dialled[P]"
    ) -> "Connecting[P] | asyncio.Task[tuple[asyncio.Transport, P, str]]":
        """What `dial` does, with a callback. What is returned can be cancelled.

        `done` is called once, after this has returned. Where cancelling comes too late for the loop, it
        is called nevertheless, and has to end what it is given.
        """
        addresses = self.permitted(addresses, port)
        loop = asyncio.get_running_loop()
        if len(addresses) == 1 and self.at_once:
            return Connecting(loop, factory, addresses[0], port, done)
        task = loop.create_task(self.dial(factory, addresses, port))
        task.add_done_callback(lambda task: _tell(task, done))
        return task

    def prefer(
        self, addresses: Sequence[str], port: int, done: Callable[[str | None], None]
    ) -> asyncio.Task[str] | None:
        """What `preferred` does, with a callback; None for what nobody answers at. Of one address it is told at once."""
        addresses = self.permitted(addresses, port)
        if len(addresses) == 1:
            done(addresses[0])
            return None
        task = asyncio.get_running_loop().create_task(self.preferred(addresses, port))
        task.add_done_callback(lambda task: _prefer(task, done))
        return task

    async def dial[P: asyncio.Protocol](
        self, factory: Callable[[], P], addresses: Sequence[str], port: int
    ) -> tuple[asyncio.Transport, P, str]:
        """Connects to the first of `addresses` that answers.

        `factory` is called once for each attempt; only the winner's protocol is returned.

        Returns:
            The transport, its protocol, and the address that won.

        Raises:
            DialError: no address answered, all are our own, or the list is empty.
        """
        addresses = self.permitted(addresses, port)
        if len(addresses) == 1:
            try:
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    factory, addresses[0], port
                )
            except OSError as error:
                raise DialError(str(error)) from error
            return transport, protocol, addresses[0]
        return await self._race(factory, interleave(addresses), port)

    async def preferred(self, addresses: Sequence[str], port: int) -> str:
        """The one address to pin a connection to that somebody else will dial.

        Of several the first that answers, remembered for a while, so that an unreachable family is
        found out here and not by the one who has no other address to turn to.

        Raises:
            DialError: as `dial`.
        """
        addresses = self.permitted(addresses, port)
        if len(addresses) == 1:
            return addresses[0]
        loop = asyncio.get_running_loop()
        kept = self._preferred.get((addresses, port))
        if kept is not None and loop.time() < kept[0]:
            return kept[1]
        transport, _, address = await self.dial(asyncio.Protocol, addresses, port)
        transport.abort()
        if len(self._preferred) >= PREFERRED_ENTRIES:
            self._preferred.clear()
        self._preferred[addresses, port] = (loop.time() + PREFERRED_S, address)
        return address

    async def _race[P: asyncio.Protocol](
        self, factory: Callable[[], P], addresses: list[str], port: int
    ) -> tuple[asyncio.Transport, P, str]:
        loop = asyncio.get_running_loop()
        waiting = addresses[::-1]
        running: set[asyncio.Task[tuple[asyncio.Transport, P, str]]] = set()
        failure = "no address is left to dial"
        try:
            while waiting or running:
                if waiting:
                    running.add(loop.create_task(self._attempt(factory, waiting.pop(), port)))
                done, running = await asyncio.wait(
                    running,
                    timeout=self._head_start_s if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                winner = None
                for task in done:
                    error = task.exception()
                    if error is None and winner is None:
                        winner = task.result()
                    elif error is None:
                        task.result()[0].abort()
                    elif isinstance(error, OSError):
                        failure = str(error)
                    else:
                        raise error
                if winner is not None:
                    return winner
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_discard)
        raise DialError(failure)

    async def _attempt[P: asyncio.Protocol](
        self, factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.Transport, P, str]:
        async with asyncio.timeout(self._attempt_s):
            transport, protocol = await asyncio.get_running_loop().create_connection(factory, address, port)
        return transport, protocol, address


class Connecting[P: Announcing]:
    """One connection being made, without a task, and told of by its protocol in the moment in which it is there.

    The loop's coroutine is stepped from the callback of the future that it waits for. Once the connection is made
    it would only return it, after one more turn of the loop; so it is left where it is, until the connection ends.
    """

    __slots__ = ("_address", "_coroutine", "_done", "_protocol", "_waiter")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], P],
        address: str,
        port: int,
        done: Dialled[P],
    ) -> None:
        protocol = factory()
        protocol.connecting = self
        self._protocol = protocol
        self._address = address
        self._done = done
        self._coroutine = loop.create_connection(lambda: protocol, address, port)
        try:
            self._wait(self._coroutine.send(None))
        except OSError:
            protocol.connecting = None
            loop.call_soon(done, None, address)  # the kernel has refused at once

    def cancel(self) -> None:
        """Gives the connection up."""
        self._waiter.cancel()

    def made(self) -> None:
        """The connection is there. For its protocol."""
        self._waiter.remove_done_callback(self._step)
        self._done(self._protocol, self._address)

    def release(self) -> None:
        """The connection is gone. For its protocol."""
        self._protocol.connecting = None
        self._coroutine.close()

    def _wait(self, waiter: "asyncio.Future[object]") -> None:
        waiter._asyncio_future_blocking = False  # what tells a future that its yield was seen
        self._waiter = waiter
        waiter.add_done_callback(self._step)

    def _step(self, _: object) -> None:
        try:
            self._wait(self._coroutine.send(None))
        except OSError:
            self._protocol.connecting = None
            self._done(None, self._address)
        except (asyncio.CancelledError, StopIteration):
            self._protocol.connecting = None


def interleave(addresses: Sequence[str]) -> list[str]:
    """Families in turn, beginning with that of the first address (RFC 8305, 4)."""
    families: dict[bool, list[str]] = {}
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    groups = list(families.values())
    return [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]


def _discard(task: "asyncio.Task[tuple[asyncio.Transport, asyncio.Protocol, str]]") -> None:
    """Closes a connection that lost the race in the moment it was made."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()


def _tell[P: asyncio.Protocol](
    task: "asyncio.Task[tuple[asyncio.Transport, P, str]]", done: Dialled[P]
) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is None:
        _, protocol, address = task.result()
        done(protocol, address)
        return
    if not isinstance(error, OSError):
        logger.error("dialling failed", exc_info=error)
    done(None, "")


def _prefer(task: asyncio.Task[str], done: Callable[[str | None], None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, OSError):
        logger.error("dialling failed", exc_info=error)
    done(task.result() if error is None else None)


def _is_local(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an interface of this host has the address now: only then can a socket be bound to it."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True
