"""`policy diff` and `policy replay`: what another policy would change."""

from pathlib import Path

from edgeguard.policy.diff import Difference, compare
from edgeguard.policy.replay import Replay, replay
from edgeguard.review.reading import read_log, read_sections


def diff_policies(old: Path, new: Path, now: float) -> Difference:
    """How the policy in `new` (folder or bundle file) differs from the one in `old`, from `now` on.

    Raises `PolicyErrors`, `InputError`, `TablesError` and OSError.
    """
    return compare(read_sections(old), read_sections(new), now)


def replay_log(log: Path, candidate: Path, at: float | None) -> Replay:
    """The decisions of `log` that the policy in `candidate` would make otherwise; each at its own time, or all at `at`.

    Raises `PolicyErrors`, `InputError`, `TablesError` and OSError.
    """
    return replay(read_log(log), read_sections(candidate), at)
