"""Paths: every way in which a server could read the bytes, and templates that match them.

The bytes are judged as they are sent, so nothing is normalised away. Instead `readings` lists what the
path may mean to some server: percent-decoding once or twice, an encoded slash as data or as separator, parameters
(`;x`) kept or stripped, empty segments kept or merged, dot segments resolved or not (RFC 3986, 5.2.4 and 6.2.2). What no
honest client sends is refused. A reading is the tuple of decoded segments; a trailing slash is a last empty segment.
"""

import re
from typing import Final, NamedTuple

MAX_PATH = 8192
MAX_QUERY_FIELDS = 512
MAX_SEGMENTS = 256

type Segments = tuple[str, ...]
type Query = tuple[tuple[str, str], ...]

_CLEAN: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)*/?\Z")
_RAW_BAD: Final = re.compile(r"[^\x21-\x7e]|#")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_ESCAPE_BYTES: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_SLASH: Final = "\ue000"  # stands for an encoded slash that is data; private use, refused in input


class PathError(ValueError):
    """The target has no honest reading. The message says why."""


def check_target(target: str) -> None:
    """The syntax that every origin-form target must have, even where no rule looks at paths. Raises `PathError`."""
    if not target.startswith("/"):
        raise PathError("the target does not begin with a slash")
    if (bad := _RAW_BAD.search(target)) is not None:
        raise PathError(f"the target contains the raw character {bad.group()!r}")


def readings(target: str) -> tuple[Segments, ...]:
    """All readings of the path of an origin-form target, the plain one first. Raises `PathError`."""
    path = target.partition("?")[0]
    if _CLEAN.match(path) and len(path) <= MAX_PATH and path:
        if path.count("/") > MAX_SEGMENTS:
            raise PathError(f"the path has more than {MAX_SEGMENTS} segments")
        return (tuple(path[1:].split("/")),)
    check_target(path)
    if len(path) > MAX_PATH:
        raise PathError(f"the path is longer than {MAX_PATH} bytes")
    if path.count("/") > MAX_SEGMENTS:
        raise PathError(f"the path has more than {MAX_SEGMENTS} segments")
    if "\\" in path:
        raise PathError("the path contains a backslash")
    found: dict[Segments, None] = {}
    once = _decode(path)
    for text in (once,) if "%" not in once else (once, *_decoded_again(once)):
        splits = (text,) if _SLASH not in text else (text, text.replace(_SLASH, "/"))
        for split in splits:
            segments = split[1:].replace("/", "\n").replace(_SLASH, "/").split("\n")
            if ";" in split:
                _shapes(segments, found)
                segments = [segment.partition(";")[0] for segment in segments]
            _shapes(segments, found)
    return tuple(found)


def _decode(path: str) -> str:
    """Percent-decoding once; an encoded slash becomes `_SLASH`."""
    if "%" not in path:
        return path
    if _BAD_ESCAPE.search(path):
        raise PathError("the path contains a broken percent escape")
    try:
        raw = _ESCAPE.sub(
            lambda m: chr(int(m.group(1), 16)), path.replace("%2F", "%01").replace("%2f", "%01")
        )
        # The placeholder must not collide with an encoded control, so those are looked for first.
        if _encoded_control(path):
            raise PathError("the path contains an encoded control character or backslash")
        text = raw.encode("latin-1").decode("utf-8").replace("\x01", _SLASH)
    except UnicodeDecodeError:
        raise PathError("the path is not UTF-8 once decoded") from None
    if _CONTROL.search(text) or text.count(_SLASH) != path.count("%2F") + path.count("%2f"):
        raise PathError("the path contains a control character once decoded")
    return text


_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff]|5[Cc])")


def _encoded_control(path: str) -> bool:
    return _ENCODED_CONTROL.search(path) is not None


def _decoded_again(once: str) -> tuple[str, ...]:
    """The reading of a server that decodes twice; nothing if the result is no escape at all."""
    if _ESCAPE.search(once) is None:
        return ()
    if _encoded_control(once):
        raise PathError("the path contains a doubly encoded control character or backslash")
    try:
        # Characters of the first decoding stay as they are; the bytes that the second brings must join to UTF-8.
        text = _ESCAPE_BYTES.sub(_second_byte, once.encode("utf-8")).decode("utf-8")
    except UnicodeDecodeError:
        raise PathError("the path is not UTF-8 once decoded twice") from None
    if _ESCAPE.search(text) is not None or _CONTROL.search(text) is not None:
        raise PathError("the path is percent-encoded three times, or hides a control character")
    return (text,)


def _second_byte(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    return _SLASH.encode() if code in {b"2F", b"2f"} else bytes([int(code, 16)])


def _shapes(segments: list[str], found: dict[Segments, None]) -> None:
    """Adds the readings with dot segments and empty segments resolved, and as they stand."""
    dots = "." in segments or ".." in segments
    empty = "" in segments[:-1]
    if dots:
        if empty:
            found[_resolve([s for s in segments[:-1] if s] + segments[-1:])] = None
        resolved = _resolve(segments)
        found[resolved] = None
        if "" in resolved[:-1]:
            found[_merge(resolved)] = None
    elif empty:
        found[_merge(segments)] = None
    found[tuple(segments)] = None
    if dots and empty:
        found[_merge(segments)] = None


def _merge(segments: list[str] | Segments) -> Segments:
    return tuple([s for s in segments[:-1] if s] + list(segments[-1:]))


def _resolve(segments: list[str]) -> Segments:
    out: list[str] = []
    for segment in segments:
        if segment == "..":
            if not out:
                raise PathError("the path climbs above the root")
            out.pop()
        elif segment != ".":
            out.append(segment)
    if segments[-1] in {".", ".."}:
        out.append("")
    return tuple(out) or ("",)


class Template(NamedTuple):
    """A path template: `*` is one non-empty segment (None here), a last `**` is any number of segments."""

    segments: tuple[str | None, ...]
    open: bool

    def matches(self, path: Segments) -> bool:
        mine = self.segments
        size = len(mine)
        if self.open:
            if len(path) < size:
                return False
        elif len(path) != size:
            return False
        for want, have in zip(mine, path, strict=False):
            if want != have and (want is not None or not have):
                return False
        return True


def parse_template(text: str) -> Template:
    """Parses a template as authors write it. Raises `PathError` with what to write instead."""
    if not text.startswith("/"):
        raise PathError("a path begins with a slash")
    if any(c in text for c in "?#\\%;") or _CONTROL.search(text):
        raise PathError(
            "write the decoded path, without query, fragment, percent escapes, parameters or backslash"
        )
    parts = text[1:].split("/")
    is_open = parts[-1] == "**"
    if is_open:
        parts.pop()
    for place, part in enumerate(parts):
        if part in {".", ".."}:
            raise PathError("a path has no dot segments")
        if not part and (place < len(parts) - 1 or is_open):
            raise PathError("a path has no empty segments")
        if part == "**":
            raise PathError("`**` may only stand at the end")
        if "*" in part and part != "*":
            raise PathError("`*` stands for a whole segment; part of a segment cannot be a wildcard")
    return Template(tuple(None if part == "*" else part for part in parts), is_open)


def fold(path: Segments) -> Segments:
    """The form in which the restrictive matchers compare: case folded, without the trailing slash."""
    folded = tuple([segment.casefold() for segment in path])
    return folded[:-1] if folded[-1:] == ("",) else folded


def fold_template(template: Template) -> Template:
    """The template's counterpart of `fold`."""
    segments = tuple(None if s is None else s.casefold() for s in template.segments)
    if segments[-1:] == ("",):
        segments = segments[:-1]
    return Template(segments, template.open)


def query_readings(target: str) -> tuple[Query, ...]:
    """Readings of the query as (key, value) pairs: `;` as a separator or not, decoded once or twice. Raises `PathError`."""
    text = target.partition("?")[2]
    if not text:
        return ((),)
    found: dict[Query, None] = {}
    for separated in (text,) if ";" not in text else (text, text.replace(";", "&")):
        fields = [field for field in separated.split("&") if field]
        if len(fields) > MAX_QUERY_FIELDS:
            raise PathError(f"the query has more than {MAX_QUERY_FIELDS} fields")
        once = tuple(
            (_query_text(k), _query_text(v)) for k, _, v in (field.partition("=") for field in fields)
        )
        found[once] = None
        if any("%" in k or "%" in v for k, v in once):
            found[tuple((_query_text(k), _query_text(v)) for k, v in once)] = None
    return tuple(found)


def _query_text(text: str) -> str:
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    raw = _ESCAPE_BYTES.sub(lambda m: bytes([int(m.group(1), 16)]), text.encode("utf-8"))
    return raw.decode("utf-8", "replace")
