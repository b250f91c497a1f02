"""Names to addresses: the only module that resolves.

A name is resolved once, after its host and port were allowed; what comes out is judged, and what was
judged is what is dialled. An answer is kept for its TTL and never served stale, so where no server
answers, nothing is allowed. Who asks for a name that is being asked for shares that lookup; a slow
name holds up nobody else.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Final

from edgeguard.policy.names import HostError, canonical_host, is_address
from edgeguard.proxy.dial import interleave
from edgeguard.proxy.hostfiles import HostFiles
from edgeguard.proxy.nameservers import RECORDS, Answer, Lookup, servers_lookup
from edgeguard.settings import Resolver as ResolverSettings
from edgeguard.settings.values import split_server
from edgeguard.verdict import Resolved

FAILURE_CACHE_S: Final = 1.0
"""How long nobody asks again after a lookup that failed (RFC 2308, 7)."""
WAITING_NAMES: Final = 1024
"""Lookups under way at one time; further names are refused, not queued."""
LOOPBACK: Final = ("127.0.0.1", "::1")
"""What `localhost` and the names below it are, wherever they are asked for (RFC 6761, 6.3)."""


class ResolveError(OSError):
    """The name has no address, or none in time."""


class Resolver:
    """Resolves canonical hosts on one event loop.

    Args:
        lookup: Where answers come from; None: from `static` only.
        static: Fixed answers by canonical name. They come first.
        timeout_s: Total time for one name, in seconds.
        cache_names: Answers kept, and names whose past answers are kept.
        cache_max_s: Longest time an answer is kept, in seconds.
        negative_max_s: The same for the answer that there is no address.
        history_s: How long `gave` remembers an address, in seconds.
        max_addresses: Addresses of one answer that are used.
    """

    __slots__ = (
        "_cache",
        "_cache_max_s",
        "_cache_names",
        "_history",
        "_history_s",
        "_lookup",
        "_max_addresses",
        "_negative_max_s",
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
        cache_max_s: float = 60.0,
        negative_max_s: float = 10.0,
        history_s: float = 600.0,
        max_addresses: int = 8,
    ) -> None:
        self._lookup = lookup
        self._static = {canonical_host(name): _canonical(found) for name, found in (static or {}).items()}
        self._timeout_s = timeout_s
        self._cache_names = cache_names
        self._cache_max_s = cache_max_s
        self._negative_max_s = negative_max_s
        self._history_s = history_s
        self._max_addresses = max_addresses
        self._cache: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._history: dict[str, dict[str, float]] = {}
        self._waiting: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    @classmethod
    def from_settings(cls, settings: ResolverSettings, *, max_addresses: int = 8) -> "Resolver":
        """The resolver that the configuration describes. Raises HostError for a bad name in the table."""
        lookup: Lookup | None = None
        timeout_s, server_timeout_s = settings.timeout_s, settings.server_timeout_s
        if settings.mode == "system":
            lookup = HostFiles(timeout_s=timeout_s, server_timeout_s=server_timeout_s)
        elif settings.mode == "servers":
            servers = [split_server(server) for server in settings.servers]
            lookup = servers_lookup(servers, timeout_s=timeout_s, server_timeout_s=server_timeout_s)
        return cls(
            lookup,
            static=settings.static,
            timeout_s=timeout_s,
            cache_names=settings.cache_names,
            cache_max_s=settings.cache_max_s,
            negative_max_s=settings.negative_max_s,
            history_s=settings.history_s,
            max_addresses=max_addresses,
        )

    def known(self, host: str) -> tuple[str, ...] | None:
        """What `resolve` would answer without asking anybody: at least one address, or None. Never waits."""
        found = self._static.get(host)
        if found is not None:
            return found
        kept = self._cache.get(host)
        if kept is not None:
            return kept[1] or None if monotonic() < kept[0] else None
        if is_address(host):
            return (host,)
        if host == "localhost" or host.endswith(".localhost"):
            return LOOPBACK
        return None

    def gave(self, host: str, address: str) -> bool:
        """Whether a canonical address was among the answers for a canonical host in the last `history_s`."""
        if address in (self.known(host) or ()):
            return True
        past = self._history.get(host)
        return past is not None and monotonic() < past.get(address, 0.0)

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Canonical addresses of a canonical host, at least one; an address literal is its own answer.

        Where the name is an alias the answer is a `Resolved`, which tells the names behind it.

        Raises:
            ResolveError: unknown name, no answer in time, or too many lookups under way.
        """
        found = self.known(host)
        if found is not None:
            return found
        if self._lookup is None:
            raise ResolveError(f"{host} is not in the static table")
        task = self._waiting.get(host)
        if task is None:
            kept = self._cache.get(host)
            if kept is not None and monotonic() < kept[0]:
                raise ResolveError(f"{host} has no address")
            if len(self._waiting) >= WAITING_NAMES:
                raise ResolveError("too many names are being resolved")
            task = asyncio.get_running_loop().create_task(self._ask(self._lookup, host))
            if not task.done():
                self._waiting[host] = task
                task.add_done_callback(lambda _: self._waiting.pop(host, None))
        # Several connections may wait for one lookup; one that leaves must not take it along.
        found = await asyncio.shield(task)
        if not found:
            raise ResolveError(f"{host} has no address")
        return found

    async def _ask(self, lookup: Lookup, host: str) -> tuple[str, ...]:
        """The answer, which may be empty; never raises, since nobody may be left to be told."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await lookup(host)
        except (OSError, ValueError):  # TimeoutError is an OSError
            answer, longest_s = Answer((), FAILURE_CACHE_S), self._cache_max_s
            addresses: tuple[str, ...] = ()
        else:
            addresses = _canonical(answer.addresses)
            longest_s = self._cache_max_s if addresses else self._negative_max_s
        keep_s = min(answer.ttl_s, longest_s)
        self._remember(host, addresses[:RECORDS])
        found = tuple(interleave(addresses)[: self._max_addresses])
        if found and answer.aliases:
            found = Resolved(found, answer.aliases)
        self._cache.pop(host, None)
        if keep_s > 0:  # a TTL of 0 is for those who asked, and nobody after them (RFC 1035, 3.2.1)
            if len(self._cache) >= self._cache_names:
                del self._cache[next(iter(self._cache))]
            self._cache[host] = (monotonic() + keep_s, found)
        return found

    def _remember(self, host: str, addresses: Iterable[str]) -> None:
        """Writes down what was answered, for `gave`."""
        now = monotonic()
        past = {address: until for address, until in self._history.pop(host, {}).items() if until > now}
        for address in addresses:
            past.pop(address, None)
            past[address] = now + self._history_s
        while len(past) > RECORDS:
            del past[next(iter(past))]
        if past:
            self._history[host] = past
        if len(self._history) > self._cache_names:
            del self._history[next(iter(self._history))]


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
