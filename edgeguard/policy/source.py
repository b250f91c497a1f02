"""From files to a `Policy`, or to every mistake at once, each with file, line, column and field.

YAML 1.2 core schema: `no` is a word and a date is text. Anchors, aliases, tags, several documents and duplicate keys are
refused: a policy says what it says in one place.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import FileMark, MarkedYAMLError, StreamMark, StringMark, YAMLError

from edgeguard.policy import model
from edgeguard.policy.model import Module, Policy

MAX_FILE: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 16

type Path = tuple[str | int, ...]
type Mark = FileMark | StringMark | StreamMark
type Event = Any  # ruamel.yaml's events carry no types
type Marks = dict[Path, tuple[int, int]]

_INT: Final = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: Final[Mapping[str, object]] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


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


@dataclass(frozen=True, slots=True)
class Sources:
    """A loaded policy and where each statement stands, for later stages that find mistakes."""

    policy: Policy
    places: Mapping[str, tuple[str, int, int]]
    """Statement id (or `module NAME`, `resource NAME`, …) to (file, line, column)."""

    def error(self, statement: str, field: str, message: str, hint: str = "") -> PolicyError:
        file, line, column = self.places.get(statement, ("policy", 0, 0))
        return PolicyError(file, line, column, f"{statement}.{field}" if field else statement, message, hint)


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, mark: Mark, message: str, hint: str = "", path: Path = ()) -> None:
        self.line, self.column, self.path = mark.line + 1, mark.column + 1, path
        self.message, self.hint = message, hint


def load_sources(files: Mapping[str, bytes]) -> Policy:
    """Parses and checks YAML files, name to content. Raises `PolicyErrors` with every mistake."""
    return load_with_places(files).policy


def load_with_places(files: Mapping[str, bytes]) -> Sources:
    """Like `load_sources`, and keeps where each statement stands."""
    from edgeguard.policy.check import check_policy  # the cross-module rules, built on the types above

    errors: list[PolicyError] = []
    modules: list[Module] = []
    places: dict[str, tuple[str, int, int]] = {}
    if not files:
        raise PolicyErrors(
            [
                PolicyError(
                    "policy", 0, 0, "", "there are no policy files", "a policy is a folder of .yaml files"
                )
            ]
        )
    for name in sorted(files):
        data, marks, found = parse_yaml(name, files[name])
        errors += found
        if found:
            continue
        if not isinstance(data, dict):
            errors.append(
                PolicyError(name, 1, 1, "", "a policy file is a mapping", "begin with `edgeguard: 1`")
            )
            continue
        try:
            module = Module.model_validate(data)
        except ValidationError as error:
            items = error.errors(include_url=False, include_context=False)
            # A list whose entries are wrong is also reported as too short; the entries are the news.
            deeper = {tuple(i["loc"][:-1]) for i in items if i["type"] != "too_short"}
            errors += [
                translate(name, marks, i)
                for i in items
                if i["type"] != "too_short" or tuple(i["loc"]) not in deeper
            ]
            continue
        modules.append(module)
        errors += _place(name, module, marks, places)
    sources = Sources(Policy(modules=tuple(sorted(modules, key=lambda m: m.module))), places)
    if not errors:  # half a policy would report names as missing that the broken files define
        errors += check_policy(sources)
    if errors:
        raise PolicyErrors(errors)
    return sources


def parse_yaml(name: str, content: bytes) -> tuple[object, Marks, list[PolicyError]]:
    """Plain data and the mark of every value. Never raises for bad input."""
    marks: Marks = {}
    if len(content) > MAX_FILE:
        return None, marks, [PolicyError(name, 0, 0, "", f"the file is larger than {MAX_FILE} bytes")]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            None,
            marks,
            [PolicyError(name, content[: error.start].count(b"\n") + 1, 1, "", "the file is not UTF-8")],
        )
    errors: list[PolicyError] = []
    try:
        stream = iter(YAML(typ="safe", pure=True).parse(text))
        data = _document(stream, marks, name, errors)
    except _Refused as refused:
        errors.append(
            PolicyError(
                name, refused.line, refused.column, _field(refused.path), refused.message, refused.hint
            )
        )
        return None, marks, errors
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return (
            None,
            marks,
            [PolicyError(name, line, column, "", f"not YAML: {error.problem or error.context}")],
        )
    except (YAMLError, ValueError) as error:
        return None, marks, [PolicyError(name, 0, 0, "", f"not YAML: {str(error).splitlines()[0]}")]
    return data, marks, errors


def _document(stream: Iterator[Any], marks: Marks, name: str, errors: list[PolicyError]) -> object:
    event = next(stream)
    while isinstance(event, ev.StreamStartEvent | ev.DocumentStartEvent):
        event = next(stream)
    if isinstance(event, ev.StreamEndEvent):
        return None
    data = _value(event, stream, (), marks, name, errors)
    for event in stream:
        if isinstance(event, ev.DocumentStartEvent):
            raise _Refused(event.start_mark, "the file has several documents", "write one file per module")
    return data


def _value(
    event: Event, stream: Iterator[Any], path: Path, marks: Marks, name: str, errors: list[PolicyError]
) -> object:
    if isinstance(event, ev.AliasEvent) or event.anchor is not None:
        raise _Refused(
            event.start_mark,
            "anchors and aliases are not part of the policy language",
            "write the value out, or name a resource",
            path,
        )
    if len(path) > MAX_DEPTH:
        raise _Refused(event.start_mark, f"nested deeper than {MAX_DEPTH} levels", path=path)
    marks.setdefault(path, (event.start_mark.line + 1, event.start_mark.column + 1))
    if event.tag not in {None, "!"}:
        raise _Refused(
            event.start_mark, f"the tag {event.tag} is not part of the policy language", "remove it", path
        )
    if isinstance(event, ev.ScalarEvent):
        return _scalar(event, path)
    if isinstance(event, ev.SequenceStartEvent):
        items: list[object] = []
        while not isinstance(item := next(stream), ev.SequenceEndEvent):
            items.append(_value(item, stream, (*path, len(items)), marks, name, errors))
        return items
    out: dict[str, object] = {}
    while not isinstance(key_event := next(stream), ev.MappingEndEvent):
        if not isinstance(key_event, ev.ScalarEvent) or key_event.anchor is not None:
            raise _Refused(key_event.start_mark, "a key is plain text", path=path)
        key = key_event.value
        mark = (key_event.start_mark.line + 1, key_event.start_mark.column + 1)
        if key in out:
            first = marks[(*path, key)][0]
            errors.append(
                PolicyError(
                    name, *mark, _field((*path, key)), "the key stands twice", f"first in line {first}"
                )
            )
            _value(next(stream), stream, (*path, key, "again"), {}, name, errors)
            continue
        marks[(*path, key)] = mark
        out[key] = _value(next(stream), stream, (*path, key), marks, name, errors)
    return out


def _scalar(event: Event, path: Path) -> object:
    text: str = event.value
    if event.style is not None:  # quoted or block text is text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        if len(text) > 20:
            raise _Refused(event.start_mark, "the number is too large", path=path)
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    if _FLOAT.match(text):
        return float(text)
    return text


def _field(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_MODELS: Final[Mapping[tuple[str, ...], type[BaseModel]]] = {
    (): Module,
    ("rules",): model.Rule,
    ("rules", "when"): model.When,
    ("rate_limits",): model.RateLimit,
    ("rate_limits", "when"): model.When,
    ("rate_limits", "match"): model.LimitMatch,
    ("age_gates",): model.AgeGate,
    ("age_gates", "when"): model.When,
    ("age_gates", "match"): model.Where,
    ("age_gates", "require"): model.AgeRequirement,
    ("exceptions",): model.Exception_,
    ("learning",): model.Learning,
    ("quarantine",): model.Quarantine,
    ("resources", "*"): model.Resource,
    ("actions", "*"): model.Action,
    ("issuers",): model.Issuer,
}
_NAMED: Final = frozenset({"resources", "actions"})


def _known_fields(path: Path) -> list[str]:
    words = [part for part in path if isinstance(part, str)]
    if len(words) > 1 and words[0] in _NAMED:
        words[1] = "*"
    found = _MODELS.get(tuple(words))
    return [] if found is None else [field.alias or name for name, field in found.model_fields.items()]


def nearest(word: str, known: list[str]) -> str:
    """A hint that names the closest of the known words, or all of them."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return "known here: " + ", ".join(sorted(known)) if known else ""


def translate(name: str, marks: Marks, item: ErrorDetails) -> PolicyError:
    path: Path = tuple(item["loc"])
    kind, message, hint = item["type"], item["msg"].removeprefix("Value error, "), ""
    if kind == "extra_forbidden":
        message, hint = f"unknown field `{path[-1]}`", nearest(str(path[-1]), _known_fields(path[:-1]))
    elif kind == "missing":
        message = f"`{path[-1]}` is missing"
    elif kind == "string_pattern_mismatch":
        message = "the text has a character that is not allowed here, or is too long"
        hint = _pattern_hint(str(path[-1]) if path else "")
    elif kind.endswith("_type"):
        message = (
            message.replace("Input should be", "it should be")
            .replace("valid tuple", "list")
            .replace("valid dictionary", "mapping")
        )
    while path and path not in marks:
        path = path[:-1]
    line, column = marks.get(path, (1, 1))
    return PolicyError(name, line, column, _field(tuple(item["loc"])), message, hint)


def _pattern_hint(field: str) -> str:
    if field in {"id", "module", "lifts"}:
        return "an id is lower-case letters, digits, `.`, `_` and `-`, at most 64"
    if field == "hours":
        return "write `09:00-17:30`"
    return "a method is written in upper case; a client is a name, `group:NAME` or `any`; a region is a code such as DE or US-TX"


_SECTIONS: Final = ("rules", "rate_limits", "age_gates", "exceptions", "learning", "quarantine")


def _place(
    name: str, module: Module, marks: Marks, places: dict[str, tuple[str, int, int]]
) -> list[PolicyError]:
    """Notes where each statement stands; ids are unique over the whole policy."""
    found: list[tuple[str, Path, str]] = [(f"module {module.module}", ("module",), "module")]
    for section in _SECTIONS:
        found += [(item.id, (section, i, "id"), "id") for i, item in enumerate(getattr(module, section))]
    for section in ("resources", "actions", "flags", "client_groups", "regions"):
        kind = "region group" if section == "regions" else section.removesuffix("s").replace("_", " ")
        found += [(f"{kind} {key}", (section, key), key) for key in getattr(module, section)]
    found += [
        (f"issuer {item.issuer}", ("issuers", i, "issuer"), "issuer") for i, item in enumerate(module.issuers)
    ]
    errors = []
    for statement, path, _ in found:
        line, column = marks.get(path, (1, 1))
        if statement in places:
            other, first, _ = places[statement]
            errors.append(
                PolicyError(
                    name,
                    line,
                    column,
                    _field(path),
                    f"`{statement}` is defined twice",
                    f"first in {other}:{first}",
                )
            )
        else:
            places[statement] = (name, line, column)
    return errors
