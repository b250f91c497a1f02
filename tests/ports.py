"""Ports for servers that are started in a moment.

Taken from below the range that the kernel gives to clients, so that no connection of another test can be sitting on
one between its choice and its use, and never given twice.
"""

import contextlib
import random
import socket

FIRST, LAST = 10_000, 32_000
_given: set[int] = set()
_random = (
    random.SystemRandom()
)  # tests that seed the generator of the module get different ports all the same


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = _random.randrange(FIRST, LAST)
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in _given:
                    _given.add(port)
                    found.append(port)
    return found


def free_port() -> int:
    return free_ports(1)[0]
