"""A bundle that takes its node down is not enforced for ever again.

The node counts how often it started with a bundle and did not live to be steady. After a few such starts
in a row the bundle is held back, and the node stays closed: never with the bundle before, whose version is
under the high-water mark, since otherwise whoever can crash a node could roll its policy back. A bundle
with a higher version ends it; after a pause the same bundle gets one more try, in case something else was
to blame.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

CRASHLOOP: Final = "crashloop"
CRASHES: Final = 5
"""Starts in a row that did not become steady."""
STEADY_S: Final = 60.0
"""A process that lived this long, or ended in good order, was not taken down by its bundle."""
HOLD_S: Final = 600.0
"""Time until the bundle gets another try."""


@dataclass(frozen=True, slots=True)
class Boots:
    """The starts with one bundle since it was last steady; kept in the state folder."""

    sha256: str = ""
    """Of the bundle's envelope."""
    count: int = 0
    at: float = 0.0
    """Trusted time of the last start (Unix seconds)."""

    def starting(self, sha256: str, now: float) -> Self:
        """The count with one more start."""
        return type(self)(sha256, self.count + 1 if sha256 == self.sha256 else 1, now)

    def held_until(self, sha256: str) -> float | None:
        """When `sha256` may be tried again; None: at once."""
        return self.at + HOLD_S if sha256 == self.sha256 and self.count >= CRASHES else None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads a kept count; one that cannot be read starts from nothing, since it protects availability only."""
        try:
            value = json.loads(data)
            return cls(str(value["sha256"]), int(value["count"]), float(value["at"]))
        except (ValueError, KeyError, TypeError):
            return cls()
