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


for group in (init, policy, keys, bundle, release, head, publish, server, sync, run_proxy, dev, status, demo):
    group.register(app)


def run() -> None:
    """Runs the command line; expected failures end it with one message and a non-zero exit code."""
    from edgeguard.bundle.keys import KeyFileError
    from edgeguard.bundle.refusal import Refusal
    from edgeguard.policy.source import PolicyErrors
    from edgeguard.settings import SettingsError

    try:
        app()
    except (PolicyErrors, SettingsError, KeyFileError) as error:
        fail(str(error))
    except Refusal as error:
        fail(f"refused: {error}")
    except FileNotFoundError as error:
        fail(f"{error.filename}: no such file or folder")
    except PermissionError as error:
        fail(f"{error.filename}: permission denied")
    except IsADirectoryError as error:
        fail(f"{error.filename}: is a folder, not a file")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
