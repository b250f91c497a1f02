"""Partial evaluation: what is left of the policy once client, host, port and the time are known.

A `Plan` holds the statements that can still matter on one destination. Most requests then need nothing but a look-up;
the rest evaluate a handful of conditions (`connect.py`, `inside.py`). A plan holds on [start, end): no statement begins, expires
or changes its hour in between.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeguard.policy.conditions import Condition
from edgeguard.policy.decision import Decision, LimitHit
from edgeguard.policy.refusal import HOST, Refused
from edgeguard.policy.statements import FOREVER, Statement
from edgeguard.policy.windows import Span

if TYPE_CHECKING:
    from edgeguard.policy.inside import Inside


class Plan(Span):
    """The residual policy for one (client, host, port). Lists are ordered by id."""

    __slots__ = (
        "address", "allows", "connect", "denies", "early", "gates", "inside", "learn", "lifts", "limits", "looks",
        "lost", "near", "never", "peeks", "port", "quarantine", "report_allows", "report_denies", "report_gates", "stage",
    )  # fmt: skip

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.allows: list[Statement] = []
        self.lost: list[Statement] = []
        """Allows that would hold if the policy could be proved current."""
        self.denies: list[Statement] = []
        self.gates: list[Statement] = []
        self.limits: list[tuple[Statement, LimitHit]] = []
        """With the hit, as far as its key is known already."""
        self.report_allows: list[Statement] = []
        self.report_denies: list[Statement] = []
        self.report_gates: list[Statement] = []
        self.lifts: dict[str, tuple[Condition, ...]] = {}
        """Conditional exceptions, by the id of what they lift."""
        self.quarantine: str | None = None
        self.learn: str | None = None
        self.stage = HOST
        self.near: str | None = None
        self.early: Refused | None = None
        """The refusal of whatever is asked here."""
        self.never = False
        """A metadata service."""
        self.address: frozenset[str] | None = None
        """For a special-purpose literal: the allows whose `resolves_to` holds it."""
        self.looks = False
        """Some condition that is enforced here reads the path or the query."""
        self.peeks = False
        """Some condition that is only reported does; no verdict may depend on it."""
        self.connect: dict[str, Decision] = {}
        """Decisions on connections, by protocol."""
        self.inside: dict[str, Inside] = {}
        """What requests are judged by, by protocol."""

    @property
    def until(self) -> float | None:
        return self.end if self.end != FOREVER else None

    def refused_address(self, granting: Sequence[str]) -> bool:
        """Whether the host is an address that the granting allows do not open."""
        return self.never or (self.address is not None and not self.address.intersection(granting))
