"""Fetching the keys of token issuers: files of the node, and URLs that the policy allows.

A URL is fetched as any other destination is: judged for the client `edgeguard`, resolved once, its
address checked and dialled, and recorded. No redirects, no more bytes and seconds than configured, and
no more often than the cooldown, so that tokens with made-up key ids cannot make the node hammer its
issuer. What was fetched last stays good for a while when the issuer is down.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from edgeguard.guard import Guard
from edgeguard.identity.jwks import JwksError, KeyRing, read_jwks
from edgeguard.identity.tokens import source_of
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.proxy.desk import Resolves
from edgeguard.settings import User as UserSettings
from edgeguard.verdict import Facts

logger = logging.getLogger(__name__)

NODE: Final = Client(name="edgeguard", identified=True)
"""The node itself, as rules name it in `clients`."""
LOOK_S: Final = 2.0
"""Time between two looks at files and clocks."""
FILE: Final = "file:"


class KeyFetcher:
    """Keeps a ring of keys current on the traffic's loop.

    Args:
        guard: Says whether a URL may be fetched, and records that it was.
        ring: Where keys go.
        resolver: The traffic's.
        settings: Section `[user]`.
        authorities: Certificate authorities for issuers, PEM file; None: certifi's.
    """

    def __init__(
        self,
        guard: Guard,
        ring: KeyRing,
        resolver: Resolves,
        settings: UserSettings,
        authorities: Path | None,
    ) -> None:
        self._guard = guard
        self._ring = ring
        self._resolver = resolver
        self._settings = settings
        self._authorities = authorities
        self._next: dict[str, float] = {}
        """Loop time of the next fetch, by source."""
        self._last: dict[str, float] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        """Device, inode and time of change of files that were read."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, on the running loop."""
        self._ring.on_wanted(self._wanted)
        self._guard.subscribe(self._wake.set)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _wanted(self, source: str) -> None:
        """A token needs a key that is not there: sooner, but never within the cooldown."""
        last = self._last.get(source)
        if last is not None and source in self._next:
            self._next[source] = min(self._next[source], last + self._settings.jwks_cooldown_s)
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            snapshot = self._guard.snapshot
            sources = {
                source for issuer in (snapshot.issuers if snapshot else ()) if (source := source_of(issuer))
            }
            self._ring.keep(sources)
            for gone in self._next.keys() - sources:
                del self._next[gone]
            for source in sources:
                if source.startswith(FILE):
                    await self._read(source)
                elif self._next.setdefault(source, 0.0) <= loop.time():
                    await self._refresh(source)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if sources else None):
                    await self._wake.wait()

    async def _read(self, source: str) -> None:
        path = self._settings.jwks_dir / source.removeprefix(FILE)
        try:
            status = path.stat()
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._seen.get(source) == mark and self._ring.until(source):
                return
            if status.st_size > self._settings.jwks_bytes:
                raise JwksError(f"larger than user.jwks_bytes ({self._settings.jwks_bytes})")
            keys = read_jwks(await asyncio.to_thread(path.read_bytes))
        except (OSError, JwksError) as error:
            # Fail closed: a file that is gone or broken takes its keys along. Whoever writes it can see it.
            if self._seen.pop(source, None) is not None or self._ring.until(source):
                logger.warning("%s: the keys cannot be used: %s", path, error)
            self._ring.drop(source)
            return
        self._seen[source] = mark
        self._ring.put(source, keys, float("inf"))

    async def _refresh(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        settings = self._settings
        self._last[url] = loop.time()
        try:
            async with asyncio.timeout(settings.jwks_deadline_s):
                keys = read_jwks(await self._fetch(url))
        except Exception as error:  # noqa: BLE001
            # Fail closed: whatever went wrong, the old keys stay for their stated time, and no new ones come.
            logger.warning(
                "%s: the keys of an issuer cannot be fetched: %s", url, str(error) or type(error).__name__
            )
            self._next[url] = loop.time() + settings.jwks_cooldown_s
            return
        self._next[url] = loop.time() + settings.jwks_refresh_s
        self._ring.put(url, keys, self._guard.now() + settings.jwks_max_age_s)

    async def _fetch(self, url: str) -> bytes:
        """The document. Raises OSError, JwksError, aiohttp.ClientError, TimeoutError."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        facts = Facts("jwks", NODE, host, port, "tls", method="GET", target=target)
        verdict = self._guard.judge(facts)
        if verdict.allow:
            try:
                addresses = await self._resolver.resolve(verdict.host)
            except OSError:
                self._guard.refuse(verdict, Reason.UPSTREAM_UNREACHABLE)
                raise
            # Under what is in force now: the policy may have changed while the name was resolved.
            verdict = self._guard.admit(self._guard.judge(facts), addresses)
        waiting = self._guard.reserve(verdict)
        verdict = self._guard.settle(verdict if waiting is None else await waiting)
        if not verdict.allow:
            raise JwksError(
                f"refused with {verdict.reason}; a rule has to allow it for the client `edgeguard`"
            )
        body = b""
        try:
            body = await self._get(url, verdict.addresses)
        finally:
            self._guard.finish(verdict, sent=0, received=len(body), why="done" if body else "upstream_lost")
        return body

    async def _get(self, url: str, addresses: Sequence[str]) -> bytes:
        context = ssl.create_default_context(cafile=str(self._authorities or _certifi()))
        connector = aiohttp.TCPConnector(resolver=_Pinned(addresses), ssl=context, limit=1, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session,
            session.get(
                url, allow_redirects=False, headers={"Accept": "application/jwk-set+json, application/json"}
            ) as answer,
        ):
            if answer.status != 200:
                raise JwksError(f"the issuer answered with {answer.status}")
            limit = self._settings.jwks_bytes
            body = b""
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise JwksError(f"larger than user.jwks_bytes ({limit})")
            return body


class _Pinned(AbstractResolver):
    """Resolves nothing: the addresses that were checked are the ones that are dialled."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None: ...


def _certifi() -> str:
    import certifi

    return certifi.where()
