"""What the compiler writes and the engine reads: kinds of statements, the version of the tables, their bounds."""

from enum import IntEnum
from typing import Final

VERSION: Final = 1
"""Of every section; a node loads no other."""
MAX_LABELS: Final = 12
"""Labels of a name below which a wildcard stands: a look-up probes so many suffixes at most."""


class Kind(IntEnum):
    """What a statement does."""

    ALLOW = 0
    DENY = 1
    LIMIT = 2
    GATE = 3
    LEARN = 4
    QUARANTINE = 5
    EXCEPTION = 6
