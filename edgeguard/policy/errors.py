"""Mistakes in policy sources: each with its place and what to write instead, all of a run together."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class PolicyError:
    """One mistake. Lines and columns count from 1; 0 where the whole file is meant."""

    file: str
    line: int
    column: int
    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}:{field} {self.message}{hint}"


class PolicyErrors(ValueError):  # noqa: N818 - it carries all of them
    """All mistakes of a run, ordered by file and line."""

    def __init__(self, errors: list[PolicyError]) -> None:
        self.errors = tuple(sorted(errors))
        super().__init__("\n".join(map(str, self.errors)))
