"""Semantic difference of two policies: which requests become allowed, which denied, each with an example.

    difference = compare(old_sections, new_sections, now)

Exact within the stated caps; past a cap the answer is "undecided, treated as widening". Pure: nothing is read, the moment is an
argument.

    side      a policy under comparison          hosts, clients, moments, inside, paths    what has to be told apart
    compare   the walk                           ask, collect, limits, issuers, total      answers, and what they mean
"""

from edgeguard.policy.diff.compare import compare
from edgeguard.policy.diff.values import (
    Change,
    Difference,
    Domain,
    Effect,
    Example,
    Outcome,
    Scheduled,
    Undecided,
    Verdict,
)

__all__ = [
    "Change",
    "Difference",
    "Domain",
    "Effect",
    "Example",
    "Outcome",
    "Scheduled",
    "Undecided",
    "Verdict",
    "compare",
]
