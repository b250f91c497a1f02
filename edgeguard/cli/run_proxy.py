"""`edgeguard run`: the proxy."""

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import err, fail


def register(app: typer.Typer) -> None:
    app.command("run")(run)
    app.command("ca")(ca)


def run(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="EDGEGUARD_CONFIG", help="Configuration file (TOML).")
    ],
    check: Annotated[bool, typer.Option("--check", help="Only read the configuration, then stop.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what sync and the engine do.")
    ] = False,
) -> None:
    """Enforce the policy that this node's configuration trusts."""
    from edgeguard.proxy.authority import AuthorityError
    from edgeguard.proxy.listeners import ListenError
    from edgeguard.proxy.node import Address, Node
    from edgeguard.proxy.preflight import NodeError
    from edgeguard.settings import load_settings
    from edgeguard.sync.store import StoreError

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    settings = load_settings(config, os.environ)
    if check:
        err.print(f"{config} is well-formed.")
        return

    async def main() -> None:
        node = Node(settings)
        task = asyncio.ensure_future(node.run(lambda at: announce(at, node)))
        loop = asyncio.get_running_loop()
        # The first signal lets open work finish, the second does not wait.
        ways = iter((node.stop,))

        def end() -> None:
            next(ways, task.cancel)()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        err.print("stopped")

    def announce(_: Address, node: Node) -> None:
        ready, why = node.ready()
        state = why if ready else f"{why}: everything is refused until a policy is verified"
        doors = " and ".join(node.doors)
        err.print(f"edgeguard enforces environment {settings.environment} at {doors} ({state})", markup=False)

    import uvloop

    try:
        uvloop.run(main())
    except (ListenError, StoreError, AuthorityError, NodeError) as error:
        fail(str(error))


def ca(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="EDGEGUARD_CONFIG", help="Configuration file (TOML).")
    ],
    export: Annotated[Path, typer.Option("--export", help="Write the public certificate (PEM) here.")],
) -> None:
    """Export the interception authority's public certificate, for clients to trust."""
    from edgeguard.proxy.authority import AuthorityError, ensure_authority
    from edgeguard.settings import load_settings

    settings = load_settings(config, os.environ)
    try:
        authority = ensure_authority(settings.interception.ca_dir)
        authority.export(export)
    except AuthorityError as error:
        fail(str(error))
    err.print(f"{export}: sha256 {authority.fingerprint}")
