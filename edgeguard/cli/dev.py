"""`edgeguard dev`: the local developer proxy."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeguard.cli.console import err, fail

HIDDEN = frozenset({"close", "event"})


def register(app: typer.Typer) -> None:
    app.command("dev", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(
        dev
    )


def dev(
    policy: Annotated[Path, typer.Argument(help="Folder with the policy modules (YAML).")],
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: a command to run behind the proxy.")
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            help="Address and port on loopback. Default: 127.0.0.1:3128, or any port for a command."
        ),
    ] = "",
    client: Annotated[str, typer.Option(help="Name of the client that you play.")] = "developer",
    state: Annotated[Path, typer.Option(help="Folder for keys, state and the decision log.")] = Path(
        ".edgeguard"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print refusals only.")] = False,
) -> None:
    """Enforce a policy folder on this machine: edits apply as you save, and each decision is explained."""
    try:
        from edgeguard.dev.session import Session
    except ModuleNotFoundError as error:
        fail(
            f"`edgeguard dev` embeds the bundle server and needs {error.name}; run: pip install 'edgeguard[server]'"
        )
    from edgeguard.proxy.authority import AuthorityError
    from edgeguard.proxy.master import ListenError
    from edgeguard.proxy.node import Address
    from edgeguard.sync.store import StoreError

    if not policy.is_dir():
        fail(f"{policy}: no such folder. `edgeguard init {policy}` writes a first policy there.", code=2)
    code = 0
    printer = _Printer(quiet=quiet)

    async def main() -> None:
        session = Session(
            policy,
            state,
            address=listen or ("127.0.0.1:0" if command else "127.0.0.1:3128"),
            client=client,
            observe=printer.records,
            published=printer.published,
            mistaken=printer.mistaken,
        )
        started: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(session.run(started.set_result))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        await asyncio.wait([serving, started], return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            nonlocal code
            code = await _with_command(command, started.result(), session.authorities, serving)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    import uvloop

    try:
        uvloop.run(main())
    except* (ListenError, StoreError, AuthorityError, OSError) as group:
        fail("\n".join(str(error) for error in _leaves(group)))
    raise SystemExit(code)


async def _with_command(
    command: list[str] | None, at: Any, authorities: Path, serving: "asyncio.Future[None]"
) -> int:
    from edgeguard.dev.environment import child_environment

    if not command:
        err.print(f"[bold]edgeguard dev[/] listens at {at.url}. In another terminal:")
        err.print(f"  export HTTPS_PROXY={at.url} HTTP_PROXY={at.url} SSL_CERT_FILE={authorities.absolute()}")
        err.print(f"  curl --cacert {authorities.absolute()} https://example.com/")
        err.print("Decisions follow. Ctrl-C ends.\n")
        await asyncio.wait([serving])
        return 0
    environment = child_environment(os.environ, at.url, authorities.absolute())
    try:
        child = await asyncio.create_subprocess_exec(*command, env=environment)
    except OSError as error:
        serving.cancel()
        err.print(f"[bold red]edgeguard:[/] {command[0]}: {error.strerror}")
        return 127
    code = await child.wait()
    # The log's writer is a moment behind; what the command was refused should be on the screen.
    await asyncio.sleep(0.5)
    serving.cancel()
    return code if code >= 0 else 128 - code


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class _Printer:
    """Decisions as they happen, on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._suggested: set[str] = set()

    def records(self, records: Sequence[Any]) -> None:
        from rich.markup import escape

        from edgeguard.dev.suggest import suggestion

        for record in records:
            if record.kind in HIDDEN or (self._quiet and record.verdict == "allow"):
                continue
            what = f"{record.method or 'CONNECT'} {record.host}:{record.port}{record.path or ''}"
            if record.verdict == "allow":
                err.print(
                    f"[green]allow[/] {escape(what)} [dim]by {escape(str(record.rule))}, {record.lane} lane[/]"
                )
                continue
            by = f" by {record.rule}" if record.rule else ""
            near = f" (nearest: {record.near})" if record.near else ""
            err.print(f"[red]deny [/] {escape(what)} [bold]{record.reason}[/][dim]{escape(by + near)}[/]")
            rule = suggestion(record)
            if rule is not None and rule not in self._suggested:
                self._suggested.add(rule)
                err.print(f"[dim]      this rule would allow just that:[/]\n{escape(rule)}")

    @staticmethod
    def published(version: Any) -> None:
        err.print(
            f"[bold]policy[/] {version.rules} rules, version {version.version}, {version.policy_hash[:23]}..."
        )

    @staticmethod
    def mistaken(errors: Exception) -> None:
        from rich.markup import escape

        err.print(f"[bold red]not applied[/], the policy before stays in force:\n{escape(str(errors))}")
        sys.stderr.flush()
