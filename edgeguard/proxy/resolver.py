"""Names to addresses: the only module that resolves.

A name is resolved once, after its host and port were allowed; what comes out is judged, and what
was judged is what is dialled. Neither source tells the TTL of an answer, so answers are kept for a few
seconds only: long enough for a burst of connections, shorter than any TTL that matters.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mitmproxy_rs.dns import DnsResolver

from edgeguard.policy.names import HostError, canonical_host, is_address
from edgeguard.settings import Resolver as ResolverSettings

CACHE_S: Final = 5.0
FAILURE_CACHE_S: Final = 1.0
LOOKUP_THREADS: Final = 16
"""`getaddrinfo` blocks; slow names occupy these threads and nothing else."""
WAITING_NAMES: Final = 1024
"""Lookups under way at one time; further names are refused, not queued."""


class ResolveError(OSError):
    """The name has no address, or none in time."""


type Lookup = Callable[[str], Awaitable[Iterable[str]]]
"""Addresses of a canonical name, as text. Raises OSError."""


class Resolver:
    """Resolves canonical hosts on one event loop.

    Args:
        lookup: Where answers come from; None: from `static` only.
        static: Fixed answers by canonical name. They come first.
        timeout_s: Total time for one name, in seconds.
        cache_names: Answers kept.
        cache_s: How long an answer is kept, in seconds.
        max_addresses: Addresses of one answer that are used.
    """

    __slots__ = (
        "_cache",
        "_cache_names",
        "_cache_s",
        "_lookup",
        "_max_addresses",
        "_static",
        "_timeout_s",
        "_waiting",
    )

    def __init__(
        self,
        lookup: Lookup | None,
        *,
        static: Mapping[str, Sequence[str]] | None = None,
        timeout_s: float = 5.0,
        cache_names: int = 4096,
        cache_s: float = CACHE_S,
        max_addresses: int = 8,
    ) -> None:
        self._lookup = lookup
        self._static = {canonical_host(name): _canonical(found) for name, found in (static or {}).items()}
        self._timeout_s = timeout_s
        self._cache_names = cache_names
        self._cache_s = cache_s
        self._max_addresses = max_addresses
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._waiting: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    @classmethod
    def from_settings(cls, settings: ResolverSettings, *, max_addresses: int = 8) -> "Resolver":
        """The resolver that the configuration describes. Raises HostError for a bad name in the table."""
        lookup: Lookup | None = None
        if settings.mode == "system":
            lookup = system_lookup()
        elif settings.mode == "servers":
            lookup = DnsResolver(name_servers=list(settings.servers), use_hosts_file=False).lookup_ip
        return cls(
            lookup,
            static=settings.static,
            timeout_s=settings.timeout_s,
            cache_names=settings.cache_names,
            cache_s=min(CACHE_S, settings.cache_max_s),
            max_addresses=max_addresses,
        )

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Canonical addresses of a canonical host, at least one; an address literal is its own answer.

        Raises:
            ResolveError: unknown name, no answer in time, or too many lookups under way.
        """
        found = self._static.get(host)
        if found is not None:
            return found
        if is_address(host):
            return (host,)
        if self._lookup is None:
            raise ResolveError(f"{host} is not in the static table")
        task = self._waiting.get(host)
        if task is None:
            loop = asyncio.get_running_loop()
            kept = self._cache.get(host)
            if kept is not None and loop.time() < kept[0]:
                if not kept[1]:
                    raise ResolveError(f"{host} has no address")
                return kept[1]
            if len(self._waiting) >= WAITING_NAMES:
                raise ResolveError("too many names are being resolved")
            task = loop.create_task(self._ask(self._lookup, host, loop))
            if not task.done():
                self._waiting[host] = task
                task.add_done_callback(lambda _: self._waiting.pop(host, None))
        # Several connections may wait for one lookup; one that leaves must not take it along.
        found = await asyncio.shield(task)
        if not found:
            raise ResolveError(f"{host} has no address")
        return found

    async def _ask(self, lookup: Lookup, host: str, loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
        """The answer, which may be empty; never raises, since nobody may be left to be told."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = _canonical(await lookup(host))[: self._max_addresses]
        except (OSError, ValueError):  # TimeoutError and gaierror are OSErrors
            found = ()
        if len(self._cache) >= self._cache_names:
            del self._cache[next(iter(self._cache))]
        self._cache.pop(host, None)
        self._cache[host] = (
            loop.time() + (self._cache_s if found else min(FAILURE_CACHE_S, self._cache_s)),
            found,
        )
        return found


def system_lookup() -> Lookup:
    """The host's own resolver (hosts file, search domains, name service switch) on threads of its own."""
    threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="resolve")

    def ask(host: str) -> list[str]:
        # The one place where names are resolved, and only after host and port were allowed.
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)  # noqa: TID251
        return [str(answer[4][0]) for answer in answers]

    async def lookup(host: str) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(threads, ask, host)

    return lookup


def _canonical(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses in canonical text, each once, in the order given; what is none, or has a zone, is dropped."""
    found: dict[str, None] = {}
    for text in addresses:
        try:
            address = canonical_host(text)
        except HostError:
            continue
        if "%" not in text and is_address(address):
            found[address] = None
    return tuple(found)
