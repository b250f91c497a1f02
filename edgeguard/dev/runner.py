"""Runs a session until it is interrupted, or until the command behind it has ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgeguard.dev.environment import child_environment
from edgeguard.dev.session import Session
from edgeguard.proxy.node import Address

LOG_LAG_S: Final = 0.5
"""The log's writer is a moment behind; what a command was refused should be on the screen when it ends."""
NOT_FOUND: Final = 127


async def run(session: Session, command: Sequence[str], announce: Callable[[Address], None]) -> int:
    """Serves; runs `command` behind the proxy if there is one. Returns the exit code.

    Args:
        session: Not yet running.
        command: Program and arguments; empty: serve until SIGTERM or SIGINT.
        announce: Called with the address when there is no command.
    """
    loop = asyncio.get_running_loop()
    started: asyncio.Future[Address] = loop.create_future()
    serving = loop.create_task(session.run(started.set_result))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    code = 0
    waiting: list[asyncio.Future[object]] = [serving, started]  # type: ignore[list-item] # Future is invariant
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if started.done() and not serving.done():
        if command:
            code = await _run_command(command, started.result(), session.authorities)
            serving.cancel()
        else:
            announce(started.result())
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    return code


async def _run_command(command: Sequence[str], at: Address, authorities: Path) -> int:
    environment = child_environment(os.environ, at.url, authorities)
    try:
        child = await asyncio.create_subprocess_exec(*command, env=environment)
    except FileNotFoundError:
        return NOT_FOUND
    code = await child.wait()
    await asyncio.sleep(LOG_LAG_S)
    return code if code >= 0 else 128 - code
