"""Policy tests as YAML: questions with the answers that are expected of them.

edgeguard_tests: 1
now: 2026-06-01T12:00:00Z
cases:
  - name: a minor in the EU does not see it
    request: {region: EU, user: {age_verified: false}, resource: restricted_content, action: view}
    expect: {allow: false, reason: age_verification_required}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator

from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import QuestionError, evaluate
from edgeguard.policy.model import Moment, Strict
from edgeguard.policy.rates import same_rate
from edgeguard.policy.source import PolicyError, PolicyErrors, parse_yaml, translate

_EXPECTED: Final = ("allow", "reason", "rule", "near", "lane", "would", "limits")


class Expectation(Strict):
    """What must be true of the answer; what is not written is not looked at."""

    allow: bool
    reason: str | None = None
    rule: str | None = None
    near: str | None = None
    lane: str | None = None
    would: list[list[str]] | None = None
    limits: list[str] | None = None
    quotas: dict[str, str] | None = None
    """Rates of limits, as `100/s` or `100/s burst 200`."""

    @field_validator("quotas", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        return (
            {k: str(v) if type(v) is int else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )


class CaseModel(Strict):
    """One case."""

    name: str = Field(min_length=1)
    request: dict[str, Any]
    expect: Expectation
    now: Moment | None = None


class CaseFile(Strict):
    """One file of cases."""

    edgeguard_tests: int = Field(ge=1, le=1)
    now: Moment | None = None
    cases: tuple[CaseModel, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Case:
    """A case with its place."""

    file: str
    line: int
    name: str
    question: Mapping[str, Any]
    expect: Mapping[str, Any]
    now: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """How a case went. `problems` is empty if it passed."""

    case: Case
    answer: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def load_cases(files: Mapping[str, bytes]) -> tuple[Case, ...]:
    """Reads files of cases. Raises `PolicyErrors` with every mistake."""
    errors: list[PolicyError] = []
    cases: list[Case] = []
    for name in sorted(files):
        data, marks, found = parse_yaml(name, files[name])
        errors += found
        if found:
            continue
        try:
            parsed = CaseFile.model_validate(data)
        except ValidationError as error:
            errors += [
                translate(name, marks, item)
                for item in error.errors(include_url=False, include_context=False)
            ]
            continue
        for place, item in enumerate(parsed.cases):
            line = marks.get(("cases", place), (0, 0))[0]
            expect = item.expect.model_dump(exclude_unset=True)
            cases.append(
                Case(
                    name,
                    line,
                    item.name,
                    item.request,
                    expect,
                    item.now if item.now is not None else parsed.now,
                )
            )
    if errors:
        raise PolicyErrors(errors)
    return tuple(cases)


def run_case(engine: Engine, case: Case, now: float) -> Result:
    """Asks the engine. `now` (Unix seconds) holds where the case names no time."""
    try:
        answer = evaluate(engine, case.question, case.now if case.now is not None else now)
    except QuestionError as error:
        return Result(case, None, (f"the request is not a question: {error}",))
    problems = [
        f"{key}: expected {case.expect[key]!r}, got {answer[key]!r}"
        for key in _EXPECTED
        if key in case.expect and case.expect[key] != answer[key]
    ]
    for limit, rate in (case.expect.get("quotas") or {}).items():
        found = answer["quotas"].get(limit)
        if found is None or not same_rate(rate, found):
            problems.append(f"quotas.{limit}: expected {rate!r}, got {found!r}")
    return Result(case, answer, tuple(problems))
