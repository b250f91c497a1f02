"""The front door as a proxy mode of mitmproxy: `edge`, every listener of a node behind one `Door`.

Importing this module registers the mode. mitmproxy makes the instance itself, with its
`Proxyserver` addon as the manager; so that addon is what carries services and sockets to it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.mode_servers import AsyncioServerInstance

from edgeguard.proxy.accepting import Acceptor
from edgeguard.proxy.door import Door, Services
from edgeguard.proxy.doortls import DoorTls
from edgeguard.proxy.front import Front
from edgeguard.proxy.listeners import Kind, Listener
from edgeguard.proxy.opening import Opening
from edgeguard.proxy.reverse import Reverse
from edgeguard.proxy.socks import Socks
from edgeguard.proxy.transparent import Transparent
from edgeguard.settings import Listen

__all__ = ["EdgeInstance", "EdgeMode", "EdgeServers", "Services"]

PROTOCOLS: Final[Mapping[Kind, type[Opening]]] = MappingProxyType(
    {"http": Front, "socks": Socks, "transparent": Transparent, "reverse": Reverse}
)


class EdgeServers(Proxyserver):
    """mitmproxy's `Proxyserver`, by whose name the master looks it up, with what the doors need.

    Args:
        services: Whom the doors ask.
        listeners: Bound sockets (`listeners.bind`); they are closed when their instance stops.
    """

    name = "proxyserver"

    def __init__(self, services: Services, listeners: Sequence[Listener]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.services = services
        self.listeners = tuple(listeners)
        self.door: Door | None = None
        """What all listeners share; None until they are served."""

    @property
    def working(self) -> int:
        """Client connections that are open, whatever they do."""
        return 0 if self.door is None else self.door.connections

    def census(self) -> dict[str, object]:
        """For `/status`: open connections, those that found no place, those that failed before a request."""
        door = self.door
        if door is None:
            return {"open": 0, "turned_away": 0, "failed": {}}
        return {"open": door.connections, "turned_away": door.turned_away, "failed": dict(door.failed)}

    def close_all(self) -> None:
        """Ends everything that is still open, and records it."""
        if self.door is not None:
            self.door.close()


class EdgeMode(mode_specs.ProxyMode):
    """Mode specification: `edge`. Where to listen is said by the sockets."""

    description = "edgeguard front door"
    transport_protocol = mode_specs.TCP

    def __post_init__(self) -> None:
        if self.data or self.custom_listen_port is not None:
            raise ValueError("mode `edge` takes no argument and no address; its sockets are bound already")


class EdgeInstance(AsyncioServerInstance[EdgeMode]):
    """Serves every listener of this process."""

    def make_top_layer(self, context: Context) -> Layer:
        return modes.HttpProxy(context)

    @property
    def listen_addrs(self) -> tuple[tuple[str, int], ...]:
        """Address and port of the doors that a network reaches."""
        if not self._servers or not isinstance(self.manager, EdgeServers):
            return ()
        return tuple(at for listener in self.manager.listeners if (at := listener.at) is not None)

    async def _start(self) -> None:
        manager = self.manager
        if not isinstance(manager, EdgeServers):
            raise TypeError("mode `edge` needs the EdgeServers addon in place of Proxyserver")
        services = manager.services
        listen = services.settings.listen
        tls = None if listen.tls is None else DoorTls(listen.tls)
        for at in filter(None, (listener.at for listener in manager.listeners)):
            services.dialer.forbid(*at)
        door = Door(services, asyncio.get_running_loop())
        try:
            for listener in manager.listeners:
                server: Any = await self._serve(listener, door, listen, tls)
                self._servers.append(server)
        except BaseException:
            door.close()
            for server in self._servers:
                server.close()
            self._servers = []
            raise
        manager.door = door

    async def _serve(
        self, listener: Listener, door: Door, listen: Listen, tls: DoorTls | None
    ) -> asyncio.Server | Acceptor:
        make = partial(PROTOCOLS[listener.kind], door, self)
        headers_from: tuple[str, ...] = ()
        if listener.kind != "transparent" and not listener.unix:
            headers_from = listen.proxy_protocol_from
        if listener.kind == "transparent" or listener.unix or listener.tls or headers_from:
            return Acceptor(
                listener,
                door,
                make,
                backlog=listen.backlog,
                tls=tls if listener.tls else None,
                headers_from=headers_from,
            )
        # Nothing has to be known beforehand: the event loop accepts, which is faster.
        return await door.loop.create_server(make, sock=listener.socket, backlog=listen.backlog)

    async def _stop(self) -> None:
        await super()._stop()
        # A connection that was accepted a moment ago meets its protocol in the next turn: it is not turned away.
        await asyncio.sleep(0)
        if isinstance(self.manager, EdgeServers) and self.manager.door is not None:
            self.manager.door.drain()
