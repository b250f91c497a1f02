"""edgeguard as an addon of a stock mitmproxy: `mitmdump -s "$(python -m edgeguard.proxy.plain)"`.

The same policy, engine and decision log as `edgeguard run`, without the front door, in the modes
regular, reverse:http(s), socks5 and transparent. The settings come from the option
`edgeguard_config` or the variable EDGEGUARD_CONFIG. Until they are read and the node is built, every
client is turned away. What only the front door can do is said at start.
"""

import contextlib
import ipaddress
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
from edgeguard.proxy.authority import AuthorityError
from edgeguard.proxy.master import FIXED_OPTIONS, silence_key_logs
from edgeguard.proxy.modes import PlainAddon
from edgeguard.proxy.node import Node
from edgeguard.proxy.passages import Passages
from edgeguard.proxy.preflight import NodeError
from edgeguard.settings import Settings, SettingsError, load_settings

logger = logging.getLogger(__name__)

OPTION: Final = "edgeguard_config"
VARIABLE: Final = "EDGEGUARD_CONFIG"
NOT_GUARANTEED: Final = (
    "no deadline for the first request head or SOCKS greeting to begin, and no cap on connections and tunnels",
    "a failure in another addon lets its flow go on; ours refuses",
    "a refused SOCKS5 or transparent connection is closed: the reason stands in the decision log only",
    "mitmproxy reloads a changed script while it runs; keep this file read-only",
    "[listen] and workers of the configuration mean nothing here; mitmproxy listens as its options say",
)
"""What the front door of `edgeguard run` adds to plain mitmproxy."""
_UNCOVERED: Final[dict[type[mode_specs.ProxyMode], str]] = {
    mode_specs.UpstreamMode: "the parent proxy would resolve the names, so no address could be checked "
    "([upstream.proxy] of `edgeguard run` names addresses to it)",
    mode_specs.DnsMode: "names would be resolved that no rule allows",
    mode_specs.WireGuardMode: "it brings UDP, and no claim that could be judged",
    mode_specs.LocalMode: "it brings UDP, and no claim that could be judged",
    mode_specs.TunMode: "it brings UDP, and no claim that could be judged",
}
"""Why a mode is refused."""
_COVERED: Final = (
    mode_specs.RegularMode,
    mode_specs.ReverseMode,
    mode_specs.Socks5Mode,
    mode_specs.TransparentMode,
)
_FIXED_WHILE_RUNNING: Final = frozenset({OPTION, "mode", "server", "listen_host", "listen_port"})


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
        self._running = contextlib.AsyncExitStack()
        self._serving = False

    def load(self, loader: Loader) -> None:
        silence_key_logs()
        loader.add_option(OPTION, str, "", f"Configuration file of edgeguard (TOML). Default: ${VARIABLE}.")

    def configure(self, updated: set[str]) -> None:
        """Raises OptionsError: mitmproxy then does not start."""
        if self._node is not None:
            if self._serving and (fixed := updated & _FIXED_WHILE_RUNNING):
                raise exceptions.OptionsError(f"{min(fixed)} cannot change while edgeguard runs; start anew")
            check_options(self._node)
            return
        path = getattr(ctx.options, OPTION) or os.environ.get(VARIABLE, "")
        if path:
            self._build(Path(path), os.environ)

    def _build(self, path: Path, environ: Mapping[str, str]) -> None:
        try:
            settings = load_settings(path, environ)
            if settings.upstream.proxy.address:
                raise NodeError(
                    "the engine dials by itself here and knows no [upstream.proxy]; use `edgeguard run`"
                )
            node = Node(settings)
        except (SettingsError, NodeError, AuthorityError, Refusal, OSError) as error:
            raise exceptions.OptionsError(f"edgeguard: {error}") from error
        self._node = node
        ctx.options.update(**plain_options(settings, node.authority.directory))

    async def running(self) -> None:
        node = self._node
        if node is None:
            logger.error("edgeguard has no settings: give --set %s=FILE or set %s", OPTION, VARIABLE)
            ctx.master.shutdown()
            return
        try:
            check_options(node)
            resolver = await self._running.enter_async_context(node.enforcing())
        except Exception as error:  # noqa: BLE001 - fail closed
            # Fail closed: mitmproxy would go on listening after an exception here.
            logger.error("edgeguard cannot start: %s", error)  # noqa: TRY400 - one clear line
            ctx.master.shutdown()
            return
        for host, port, *_ in ctx.master.addons.get("proxyserver").listen_addrs():
            node.forbid(host, port)
        self._serving = True
        self.addons = [PlainAddon(node.guard, resolver, Passages(), node.settings)]
        for line in NOT_GUARANTEED:
            logger.log(ALERT, "edgeguard without its front door: %s", line)

    async def done(self) -> None:
        self._node = None
        self.addons = [TurnsAway()]
        await self._running.aclose()


def plain_options(settings: Settings, authority: Path) -> dict[str, object]:
    """The engine's options that the enforcement needs."""
    return {
        **FIXED_OPTIONS,
        "confdir": str(authority),
        "ssl_verify_upstream_trusted_ca": str(settings.upstream.ca_file or certifi.where()),
    }


def check_options(node: Node) -> None:
    """Raises OptionsError if somebody set an option that undoes the enforcement, or a mode it does not cover."""
    for name, value in FIXED_OPTIONS.items():
        if getattr(ctx.options, name) != value:
            raise exceptions.OptionsError(f"edgeguard needs the option {name} to be {value!r}")
    for spec in ctx.options.mode:
        mode = mode_specs.ProxyMode.parse(spec)
        if why := uncovered(mode):
            raise exceptions.OptionsError(
                f"edgeguard as an addon covers the modes regular, reverse:http(s), socks5 and transparent, "
                f"not {spec}: {why}; use `edgeguard run`"
            )
        host = mode.listen_host(ctx.options.listen_host)
        if node.local_only is not None and not _is_loopback(host):
            raise exceptions.OptionsError(
                f"{node.local_only}, so mitmproxy may listen on loopback only, not on {host or 'all addresses'}; "
                "give --listen-host 127.0.0.1"
            )


def uncovered(mode: mode_specs.ProxyMode) -> str | None:
    """Why a mode cannot be enforced, in words; None if it can."""
    if isinstance(mode, mode_specs.ReverseMode) and mode.scheme not in {"http", "https"}:
        return "what passes there is not HTTP"
    if isinstance(mode, _COVERED):
        return None
    return next((why for kind, why in _UNCOVERED.items() if isinstance(mode, kind)), "it is unknown")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


addons = [PlainEdgeguard()]

if __name__ == "__main__":
    sys.stdout.write(f"{Path(__file__).resolve()}\n")
