"""Large work beside traffic: no full garbage collection, and the interpreter given up often.

Decoding a policy makes hundreds of thousands of objects that live as long as the policy. Collecting them again
and again costs hundreds of milliseconds in which no thread runs; they are no garbage, so they are set aside
(`gc.freeze`) when they are all there. CPython's switch interval is how long a thread may keep the interpreter
from others that want it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""Of the work; the default is ten times as long."""


@contextmanager
def gently() -> Iterator[None]:
    """For the time of a `with` block. Not reentrant, and for one thread at a time."""
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()
        if collecting:
            gc.enable()
