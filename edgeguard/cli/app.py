"""The command tree, and the one place where an expected failure becomes one clear message."""

import sys
from typing import Annotated

import typer

from edgeguard import __version__
from edgeguard.cli import (
    bundle,
    demo,
    dev,
    head,
    init,
    keys,
    limits,
    netfilter,
    policy,
    publish,
    release,
    run_proxy,
    server,
    status,
    sync,
)
from edgeguard.cli.console import fail

app = typer.Typer(
    name="edgeguard",
    help="An egress proxy that enforces signed policy locally and fails closed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"edgeguard {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Enforce signed egress policy."""


for group in (
    init,
    policy,
    keys,
    bundle,
    release,
    head,
    publish,
    server,
    sync,
    run_proxy,
    netfilter,
    dev,
    status,
    limits,
    demo,
):
    group.register(app)


def run() -> None:
    """Runs the command line; expected failures end it with one message and a non-zero exit code."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        # Told apart only now: naming the classes takes imports that `--help` and `keygen` do not need.
        message = _message(error)
        if message is None:
            raise
        fail(message)


def _message(error: Exception) -> str | None:
    """What to say about an expected failure; None for a defect of the program."""
    from edgeguard.bundle.keys import KeyFileError
    from edgeguard.bundle.refusal import Refusal
    from edgeguard.policy.source import PolicyErrors
    from edgeguard.settings import SettingsError

    match error:
        case PolicyErrors() | SettingsError() | KeyFileError():
            return str(error)
        case Refusal():
            return f"refused: {error}"
        case FileNotFoundError(filename=name) if name:
            return f"{name}: no such file or folder"
        case PermissionError(filename=name) if name:
            return f"{name}: permission denied"
        case IsADirectoryError(filename=name) if name:
            return f"{name}: is a folder, not a file"
        case OSError(filename=name, strerror=text):
            return f"{name}: {text}" if name and text else str(error) or type(error).__name__
    return None
