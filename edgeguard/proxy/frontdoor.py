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

    def doors(self) -> list[Door]:
        """The doors that are open, for status."""
        return [
            instance.door for instance in self.servers if isinstance(instance, EdgeInstance) and instance.door
        ]


class EdgeMode(mode_specs.ProxyMode):  # type: ignore[no-untyped-call]
    """Mode specification: `edge@HOST:PORT`."""

    description = "edgeguard front door"
    transport_protocol = mode_specs.TCP

    def __post_init__(self) -> None:
        if self.data:
            raise ValueError("mode `edge` takes no argument; write edge@HOST:PORT")


class EdgeInstance(AsyncioServerInstance[EdgeMode]):  # type: ignore[no-untyped-call]
    """One listener."""

    door: Door | None = None

    def make_top_layer(self, context: Context) -> Layer:
        return modes.HttpProxy(context)

    async def listen(self, host: str, port: int) -> list[Any]:
        """Listens. Raises OSError when the address is taken."""
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
        return [server]

    async def _stop(self) -> None:
        await super()._stop()
        if self.door is not None:
            self.door.close()
            self.door = None
