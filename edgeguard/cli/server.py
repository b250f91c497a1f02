"""`edgeguard server`: serves a folder of signed documents."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import err, fail

TOKEN_VARIABLE = "EDGEGUARD_PUBLISH_TOKENS"  # noqa: S105 - the name of a variable


def register(app: typer.Typer) -> None:
    app.command(name="server")(server)


def server(
    directory: Annotated[
        Path,
        typer.Option("--dir", help="Folder to serve: root/<N>.root, <environment>/head, blobs/<sha256>."),
    ],
    listen: Annotated[
        str, typer.Option(help="Address and port; port 0 lets the kernel choose.")
    ] = "127.0.0.1:8470",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Publish tokens or their sha256:<hex>, one a line. Default: $EDGEGUARD_PUBLISH_TOKENS."
        ),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS private key (PEM).")] = None,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="Write the address here once listening.")
    ] = None,
) -> None:
    """Serve signed documents, and take new ones from whoever holds a publish token. It needs no key."""
    try:
        from edgeguard.server.app import create_app
        from edgeguard.server.repository import Repository, RepositoryError
        from edgeguard.server.run import listen as bind
        from edgeguard.server.run import new_server
        from edgeguard.server.tokens import PublishTokens
        from edgeguard.settings.values import split_address
    except ModuleNotFoundError as error:
        fail(f"the bundle server needs the package {error.name}; run: pip install 'edgeguard[server]'")
    if (certificate is None) != (key is None):
        fail("--certificate and --key belong together", code=2)
    source = str(token_file) if token_file else f"${TOKEN_VARIABLE}"
    text = token_file.read_text() if token_file else os.environ.get(TOKEN_VARIABLE, "")
    try:
        tokens = PublishTokens.parse(text)
        host, port = split_address(listen)
        app = create_app(Repository(directory), tokens)
    except RepositoryError as error:
        fail(str(error))
    except ValueError as error:
        fail(f"{source if 'line ' in str(error) else '--listen'}: {error}", code=2)
    try:
        sock = bind(host, port)
    except OSError as error:
        fail(f"--listen {listen}: {error.strerror}; choose another port, or stop what uses this one")
    with sock:
        bound = sock.getsockname()[1]
        scheme = "https" if certificate else "http"
        shown = f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound}/"
        err.print(
            f"serving {directory} at {shown} ({'publishing on' if tokens else 'publishing off: no tokens'})"
        )
        if ready_fd is not None:
            os.write(ready_fd, f"{shown}\n".encode())
            os.close(ready_fd)
        uvicorn_server = new_server(
            app, certificate=str(certificate) if certificate else None, key=str(key) if key else None
        )
        asyncio.run(uvicorn_server.serve(sockets=[sock]))
