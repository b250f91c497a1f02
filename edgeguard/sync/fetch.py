"""One HTTP GET from a bundle server that is not trusted for anything, its speed and manners included.

Every request has a total deadline that only received bytes extend, at a minimum rate, so that neither
silence nor one byte a second can hold the node (Uptane: "shall monitor the download speed"). Reading stops
at cap + 1 bytes. Compression is neither asked for nor accepted, redirects stay on the origin, and
environment variables that name a proxy are ignored: the way to the policy must not lead through the proxy
that enforces it. Validators follow RFC 9110 section 13, long polling RFC 7240 (`Prefer: wait`).
"""

import asyncio
import ipaddress
import random
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Self

import aiohttp
import certifi
from yarl import URL

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_RETRY: Final = frozenset((429, 500, 502, 503, 504))
MAX_ETAG: Final = 256


class FetchCode(StrEnum):
    """Why a fetch brought nothing. The words stand beside the refusal codes in status and events."""

    UNREACHABLE = "unreachable"
    TLS = "tls"
    TIMEOUT = "timeout"
    TOO_SLOW = "too_slow"
    TOO_BIG = "too_big"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    ENCODED = "encoded"
    REDIRECT = "redirect"
    MISSING = "missing"
    UNAVAILABLE = "unavailable"
    STATUS = "status"
    NOT_MODIFIED = "not_modified_unasked"


class FetchError(Exception):
    """A fetch that failed; `retry_after_s` is what the server asked for, capped."""

    def __init__(self, code: FetchCode, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a server may cost us."""

    deadline_s: float = 10.0
    """Seconds to the response head (after a long poll's wait), and again to the last byte."""
    min_rate_bytes_s: int = 1024
    """Each received byte extends the deadline by 1/this."""
    redirects: int = 3
    retry_after_cap_s: float = 300.0


class Fetched(NamedTuple):
    """A 200 (`data` is the whole body) or a 304 (`data` is None)."""

    data: bytes | None
    etag: str | None
    """The validator that belongs to `data`; on a 304 the one that was sent."""
    doubtful: bool = False
    """The validator may stand for other bytes as well: ask without one next time."""


def check_url(text: str, *, folder: bool = True) -> URL:
    """A base address for bundles, or (not `folder`) any address to post to, which may have a query.

    Raises ValueError with what to write instead.
    """
    url = URL(text)
    if url.scheme not in {"https", "http"} or not url.host:
        raise ValueError(f"{text!r}: not an address; write https://host/ (a folder, ending in a slash)")
    if url.user is not None or url.password is not None:
        raise ValueError(f"{text!r}: credentials do not belong in an address; bundles need none")
    if folder and (url.query_string or url.fragment):
        raise ValueError(f"{text!r}: an address of a folder has no query and no fragment")
    if url.scheme == "http" and not is_loopback(url.host):
        raise ValueError(
            f"{text!r}: plain http is for loopback only, since bundles name internal hosts; write https://"
        )
    return url if not folder or url.path.endswith("/") else url.with_path(url.path + "/")


def is_loopback(host: str) -> bool:
    """True for `localhost` (RFC 6761) and for loopback address literals."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Verifies servers against `ca_file` (PEM), or certifi's list. Raises ValueError when it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_file or certifi.where())
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{ca_file}: no certificates can be read: {error.strerror or error}") from error


def new_session(url: URL, ca_file: str | None = None, token: str | None = None) -> aiohttp.ClientSession:
    """A session for one origin with nothing ambient: no proxy variables, cookies, .netrc or compression.

    `token` is a bearer token for every request of the session, which therefore must not leave its origin.
    Needs a running loop. Raises ValueError when `ca_file` cannot be read; None means certifi's list.
    """
    # Loading the authorities takes tens of milliseconds, and plain loopback needs none.
    context = tls_context(ca_file) if url.scheme == "https" else True
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgeguard"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return aiohttp.ClientSession(
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(ssl=context, limit=4, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=headers,
    )


def full_jitter(attempt: int, base_s: float, cap_s: float) -> float:
    """Seconds to wait before try number `attempt` (from 0): anywhere up to an exponential bound."""
    return random.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 32)))  # noqa: S311 - spreads load, hides nothing


class Fetcher:
    """Fetches from one base address. Use as an async context manager, or call `close`."""

    def __init__(
        self, url: str, limits: FetchLimits, *, ca_file: str | None = None, token: str | None = None
    ) -> None:
        self.url = check_url(url)
        self._limits = limits
        self._ca_file = ca_file
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self, path: str, cap: int, *, etag: str | None = None, wait_s: float = 0.0, exact: bool = False
    ) -> Fetched:
        """GETs `path` (relative, already in its URL form), at most `cap` bytes.

        With `etag` the request is conditional; with `wait_s` the server may hold a conditional request that
        long. With `exact` the body must be exactly `cap` bytes.
        Raises FetchError; ValueError when the file of certificate authorities cannot be read.
        """
        if self._session is None:
            self._session = new_session(self.url, self._ca_file, self._token)
        progress = _Progress()
        try:
            async with asyncio.timeout(None) as scope:
                scope.reschedule(progress.started + self._limits.deadline_s + wait_s)
                return await self._follow(path, cap, etag, wait_s, exact, scope, progress)
        except TimeoutError as error:
            if progress.received:
                detail = f"{progress.received} bytes, slower than {self._limits.min_rate_bytes_s} bytes/s"
                raise FetchError(FetchCode.TOO_SLOW, detail) from error
            raise FetchError(
                FetchCode.TIMEOUT, f"no answer in {self._limits.deadline_s + wait_s:g} s"
            ) from error
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise FetchError(FetchCode.TLS, _short(error)) from error
        except aiohttp.ClientPayloadError as error:
            raise FetchError(
                FetchCode.TRUNCATED, f"body broken off after {progress.received} bytes"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError(FetchCode.UNREACHABLE, _short(error)) from error

    async def _follow(
        self,
        path: str,
        cap: int,
        etag: str | None,
        wait_s: float,
        exact: bool,
        scope: asyncio.Timeout,
        progress: "_Progress",
    ) -> Fetched:
        assert self._session is not None  # noqa: S101 - `get` made it
        url = self.url.join(URL(path, encoded=True))
        headers: dict[str, str] = {}
        if etag is not None:
            headers["If-None-Match"] = etag
            if wait_s > 0:
                headers["Prefer"] = f"wait={wait_s:.0f}"
        for _ in range(self._limits.redirects + 1):
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                try:
                    if response.status in _REDIRECTS:
                        url = self._same_origin(response)
                        continue
                    return await self._take(response, cap, etag, exact, scope, progress)
                finally:
                    if not response.content.at_eof():
                        response.close()  # never drain what we did not ask for
        raise FetchError(FetchCode.REDIRECT, f"more than {self._limits.redirects} redirects")

    def _same_origin(self, response: aiohttp.ClientResponse) -> URL:
        location = response.headers.get("Location", "")
        try:
            target = response.url.join(URL(location))
            away = target.origin() != self.url.origin() or target.user is not None
        except ValueError as error:
            raise FetchError(FetchCode.REDIRECT, "unreadable Location") from error
        if not location or away:
            raise FetchError(FetchCode.REDIRECT, f"away from {self.url.origin()}")
        return target

    async def _take(
        self,
        response: aiohttp.ClientResponse,
        cap: int,
        etag: str | None,
        exact: bool,
        scope: asyncio.Timeout,
        progress: "_Progress",
    ) -> Fetched:
        if response.status == 304:
            if etag is None:
                raise FetchError(FetchCode.NOT_MODIFIED, "304 to a request without a validator")
            named = response.headers.get("ETag")
            return Fetched(None, etag, doubtful=named is not None and _opaque(named) != _opaque(etag))
        if response.status != 200:
            raise self._failure(response)
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise FetchError(FetchCode.ENCODED, "the answer is compressed, which was not asked for")
        if response.content_length is not None and response.content_length > cap:
            raise FetchError(FetchCode.TOO_BIG, f"{response.content_length} bytes announced, cap {cap}")
        data = await self._body(response, cap, scope, progress)
        if not data:
            raise FetchError(FetchCode.EMPTY, "200 without a body")
        if exact and len(data) != cap:
            raise FetchError(FetchCode.TRUNCATED, f"{len(data)} bytes instead of {cap}")
        found = response.headers.get("ETag")
        usable = found is not None and 2 <= len(found) <= MAX_ETAG and found.isascii() and found.isprintable()
        return Fetched(data, found if usable else None, doubtful=_just_modified(response))

    async def _body(
        self, response: aiohttp.ClientResponse, cap: int, scope: asyncio.Timeout, progress: "_Progress"
    ) -> bytes:
        parts: list[bytes] = []
        start = asyncio.get_running_loop().time()
        scope.reschedule(start + self._limits.deadline_s)
        async for chunk in response.content.iter_any():
            progress.received += len(chunk)
            if progress.received > cap:
                raise FetchError(FetchCode.TOO_BIG, f"more than {cap} bytes")
            parts.append(chunk)
            scope.reschedule(
                start + self._limits.deadline_s + progress.received / self._limits.min_rate_bytes_s
            )
        return b"".join(parts)

    def _failure(self, response: aiohttp.ClientResponse) -> FetchError:
        status = response.status
        if status in {403, 404, 410}:
            return FetchError(FetchCode.MISSING, f"{status} for {response.url.path}")
        if status in _RETRY:
            wait = parse_retry_after(response.headers.get("Retry-After"), self._limits.retry_after_cap_s)
            return FetchError(FetchCode.UNAVAILABLE, f"status {status}", retry_after_s=wait)
        return FetchError(FetchCode.STATUS, f"status {status}")


class _Progress:
    __slots__ = ("received", "started")

    def __init__(self) -> None:
        self.started = asyncio.get_running_loop().time()
        self.received = 0


def parse_retry_after(value: str | None, cap_s: float) -> float | None:
    """Seconds from a Retry-After field (RFC 9110, 10.2.3), at most `cap_s`; None when absent or unreadable."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(cap_s, float(value[:9]))
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(cap_s, max(0.0, (moment - datetime.now(UTC)).total_seconds()))


def _just_modified(response: aiohttp.ClientResponse) -> bool:
    """Whether the file changed in the second of the answer, or the server does not tell the time.

    Static web servers make the validator of time and length, so a second change within that second would
    keep it (RFC 9110, 8.8.2.2).
    """
    if "Last-Modified" not in response.headers:
        return False  # the validator is made of something else
    try:
        modified, date = (parsedate_to_datetime(response.headers[name]) for name in ("Last-Modified", "Date"))
        return (date - modified).total_seconds() < 2
    except (KeyError, TypeError, ValueError):
        return True


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]
