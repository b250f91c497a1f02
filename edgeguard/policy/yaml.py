"""YAML 1.2 core schema as plain data, with the line and column of every value: `no` is a word and a date is text.

Anchors, aliases, tags, several documents and duplicate keys are refused: a policy says what it says in one place.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import FileMark, MarkedYAMLError, StreamMark, StringMark, YAMLError

from edgeguard.policy.errors import PolicyError

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


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, mark: Mark, message: str, hint: str = "", path: Path = ()) -> None:
        self.line, self.column, self.path = mark.line + 1, mark.column + 1, path
        self.message, self.hint = message, hint


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
                name, refused.line, refused.column, field_text(refused.path), refused.message, refused.hint
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
                    name, *mark, field_text((*path, key)), "the key stands twice", f"first in line {first}"
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


def field_text(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
