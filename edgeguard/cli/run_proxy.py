"""`edgeguard run`: the proxy."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeguard.cli.console import err, fail

if TYPE_CHECKING:
    from edgeguard.settings import Settings


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
    from edgeguard.proxy.preflight import NodeError
    from edgeguard.settings.load import parse_settings, read_file
    from edgeguard.sync.store import StoreError

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    text = read_file(config)
    settings = parse_settings(text, config, os.environ)
    if check:
        err.print(f"{config} is well-formed.")
        return
    try:
        if settings.workers == 1:
            _run_alone(settings)
        else:
            _run_workers(settings, text, config)
    except (ListenError, StoreError, AuthorityError, NodeError) as error:
        fail(str(error))


def _run_alone(settings: "Settings") -> None:
    import uvloop

    from edgeguard.proxy.node import Address, Node

    def announce(_: Address, node: Node) -> None:
        _announce(settings, node.doors, node.ready())

    async def main() -> None:
        node = Node(settings)
        task = asyncio.ensure_future(node.run(lambda at: announce(at, node)))
        await _until_ended(task, node.stop, task.cancel)

    uvloop.run(main())


def _run_workers(settings: "Settings", text: str, config: Path) -> None:
    from edgeguard.proxy.workers.supervisor import Supervisor

    supervisor = Supervisor(settings, text, config, os.environ)
    err.print(f"{settings.workers} workers: rate limits of scope process hold for each of them alone")

    def announce(running: Supervisor) -> None:
        _announce(settings, running.doors, running.ready())

    async def main() -> None:
        task = asyncio.ensure_future(supervisor.run(announce))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.roll)
        await _until_ended(task, supervisor.stop, supervisor.kill)

    asyncio.run(main())


async def _until_ended(
    task: "asyncio.Future[None]", stop: Callable[[], object], kill: Callable[[], object]
) -> None:
    """The first signal lets open work finish, the second does not wait."""
    ways = iter((stop,))

    def end() -> None:
        next(ways, kill)()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    err.print("stopped")


def _announce(settings: "Settings", doors: Sequence[str], ready: tuple[bool, str]) -> None:
    well, why = ready
    state = why if well else f"{why}: everything is refused until a policy is verified"
    at = " and ".join(doors)
    err.print(f"edgeguard enforces environment {settings.environment} at {at} ({state})", markup=False)


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
