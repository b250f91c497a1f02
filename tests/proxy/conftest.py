"""A front door in this process, with doubles around it, and a client that speaks bytes."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

with warnings.catch_warnings():
    # mitmproxy calls pyparsing by names that pyparsing has renamed.
    warnings.simplefilter("ignore", DeprecationWarning)
    from mitmproxy import options
    from mitmproxy.addons import core, next_layer, tlsconfig
    from mitmproxy.master import Master

from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.door import Door, Services
from edgeguard.proxy.frontdoor import EdgeInstance, EdgeServers
from edgeguard.proxy.listeners import bind
from edgeguard.proxy.passages import Passages
from edgeguard.settings import Settings
from tests.fakes import FakeGuard, RecordingResolver, Upstream, settle_loop


@dataclass
class Client:
    """One connection to the door."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def connect(self, authority: str, *more: str, host: str | None = None) -> bytes:
        """Sends CONNECT and returns the reply's head."""
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {host or authority}", *more, "", ""]
        self.send("\r\n".join(lines).encode())
        return await self.head()

    async def head(self) -> bytes:
        try:
            return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), 5)

    async def rest(self) -> bytes:
        """Everything up to the end; a reset is an end."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5)
        except ConnectionResetError:
            return b""


@dataclass
class Running:
    """A door that listens, and what stands around it."""

    door: Door
    instance: EdgeInstance
    servers: EdgeServers
    guard: FakeGuard
    resolver: RecordingResolver
    passages: Passages
    master: Master
    port: int

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def idle(self) -> None:
        """Waits until nothing is open, then checks that nothing was kept."""
        for _ in range(300):
            if not self.door.connections and not self.guard.open and not len(self.passages):
                break
            await asyncio.sleep(0.01)
        assert self.door.connections == 0
        assert self.door.held == 0
        assert not self.door.phases
        assert not self.door.open
        assert not self.door.tunnels
        assert len(self.passages) == 0
        assert self.guard.open == 0


type Start = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


def pytest_asyncio_loop_factories(config, item):
    """The loop of production: transports of asyncio and uvloop differ in what counts here."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def ca_directory(tmp_path_factory) -> Path:
    """Where mitmproxy keeps its own certificate authority: made once."""
    return tmp_path_factory.mktemp("ca")


@pytest.fixture
def guard() -> FakeGuard:
    return FakeGuard()


@pytest.fixture
def resolver() -> RecordingResolver:
    return RecordingResolver({"good.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
def start_door(guard: FakeGuard, resolver: RecordingResolver, ca_directory: Path) -> Start:
    """`async with start_door(head_s=0.2, addons=[...]) as running:`; keywords are bounds."""

    @contextlib.asynccontextmanager
    async def start(
        *,
        dialer: Dialer | None = None,
        addons: tuple[object, ...] = (),
        identity: dict | None = None,
        **bounds: object,
    ) -> AsyncIterator[Running]:
        settings = Settings.model_validate(
            {
                "environment": "dev",
                "listen": {"address": "127.0.0.1:0"},
                "bounds": {"drain_s": 0.5, **bounds},
                "identity": identity or {},
            }
        )
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as mitmproxy does
        passages = Passages()
        services = Services(guard, resolver, dialer or Dialer(), passages, settings, clock=lambda: 1000.0)  # type: ignore[arg-type]
        master = Master(options.Options())
        servers = EdgeServers(services, bind(settings))
        master.addons.add(*addons, core.Core(), servers, next_layer.NextLayer(), tlsconfig.TlsConfig())
        master.options.update(
            confdir=str(ca_directory),
            connection_strategy="lazy",
            upstream_cert=False,
            ssl_insecure=True,
            mode=["edge"],
        )
        await servers.setup_servers()
        (instance,) = servers.servers
        assert isinstance(instance, EdgeInstance)
        assert servers.door is not None
        running = Running(
            servers.door, instance, servers, guard, resolver, passages, master, instance.listen_addrs[0][1]
        )
        try:
            yield running
        finally:
            await servers.servers.update([])
            for _ in range(500):
                if not running.door.connections:
                    break
                await asyncio.sleep(0.01)
            await settle_loop()

    return start


@pytest.fixture
async def running(start_door: Start) -> AsyncIterator[Running]:
    async with start_door() as running:
        yield running
