"""`edgeguard dev`: the local developer proxy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeguard.cli.console import err, fail, first

if TYPE_CHECKING:
    from edgeguard.proxy.node import Address


def register(app: typer.Typer) -> None:
    app.command("dev")(dev)


def dev(
    policy: Annotated[Path, typer.Argument(help="Folder with the policy modules (YAML).")],
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: a command to run behind the proxy.")
    ] = None,
    listen: Annotated[
        str,
        typer.Option(help="Address and port on loopback. Default: 127.0.0.1:3128; with a command any port."),
    ] = "",
    client: Annotated[str, typer.Option(help="Name of the client that you play.")] = "developer",
    state: Annotated[Path, typer.Option(help="Folder for keys, state and the decision log.")] = Path(
        ".edgeguard"
    ),
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="Take the other sections (resolver, upstream, bounds ...) from here."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print refusals only.")] = False,
) -> None:
    """Enforce a policy folder on this machine: edits apply as you save, and each decision is explained."""
    try:
        from edgeguard.dev.printer import Printer
        from edgeguard.dev.runner import NOT_FOUND, run
        from edgeguard.dev.session import Session
    except ModuleNotFoundError as error:
        fail(
            f"`edgeguard dev` embeds the bundle server and needs {error.name}; run: pip install 'edgeguard[server]'"
        )
    import os

    import uvloop

    from edgeguard.proxy.authority import AuthorityError
    from edgeguard.proxy.listeners import ListenError
    from edgeguard.proxy.preflight import NodeError
    from edgeguard.settings import load_settings
    from edgeguard.sync.store import StoreError

    if not policy.is_dir():
        fail(f"{policy}: no such folder. `edgeguard init {policy}` writes a first policy there.", code=2)
    words = command or []
    printer = Printer(err, quiet=quiet)
    session = Session(
        policy,
        state,
        address=listen or ("127.0.0.1:0" if words else "127.0.0.1:3128"),
        client=client,
        base=None if config is None else load_settings(config, os.environ),
        observe=printer.records,
        published=printer.published,
        mistaken=printer.mistaken,
    )
    try:
        code = uvloop.run(run(session, words, lambda at: _announce(at, session.authorities)))
    except (ListenError, StoreError, AuthorityError, NodeError, ExceptionGroup) as error:
        cause = first(error)
        if isinstance(cause, ListenError | StoreError | AuthorityError | NodeError):
            fail(str(cause))
        raise cause from None
    if words and code == NOT_FOUND:
        err.print(f"edgeguard: {words[0]}: not found, or it could not find something itself", markup=False)
    raise SystemExit(code)


def _announce(at: "Address", authorities: Path) -> None:
    err.print(f"[bold]edgeguard dev[/] listens at {at.url}. In another terminal:")
    err.print(f"  export HTTPS_PROXY={at.url} HTTP_PROXY={at.url} SSL_CERT_FILE={authorities}")
    err.print(f"  curl --cacert {authorities} https://example.com/")
    err.print("Decisions follow. Ctrl-C ends.\n")
