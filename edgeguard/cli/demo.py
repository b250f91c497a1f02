"""`edgeguard demo`: the main job on real traffic, with what was expected beside what was seen."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import err, fail, out

NEXT = (
    "edgeguard init my-policy                         a first policy, its tests and a configuration",
    "edgeguard policy test bundles/payments-sidecar   the tests of a shipped sample",
    "edgeguard dev my-policy -- curl -sS https://example.com/   your own command behind your own policy",
)


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    keep: Annotated[
        Path | None, typer.Option(help="Leave keys, repository, state and logs in this empty folder.")
    ] = None,
) -> None:
    """Enforce a really signed policy on real traffic, attack it, and show what happened. Needs no internet."""
    from rich.markup import escape

    from edgeguard.demo.script import Row, run
    from edgeguard.demo.world import DemoError, World

    start = time.monotonic()
    chapter = ""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgeguard-demo-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                fail(f"--keep {keep}: the folder is not empty")
            folder = keep.resolve()
        try:
            with (
                World(folder) as world,
                out.status("keys, root, bundle, server, upstreams, proxy ...") as spinner,
            ):
                for row in run(world):
                    if row.chapter != chapter:
                        chapter = row.chapter
                        out.print(f"\n[bold]{chapter}[/]")
                        spinner.update("...")
                    rows.append(row)
                    mark = "[green]ok  [/]" if row.good else "[bold red]DIFF[/]"
                    out.print(f"  {mark} {escape(row.what)}")
                    if row.good:
                        out.print(f"         [dim]expected = observed:[/] {escape(row.observed)}")
                    else:
                        out.print(f"         [dim]expected:[/] {escape(row.expected)}")
                        out.print(f"         [dim]observed:[/] [red]{escape(row.observed)}[/]")
                    if row.note:
                        out.print(f"         [dim]{escape(row.note)}[/]")
        except DemoError as error:
            fail(str(error))
    different = sum(not row.good for row in rows)
    out.print(f"\n{len(rows)} rows, {different} different, {time.monotonic() - start:.0f} s.")
    if different:
        err.print("[bold red]The demo saw something else than it should have.[/]")
        raise typer.Exit(1)
    out.print("\nTry next (after `. .venv/bin/activate`):")
    for line in NEXT:
        out.print(f"  {line}")
