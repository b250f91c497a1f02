"""`edgeguard publish`: hands signed documents to a bundle server."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import fail, out, print_json

TOKEN_VARIABLE = "EDGEGUARD_PUBLISH_TOKEN"  # noqa: S105 - the name of a variable


def register(app: typer.Typer) -> None:
    app.command(name="publish")(publish)


def publish(
    files: Annotated[list[Path], typer.Argument(help="Signed roots, bundles and heads, in any order.")],
    url: Annotated[str, typer.Option(help="Address of the bundle server.")],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the publish token. Default: $EDGEGUARD_PUBLISH_TOKEN.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificate authorities (PEM). Default: certifi's.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
) -> None:
    """Publish signed documents; the server verifies each before it takes it."""
    from edgeguard.sync.publish import PublishError
    from edgeguard.sync.publish import publish as send

    token = (token_file.read_text() if token_file else os.environ.get(TOKEN_VARIABLE, "")).strip()
    if not token:
        fail(f"no publish token: give --token-file, or set {TOKEN_VARIABLE}", code=2)
    try:
        receipts = asyncio.run(send(url, token, files, ca_file=str(ca_file) if ca_file else None))
    except PublishError as error:
        fail(str(error))
    except ValueError as error:
        fail(str(error), code=2)
    if json:
        print_json([receipt._asdict() for receipt in receipts])
        return
    for receipt in receipts:
        state = "published" if receipt.created else "already there"
        out.print(f"{receipt.file}: {receipt.role} {receipt.version} {state} at {receipt.path}")
