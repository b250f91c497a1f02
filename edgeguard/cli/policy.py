"""`edgeguard policy`: check, test and explain policy sources."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgeguard.cli.console import err, out, print_json

app = typer.Typer(name="policy", help="Check, test and explain policy sources.", no_args_is_help=True)

Folder = Annotated[
    Path,
    typer.Argument(help="Policy folder: *.yaml are modules, tests/*.yaml are cases.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]


def register(root: typer.Typer) -> None:
    """Mounts the group."""
    root.add_typer(app, name="policy")


@app.command()
def check(
    folder: Folder,
    as_json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
) -> None:
    """Compile the policy and report every mistake with its file, line and column."""
    from edgeguard.review import check_folder

    report = check_folder(folder)
    if as_json:
        print_json(report.as_dict())
    else:
        for line in report.lines:
            err.print(
                f"[red]error[/]    {escape(line)}"
                if line in report.errors
                else f"[yellow]warning[/]  {escape(line)}"
            )
        colour = "green" if report.passed(strict) else "red"
        out.print(
            f"[{colour}]{report.statements} statements, {len(report.errors)} errors, {len(report.warnings)} warnings[/]"
        )
    raise typer.Exit(0 if report.passed(strict) else 1)


@app.command()
def test(folder: Folder, as_json: Json = False) -> None:
    """Run the YAML cases of the policy."""
    from edgeguard.review import run_folder

    report = run_folder(folder, time.time())
    if as_json:
        print_json(report.as_dict())
    else:
        for result in report.results:
            mark = "[green]ok[/]  " if result.passed else "[red]FAIL[/]"
            out.print(f"{mark} {escape(result.case.name)}")
            for problem in result.problems:
                out.print(f"       {escape(result.case.file)}:{result.case.line}: {escape(problem)}")
        colour = "green" if report.passed else "red"
        out.print(
            f"[{colour}]{report.count} cases, {report.failures} failed; {report.covered} of {report.statements} rules decided a case[/]"
        )
        if report.uncovered:
            out.print(f"no case was decided by: {escape(', '.join(report.uncovered))}")
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def explain(
    folder: Folder,
    destination: Annotated[
        str, typer.Argument(help="URL, or host[:port] for a connection.", show_default=False)
    ],
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
    as_json: Json = False,
) -> None:
    """Say why a request is allowed or refused, and which lane would carry it."""
    from edgeguard.review import Question, explain_folder

    question = Question(
        destination, client, unknown, tuple(group or ()), tuple(claim or ()), method, age, region, restricted
    )
    try:
        answer = explain_folder(folder, question, time.time())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        print_json(answer.as_dict())
    else:
        verdict = "[green]allowed[/]" if answer.allow else f"[red]refused[/]: {answer.reason}"
        out.print(
            f"{escape(answer.subject)}\n  {verdict}"
            + (f" by [bold]{escape(answer.rule)}[/]" if answer.rule else "")
        )
        if answer.near:
            out.print(f"  nearest allow: [bold]{escape(answer.near)}[/]")
        out.print(f"  lane: {answer.lane} ({escape(answer.lane_because)})")
        for reading in answer.readings[1:]:
            out.print(f"  could also be read as: {escape(reading)}")
        table = Table("statement", "kind", "matches", "note", box=None, pad_edge=False)
        for step in answer.steps:
            matched = "[green]yes[/]" if step.matched else f"no: {step.missed}"
            table.add_row(
                escape(step.rule),
                step.kind,
                matched,
                escape(step.note) + ("" if step.enforced else " [yellow](report)[/]"),
            )
        out.print(table)
    raise typer.Exit(0 if answer.allow else 1)
