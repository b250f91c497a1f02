"""A TOML file becomes `Settings`, or one error that lists every problem with file, line and key.

`tomllib` keeps no positions, so `_Lines` finds them again: it walks the text of a file that is
already known to be valid TOML, which makes a line scanner enough.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgeguard.settings.model import Settings

type Loc = tuple[str | int, ...]

MAX_FILE_BYTES = 1_048_576


class Problem(NamedTuple):
    """One thing wrong with a configuration file."""

    file: Path
    line: int | None
    """1-based; None when the problem has no line (the file is missing, or a key is)."""
    key: str
    """Dotted path of the key, like `bounds.idle_s`; empty for the whole file."""
    message: str
    """What is wrong and what to write instead."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else str(self.file)
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class SettingsError(ValueError):
    """A configuration file cannot be used. Lists all problems, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Reads, validates and anchors a configuration file.

    Relative paths in the file are relative to the file's folder. `environ` is where secrets of
    the form `{ env = "NAME" }` come from. Raises SettingsError.
    """
    return parse_settings(read_file(path), path, environ)


def parse_settings(text: str, path: Path, environ: Mapping[str, str]) -> Settings:
    """As `load_settings`, of a text that was read from `path` before. Raises SettingsError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else None
        raise SettingsError([Problem(path, line, "", f"not valid TOML: {error}")]) from None
    state_dir = (
        raw.get("trust", {}).get("state_dir", "state") if isinstance(raw.get("trust", {}), dict) else "state"
    )
    for section, key, name in (("interception", "ca_dir", "ca"), ("limits", "host_table", "limits.table")):
        table = raw.setdefault(section, {})
        if isinstance(table, dict) and isinstance(state_dir, str):
            table.setdefault(key, str(Path(state_dir) / name))
    context = {"base": path.absolute().parent, "environ": environ}
    try:
        # Strict JSON mode takes what TOML can say: arrays for tuples, strings for paths, nothing looser.
        # Defaults of paths are relative too, so they are written out before they are validated.
        return Settings.model_validate_json(
            json.dumps(_with_path_defaults(raw), default=str), context=context
        )
    except ValidationError as error:
        lines = _Lines(text)
        problems = [_problem(path, lines, e) for e in error.errors(include_url=False)]
        raise SettingsError(sorted(problems, key=lambda p: (p.line is None, p.line or 0))) from None


def known_keys() -> dict[str, tuple[type[BaseModel], str]]:
    """Every key that a file may have, as dotted path → (model, field). Lists stand as `identity.cidr.client`."""
    found: dict[str, tuple[type[BaseModel], str]] = {}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            nested = _model_of(field.annotation)
            if nested is None:
                found[prefix + name] = (model, name)
            else:
                walk(nested, f"{prefix}{name}.")

    walk(Settings, "")
    return found


def read_file(path: Path) -> str:
    """The text of a configuration file. Raises SettingsError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "; `edgeguard init` writes a first one" if isinstance(error, FileNotFoundError) else ""
        raise SettingsError([Problem(path, None, "", f"cannot be read: {error.strerror}{hint}")]) from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError([Problem(path, None, "", f"is larger than {MAX_FILE_BYTES} bytes")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError([Problem(path, line, "", "is not UTF-8 text")]) from None


_RELATIVE: Final = (
    ("trust", "root", "root.msgpack"),
    ("trust", "state_dir", "state"),
    ("user", "jwks_dir", "jwks"),
)
"""(section, key, default) of paths that start at the folder of the file, written there or not."""


def _with_path_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    filled = {**raw}
    for section, name, default in _RELATIVE:
        table = filled.get(section, {})
        if isinstance(table, dict):
            filled[section] = {name: default, **table}
    return filled


def _model_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (nested := _model_of(argument)) is not None:
            return nested
    return None


def _model_at(loc: Loc) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Settings
    for part in loc:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = _model_of(model.model_fields[part].annotation)
    return model


def _problem(path: Path, lines: "_Lines", error: ErrorDetails) -> Problem:
    loc = error["loc"] or ("environment",)
    key = ".".join(map(str, loc))
    line = lines.of(loc)
    kind = error["type"]
    if kind == "extra_forbidden":
        return Problem(path, line, key, _unknown(loc))
    if kind == "missing":
        return Problem(
            path, line, key, "is missing" + (' (write environment = "prod")' if key == "environment" else "")
        )
    if kind.endswith(("_type", "_parsing")) or kind == "is_instance_of":
        expected = error["msg"].removeprefix("Input should be ")
        return Problem(path, line, key, f"must be {_plain(expected)}, not {_shown(error['input'])}")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # A secret that was put in the wrong place must not reach the terminal or a log.
    quiet = kind == "value_error" or not {"sha256", "secret", "token"}.isdisjoint(loc)
    shown = "" if quiet else f", not {_shown(error['input'])}"
    return Problem(path, line, key, message[:1].lower() + message[1:] + shown)


def _unknown(loc: Loc) -> str:
    name = str(loc[-1])
    model = _model_at(loc[:-1])
    known = list(model.model_fields) if model is not None else []
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = {dotted.rpartition(".")[2]: dotted for dotted in known_keys()}
    if near := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75):
        section, _, key = elsewhere[near[0]].rpartition(".")
        return (
            f"unknown key; did you mean {key} in [{section}]?"
            if section
            else f"unknown key; did you mean {key}?"
        )
    return "unknown key; known here: " + ", ".join(known)


def _plain(expected: str) -> str:
    return (
        expected.replace("a valid integer", "a whole number")
        .replace("a valid ", "a ")
        .replace("array", "list")
        .replace("an object", "a table")
    )


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_KEY_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_ASSIGNMENT = re.compile(rf"^\s*({_KEY_PART}(?:\s*\.\s*{_KEY_PART})*)\s*=")


class _Lines:
    """Line numbers of the keys and tables of a valid TOML text."""

    def __init__(self, text: str) -> None:
        self._at: dict[Loc, int] = {}
        counts: dict[Loc, int] = {}
        table: Loc = ()
        closing: str | None = None
        depth = 0
        for number, line in enumerate(text.splitlines(), start=1):
            if closing is not None:
                if closing in line:
                    closing = None
                continue
            if depth == 0 and (header := _HEADER.match(line)) and not _ASSIGNMENT.match(line):
                table = self._resolve(_parts(header[2]), counts)
                if header[1] == "[[":
                    index = counts.get(table, 0)
                    counts[table] = index + 1
                    table = (*table, index)
                for end in range(1, len(table) + 1):
                    self._at.setdefault(table[:end], number)
            elif depth == 0 and (assignment := _ASSIGNMENT.match(line)):
                loc = (*table, *_parts(assignment[1]))
                for end in range(len(table) + 1, len(loc) + 1):
                    self._at.setdefault(loc[:end], number)
            bare = re.sub(r'"(?:[^"\\]|\\.)*"(?!")|\'[^\']*\'(?!\')', "", line)
            for quote in ('"""', "'''"):
                if bare.count(quote) % 2:
                    closing = quote
            bare = bare.partition("#")[0]
            if "=" in bare or depth:
                bare = bare.partition("=")[2] if depth == 0 else bare
                depth = max(0, depth + bare.count("[") - bare.count("]"))

    @staticmethod
    def _resolve(parts: Loc, counts: Mapping[Loc, int]) -> Loc:
        # A header below an array of tables belongs to its newest element.
        loc: Loc = ()
        for part in parts[:-1]:
            loc = (*loc, part)
            if loc in counts:
                loc = (*loc, counts[loc] - 1)
        return (*loc, *parts[-1:])

    def of(self, loc: Loc) -> int | None:
        """The line of the key, or of the nearest table around it."""
        for end in range(len(loc), 0, -1):
            if (line := self._at.get(loc[:end])) is not None:
                return line
        return None


def _parts(dotted: str) -> Loc:
    return tuple(part.strip("\"'") for part in re.findall(_KEY_PART, dotted))
