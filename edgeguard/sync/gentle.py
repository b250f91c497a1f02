"""Large work beside traffic: the garbage collected in small pieces, and the interpreter given up often.

Decoding a policy makes tens of thousands of objects. A full collection in the middle of it would look at everything
that the process has, for a tenth of a second in which no thread runs. So only young objects are collected
meanwhile, a few thousand at a time; what a policy keeps is mostly tuples of plain values, which the collector
lets go when it has seen them once (`policy/tables.py`).

What a process has loaded when it begins to serve lives as long as it does, and is set aside then, so that no later
collection looks at it. Only then: what is set aside is never found to be garbage, and connections are in the end.
CPython's switch interval is how long a thread may keep the interpreter from others that want it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""Of the work; the default is ten times as long."""
NEVER: Final = 1_000_000
"""Collections of the young after which older objects are looked at."""


def set_aside() -> None:
    """Spares later collections what is there now. Once, before there is traffic: takes a tenth of a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def gently() -> Iterator[None]:
    """For the time of a `with` block. Not reentrant, and for one thread at a time."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(thresholds[0], NEVER, thresholds[2])
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
