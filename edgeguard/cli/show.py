"""Facts for people: an indented list, times in words; or one JSON object for scripts."""

from collections.abc import Mapping
from datetime import UTC, datetime

from rich.markup import escape

from edgeguard.cli.console import out, print_json


def show(facts: Mapping[str, object], *, json: bool = False, indent: int = 0) -> None:
    """Prints facts. Fields that end in `_at` are Unix seconds."""
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        label = "  " * indent + f"[bold]{escape(name)}[/]"
        if isinstance(value, Mapping):
            out.print(f"{label}:")
            show(value, indent=indent + 1)
        elif isinstance(value, list):
            out.print(f"{label}: {escape(', '.join(map(str, value)) or '(none)')}")
        elif name.endswith("_at") and isinstance(value, int):
            out.print(f"{label}: {value} ({moment(value)})")
        else:
            out.print(f"{label}: {escape(str(value))}")


def moment(seconds: int) -> str:
    """UTC, to the second."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "out of range"
