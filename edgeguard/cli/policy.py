"""`edgeguard policy`: check, test, explain and compare policies; replay decisions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgeguard.cli.console import err, fail, out, print_json

if TYPE_CHECKING:
    from edgeguard.policy.diff import Difference
    from edgeguard.policy.mutation import MutationReport
    from edgeguard.policy.replay import Replay
    from edgeguard.review import Explanation, TestReport

app = typer.Typer(
    name="policy", help="Check, test, explain and compare policy sources.", no_args_is_help=True
)

MAX_LINES = 40


class Form(StrEnum):
    """How `check` speaks."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class FailOn(StrEnum):
    """What makes `diff` end with 1."""

    WIDENING = "widening"
    CHANGE = "change"
    NEVER = "never"


Folder = Annotated[
    Path,
    typer.Argument(help="Policy folder: *.yaml are modules, tests/*.yaml are cases.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
Lines = Annotated[int, typer.Option("--lines", min=1, help="Lines of each kind that text shows.")]


def register(root: typer.Typer) -> None:
    """Mounts the group."""
    root.add_typer(app, name="policy")


def _moment(text: str | None) -> float | None:
    """Unix seconds of a date or a time with its offset from UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 2026-12-31 nor 2026-12-31T18:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


@contextmanager
def _input() -> Iterator[None]:
    """Ends with 2 for what cannot be read, since 1 is an answer."""
    from edgeguard.policy.source import PolicyErrors
    from edgeguard.policy.tables import TablesError
    from edgeguard.review import InputError

    try:
        yield
    except (InputError, TablesError, PolicyErrors) as error:
        fail(str(error), code=2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", code=2)


@app.command()
def check(
    folder: Folder,
    as_json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    form: Annotated[
        Form, typer.Option("--format", help="sarif is what code hosts show beside the lines.")
    ] = Form.TEXT,
) -> None:
    """Compile the policy and report every mistake with its file, line and column."""
    from edgeguard.review import check_folder

    report = check_folder(folder)
    if form is Form.SARIF:
        print_json(report.as_sarif())
    elif as_json or form is Form.JSON:
        print_json(report.as_dict())
    else:
        for line in report.errors:
            err.print(f"[red]error[/]    {escape(line)}")
        for line in report.warnings:
            err.print(f"[yellow]warning[/]  {escape(line)}")
        colour = "green" if report.passed(strict) else "red"
        out.print(
            f"[{colour}]{report.statements} statements, {len(report.errors)} errors, {len(report.warnings)} warnings[/]"
        )
    raise typer.Exit(0 if report.passed(strict) else 1)


@app.command()
def test(
    folder: Folder,
    as_json: Json = False,
    min_coverage: Annotated[
        float | None,
        typer.Option(
            "--min-coverage",
            metavar="PERCENT",
            min=0,
            max=100,
            help="Fail below this share of exercised statements.",
        ),
    ] = None,
    mutate: Annotated[
        bool, typer.Option("--mutate", help="Change every statement in turn; name what no case notices.")
    ] = False,
) -> None:
    """Run the YAML cases of the policy."""
    from dataclasses import replace

    from edgeguard.review import mutate_folder, run_folder

    now = time.time()
    report = run_folder(folder, now)
    if mutate and report.passed:
        report = replace(report, mutation=mutate_folder(folder, now))
    enough = min_coverage is None or report.coverage.percent >= min_coverage
    if as_json:
        print_json(report.as_dict())
    else:
        _print_cases(report)
        if not enough:
            out.print(
                f"[red]{report.coverage.percent:.1f} % of the statements is less than {min_coverage:g} %[/]"
            )
        if report.mutation is not None:
            _print_survivors(report.mutation)
        elif mutate:
            out.print("not mutated: the cases have to pass first")
    noticed = not mutate or (report.mutation is not None and report.mutation.passed)
    raise typer.Exit(0 if report.passed and enough and noticed else 1)


def _print_cases(report: "TestReport") -> None:
    for result in report.results:
        mark = "[green]ok[/]  " if result.passed else "[red]FAIL[/]"
        out.print(f"{mark} {escape(result.case.name)}")
        for problem in result.problems:
            out.print(f"       {escape(result.case.file)}:{result.case.line}: {escape(problem)}")
    colour = "green" if report.passed else "red"
    out.print(
        f"[{colour}]{report.count} cases, {report.failures} failed; "
        f"{report.covered} of {report.statements} statements exercised ({report.coverage.percent:.0f} %)[/]"
    )
    for rule in report.uncovered:
        out.print(f"not exercised: {escape(report.places.get(rule, 'policy'))}: {escape(rule)}")
    hidden = len(report.coverage.uncovered) - len(report.uncovered)
    if hidden:
        out.print(f"not exercised: {hidden} more")


def _print_survivors(mutation: "MutationReport") -> None:
    for survivor in mutation.survivors:
        out.print(f"[red]not noticed[/] {escape(str(survivor))}")
    colour = "green" if mutation.passed else "red"
    same = f"; {mutation.equivalent} change no decision" if mutation.equivalent else ""
    out.print(
        f"[{colour}]{mutation.mutants} mutants, {len(mutation.survivors)} not noticed by any case{same}[/]"
    )


@app.command()
def explain(
    folder: Folder,
    destination: Annotated[
        str | None, typer.Argument(help="URL, or host[:port] for a connection.", show_default=False)
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="Name of the client; an identified one without a name if omitted.")
    ] = None,
    unknown: Annotated[bool, typer.Option("--unknown", help="Ask as an unknown client.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Group of the client; repeat for several.")] = None,
    claim: Annotated[
        list[str] | None, typer.Option(help="Claim of the client's token; repeat for several.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method of the request.")] = "GET",
    age: Annotated[int | None, typer.Option(help="Verified age of the person.")] = None,
    region: Annotated[str | None, typer.Option(help="Region of the person, such as DE or US-TX.")] = None,
    restricted: Annotated[
        bool, typer.Option("--restricted", help="As if the policy could not be proved current.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="Decision log; explains the decision --id on the same facts.")
    ] = None,
    ident: Annotated[str | None, typer.Option("--id", help="Id of a decision in --log.")] = None,
    at: Annotated[
        str | None, typer.Option(help="When it is asked. Default: now, or when it was logged.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why a request is allowed or refused, and which lane would carry it."""
    from edgeguard.review import Question, explain_folder, explain_recorded

    moment = _moment(at)
    if (log is None) is not (ident is None):
        raise typer.BadParameter("--log and --id go together")
    if (log is None) is (destination is None):
        raise typer.BadParameter("name a destination, or a decision with --log and --id")
    with _input():
        if log is not None:
            answer = explain_recorded(folder, log, ident or "", moment)
        else:
            question = Question(
                destination or "", client, unknown, tuple(group or ()), tuple(claim or ()), method, age, region,
                restricted,
            )  # fmt: skip
            try:
                question.request()
            except ValueError as error:
                raise typer.BadParameter(str(error)) from None
            answer = explain_folder(folder, question, time.time() if moment is None else moment)
    if as_json:
        print_json(answer.as_dict())
    else:
        _print_explanation(answer)
    raise typer.Exit(0 if answer.allow else 1)


def _print_explanation(answer: "Explanation") -> None:
    verdict = "[green]allowed[/]" if answer.allow else f"[red]refused[/]: {answer.reason}"
    out.print(
        f"{escape(answer.subject)}\n  {verdict}"
        + (f" by [bold]{escape(answer.rule)}[/]" if answer.rule else "")
    )
    if answer.recorded:
        out.print(f"  the log says: {escape(answer.recorded)}")
    for missing in answer.missing:
        out.print(f"  not in the log: {escape(missing)}")
    if answer.near:
        out.print(f"  nearest allow: [bold]{escape(answer.near)}[/]")
    out.print(f"  lane: {answer.lane} ({escape(answer.lane_because)})")
    for reading in answer.readings[1:]:
        out.print(f"  could also be read as: {escape(reading)}")
    table = Table("statement", "kind", "matches", "note", box=None, pad_edge=False)
    for step in answer.steps:
        matched = "[green]yes[/]" if step.matched else f"no: {step.missed}"
        note = escape(step.note) + ("" if step.enforced else " [yellow](report)[/]")
        table.add_row(escape(step.rule), step.kind, matched, note)
    out.print(table)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="Policy folder or bundle file.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="Policy folder or bundle file.", show_default=False)],
    as_json: Json = False,
    fail_on: Annotated[FailOn, typer.Option(help="What ends with exit code 1.")] = FailOn.WIDENING,
    at: Annotated[str | None, typer.Option(help="From when on they are compared. Default: now.")] = None,
    lines: Lines = MAX_LINES,
) -> None:
    """Say which requests NEW decides otherwise than OLD, each by an example: what is widened, what narrowed."""
    from edgeguard.policy.diff import Verdict
    from edgeguard.review import diff_policies

    moment = _moment(at)
    with _input():
        difference = diff_policies(old, new, time.time() if moment is None else moment)
    if as_json:
        print_json(difference.as_dict())
    else:
        _print_difference(difference, lines)
    differs = difference.verdict not in {Verdict.EQUAL, Verdict.NEUTRAL}
    bad = fail_on is not FailOn.NEVER and (difference.widens or (fail_on is FailOn.CHANGE and differs))
    raise typer.Exit(1 if bad else 0)


def _print_difference(difference: "Difference", lines: int) -> None:
    from edgeguard.policy.diff import Effect

    for effect, mark in ((Effect.WIDENING, "[red]+[/]"), (Effect.NARROWING, "[green]-[/]")):
        found = [change for change in difference.changes if change.effect is effect]
        for change in found[:lines]:
            more = f"; and {change.count - 1} like it" if change.count > 1 else ""
            out.print(f"{mark} {change.domain.value:8} {escape(str(change))}{more}")
        if len(found) > lines:
            out.print(f"{mark} {len(found) - lines} more (--lines, --json)")
    for item in difference.undecided[:lines]:
        out.print(f"[red]?[/] {item.domain.value:8} {escape(str(item))}")
    for scheduled in difference.scheduled[:lines]:
        out.print(f"@ {escape(str(scheduled))}")
    for domain, verdict in difference.domains.items():
        out.print(f"{domain.value:8} {verdict.value}")
    colour = "red" if difference.widens else "green"
    out.print(f"[{colour}]{difference.verdict.value}[/]")


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Decision log: JSON lines.", show_default=False)],
    policy: Annotated[
        Path,
        typer.Option("--policy", help="The candidate: policy folder or bundle file.", show_default=False),
    ],
    as_json: Json = False,
    at: Annotated[
        str | None, typer.Option(help="Decide everything at this moment. Default: each at its own time.")
    ] = None,
    lines: Lines = MAX_LINES,
) -> None:
    """List the decisions of a log that another policy would make otherwise."""
    from edgeguard.review import replay_log

    moment = _moment(at)
    with _input():
        answer = replay_log(log, policy, moment)
    if as_json:
        print_json(answer.as_dict())
    else:
        _print_replay(answer, lines)
    raise typer.Exit(1 if answer.flips else 0)


def _print_replay(answer: "Replay", lines: int) -> None:
    for flip in answer.flips[:lines]:
        mark = "[red]+[/]" if flip.after.allow else "[green]-[/]"
        out.print(f"{mark} line {flip.line}, {escape(flip.id)}: {escape(str(flip))}")
    if len(answer.flips) > lines:
        out.print(f"{len(answer.flips) - lines} more (--lines, --json)")
    for missing, count in answer.undecided.items():
        out.print(f"[yellow]?[/] {count} undecided for want of {escape(missing)}")
    for line in answer.unreadable[:lines]:
        err.print(f"[yellow]unreadable[/] {escape(line)}")
    out.print(
        f"{answer.decisions} decisions: {answer.newly_allowed} newly allowed, {answer.newly_refused} newly refused, "
        f"{sum(answer.undecided.values())} undecided, {answer.skipped} not made by a policy"
    )
