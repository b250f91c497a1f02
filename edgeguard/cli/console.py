"""How the command line speaks: one clear message for what went wrong, tables for people, JSON for scripts."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Prints one message to standard error and ends the process with `code`."""
    err.print(f"[bold red]edgeguard:[/] {escape(message)}")
    raise SystemExit(code)


def first(error: BaseException) -> BaseException:
    """What went wrong first, where several tasks ended together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def print_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """One JSON document on standard output, in the order given."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
