"""Decisions as they happen, each with the rule that made it; on a refusal the rule that would allow just that."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape

from edgeguard.dev.suggest import suggestion
from edgeguard.dev.workshop import Published
from edgeguard.evidence.lines import Written
from edgeguard.evidence.record import Record
from edgeguard.policy.source import PolicyErrors

HIDDEN: Final = frozenset({"close", "event"})


class Printer:
    """Prints to a console; the decisions arrive in the log's thread.

    Args:
        console: Standard error, so that a command's own output stays clean.
        quiet: Only refusals.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._suggested: set[str] = set()

    def records(self, written: Sequence[Written]) -> None:
        for one in written:
            if one.record.kind in HIDDEN:
                continue
            record = one.whole()
            if record.verdict == "deny":
                self._refusal(record)
            elif not self._quiet:
                self._console.print(
                    f"[green]allow[/] {escape(_what(record))} [dim]by {escape(str(record.rule))}, {record.lane} lane[/]"
                )

    def _refusal(self, record: Record) -> None:
        by = f" by {record.rule}" if record.rule else ""
        near = f" (nearest: {record.near})" if record.near else ""
        self._console.print(
            f"[red]deny [/] {escape(_what(record))} [bold]{record.reason}[/][dim]{escape(by + near)}[/]"
        )
        rule = suggestion(record)
        if rule is not None and rule not in self._suggested:
            self._suggested.add(rule)
            self._console.print(f"[dim]      this rule would allow just that:[/]\n{escape(rule)}")

    def published(self, what: Published) -> None:
        self._console.print(
            f"[bold]policy[/] {what.rules} rules, version {what.version}, {what.policy_hash[:23]}..."
        )

    def mistaken(self, errors: PolicyErrors) -> None:
        self._console.print(
            f"[bold red]not applied[/], the policy before stays in force:\n{escape(str(errors))}"
        )


def _what(record: Record) -> str:
    return f"{record.method or 'CONNECT'} {record.host}:{record.port}{record.path or ''}"
