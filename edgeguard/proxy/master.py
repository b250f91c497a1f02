"""mitmproxy as a part of this process: few addons, fixed options, closed on failure.

Only the addons that the lane needs are loaded, ours first; the file `config.yaml` of the engine's
folder, which could switch verification off, is never read. `serve` is what `edgeguard run` awaits.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import certifi
from mitmproxy import certs, master, options
from mitmproxy.addons import core, next_layer, tlsconfig
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.net import tls as engine_tls

from edgeguard.proxy import failsafe
from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.authority import Authority
from edgeguard.proxy.dispatch import EdgeAddonManager
from edgeguard.proxy.listeners import ListenError
from edgeguard.settings import Settings

logger = logging.getLogger(__name__)

FIXED_OPTIONS: Final[dict[str, Any]] = {
    "connection_strategy": "lazy",  # no upstream connection before the request is allowed
    "upstream_cert": False,
    "http3": False,
    "rawtcp": False,
    "websocket": False,  # after a 101 bytes are relayed, not decoded
    "ssl_insecure": False,
    "validate_inbound_headers": True,
    "normalize_outbound_headers": True,
    "keep_host_header": False,
    "show_ignored_hosts": False,
    "store_streamed_bodies": False,
    "stream_large_bodies": None,  # the addon streams, and counts
    "body_size_limit": None,
    "ignore_hosts": [],
    "allow_hosts": [],
}
_NEVER_OPTIONS: Final = ("emudhra", "emudhra_old")
"""mitmproxy 12.3 ships the key of a compromised public authority behind these."""
_KEY_LOGS: Final = ("SSLKEYLOGFILE", "MITMPROXY_SSLKEYLOGFILE")


class EdgeMaster(master.Master):
    """The embedded engine. Needs a running event loop; one per process (the engine's `ctx` is global).

    Args:
        addon: The enforcement, first in the chain.
        settings: This node's configuration.
        authority: What intercepted connections are signed with.
        modes: Mode strings such as `edge` or `regular@127.0.0.1:3128`.
        servers: The engine's `Proxyserver`; the front door brings its own subclass.
    """

    def __init__(
        self,
        addon: EdgeguardAddon,
        settings: Settings,
        authority: Authority,
        modes: Sequence[str],
        servers: Proxyserver | None = None,
    ) -> None:
        silence_key_logs()
        super().__init__(options.Options(), with_termlog=False)
        self._legacy_log_events.uninstall()  # it would build a record for every line at every level
        self.addons = EdgeAddonManager(self)
        self.proxyserver = servers or Proxyserver()
        self._stopping = False
        self._drain_s = settings.bounds.drain_s
        # The directory first: the engine would make an authority of its own in its default one.
        self.options.update(confdir=str(authority.directory))
        self.addons.add(addon, core.Core(), self.proxyserver, next_layer.NextLayer(), tlsconfig.TlsConfig())
        self.options.update(
            **FIXED_OPTIONS,
            ssl_verify_upstream_trusted_ca=str(settings.upstream.ca_file or certifi.where()),
            tcp_timeout=max(1, int(settings.bounds.idle_s)),
            mode=list(modes),
        )
        certs.CertStore.STORE_CAP = settings.interception.leaf_certificates  # one master per process
        self._assert_safe(addon)

    def _assert_safe(self, addon: EdgeguardAddon) -> None:
        """Raises RuntimeError if what the enforcement rests on is not so."""
        for name, value in FIXED_OPTIONS.items():
            if getattr(self.options, name) != value:
                raise RuntimeError(f"engine option {name} is not {value!r}")
        for name in _NEVER_OPTIONS:
            if name in self.options and getattr(self.options, name):
                raise RuntimeError(f"engine option {name} must be off")
        if self.addons.chain[0] is not addon:
            raise RuntimeError("the enforcement must be the first addon")

    @property
    def listening(self) -> list[tuple[str, int]]:
        """(address, port) of every open door."""
        return [(address[0], address[1]) for address in self.proxyserver.listen_addrs()]

    async def open_doors(self) -> None:
        """Binds every listener. Raises ListenError if one could not be bound; then none stays open."""
        # The engine logs what fails and goes on; its lines would repeat our message.
        with _quiet(logging.getLogger("mitmproxy.addons.proxyserver")):
            bound = await self.proxyserver.setup_servers()
            servers = list(self.proxyserver.servers)
            if bound and all(server.is_running for server in servers):
                return
            problems = [str(server.last_exception) for server in servers if server.last_exception]
            await self.close_doors()
        raise ListenError("; ".join(problems) or "a listener did not start")

    async def close_doors(self) -> None:
        """Stops listening; open connections go on."""
        with contextlib.suppress(OSError, RuntimeError):
            await self.proxyserver.servers.update([])

    def shutdown(self) -> None:
        """Ends `run`. Thread-safe; also before `run`, which the stock engine would forget."""
        self._stopping = True
        super().shutdown()  # type: ignore[no-untyped-call]

    async def run(self) -> None:
        if not self._stopping:
            await super().run()

    async def done(self) -> None:
        """Stops listening, lets open work finish for a while, ends the rest."""
        await self.close_doors()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_s
        connections = self.proxyserver.connections
        while connections and loop.time() < deadline:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.02)
        for client_id in list(connections):
            if isinstance(client_id, str):
                failsafe.disconnect(client_id)
        for _ in range(50):
            if not connections:
                break
            await asyncio.sleep(0.01)
        await super().done()


@contextlib.contextmanager
def _quiet(noisy: logging.Logger) -> Iterator[None]:
    level = noisy.level
    noisy.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        noisy.setLevel(level)


def silence_key_logs() -> None:
    """No session keys on disk, whatever the environment says: neither here nor in child processes."""
    for name in _KEY_LOGS:
        if os.environ.pop(name, None) is not None:
            logger.warning("%s is ignored: session keys are never written", name)
    engine_tls.log_master_secret = None  # read from the environment when the engine was imported


async def serve(edge: EdgeMaster, *, ready: Callable[[list[tuple[str, int]]], None] | None = None) -> None:
    """Runs the engine until `edge.shutdown()`, which is thread-safe, or cancellation.

    Args:
        edge: From `EdgeMaster(...)`, on this loop.
        ready: Called once with the bound addresses when every door is open.

    Raises:
        ListenError: a door could not be opened.
    """
    await edge.open_doors()
    try:
        if ready is not None:
            ready(edge.listening)
        await edge.run()  # finds the doors open, and waits
    finally:
        await edge.close_doors()
