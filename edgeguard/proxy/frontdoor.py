"""The front door as a proxy mode of mitmproxy: `edge@127.0.0.1:3128`.

Importing this module registers the mode. mitmproxy makes the instances itself, with its
`Proxyserver` addon as their manager; so that addon is what carries the services to them.
"""

import asyncio
from functools import partial
from typing import Any

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.mode_servers import AsyncioServerInstance

from edgeguard.proxy.door import Door, Services
from edgeguard.proxy.front import Front

__all__ = ["EdgeInstance", "EdgeMode", "EdgeServers", "Services"]


class EdgeServers(Proxyserver):
    """mitmproxy's `Proxyserver`, by whose name the master looks it up, with the services of the doors."""

    name = "proxyserver"

    def __init__(self, services: Services) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.services = services
        self.doors: list[Door] = []

    @property
    def working(self) -> int:
        """Client connections that are open, those of doors that are draining included."""
        self.doors = [door for door in self.doors if not door.closed or door.connections]
        return sum(door.connections for door in self.doors)

    def close_all(self) -> None:
        """Ends everything that is still open, and records it."""
        for door in self.doors:
            door.close()


class EdgeMode(mode_specs.ProxyMode):
    """Mode specification: `edge@HOST:PORT`."""

    description = "edgeguard front door"
    transport_protocol = mode_specs.TCP

    def __post_init__(self) -> None:
        if self.data:
            raise ValueError("mode `edge` takes no argument; write edge@HOST:PORT")


class EdgeInstance(AsyncioServerInstance[EdgeMode]):
    """One listener."""

    door: Door | None = None

    def make_top_layer(self, context: Context) -> Layer:
        return modes.HttpProxy(context)

    async def listen(self, host: str, port: int) -> list[Any]:
        """Listens. Raises OSError when the address is taken."""
        host = host.removeprefix("[").removesuffix("]")  # mode strings carry IPv6 addresses in brackets
        manager = self.manager
        if not isinstance(manager, EdgeServers):
            raise TypeError("mode `edge` needs the EdgeServers addon in place of Proxyserver")
        services = manager.services
        loop = asyncio.get_running_loop()
        door = Door(services, loop)
        try:
            server = await loop.create_server(
                partial(Front, door, self), host or None, port, backlog=services.settings.listen.backlog
            )
        except BaseException:
            door.close()
            raise
        for listener in server.sockets:
            address = listener.getsockname()
            services.dialer.forbid(address[0], address[1])
        self.door = door
        manager.doors.append(door)
        return [server]

    async def _stop(self) -> None:
        await super()._stop()
        if self.door is not None:
            self.door.drain()
            self.door = None
