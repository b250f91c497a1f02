"""`policy check`: every mistake of a folder with file, line, column, field, and what to write instead."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard import __version__
from edgeguard.folder import read_modules
from edgeguard.policy.analysis import analyse
from edgeguard.policy.compile import CompileError, compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.sarif import Problem, sarif
from edgeguard.policy.source import PolicyError, PolicyErrors, load_with_places
from edgeguard.policy.tables import Tables


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What is wrong with a folder."""

    statements: int
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """As text; begins with file, line and column."""
        return tuple(_line(p) for p in self.problems if p.level == "error")

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(_line(p) for p in self.problems if p.level != "error")

    @property
    def lines(self) -> tuple[str, ...]:
        return self.errors + self.warnings

    def passed(self, strict: bool = False) -> bool:
        return not self.errors and not (strict and self.warnings)

    def as_dict(self) -> dict[str, object]:
        return {
            "statements": self.statements,
            "errors": list(self.errors),
            "warnings": list(self.warnings),
            "findings": [
                {
                    "level": p.level,
                    "code": p.code,
                    "file": p.place.file,
                    "line": p.place.line,
                    "column": p.place.column,
                    "field": p.place.field,
                    "message": p.place.message,
                    "hint": p.place.hint,
                }
                for p in self.problems
            ],
        }

    def as_sarif(self) -> dict[str, Any]:
        return sarif(self.problems, __version__)


def _line(problem: Problem) -> str:
    return (
        str(problem.place)
        if problem.code == "invalid"
        else f"{problem.place} [{problem.level} {problem.code}]"
    )


def check_folder(folder: Path) -> CheckReport:
    """Compiles the policy and runs every check. Raises OSError."""
    try:
        sources = load_with_places(read_modules(folder))
    except PolicyErrors as problems:
        return CheckReport(0, tuple(Problem(error, "error", "invalid") for error in problems.errors))
    try:
        count = Engine(Tables.load(compile_policy(sources.policy))).rule_count
    except CompileError as error:
        return CheckReport(0, (Problem(_place(error, sources.places), "error", "invalid"),))
    return CheckReport(count, tuple(Problem(f.place, f.severity.value, f.code) for f in analyse(sources)))


def _place(error: CompileError, places: object) -> PolicyError:
    """Where the statement stands that the compiler names first."""
    text = str(error)
    statement = text.partition(":")[0].strip("`")
    known: dict[str, tuple[str, int, int]] = dict(places)  # type: ignore[call-overload]
    file, line, column = known.get(statement, ("policy", 0, 0))
    return PolicyError(
        file, line, column, statement if line else "", text.partition(": ")[2] if line else text
    )
