"""Pages whoever is on call: one POST of JSON for each alarm, with retries and a cooldown.

Alerting never holds anything up: alarms wait in a short queue that a task of its own empties. The same
alarm within the cooldown is counted instead of sent, and the next one says how many there were. The body
holds what sync knows (codes, versions, hashes), never anything about requests or people.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from edgeguard.sync.fetch import check_url, full_jitter, new_session
from edgeguard.sync.report import SyncEvent

logger = logging.getLogger(__name__)

SCHEMA: Final = "edgeguard.alert/1"
_RETRY: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class AlertConfig:
    """Where alarms go; without an address they go to the log only."""

    webhook: str = ""
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cooldown_s: float = 300.0
    attempts: int = 6
    deadline_s: float = 10.0
    backoff_base_s: float = 1.0
    backoff_max_s: float = 60.0
    queue: int = 64


class Pager:
    """Sends alarms. `offer` and `run` belong to one loop; `counts` may be read from any thread.

    Args:
        config: Where to and how often.
        context: What to add to every alert: environment, what is in force.
        monotonic: Clock of the cooldown (seconds).
    """

    def __init__(
        self,
        config: AlertConfig,
        context: Callable[[], Mapping[str, object]] = dict,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.counts = {"sent": 0, "failed": 0, "suppressed": 0, "dropped": 0}
        self._context = context
        self._monotonic = monotonic
        self._queue: asyncio.Queue[tuple[SyncEvent, int]] = asyncio.Queue(config.queue)
        self._quiet_until: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], int] = {}

    def offer(self, event: SyncEvent) -> None:
        """Queues an alarm, unless the same one was sent within the cooldown."""
        if not self.config.webhook or not event.alarm:
            return
        key, now = (str(event.kind), event.code), self._monotonic()
        if now < self._quiet_until.get(key, now):
            self._unsaid[key] = self._unsaid.get(key, 0) + 1
            self.counts["suppressed"] += 1
            return
        try:
            self._queue.put_nowait((event, self._unsaid.pop(key, 0)))
        except asyncio.QueueFull:
            self.counts["dropped"] += 1
            return
        self._quiet_until[key] = now + self.config.cooldown_s

    async def run(self) -> None:
        """Sends for ever. Raises ValueError when the file of certificate authorities cannot be read."""
        if not self.config.webhook:
            return
        url = check_url(self.config.webhook, folder=False)
        async with new_session(url, self.config.ca_file, self.config.token) as session:
            while True:
                event, unsaid = await self._queue.get()
                if await self._send(session, self._body(event, unsaid)):
                    self.counts["sent"] += 1
                else:
                    self.counts["failed"] += 1
                    # The next one of its kind tries again at once.
                    self._quiet_until.pop((str(event.kind), event.code), None)
                    logger.error("no alert could be sent for %s %s", event.kind, event.code)

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> bool:
        config = self.config
        for attempt in range(config.attempts):
            if attempt:
                await asyncio.sleep(full_jitter(attempt, config.backoff_base_s, config.backoff_max_s))
            try:
                async with (
                    asyncio.timeout(config.deadline_s),
                    session.post(
                        config.webhook,
                        data=body,
                        headers={"Content-Type": "application/json"},
                        allow_redirects=False,
                    ) as response,
                ):
                    response.close()  # the status says everything
                    if 200 <= response.status < 300:
                        return True
                    logger.warning("the alert webhook answered %d", response.status)
                    if response.status < 500 and response.status not in _RETRY:
                        return False
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
                logger.warning("the alert webhook cannot be reached: %s", str(error) or type(error).__name__)
        return False

    def _body(self, event: SyncEvent, unsaid: int) -> bytes:
        return json.dumps(
            {
                "schema": SCHEMA,
                "node": socket.gethostname(),
                "kind": str(event.kind),
                "code": event.code,
                "detail": event.detail,
                "at": round(event.at, 3),
                "suppressed": unsaid,
                **self._context(),
            }
        ).encode()
