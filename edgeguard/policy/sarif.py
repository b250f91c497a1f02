"""Findings as SARIF 2.1.0 (OASIS standard, 2020), the format in which code hosts show them beside the lines they are about."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from edgeguard.policy.source import PolicyError

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

RULES: Final = {
    "invalid": "The policy does not compile.",
    "conflict": "Two statements say the opposite of each other.",
    "unreachable": "A statement that can never matter.",
    "shadowed": "A statement that another one covers.",
    "redundant": "A statement that says what another one says.",
    "public-suffix": "A wildcard below a public suffix spans many owners.",
    "broad-network": "A network that is most of the address space.",
    "no-reason": "A statement about age or privacy without its reason.",
    "unknown-flag": "A condition on a flag that is not defined.",
    "not-compared": "Too many statements about one suffix to compare them pairwise.",
}
"""What each code means."""


class Problem(NamedTuple):
    """One finding: where, how bad, what kind."""

    place: PolicyError
    level: str
    """error or warning."""
    code: str


def sarif(problems: Sequence[Problem], version: str) -> dict[str, Any]:
    """A SARIF log of one run. `version` is that of the tool. Files are named relative to where it ran."""
    codes = sorted({*RULES, *(p.code for p in problems)})
    rules = [{"id": code, "shortDescription": {"text": RULES.get(code, code)}} for code in codes]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "edgeguard", "version": version, "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(p, codes.index(p.code)) for p in problems],
            }
        ],
    }


def _result(problem: Problem, rule: int) -> dict[str, Any]:
    place = problem.place
    field = f"{place.field}: " if place.field else ""
    hint = f" ({place.hint})" if place.hint else ""
    location: dict[str, Any] = {"artifactLocation": {"uri": place.file.replace("\\", "/")}}
    if place.line:
        location["region"] = {"startLine": place.line, "startColumn": max(1, place.column)}
    return {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": problem.level,
        "message": {"text": f"{field}{place.message}{hint}"},
        "locations": [{"physicalLocation": location}],
    }
