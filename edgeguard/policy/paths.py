"""Paths: every way in which a server could read the bytes.

The bytes are judged as they are sent, so nothing is normalised away. Instead `spellings` lists what the
path may mean to some server: percent-decoding once or twice, an encoded slash as data or as separator, parameters
(`;x`) kept or stripped, empty segments kept or merged, dot segments resolved or not (RFC 3986, 5.2.4 and 6.2.2). What no
honest client sends is refused. A spelling is decoded text in which `/` only separates segments; a slash that is data is `DATA_SLASH`.
"""

import re
from typing import Final

from edgeguard.policy.templates import PathError, Template, check_template, fold_template, parse_template

MAX_PATH: Final = 8192
"""Bytes."""
MAX_QUERY_FIELDS: Final = 512
MAX_SEGMENTS: Final = 256
SHORT: Final = 512
"""A target of so many bytes has neither too many segments (unless some are empty) nor too many query fields."""
DATA_SLASH: Final = "\ue000"
"""Private use, refused in input."""

type Segments = tuple[str, ...]
type Query = tuple[tuple[str, str], ...]

clean_target: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,=:@/-]*(?:\?[!-\"$-~]*)?\Z").match
"""Matches a target whose path has one spelling, unless it has dot segments or empty ones."""
_RAW_BAD: Final = re.compile(r"[^\x21-\x7e]|#")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_ESCAPE_BYTES: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff]|5[Cc])")
_DOTS: Final = re.compile(r"/\.{1,2}(?:/|\Z)")
_PARAMETERS: Final = re.compile(";[^/]*")
_PRINTABLE: Final = {
    form: DATA_SLASH if code == 0x2F else chr(code)
    for code in range(0x20, 0x7F)
    for form in (f"{code:02X}", f"{code:02x}")
    if code != 0x5C
}
"""What escapes of printable ASCII stand for."""


def check_target(target: str) -> None:
    """The syntax that every origin-form target must have, even where no rule looks at paths. Raises `PathError`."""
    if not target.startswith("/"):
        raise PathError("the target does not begin with a slash")
    if (bad := _RAW_BAD.search(target)) is not None:
        raise PathError(f"the target contains the raw character {bad.group()!r}")


def spellings(target: str) -> tuple[str, ...]:
    """Every spelling of the path of an origin-form target, the plain one first. Raises `PathError`."""
    check_target(target)
    path = target.partition("?")[0]
    if len(path) > MAX_PATH:
        raise PathError(f"the path is longer than {MAX_PATH} bytes")
    if path.count("/") > MAX_SEGMENTS:
        raise PathError(f"the path has more than {MAX_SEGMENTS} segments")
    if "\\" in path:
        raise PathError("the path contains a backslash")
    found: dict[str, None] = {}
    once = _decode(path) if "%" in path else path
    for text in (once,) if "%" not in once else (once, *_decoded_again(once)):
        for split in (text,) if DATA_SLASH not in text else (text, text.replace(DATA_SLASH, "/")):
            _shapes(split, found)
            if ";" in split:
                _shapes(_PARAMETERS.sub("", split), found)
    return tuple(found)


def readings(target: str) -> tuple[Segments, ...]:
    """`spellings` as decoded segments; a trailing slash is a last empty segment. Raises `PathError`."""
    return tuple(
        tuple(segment.replace(DATA_SLASH, "/") for segment in path[1:].split("/"))
        for path in spellings(target)
    )


def _decode(path: str) -> str:
    """Percent-decoding once; an encoded slash becomes `DATA_SLASH`."""
    plain, *escaped = path.split("%")
    for part in escaped:
        char = _PRINTABLE.get(part[:2])
        if char is None:
            return _decode_bytes(path)
        plain += char + part[2:]
    return plain


def _decode_bytes(path: str) -> str:
    """The same for escapes of anything."""
    if _BAD_ESCAPE.search(path):
        raise PathError("the path contains a broken percent escape")
    if _ENCODED_CONTROL.search(path):
        raise PathError("the path contains an encoded control character or backslash")
    try:
        # %01 stands for the encoded slash meanwhile: no other control character is left.
        raw = _ESCAPE_BYTES.sub(_byte, path.replace("%2F", "%01").replace("%2f", "%01").encode("ascii"))
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise PathError("the path is not UTF-8 once decoded") from None
    if DATA_SLASH in text or _CONTROL.search(text := text.replace("\x01", DATA_SLASH)):
        raise PathError("the path contains a control character once decoded")
    return text


def _decoded_again(once: str) -> tuple[str, ...]:
    """The reading of a server that decodes twice; nothing if the result is no escape at all."""
    if _ESCAPE.search(once) is None:
        return ()
    if _ENCODED_CONTROL.search(once):
        raise PathError("the path contains a doubly encoded control character or backslash")
    try:
        # Characters of the first decoding stay as they are; the bytes that the second brings must join to UTF-8.
        text = _ESCAPE_BYTES.sub(_second_byte, once.encode("utf-8")).decode("utf-8")
    except UnicodeDecodeError:
        raise PathError("the path is not UTF-8 once decoded twice") from None
    if _ESCAPE.search(text) is not None or _CONTROL.search(text) is not None:
        raise PathError("the path is percent-encoded three times, or hides a control character")
    return (text,)


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes([int(match.group(1), 16)])


def _second_byte(match: re.Match[bytes]) -> bytes:
    return DATA_SLASH.encode() if match.group(1) in {b"2F", b"2f"} else _byte(match)


def _shapes(text: str, found: dict[str, None]) -> None:
    """Adds the spellings with dot segments and empty segments resolved, and as they stand."""
    merged = _merge(text) if "//" in text else text
    if _DOTS.search(text) is None:
        found[merged] = found[text] = None
        return
    if merged is not text:
        found[_resolve(merged)] = None
    resolved = _resolve(text)
    found[resolved] = None
    if "//" in resolved:
        found[_merge(resolved)] = None
    found[text] = found[merged] = None


def _merge(text: str) -> str:
    while "//" in text:  # at most eight times: the number of segments is bounded
        text = text.replace("//", "/")
    return text


def _resolve(text: str) -> str:
    out: list[str] = []
    segment = ""
    for segment in text[1:].split("/"):
        if segment == "..":
            if not out:
                raise PathError("the path climbs above the root")
            out.pop()
        elif segment != ".":
            out.append(segment)
    if segment in {".", ".."}:
        out.append("")
    return "/" + "/".join(out)


def fold_path(path: str) -> str:
    """The form in which the restrictive matchers compare spellings: case folded, without one trailing slash."""
    folded = path.casefold()
    return folded.removesuffix("/")


def fold(path: Segments) -> Segments:
    """`fold_path` for a reading."""
    folded = tuple([segment.casefold() for segment in path])
    return folded[:-1] if folded[-1:] == ("",) else folded


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
    return _ESCAPE_BYTES.sub(_byte, text.encode("utf-8")).decode("utf-8", "replace")


__all__ = [
    "DATA_SLASH",
    "PathError",
    "Query",
    "Segments",
    "Template",
    "check_target",
    "check_template",
    "clean_target",
    "fold",
    "fold_path",
    "fold_template",
    "parse_template",
    "query_readings",
    "readings",
    "spellings",
]
