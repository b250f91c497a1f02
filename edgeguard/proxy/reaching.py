"""Where the engine opens its server connections: through the parent proxy, if there is one.

The engine's own way is a plain `asyncio.open_connection`. This one asks the same hooks in the same order, the
gate among them, and differs only in who dials.
"""

import asyncio
import time
from typing import Any

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionIO

from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.passages import Passages


class ReachingHandler(ProxyConnectionHandler):
    """The engine's handler of a client connection, with a dialer."""

    def __init__(self, dialer: Dialer, passages: Passages, *engine: Any) -> None:  # noqa: ANN401 - the engine's own arguments
        super().__init__(*engine)  # type: ignore[no-untyped-call]
        self._dialer = dialer
        self._passages = passages

    async def open_connection(self, command: commands.OpenConnection) -> None:
        server = command.connection
        address = server.address
        if address is None or server.transport_protocol != "tcp":
            await super().open_connection(command)  # the gate refuses it
            return
        dialer = self._dialer.towards(self._passages.host_of(self.client.id, *address[:2]))
        if dialer.at_once:
            await super().open_connection(command)
            return
        data = server_hooks.ServerConnectionHookData(client=self.client, server=server)
        await self.handle_hook(server_hooks.ServerConnectHook(data))
        if server.error is not None:
            await self._refused(command, data, f"Connection killed: {server.error}")
            return
        async with self.max_conns[address]:
            try:
                reader, writer = await self._dial(dialer, server, *address[:2])
            except (OSError, asyncio.CancelledError) as error:
                server.error = str(error) or "connection cancelled"
                await self._refused(command, data, server.error)
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            self.transports[server] = ConnectionIO(
                handler=asyncio.current_task(), reader=reader, writer=writer
            )
            await self._serve(command, data)

    async def _refused(
        self, command: commands.OpenConnection, data: server_hooks.ServerConnectionHookData, why: str
    ) -> None:
        await self.handle_hook(server_hooks.ServerConnectErrorHook(data))
        await self.server_event(events.OpenConnectionCompleted(command, why))

    async def _dial(
        self, dialer: Dialer, server: Server, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        server.timestamp_start = time.time()
        reader = asyncio.StreamReader(loop=loop)
        transport, protocol, _ = await dialer.dial(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop), (host,), port
        )
        server.timestamp_tcp_setup = time.time()
        server.state = ConnectionState.OPEN
        server.peername = transport.get_extra_info("peername")
        server.sockname = transport.get_extra_info("sockname")
        return reader, _Writer(transport, protocol, reader, loop)

    async def _serve(
        self, command: commands.OpenConnection, data: server_hooks.ServerConnectionHookData
    ) -> None:
        server = data.server
        await self.handle_hook(server_hooks.ServerConnectedHook(data))
        await self.server_event(events.OpenConnectionCompleted(command, None))
        try:
            await self.handle_connection(server)
        finally:
            server.timestamp_end = time.time()
            await self.handle_hook(server_hooks.ServerDisconnectedHook(data))


class _Writer(asyncio.StreamWriter):
    """A stream writer for transports that may be TLS, which has no half-closed state: there the end waits."""

    def write_eof(self) -> None:
        if self.can_write_eof():
            super().write_eof()
