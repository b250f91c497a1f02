"""`edgeguard limits`: how full the rate limits are, and forgetting what they counted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeguard.cli.console import fail, out, print_json
from edgeguard.cli.status import fetch_status

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration of the proxy: says where it is found.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Rate limits of a running proxy.", no_args_is_help=True)
    group.command("status")(status)
    group.command("reset")(reset)
    app.add_typer(group, name="limits")


def status(
    address: Annotated[
        str,
        typer.Option(
            "--admin", envvar="EDGEGUARD_ADMIN", help="Admin address of the proxy: HOST:PORT or unix:PATH."
        ),
    ] = "",
    config: Config = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole document.")] = False,
) -> None:
    """Show keys, overflow, the host's table and the fleet's store. Exit code 1 if one of them cannot be reached."""
    processes: list[dict[str, Any]] = fetch_status(address, config).get("limits") or []  # type: ignore[assignment]
    if json_:
        print_json(processes)
    else:
        _show(processes)
    if any(p["host"]["state"] != "ok" or p["fleet"]["state"] == "down" for p in processes):
        raise typer.Exit(1)


def _show(processes: list[dict[str, Any]]) -> None:
    from rich.table import Table

    for number, process in enumerate(processes, 1):
        if len(processes) > 1:
            out.print(f"[bold]process {number}[/]")
        limits = Table("limit", "keys", "overflowed", box=None, padding=(0, 2))
        for name, use in process["limits"].items():
            limits.add_row(name, str(use["keys"]), str(use["overflowed"]))
        if process["limits"]:
            out.print(limits)
        for scope in ("host", "fleet"):
            facts = Table(show_header=False, box=None, padding=(0, 2))
            for name, value in process[scope].items():
                facts.add_row(f"{scope}.{name}", "[dim]none[/]" if value in {None, ""} else str(value))
            out.print(facts)


def reset(
    why: Annotated[str, typer.Option("--why", help="The reason; it stands in the decision log.")],
    limit: Annotated[str | None, typer.Option("--limit", help="Only this limit.")] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Only this key of the limit, like `name:checkout`; several parts: `a|b`."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All limits.")] = False,
    config: Config = None,
    state: Annotated[Path | None, typer.Option("--state", help="State folder of the proxy.")] = None,
) -> None:
    """Forget what limits have counted, in every process of this node and in the store. Seats of open tunnels stay."""
    from edgeguard.proxy.control import ControlError, command

    if everything == (limit is not None):
        fail("name a limit with --limit, or all of them with --all", code=2)
    if state is None:
        if config is None:
            fail("say where the proxy's state folder is: --config or --state", code=2)
        import os

        from edgeguard.settings import load_settings

        state = load_settings(config, os.environ).trust.state_dir
    try:
        answers = command(state, {"do": "limits.reset", "limit": limit, "key": key, "why": why})
    except ControlError as error:
        fail(str(error))
    for name, answer in answers.items():
        if "error" in answer:
            fail(f"{name}: {answer['error']}")
        counts = ", ".join(f"{scope} {count}" for scope, count in answer["reset"].items())
        out.print(f"{name.removesuffix('.sock')}: forgotten: {counts}")
