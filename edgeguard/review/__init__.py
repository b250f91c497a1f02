"""Reviewing policies: check, test, explain, diff and replay. What `edgeguard policy` prints, as values.

The only part of the authoring tools that reads files; what they conclude is in `edgeguard.policy`.
"""

from edgeguard.review.changes import diff_policies, replay_log
from edgeguard.review.checking import CheckReport, check_folder
from edgeguard.review.explaining import Explanation, Question, explain_folder, explain_recorded
from edgeguard.review.reading import InputError, read_log, read_sections
from edgeguard.review.testing import TestReport, mutate_folder, run_folder

__all__ = [
    "CheckReport",
    "Explanation",
    "InputError",
    "Question",
    "TestReport",
    "check_folder",
    "diff_policies",
    "explain_folder",
    "explain_recorded",
    "mutate_folder",
    "read_log",
    "read_sections",
    "replay_log",
    "run_folder",
]
