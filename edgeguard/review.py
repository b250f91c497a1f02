"""Reviewing a policy folder: check, test, explain. What `edgeguard policy` prints, as values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeguard.folder import load_engine, read_cases, read_modules
from edgeguard.policy.analysis import Severity, analyse
from edgeguard.policy.compile import CompileError, compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.names import split_authority
from edgeguard.policy.request import Assurance, Client, Protocol, Request, User
from edgeguard.policy.source import PolicyErrors, load_with_places
from edgeguard.policy.tables import Tables
from edgeguard.policy.testing import Result, load_cases, run_case
from edgeguard.policy.trace import Step

MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What is wrong with a folder. Lines begin with file, line and column."""

    statements: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        return self.errors + self.warnings

    def passed(self, strict: bool = False) -> bool:
        return not self.errors and not (strict and self.warnings)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check_folder(folder: Path) -> CheckReport:
    """Compiles the policy and runs every check. Raises OSError."""
    try:
        sources = load_with_places(read_modules(folder))
    except PolicyErrors as problems:
        return CheckReport(0, tuple(map(str, problems.errors)), ())
    try:
        count = Engine(Tables.load(compile_policy(sources.policy))).rule_count
    except CompileError as error:
        return CheckReport(0, (str(error),), ())
    findings = analyse(sources)
    errors = tuple(str(f) for f in findings if f.severity is Severity.ERROR)
    return CheckReport(count, errors, tuple(str(f) for f in findings if f.severity is not Severity.ERROR))


@dataclass(frozen=True, slots=True)
class TestReport:
    """How the cases of a folder went."""

    results: tuple[Result, ...]
    statements: int
    uncovered: tuple[str, ...]
    """Rules that decided no case; the first of them where there are many."""
    covered: int

    @property
    def count(self) -> int:
        return len(self.results)

    @property
    def failures(self) -> int:
        return sum(not result.passed for result in self.results)

    @property
    def passed(self) -> bool:
        return self.count > 0 and not self.failures

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
        return {
            "passed": self.passed,
            "cases": cases,
            "rules": self.statements,
            "covered": self.covered,
            "uncovered": list(self.uncovered),
        }


def run_folder(folder: Path, now: float) -> TestReport:
    """Runs the YAML cases. Raises `PolicyErrors` and OSError."""
    engine = load_engine(folder)
    results = tuple(run_case(engine, case, now) for case in load_cases(read_cases(folder)))
    decided: set[str] = set()
    for result in results:
        if result.answer is not None:
            decided |= {str(result.answer[key]) for key in ("rule", "near") if result.answer[key]}
            decided |= set(result.answer["limits"]) | {name for _, name in result.answer["would"]}
    everything = [engine.tables.rules.get(i).id for i in range(len(engine.tables.rules))]
    everything += [engine.tables.gates.get(i).id for i in range(len(engine.tables.gates))]
    missing = sorted(set(everything) - decided)
    return TestReport(results, len(everything), tuple(missing[:MAX_LISTED]), len(everything) - len(missing))


@dataclass(frozen=True, slots=True)
class Question:
    """What `explain` is asked: a URL, or host[:port] for a connection of which nothing else is known."""

    destination: str
    client: str | None = None
    unknown: bool = False
    groups: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    method: str = "GET"
    age: int | None = None
    region: str | None = None
    restricted: bool = False

    def request(self) -> Request:
        """The engine's question. Raises ValueError (`HostError`)."""
        client = Client(self.client, not self.unknown, frozenset(self.groups), frozenset(self.claims))
        if "://" not in self.destination:
            host, port = split_authority(self.destination, 443)
            return Request(client, host, port, "http" if port == 80 else "tls")
        parts = urlsplit(self.destination)
        schemes: Mapping[str, tuple[Protocol, int]] = {
            "https": ("tls", 443),
            "http": ("http", 80),
            "wss": ("websocket", 443),
            "ws": ("websocket", 80),
        }
        if parts.scheme not in schemes:
            raise ValueError(f"the scheme {parts.scheme!r} is none of https, http, wss, ws")
        protocol, default = schemes[parts.scheme]
        host, port = split_authority(parts.netloc, default)
        user = None
        if self.age is not None or self.region is not None:
            user = User(self.age, self.age, Assurance.VERIFIED if self.age is not None else None, self.region)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Request(client, host, port, protocol, self.method, target, user)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why, in plain values."""

    subject: str
    allow: bool
    reason: str | None
    rule: str | None
    near: str | None
    lane: str
    lane_because: str
    would: tuple[tuple[str, str], ...]
    readings: tuple[str, ...]
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["steps"] = [step._asdict() for step in self.steps]
        return data


def explain_folder(folder: Path, question: Question, now: float) -> Explanation:
    """Explains one decision of a folder's policy. Raises `PolicyErrors`, ValueError and OSError."""
    request = question.request()
    traced = load_engine(folder).explain(request, now, restricted=question.restricted)
    decision = traced.decision
    who = "an unknown client" if question.unknown else question.client or "an identified client"
    what = f"{request.method} {request.target} at " if request.method else ""
    return Explanation(
        f"{who} → {what}{request.host}:{request.port} ({request.protocol})",
        decision.allow,
        None if decision.reason is None else decision.reason.value,
        decision.rule,
        decision.near,
        decision.lane.value,
        traced.lane_because,
        decision.would,
        traced.readings,
        traced.steps,
    )
