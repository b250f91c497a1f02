"""One supervisor for a state folder, and no workers of an earlier one beside its own.

Two locks (flock(2)). The first is the supervisor's alone and dies with it. The second is inherited by its
workers: the kernel keeps it until the last of them has ended, so that a supervisor that starts after a
crash waits for workers that are still letting open tunnels finish under the policy of before.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from edgeguard.proxy.preflight import NodeError

SUPERVISOR: Final = "supervisor.lock"
WORKERS: Final = "workers.lock"
PAUSE_S: Final = 0.05


class Locks:
    """Both locks, held until `close`.

    Args:
        folder: The state folder; it exists and belongs to this user.
        wait_s: How long the workers of a supervisor that died may take to end.

    Raises:
        NodeError: a supervisor runs, or workers of another one do not end.
    """

    def __init__(self, folder: Path, wait_s: float) -> None:
        self._supervisor = _open(folder / SUPERVISOR)
        self.workers = -1
        """Descriptor that the workers inherit."""
        try:
            if not _taken(self._supervisor):
                raise NodeError(
                    f"{folder}: another edgeguard{_holder(self._supervisor)} serves with this state folder; "
                    "stop it first, or set trust.state_dir to another folder"
                )
            os.ftruncate(self._supervisor, 0)
            os.pwrite(self._supervisor, str(os.getpid()).encode(), 0)
            self.workers = _open(folder / WORKERS)
            deadline = time.monotonic() + wait_s
            while not _taken(self.workers):
                if time.monotonic() >= deadline:
                    raise NodeError(
                        f"{folder}: workers of an edgeguard that has died are still running; "
                        f"look with: fuser {folder / WORKERS}"
                    )
                time.sleep(PAUSE_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives this process's share of both locks back."""
        for descriptor in (self.workers, self._supervisor):
            if descriptor >= 0:
                os.close(descriptor)
        self.workers = self._supervisor = -1


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{path}: cannot be opened: {error.strerror}; check trust.state_dir") from None


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return f" (process {pid})" if pid.isdigit() else ""
