"""The control socket: what changes something in a running process, and who may ask for it.

One unix socket for each process, in `control` of the state folder. The kernel says who is at the
other end (SO_PEERCRED, unix(7)): only root and the proxy's own user are answered, and who asked
what, and why, is in the decision log before it is done. One JSON document each way, one line each.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgeguard.evidence.log import DecisionLog
from edgeguard.evidence.record import Record
from edgeguard.limits.taken import LimitsError

logger = logging.getLogger(__name__)

FOLDER: Final = "control"
"""Of the state folder."""
MAX_BYTES: Final = 8192
TIMEOUT_S: Final = 30.0
MAX_WHY: Final = 500
_PEER: Final = struct.Struct("3i")

type Document = dict[str, Any]
type Reset = Callable[[str | None, str | None], Awaitable[dict[str, int]]]


class ControlError(Exception):
    """What was asked for is not done. Says why."""


class Control:
    """Answers at the control socket of this process.

    Args:
        state_dir: The node's state folder.
        log: Where it is recorded who asked for what.
        reset: Forgets rate-limit counters: of a limit, of one key of it, or all.
    """

    def __init__(self, state_dir: Path, log: DecisionLog, reset: Reset) -> None:
        self._folder = state_dir / FOLDER
        self._log = log
        self._reset = reset

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Raises OSError if the socket cannot be made."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)
            with _short(self._folder) as folder:
                (self._folder / name).unlink(missing_ok=True)
                listener.bind(f"{folder}/{name}")
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_BYTES)
        except OSError:
            listener.close()
            raise
        try:
            yield
        finally:
            server.close()
            (self._folder / name).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    answer = await self._answer(writer.get_extra_info("socket"), await reader.readline())
                except (ControlError, LimitsError, ValueError) as error:
                    answer = {"error": str(error)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError):
            logger.info("a command at the control socket was not finished")
        except Exception:
            # Whoever commands must not take the traffic down with them.
            logger.exception("a command at the control socket failed")
        finally:
            writer.close()

    async def _answer(self, end: socket.socket, line: bytes) -> Document:
        pid, uid, _ = _PEER.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in {0, os.geteuid()}:
            logger.warning("user %d (process %d) may not command this proxy", uid, pid)
            raise ControlError("only root and the proxy's own user may do that")
        document = json.loads(line)
        match document:
            case {
                "do": "limits.reset",
                "limit": str() | None as limit,
                "key": str() | None as key,
                "why": str(why),
            }:
                why = why.strip()[:MAX_WHY]
                if not why:
                    raise ControlError("a reason is needed: it stands in the decision log")
                if key is not None and limit is None:
                    raise ControlError("a key belongs to a limit: name the limit, too")
                self._record(f"uid:{uid}", limit, f"limits_reset{'' if key is None else f' of {key}'}: {why}")
                return {"reset": await self._reset(limit, key)}
        raise ControlError("not understood")

    def _record(self, who: str, limit: str | None, why: str) -> None:
        now = time.time()
        record = Record(f"control-{os.getpid()}-{now:.6f}", now, "event", client=who, limit=limit, why=why)
        if not self._log.offer(record):
            raise ControlError("the decision log cannot be written, so nothing is changed")


def command(state_dir: Path, document: Document) -> dict[str, Document]:
    """Sends a command to every process of a node; their answers by the name of the socket.

    Raises:
        ControlError: No process answers.
    """
    folder = state_dir / FOLDER
    answers: dict[str, Document] = {}
    for path in sorted(folder.glob("*.sock")) if folder.is_dir() else ():
        with contextlib.suppress(ConnectionRefusedError), _short(folder) as short:
            answers[path.name] = _ask(f"{short}/{path.name}", document)
    if not answers:
        raise ControlError(
            f"no proxy answers in {folder}: is `edgeguard run` up, and is this its state folder?"
        )
    return answers


def _ask(address: str, document: Document) -> Document:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(TIMEOUT_S)
        end.connect(address)
        end.sendall(json.dumps(document).encode() + b"\n")
        with end.makefile("rb") as answer:
            read: Document = json.loads(answer.readline() or b'{"error": "the process ended"}')
            return read


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Another name of a folder, short enough for an address of a unix socket (107 bytes)."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
