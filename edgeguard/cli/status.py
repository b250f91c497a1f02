"""`edgeguard status`: which policy is running, who signed it, how old it is."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import fail, out, print_json

DEFAULT_ADDRESS = "127.0.0.1:9901"
TIMEOUT_S = 2.0
STYLES = {"fresh": "green", "stale": "yellow", "restricted": "yellow", "closed": "red", "quarantined": "red"}


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status(
    address: Annotated[
        str,
        typer.Option(
            "--admin", envvar="EDGEGUARD_ADMIN", help="Admin address of the proxy: HOST:PORT or unix:PATH."
        ),
    ] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take the admin address from this configuration.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code: 0 if ready.")] = False,
) -> None:
    """Show which policy a running proxy enforces. Exit code 0 if it is ready, 1 if not."""
    document = fetch_status(address, config)
    ready = bool(document.get("ready"))
    if json_:
        print_json(document)
    elif not quiet:
        _show(document)
    if not ready:
        raise typer.Exit(1)


def fetch_status(address: str, config: Path | None) -> dict[str, object]:
    """The document of `/status`, from an admin address or that of a configuration. Ends the program if nobody answers."""
    return _fetch(address or _configured(config))


def _configured(config: Path | None) -> str:
    if config is None:
        return DEFAULT_ADDRESS
    import os

    from edgeguard.settings import load_settings

    return load_settings(config, os.environ).admin.address


def _fetch(address: str) -> dict[str, object]:
    import aiohttp

    async def get() -> dict[str, object]:
        connector: aiohttp.BaseConnector | None = None
        url = f"http://{address}/status"
        if address.startswith("unix:"):
            connector, url = aiohttp.UnixConnector(address.removeprefix("unix:")), "http://localhost/status"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(url) as response,
        ):
            document = await response.json()
            return document if isinstance(document, dict) else {}

    try:
        return asyncio.run(get())
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        fail(
            f"no proxy answers at {address}: {str(error) or 'timeout'}\nIs `edgeguard run` up, and is this its [admin] address?"
        )


def _show(document: dict[str, object]) -> None:
    from rich.table import Table

    ladder = str(document.get("ladder"))
    table = Table(show_header=False, box=None, padding=(0, 2))
    for key, value in document.items():
        if key == "limits" and isinstance(value, list):
            for scope in ("host", "fleet"):
                states = sorted({process[scope]["state"] for process in value})
                table.add_row(f"limits.{scope}", _text(states))
        elif isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{key}.{name}", _text(inner))
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for number, entry in enumerate(value, 1):
                shown = {name: inner for name, inner in entry.items() if not isinstance(inner, dict)}
                line = ", ".join(
                    f"{name} {_text(inner)}" for name, inner in shown.items() if inner is not None
                )
                table.add_row(f"{key}.{number}", line)
        else:
            table.add_row(
                key, f"[{STYLES.get(ladder, 'white')}]{ladder}[/]" if key == "ladder" else _text(value)
            )
    out.print(table)


def _text(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "[dim]none[/]"
    if isinstance(value, list):
        return escape(", ".join(map(str, value))) or "[dim]none[/]"
    return escape(str(value))
