"""Which statements the tests exercise: those that decided a case, were counted, or would have decided one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import QuestionError, evaluate


@dataclass(frozen=True, slots=True)
class Coverage:
    """Statements of a policy, exceptions included, and those that some question exercised."""

    statements: frozenset[str]
    covered: frozenset[str]

    @property
    def percent(self) -> float:
        """100 for a policy without statements."""
        return 100 * len(self.covered) / len(self.statements) if self.statements else 100.0

    @property
    def uncovered(self) -> tuple[str, ...]:
        return tuple(sorted(self.statements - self.covered))


def exercised(answer: Mapping[str, Any]) -> set[str]:
    """The statements that one answer of `evaluate` names as deciding, counting, or watching."""
    found = {name for _, name in answer["would"]} | set(answer["limits"])
    return found | {answer["rule"]} if answer["rule"] is not None else found


def exceptions_of(engine: Engine) -> frozenset[str]:
    """Ids of the exceptions in force or to come."""
    return frozenset(lift.id for lifts in engine.tables.rules.lifts.values() for lift in lifts)


def statements_of(engine: Engine) -> frozenset[str]:
    """Ids of everything that can be covered."""
    tables = engine.tables
    found = {table.get(i).id for table in (tables.rules, tables.gates) for i in range(len(table))}
    return frozenset(found) | exceptions_of(engine)


def measure(
    engine: Engine,
    asked: Iterable[tuple[Mapping[str, Any], float]],
    without: Callable[[str], Engine],
) -> Coverage:
    """Coverage of a policy by questions.

    Args:
        engine: The policy.
        asked: (question, moment in Unix seconds).
        without: The policy without one exception. An exception is exercised if some answer changes when it is gone, since an
            answer names the rules that decide, and an exception only keeps one from deciding.
    """
    answers = []
    for question, now in asked:
        try:
            answers.append((question, now, evaluate(engine, question, now)))
        except QuestionError:
            continue  # the case fails; it exercises nothing
    covered = {name for _, _, answer in answers for name in exercised(answer)}
    for exception in exceptions_of(engine):
        other = without(exception)
        if any(evaluate(other, question, now) != answer for question, now, answer in answers):
            covered.add(exception)
    known = statements_of(engine)
    return Coverage(known, known & covered)
