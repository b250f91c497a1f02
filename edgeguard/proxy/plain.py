"""edgeguard as an addon of a stock mitmproxy: `mitmdump -s "$(python -m edgeguard.proxy.plain)"`.

The same policy, engine and decision log as `edgeguard run`, without the front door. The settings
come from the option `edgeguard_config` or the variable EDGEGUARD_CONFIG. Until they are read and
the node is built, every client is turned away. What only the front door can do is said at start.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import certifi
from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client
from mitmproxy.log import ALERT
from mitmproxy.proxy import mode_specs

from edgeguard.bundle.refusal import Refusal
from edgeguard.proxy import failsafe
from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.authority import AuthorityError
from edgeguard.proxy.master import FIXED_OPTIONS, silence_key_logs
from edgeguard.proxy.node import Node
from edgeguard.proxy.passages import Passages
from edgeguard.proxy.preflight import NodeError
from edgeguard.proxy.resolver import Resolver
from edgeguard.settings import Settings, SettingsError, load_settings

logger = logging.getLogger(__name__)

OPTION: Final = "edgeguard_config"
VARIABLE: Final = "EDGEGUARD_CONFIG"
NOT_GUARANTEED: Final = (
    "no deadline for a request head or a ClientHello, and no cap on connections and tunnels",
    "a failure in another addon lets its flow go on; ours refuses",
    "only the first address that was checked is dialled",
    "mitmproxy reloads a changed script while it runs; keep this file read-only",
)
"""What the front door of `edgeguard run` adds to plain mitmproxy."""
_MODES: Final = (mode_specs.RegularMode, mode_specs.ReverseMode)


class TurnsAway:
    """Stands in until the enforcement is there."""

    name = "edgeguard-turns-away"

    def client_connected(self, client: Client) -> None:
        client.error = failsafe.REFUSED


class PlainEdgeguard:
    """Builds the node from its settings, and enforces as a child of itself."""

    name = "edgeguard-plain"

    def __init__(self) -> None:
        self.addons: list[object] = [TurnsAway()]
        self._node: Node | None = None

    def load(self, loader: Loader) -> None:
        silence_key_logs()
        loader.add_option(OPTION, str, "", f"Configuration file of edgeguard (TOML). Default: ${VARIABLE}.")

    def configure(self, updated: set[str]) -> None:
        """Raises OptionsError: mitmproxy then does not start."""
        if self._node is not None:
            if OPTION in updated:
                raise exceptions.OptionsError(f"{OPTION} cannot change while the proxy runs")
            check_options()
            return
        path = getattr(ctx.options, OPTION) or os.environ.get(VARIABLE, "")
        if path:
            self._build(Path(path), os.environ)

    def _build(self, path: Path, environ: Mapping[str, str]) -> None:
        try:
            settings = load_settings(path, environ)
            node = Node(settings)
        except (SettingsError, NodeError, AuthorityError, Refusal, OSError) as error:
            raise exceptions.OptionsError(f"edgeguard: {error}") from error
        self._node = node
        ctx.options.update(**plain_options(settings, node.authority.directory))
        resolver = Resolver.from_settings(settings.resolver, max_addresses=settings.bounds.dial_addresses)
        self._enforcing = EdgeguardAddon(node.guard, resolver, Passages(), settings)

    async def running(self) -> None:
        node = self._node
        if node is None:
            logger.error("edgeguard has no settings: give --set %s=FILE or set %s", OPTION, VARIABLE)
            ctx.master.shutdown()
            return
        check_options()
        await asyncio.to_thread(node.sync.start)
        node.guard.start()
        self.addons = [self._enforcing]
        for line in NOT_GUARANTEED:
            logger.log(ALERT, "edgeguard without its front door: %s", line)

    async def done(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            self.addons = [TurnsAway()]
            node.guard.stop()
            await asyncio.to_thread(node.sync.stop)
            await asyncio.to_thread(node.log.close)


def plain_options(settings: Settings, authority: Path) -> dict[str, object]:
    """The engine's options that the enforcement needs."""
    return {
        **FIXED_OPTIONS,
        "confdir": str(authority),
        "ssl_verify_upstream_trusted_ca": str(settings.upstream.ca_file or certifi.where()),
    }


def check_options() -> None:
    """Raises OptionsError if somebody set an option that undoes the enforcement, or a mode it does not cover."""
    for name, value in FIXED_OPTIONS.items():
        if getattr(ctx.options, name) != value:
            raise exceptions.OptionsError(f"edgeguard needs the option {name} to be {value!r}")
    for spec in ctx.options.mode:
        mode = mode_specs.ProxyMode.parse(spec)
        covered = isinstance(mode, _MODES)
        if isinstance(mode, mode_specs.ReverseMode):
            covered = mode.scheme in {"http", "https"}
        if not covered:
            raise exceptions.OptionsError(
                f"edgeguard as an addon covers the modes regular and reverse:http(s), not {spec}; use `edgeguard run`"
            )


addons = [PlainEdgeguard()]

if __name__ == "__main__":
    sys.stdout.write(f"{Path(__file__).resolve()}\n")
