"""`edgeguard sync`: the update client as three verbs, for scripts and for outside judges.

The contract is that of the client commands of tuf-conformance: exit 0 when everything is current and valid,
1 when something was refused or could not be reached, 2 for wrong usage. The stored bytes are the served ones.
"""

import asyncio
import json as jsonlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import err, fail, out, print_json

State = Annotated[Path, typer.Option("--state", help="State folder of the node.")]
Now = Annotated[int | None, typer.Option("--now", help="Judge at this time (Unix seconds) instead of now.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(name="sync", help="Fetch, verify and keep a node's bundle.", no_args_is_help=True)
    group.command()(init)
    group.command()(refresh)
    group.command()(status)
    app.add_typer(group)


def init(
    state: State,
    root: Annotated[Path, typer.Option(help="The root that this node trusts from the first.")],
    env: Annotated[str, typer.Option(help="Environment whose bundles it takes.")],
    audience: Annotated[str, typer.Option(help="Audience that it belongs to.")] = "",
    floor: Annotated[int, typer.Option(help="Lowest bundle version.", min=0)] = 0,
) -> None:
    """Prepare a state folder: keep the root and the environment. Nothing is fetched."""
    from edgeguard.sync.profile import Profile

    try:
        anchor = root.read_bytes()
    except OSError as error:
        fail(f"{root}: {error.strerror}; name the file of the root with --root", code=2)
    profile = Profile(env, audience, floor)
    _or_fail(profile.keep(state, anchor))
    err.print(f"{state}: ready for {env}")


def refresh(
    state: State,
    url: Annotated[list[str], typer.Option(help="Bundle server; give it again for further mirrors.")],
    now: Now = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificate authorities (PEM).")] = None,
    json: Json = False,
) -> None:
    """Bring the state up to date once."""
    from edgeguard.sync.profile import run_refresh

    ok, report = _or_fail(run_refresh(state, url, now=now, ca_file=str(ca_file) if ca_file else None))
    _show(report, as_json=json)
    if not ok:
        raise typer.Exit(1)


def status(state: State, now: Now = None, json: Json = False) -> None:
    """Say what the state holds: verified again from the root on, nothing fetched, nothing written."""
    from edgeguard.sync.profile import run_status

    _show(_or_fail(run_status(state, now=now)), as_json=json)


def _or_fail[T](work: Coroutine[object, object, T]) -> T:
    from edgeguard.bundle.refusal import Refusal
    from edgeguard.sync.store import StoreError

    try:
        return asyncio.run(work)
    except StoreError as error:
        fail(str(error))
    except Refusal as refusal:
        fail(f"the root is refused: {refusal}")
    except ValueError as error:
        fail(str(error), code=2)


def _show(report: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        out.print(f"{name}: {value if isinstance(value, str) else jsonlib.dumps(value)}")
