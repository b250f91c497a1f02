"""The host's own way to resolve, read from its two files: /etc/hosts, then the servers of /etc/resolv.conf.

`getaddrinfo` would do more, and worse for a proxy: it appends search domains, so that an allowed name
becomes one that nobody allowed; it asks whatever else the name service switch lists (mDNS, LLMNR); it
tells no TTL; and it blocks a thread for each name. The files are read again when they change.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

import dns.resolver

from edgeguard.policy.names import HostError, canonical_host, is_address
from edgeguard.proxy.nameservers import Answer, Lookup, servers_lookup

logger = logging.getLogger(__name__)

HOSTS_FILE: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
CHECK_S: Final = 1.0
"""Time between looks at the files."""
HOSTS_TTL_S: Final = 5.0
"""How long an answer from the hosts file is remembered."""
FILE_BYTES: Final = 16_777_216
"""Largest hosts file: the long ones block advertisements."""
DNS_PORT: Final = 53

type _Stamp = tuple[int, int, int] | None


class HostFiles:
    """A `Lookup` that follows the host's files.

    Args:
        timeout_s: Total time for one name, in seconds.
        server_timeout_s: Time that one server gets before the next is asked, in seconds.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        server_timeout_s: float,
        hosts: Path = HOSTS_FILE,
        resolv_conf: Path = RESOLV_CONF,
        port: int = DNS_PORT,
    ) -> None:
        self._timeouts = timeout_s, server_timeout_s
        self._paths = hosts, resolv_conf
        self._port = port
        self._stamps: tuple[_Stamp, ...] = ()
        self._looked = float("-inf")
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._servers: Lookup | None = None
        self._reading = asyncio.Lock()

    async def __call__(self, host: str) -> Answer:
        """The answer for a canonical name. Raises OSError."""
        if monotonic() - self._looked >= CHECK_S:
            async with self._reading:
                await self._follow()
        found = self._hosts.get(host)
        if found is not None:
            return Answer(found, HOSTS_TTL_S)
        if self._servers is None:
            raise OSError(f"{self._paths[1]} names no server")
        return await self._servers(host)

    async def _follow(self) -> None:
        """Reads the files if they are not those that were read last."""
        stamps = tuple(_stamp(path) for path in self._paths)
        if stamps != self._stamps:
            hosts, resolv_conf = self._paths
            self._hosts = await asyncio.to_thread(read_hosts, hosts)
            servers, rotate = await asyncio.to_thread(read_resolv_conf, resolv_conf)
            timeout_s, server_timeout_s = self._timeouts
            self._servers = None
            if servers:
                self._servers = servers_lookup(
                    [(server, self._port) for server in servers],
                    timeout_s=timeout_s,
                    server_timeout_s=server_timeout_s,
                    rotate=rotate,
                )
            self._stamps = stamps
        self._looked = monotonic()


def read_hosts(path: Path) -> dict[str, tuple[str, ...]]:
    """Canonical names and their addresses (hosts(5)); lines that say nothing usable are passed over."""
    found: dict[str, dict[str, None]] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(FILE_BYTES)
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error.strerror)
        return {}
    for line in text.splitlines():
        written, *names = line.partition("#")[0].split() or [""]
        with suppress(HostError):
            address = canonical_host(written)
            if "%" in written or not is_address(address):
                continue
            for name in names:
                found.setdefault(canonical_host(name), {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


def read_resolv_conf(path: Path) -> tuple[tuple[str, ...], bool]:
    """The servers and whether to rotate them (resolv.conf(5)). `search` and `ndots` are ignored on purpose."""
    resolver = dns.resolver.Resolver(configure=False)
    try:
        resolver.read_resolv_conf(path)
    except (dns.resolver.NoResolverConfiguration, OSError, ValueError) as error:
        logger.warning("%s names no DNS server: %s", path, error)
        return (), False
    return tuple(map(str, resolver.nameservers)), resolver.rotate


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
