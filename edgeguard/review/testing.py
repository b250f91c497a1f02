"""`policy test`: YAML cases, the rules that they cover, and the mutants that they do not notice."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeguard.folder import read_cases, read_modules
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.coverage import Coverage, measure
from edgeguard.policy.engine import Engine
from edgeguard.policy.mutation import MutationReport, engine_without, mutate
from edgeguard.policy.source import load_with_places
from edgeguard.policy.tables import Tables
from edgeguard.policy.testing import Result, load_cases, run_case

MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class TestReport:
    """How the cases of a folder went."""

    results: tuple[Result, ...]
    coverage: Coverage
    places: dict[str, str]
    """`file:line` of each statement."""
    mutation: MutationReport | None = None

    @property
    def count(self) -> int:
        return len(self.results)

    @property
    def failures(self) -> int:
        return sum(not result.passed for result in self.results)

    @property
    def passed(self) -> bool:
        """All cases passed, and there are some."""
        return self.count > 0 and not self.failures

    @property
    def statements(self) -> int:
        return len(self.coverage.statements)

    @property
    def covered(self) -> int:
        return len(self.coverage.covered)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Statements that no case exercised; the first of them where there are many."""
        return self.coverage.uncovered[:MAX_LISTED]

    def as_dict(self) -> dict[str, object]:
        cases = [
            {
                "file": r.case.file,
                "line": r.case.line,
                "name": r.case.name,
                "passed": r.passed,
                "problems": list(r.problems),
            }
            for r in self.results
        ]
        data: dict[str, object] = {
            "passed": self.passed,
            "cases": cases,
            "rules": self.statements,
            "covered": self.covered,
            "coverage_percent": round(self.coverage.percent, 1),
            "uncovered": [{"rule": rule, "place": self.places.get(rule)} for rule in self.coverage.uncovered],
        }
        if self.mutation is not None:
            data["mutants"] = self.mutation.mutants
            data["equivalent"] = self.mutation.equivalent
            data["survivors"] = [
                {"rule": s.statement, "what": s.what, "file": s.file, "line": s.line}
                for s in self.mutation.survivors
            ]
        return data


def run_folder(folder: Path, now: float) -> TestReport:
    """Runs the YAML cases. Raises `PolicyErrors` and OSError."""
    sources = load_with_places(read_modules(folder))
    engine = Engine(Tables.load(compile_policy(sources.policy)))
    cases = load_cases(read_cases(folder))
    results = tuple(run_case(engine, case, now) for case in cases)
    asked = [(case.question, case.now if case.now is not None else now) for case in cases]

    places = {name: f"{file}:{line}" for name, (file, line, _) in sources.places.items()}
    return TestReport(results, measure(engine, asked, partial(engine_without, sources.policy)), places)


def mutate_folder(folder: Path, now: float) -> MutationReport:
    """Runs the YAML cases, which pass, against every mutant of the policy. Raises `PolicyErrors` and OSError."""
    return mutate(load_with_places(read_modules(folder)), load_cases(read_cases(folder)), now)
