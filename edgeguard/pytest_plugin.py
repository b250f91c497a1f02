"""Pytest plugin: `policy_engine`, a policy as the proxy would enforce it, and YAML cases as tests.

    pytest --edgeguard-policy policies/

    def test_minors_are_kept_out(policy_engine):
        answer = policy_engine.evaluate({"resource": "restricted_content", "action": "view", "region": "EU"})
        assert answer["reason"] == "age_verification_required"

A folder with several policies overrides the fixture `edgeguard_policy_dir` in its conftest.py. `--edgeguard-coverage` says which
statements the tests exercised; `--edgeguard-min-coverage PERCENT` fails the run below that share.
"""

import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if (
    TYPE_CHECKING
):  # every pytest run imports this module; only those that ask for a policy pay for the language
    from edgeguard.policy.coverage import Coverage
    from edgeguard.policy.engine import Engine
    from edgeguard.policy.testing import Case, Result


class PolicyEngine:
    """A policy folder that answers questions. `now` is fixed when it is made."""

    def __init__(self, folder: Path, now: float | None = None) -> None:
        self.folder = folder
        self.now = time.time() if now is None else now
        self._asked: list[tuple[Mapping[str, Any], float]] = []

    @cached_property
    def engine(self) -> "Engine":
        """Compiled on first use. Raises `PolicyErrors`."""
        from edgeguard.folder import load_engine

        return load_engine(self.folder)

    @cached_property
    def cases(self) -> "tuple[Case, ...]":
        """The YAML cases of the folder. Raises `PolicyErrors`."""
        from edgeguard.folder import read_cases
        from edgeguard.policy.testing import load_cases

        return load_cases(read_cases(self.folder))

    def evaluate(self, question: Mapping[str, Any], *, now: float | None = None) -> dict[str, Any]:
        """Answers a question in network terms or in the policy's own words; see `edgeguard.policy.evaluate`."""
        from edgeguard.policy.evaluate import evaluate

        moment = self.now if now is None else now
        self._asked.append((dict(question), moment))
        return evaluate(self.engine, question, moment)

    def run(self, case: "Case") -> "Result":
        """Runs one YAML case."""
        from edgeguard.policy.testing import run_case

        self._asked.append((case.question, self.now if case.now is None else case.now))
        return run_case(self.engine, case, self.now)

    def coverage(self) -> "Coverage":
        """Which statements the questions so far exercised. Raises `PolicyErrors`."""
        from edgeguard.folder import read_modules
        from edgeguard.policy.coverage import measure
        from edgeguard.policy.mutation import engine_without
        from edgeguard.policy.source import load_sources

        policy = load_sources(read_modules(self.folder))
        return measure(self.engine, self._asked, partial(engine_without, policy))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgeguard")
    group.addoption(
        "--edgeguard-policy", metavar="DIR", default=None, help="policy folder of the fixture policy_engine"
    )
    group.addoption(
        "--edgeguard-coverage",
        action="store_true",
        help="say which statements of the policies were exercised",
    )
    group.addoption(
        "--edgeguard-min-coverage",
        metavar="PERCENT",
        type=float,
        default=None,
        help="fail the run if fewer statements of a policy were exercised",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Coverage is counted in one process: a threshold that could not be checked is refused."""
    wanted = config.getoption("--edgeguard-min-coverage", None)
    if wanted is not None and config.getoption("numprocesses", None):
        raise pytest.UsageError("--edgeguard-min-coverage counts in one process; leave -n out")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Too little coverage fails the run."""
    wanted = session.config.getoption("--edgeguard-min-coverage")
    if wanted is not None and any(engine.coverage().percent < wanted for engine in _loaded.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The statements that no test exercised."""
    wanted = config.getoption("--edgeguard-min-coverage")
    if not _loaded or (wanted is None and not config.getoption("--edgeguard-coverage")):
        return
    terminalreporter.section("policy coverage")
    for folder, engine in _loaded.items():
        coverage = engine.coverage()
        bad = wanted is not None and coverage.percent < wanted
        terminalreporter.write_line(
            f"{folder}: {len(coverage.covered)} of {len(coverage.statements)} statements exercised "
            f"({coverage.percent:.0f} %)" + (f", less than {wanted:g} %" if bad else ""),
            red=bad,
        )
        if coverage.uncovered:
            terminalreporter.write_line(f"  not exercised: {', '.join(coverage.uncovered)}")


@pytest.fixture(scope="session")
def edgeguard_policy_dir(request: pytest.FixtureRequest) -> Path:
    """The policy folder: `--edgeguard-policy`. Override it where a test suite knows its own."""
    folder = request.config.getoption("--edgeguard-policy")
    if folder is None:
        raise pytest.UsageError(
            "policy_engine needs --edgeguard-policy DIR, or a fixture edgeguard_policy_dir"
        )
    return Path(folder)


@pytest.fixture
def policy_engine(edgeguard_policy_dir: Path) -> PolicyEngine:
    """The policy of `edgeguard_policy_dir`."""
    key = edgeguard_policy_dir.resolve()
    if key not in _loaded:
        _loaded[key] = PolicyEngine(key)
    return _loaded[key]


_loaded: dict[Path, PolicyEngine] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `policy_case` runs once for every YAML case beside it, or of `--edgeguard-policy`."""
    if "policy_case" not in metafunc.fixturenames:
        return
    from edgeguard.folder import read_cases
    from edgeguard.policy.testing import load_cases

    option = metafunc.config.getoption("--edgeguard-policy")
    folder = (
        Path(option) if option is not None else _nearest_policy(Path(str(metafunc.definition.path)).parent)
    )
    cases = load_cases(read_cases(folder))
    metafunc.parametrize("policy_case", cases, ids=[case.name for case in cases])


def _nearest_policy(folder: Path) -> Path:
    """The folder of the test, or its parent where the test lies in `tests/`."""
    return folder.parent if folder.name == "tests" else folder
