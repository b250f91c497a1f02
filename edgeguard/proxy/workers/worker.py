"""One worker: a node whose doors, policy and status are its supervisor's.

It lives on the channel. When the supervisor is gone, the worker stops accepting at once and lets open
work finish within `bounds.drain_s`, still under its deadlines: it never lives on under an old policy.
"""

import asyncio
import base64
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgeguard.evidence.totals import Family, families
from edgeguard.evidence.turnstile import Turnstile
from edgeguard.proxy.authority import AuthorityError
from edgeguard.proxy.listeners import adopt
from edgeguard.proxy.node import Node, Part
from edgeguard.proxy.preflight import NodeError
from edgeguard.proxy.workers.control import Channel, Message
from edgeguard.settings import Settings, SettingsError
from edgeguard.settings.load import parse_settings
from edgeguard.sync.agent import Refusal, StoreError
from edgeguard.sync.follow import Followed
from edgeguard.sync.report import SyncEvent
from edgeguard.sync.standing import Standing

logger = logging.getLogger(__name__)

GRACE_S: Final = 15.0
"""Time beyond `bounds.drain_s` after which a worker that was asked to end ends in whatever state."""


def share(settings: Settings, number: int) -> Settings:
    """What of a node's settings is one worker's: its part of the caps, its own decision log, no admin address."""
    bounds, count = settings.bounds, settings.workers
    return settings.model_copy(
        update={
            "bounds": bounds.model_copy(
                update={
                    name: max(1, getattr(bounds, name) // count)
                    for name in ("connections", "tunnels", "tunnels_per_client")
                }
            ),
            "evidence": settings.evidence.model_copy(update={"log": log_of(settings.evidence.log, number)}),
            "admin": settings.admin.model_copy(update={"address": ""}),
        }
    )


def log_of(log: str, number: int) -> str:
    """The decision log of one worker: `decisions.jsonl` becomes `decisions.1.jsonl`."""
    if log == "-":
        return log
    path = Path(log)
    return str(path.with_name(f"{path.stem}.{number}{path.suffix}"))


async def work(end: socket.socket) -> int:
    """Runs one worker over its end of the channel; returns the exit code."""
    channel = await Channel.over(end)
    start = await channel.receive()
    if start is None:
        return 1
    logging.basicConfig(
        level=start["level"],
        format=f"%(asctime)s %(levelname)s worker {start['number']} %(name)s: %(message)s",
    )
    loop = asyncio.get_running_loop()

    def post(kind: str) -> Callable[..., None]:
        def send(**fields: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: channel.send(kind, **fields))

        return send

    try:
        node = _node(start, post("followed"), post("event"))
        told = loop.create_task(listen(channel, node))
        running = loop.create_task(node.run(lambda _: channel.send("serving")))
        loop.add_signal_handler(signal.SIGTERM, _end, node)
        try:
            await running
        finally:
            told.cancel()
            await _figures(channel, node)
            await channel.finish()
    except (NodeError, AuthorityError, StoreError, Refusal, SettingsError, OSError) as error:
        logger.critical("this worker does not serve: %s", error)
        return 1
    return 0


def _node(start: Message, on_followed: Callable[..., None], on_event: Callable[..., None]) -> Node:
    settings = parse_settings(start["config"], Path(start["path"]), os.environ)
    number: int = start["number"]
    standing = start["standing"]
    to_stream = settings.evidence.log == "-"

    def followed(now: Followed) -> None:
        on_followed(enforced=now.enforced, problem=now.problem, waiting=now.waiting)

    def noticed(event: SyncEvent) -> None:
        if event.alarm:
            on_event(event=event)

    part = Part(
        root=base64.b64decode(start["root"]),
        standing=Standing(*standing) if standing is not None else None,
        floor=start["floor"],
        # A file goes on with its chain; a stream has one for each process.
        chain=f"worker-{number}.{os.getpid()}" if to_stream else f"worker-{number}",
        turnstile=Turnstile(start["turnstile"]) if to_stream else None,
        admin=start["admin"],
        on_followed=followed,
        on_event=noticed,
    )
    return Node(share(settings, number), listeners=adopt(settings, start["listeners"]), part=part)


async def listen(channel: Channel, node: Node) -> None:
    """Does what the supervisor says, until it is gone."""
    try:
        while (message := await channel.receive()) is not None:
            match message["kind"]:
                case "expect":
                    standing = message["standing"]
                    node.follow(Standing(*standing) if standing is not None else None, message["floor"])
                case "figures":
                    await _figures(channel, node, everything=message["all"])
                case "drain":
                    _end(node)
        logger.error("the supervisor is gone; open work may finish, then this worker ends")
    except Exception:
        # Fail closed: a worker that is told nothing any more must not go on under an old policy.
        logger.exception("listening to the supervisor has failed; this worker ends")
    _end(node)


def _end(node: Node) -> None:
    node.stop()
    asyncio.get_running_loop().call_later(node.settings.bounds.drain_s + GRACE_S, os._exit, 1)


async def _figures(channel: Channel, node: Node, *, everything: bool = False) -> None:
    """Sends what was counted, and with `everything` also what takes time to find out."""
    metrics = node.metrics
    found: list[Family] = []
    try:
        if everything:
            found = await asyncio.to_thread(lambda: families(metrics.registry.collect()))
        else:
            found = families(metrics.counted())
    except Exception:
        # A metric that cannot be read must not end the worker; the others are read again at the next question.
        logger.exception("the metrics could not be read")
    channel.send("figures", metrics=found, figures=_of(node))


def _of(node: Node) -> dict[str, Any]:
    return {
        "connections": node.connections,
        "written": node.log.written,
        "waiting": node.log.waiting,
        "refused": node.log.refused,
        "broken": node.log.broken,
        "log": node.settings.evidence.log,
        "limits": node.limits(),
    }
