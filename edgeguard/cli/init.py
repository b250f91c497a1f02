"""`edgeguard init`: a first policy, its tests and a configuration."""

from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import fail, out


def register(app: typer.Typer) -> None:
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; made if it is missing.")],
) -> None:
    """Write a first policy, its tests and a configuration. Never overwrites."""
    from edgeguard.scaffold import write_project

    try:
        written = write_project(folder)
    except FileExistsError as error:
        fail(f"{error.filename}: {error.strerror}")
    for file in written:
        out.print(f"wrote {file}")
    out.print("\nNext:")
    out.print(f"  edgeguard policy check {folder}")
    out.print(f"  edgeguard policy test {folder}")
    out.print(f"  edgeguard dev {folder} -- curl -sS https://example.com/")
