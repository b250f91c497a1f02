"""The way to the store: scripts in batches over one connection, one timeout, one circuit breaker.

Calls that come while a batch is under way make up the next one, so that the store costs the loop a
round trip for many requests rather than one for each. The first failure opens the breaker: whoever
waits is told at once, nobody waits any more, and the store is probed in the background. So a store
that hangs delays traffic by one timeout, once.
"""

import asyncio
import contextlib
import importlib.util
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from hashlib import sha1
from typing import Any, Final, NamedTuple, Protocol

from edgeguard.limits.scripts import ALL, Call, Reply, answers_well
from edgeguard.limits.taken import LimitsError
from edgeguard.settings.model import Limits as LimitSettings

logger = logging.getLogger(__name__)

BATCH: Final = 128
"""Calls of one round trip."""
FIRST_BEAT_S: Final = 0.25
"""Pause after the first beat; doubled up to `peers_s`."""
PROBE_S: Final = 1.0
"""Time for a probe of a store that is down, connecting included: it delays nobody."""
_NOSCRIPT: Final = "NOSCRIPT"


class StoreDownError(LimitsError):
    """The store did not answer, or not in time."""


class StoreMissingError(Exception):
    """The client library is not installed. Says how to mend it."""


class Done(Protocol):
    """What becomes of a call; runs on the loop, must not raise."""

    def __call__(self, answer: Reply, /) -> None: ...


class _Pending(NamedTuple):
    call: Call
    done: Done


class Store:
    """A Valkey or Redis server, or a cluster of them.

    Args:
        settings: Section `[limits]`; its `store` is not empty. Raises StoreMissingError without the client library.
        now: The monotonic clock of the limits, nanoseconds.

    Attributes:
        up: Whether the last contact went well. False before the first.
        problem: What went wrong last, in words; empty while `up`.
        round_trips: Batches that were sent since the start.
        on_up: Called when the store is back.
    """

    def __init__(self, settings: LimitSettings, now: Callable[[], int]) -> None:
        if importlib.util.find_spec("valkey") is None:
            raise StoreMissingError("[limits] store needs the client library: pip install 'edgeguard[fleet]'")
        self._settings = settings
        self.now = now
        self._client: Any = None
        self._queue: deque[_Pending] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.up = False
        self.problem = "not reached yet"
        self.round_trips = 0
        self.failures = 0
        self.on_up: Callable[[], None] = lambda: None

    def start(self, beat: Callable[[], Call], heard: Done) -> None:
        """Begins to talk: `beat` every `peers_s` while the store is up, as a probe while it is not."""
        self._connected()  # imports the library now, not while somebody waits
        self._watch = _task(self._keep(beat, heard))

    async def stop(self) -> None:
        for task in (self._watch, self._pump):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._watch = self._pump = None
        await self._disconnect()

    def submit(self, call: Call, done: Done) -> None:
        """Queues a call. `done` gets the answer, or None if the store is down; at once, if that is known."""
        if not self.up:
            done(None)
            return
        self._queue.append(_Pending(call, done))
        if self._pump is None:
            self._pump = _task(self._send())

    async def scan(self, pattern: str) -> list[str]:
        """Keys of the store that match. Raises StoreDownError."""

        async def found() -> list[str]:
            client = self._connected()
            return [key.decode() async for key in client.scan_iter(match=pattern, count=1000)]

        return await self._within(found(), PROBE_S * 10)

    async def delete(self, keys: Sequence[str]) -> int:
        """Removes keys; how many there were. Raises StoreDownError."""

        async def deleted() -> int:
            client = self._connected()
            return sum([int(await client.delete(key)) for key in keys])

        return await self._within(deleted(), PROBE_S * 10)

    # Batches

    async def _send(self) -> None:
        batch: list[_Pending] = []
        try:
            await asyncio.sleep(0)  # what this turn of the loop still asks joins the first batch
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                answers = await self._within(self._round([pending.call for pending in batch]))
                self.round_trips += 1
                done, batch = batch, []
                for pending, answer in zip(done, answers, strict=True):
                    _tell(pending, answer)
        except StoreDownError as error:
            self._down(str(error))
            self._give_up(batch)
            await self._disconnect()
        except asyncio.CancelledError:
            self._give_up(batch)
            raise
        finally:
            self._pump = None

    def _give_up(self, batch: Sequence[_Pending] = ()) -> None:
        """Nobody waits for a store that is down."""
        waiting = [*batch, *self._queue]
        self._queue.clear()
        for pending in waiting:
            _tell(pending, None)

    async def _round(self, calls: Sequence[Call]) -> list[Any]:
        """One round trip; a second one where the store has lost its scripts."""
        answers = await self._execute(calls)
        lost = [place for place, answer in enumerate(answers) if _lost(answer)]
        if lost:
            await self._load({calls[place].script for place in lost})
            for place, answer in zip(lost, await self._execute([calls[i] for i in lost]), strict=True):
                answers[place] = answer
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            if not answers_well(call.script, answer):
                raise ValueError("an answer that none of the scripts gives")
        return answers

    async def _load(self, scripts: Iterable[str]) -> None:
        client = self._connected()
        for script in scripts:
            await client.script_load(script)

    async def _execute(self, calls: Sequence[Call]) -> list[Any]:
        client = self._connected()
        if self._settings.cluster:
            asked = [client.evalsha(_sha(c.script), 1, c.key, *c.arguments) for c in calls]
            return list(await asyncio.gather(*asked, return_exceptions=True))
        pipeline = client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(_sha(call.script), 1, call.key, *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))

    async def _within[T](self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Raises StoreDownError for whatever goes wrong, in time."""
        try:
            async with asyncio.timeout(seconds or self._settings.timeout_s):
                return await work
        except TimeoutError:
            raise StoreDownError(f"no answer within {seconds or self._settings.timeout_s} s") from None
        except Exception as error:
            # The client has many ways to say that the store cannot be used; they all mean that.
            raise StoreDownError(f"{type(error).__name__}: {error}") from error

    # The breaker

    def _down(self, why: str) -> None:
        self.problem = why
        if self.up:
            self.up = False
            self.failures += 1
            logger.error("the store of rate limits is down, limits follow on_store_error: %s", why)

    async def _keep(self, beat: Callable[[], Call], heard: Done) -> None:
        pause, beat_s = self._settings.retry_s, FIRST_BEAT_S
        while True:
            try:
                if not self.up:
                    await self._within(self._load(ALL), PROBE_S)
                (answer,) = await self._within(
                    self._round([beat()]), self._settings.timeout_s if self.up else PROBE_S
                )
            except StoreDownError as error:
                self._down(str(error))
                self._give_up()
                await self._disconnect()
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads the nodes
                pause = min(self._settings.retry_max_s, pause * 2)
                continue
            heard(answer)
            if not self.up:
                self.up, self.problem = True, ""
                logger.log(
                    logging.WARNING if self.failures else logging.INFO, "the store of rate limits answers"
                )
                self.on_up()
                beat_s = FIRST_BEAT_S
            pause = self._settings.retry_s
            # Nodes that start together see one another soon.
            await self._while_up(min(beat_s, self._settings.peers_s))
            beat_s *= 2

    async def _while_up(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while self.up and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(min(0.05, seconds))

    # The client library

    def _connected(self) -> Any:  # noqa: ANN401 - the library is imported when it is needed
        if self._client is None:
            self._client = _client(self._settings)
        return self._client

    async def _disconnect(self) -> None:
        """Drops the connections: after a timeout an answer that is late must not be taken for the next one's."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._settings.timeout_s):
                    await client.aclose()


def _tell(pending: _Pending, answer: Reply) -> None:
    try:
        pending.done(answer)
    except Exception:
        # One key's trouble must not keep the answers of the others from those who wait.
        logger.exception("an answer of the store could not be used")


def _client(settings: LimitSettings) -> Any:  # noqa: ANN401 - see above
    from valkey.asyncio import Valkey
    from valkey.asyncio.cluster import ValkeyCluster
    from valkey.asyncio.retry import Retry
    from valkey.backoff import NoBackoff

    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    if settings.store.startswith(("valkeys:", "rediss:")):
        options["ssl_check_hostname"] = True
        options["ssl_ca_certs"] = str(settings.ca_file) if settings.ca_file else _certifi()
    if settings.cluster:
        return ValkeyCluster.from_url(settings.store, cluster_error_retry_attempts=1, **options)
    return Valkey.from_url(settings.store, retry=Retry(NoBackoff(), 0), retry_on_timeout=False, **options)


def _certifi() -> str:
    import certifi

    return certifi.where()


def _sha(script: str) -> str:
    known = _SHAS.get(script)
    if known is None:
        known = _SHAS[script] = sha1(script.encode()).hexdigest()  # noqa: S324 - the protocol's name for a script
    return known


_SHAS: Final[dict[str, str]] = {}


def _lost(answer: object) -> bool:
    return isinstance(answer, Exception) and (
        _NOSCRIPT in str(answer) or type(answer).__name__ == "NoScriptError"
    )


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
