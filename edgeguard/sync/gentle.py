"""Large work beside traffic: no full garbage collection, and the interpreter given up often.

Decoding a policy makes hundreds of thousands of objects that live as long as the policy. Collecting them again
and again costs hundreds of milliseconds in which no thread runs; they are no garbage, so they are set aside
(`gc.freeze`) when they are all there. Freezing takes everything, garbage in cycles included, which nobody would
free again: connections of the engine are such cycles. So what is garbage goes first, which is cheap because
what is set aside is not looked at; and what was alive then, and has died since, goes in a thorough collection now and then.
CPython's switch interval is how long a thread may keep the interpreter from others that want it.
"""

import gc
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""Of the work; the default is ten times as long."""
THOROUGH_EVERY: Final = 8
"""Times after which what was set aside is looked through as well, for as long as a full collection takes."""
_times = itertools.count(1)


@contextmanager
def gently() -> Iterator[None]:
    """For the time of a `with` block. Not reentrant, and for one thread at a time."""
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    thorough = next(_times) % THOROUGH_EVERY == 0
    if thorough:
        gc.unfreeze()
    gc.collect()
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()
        if collecting:
            gc.enable()
