"""Whole lines from several processes in one stream.

A write to a pipe is atomic only up to PIPE_BUF (pipe(7)), which is less than a slice of records. So the
writers of one stream take turns: a record lock (fcntl(2)) on a small file without a name, which every
process of a node inherits. The kernel frees it when its holder dies. The file's first byte says that a
write is under way: whoever finds it set ends the line that a dead process left unfinished.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager


def new_turnstile() -> int:
    """The descriptor of a new turnstile, to be inherited by the writers."""
    fd = os.memfd_create("edgeguard-turnstile", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1)
    return fd


class Turnstile:
    """One process's end. One thread at a time may pass.

    Args:
        fd: From `new_turnstile`, by inheritance.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._busy = mmap.mmap(fd, 1)

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """Waits for its turn. Gives whether somebody died in the middle of a line. Raises OSError."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            torn = self._busy[0] != 0
            self._busy[0] = 1
            yield torn
            self._busy[0] = 0
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
