"""`edgeguard netfilter`: the packet filter beside the proxy."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeguard.cli.console import err, fail, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeguard.netfilter.verify import Row
    from edgeguard.settings import Settings

STYLES = {"ALLOWED": "bold red", "BLOCKED": "green", "UNKNOWN": "yellow"}


def register(app: typer.Typer) -> None:
    app.command("netfilter")(netfilter)


def netfilter(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="EDGEGUARD_CONFIG", help="Configuration file (TOML).")
    ],
    print_: Annotated[bool, typer.Option("--print", help="Write the rules for `nft -f` and stop.")] = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Put them in force, in this network namespace. Replaces older ones."),
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take them away: everything passes.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Try from inside what gets out.")] = False,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="With --verify: a target that answers, as NAME=ADDRESS:PORT. Repeatable."
        ),
    ] = None,
    user: Annotated[
        int | None, typer.Option("--user", min=0, help="With --verify: try as this user id. Needs root.")
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option("--before", help="With --verify: what `--verify --json` said before the rules."),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=60, help="Seconds for each try.")] = 3.0,
    json_: Annotated[bool, typer.Option("--json", help="With --verify: print one JSON document.")] = False,
) -> None:
    """Redirect to the proxy, or refuse, everything that goes past it.

    --verify ends with 0 if every way out is shut, 1 if one is open, 2 if none is open but one could not be judged.
    """
    import os

    from edgeguard.netfilter.kernel import NetfilterError
    from edgeguard.netfilter.kernel import apply as put_in_force
    from edgeguard.netfilter.kernel import remove as take_away
    from edgeguard.netfilter.plan import PlanError, plan
    from edgeguard.netfilter.ruleset import render
    from edgeguard.settings import load_settings

    if print_ + apply + remove + verify != 1:
        fail("give exactly one of --print, --apply, --remove and --verify", code=2)
    try:
        if remove:
            take_away()
            err.print("the packet filter lets everything pass")
            return
        settings = load_settings(config, os.environ)
        text = render(plan(settings))
        if print_:
            sys.stdout.write(
                f"#!/usr/sbin/nft -f\n# Made by `edgeguard netfilter --print --config {config}`.\n{text}"
            )
        elif apply:
            put_in_force(text)
            err.print(f"the packet filter is in force: {settings.netfilter.shape}", markup=False)
        else:
            rows = _verified(settings, probe or (), user, before, timeout)
            _show(rows, as_json=json_)
    except PlanError as error:
        fail(f"{config}: {error}")
    except NetfilterError as error:
        fail(str(error))


def _verified(
    settings: "Settings", probe: "Sequence[str]", user: int | None, before: Path | None, timeout_s: float
) -> "list[Row]":
    from edgeguard.netfilter.plan import Place, plan
    from edgeguard.netfilter.verify import ProbeError, targets, verify
    from edgeguard.settings.values import split_address

    address = settings.listen.address
    door: Place | str | None = None
    if address.startswith("unix:"):
        door = address.removeprefix("unix:")
    elif address:
        host, port = split_address(address)
        door = Place({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - nothing is bound
    try:
        return verify(
            plan(settings),
            targets(probe),
            door=door,
            tls=settings.listen.tls is not None,
            user=user,
            before=_open_before(before),
            timeout_s=timeout_s,
        )
    except ProbeError as error:
        fail(str(error), code=2)


def _open_before(file: Path | None) -> frozenset[str]:
    import json

    if file is None:
        return frozenset()
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        return frozenset(row["way"] for row in rows if row["verdict"] == "ALLOWED")
    except (ValueError, KeyError, TypeError):
        fail(f"{file}: not what `edgeguard netfilter --verify --json` prints")


def _show(rows: "Sequence[Row]", *, as_json: bool) -> None:
    verdicts = {row.verdict for row in rows}
    if as_json:
        print_json({"gets_out": "ALLOWED" in verdicts, "rows": [row._asdict() for row in rows]})
    else:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, padding=(0, 2), header_style="bold")
        for title in ("way", "what", "target", "", "why"):
            table.add_column(title, overflow="fold")
        for row in rows:
            style = STYLES[row.verdict]
            table.add_row(
                row.way, row.about, escape(row.target), f"[{style}]{row.verdict}[/]", escape(row.detail)
            )
        out.print(table)
    if "ALLOWED" in verdicts:
        raise typer.Exit(1)
    if "UNKNOWN" in verdicts:
        raise typer.Exit(2)
