"""Path templates, and sets of them that match in time linear in the path.

`*` is one non-empty segment, a last `**` any number of segments. A `TemplateSet` sorts its templates by what they need: literal
paths into a set, literal prefixes into one `startswith`, the rest into a trie. No pattern language of an author reaches `re`.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

MAX_PREFIXES: Final = 16
"""More prefixes than this go into the trie: `startswith` tries them one by one."""
_CONTROL: Final = r"\x00-\x1f\x7f-\x9f\ue000"
_SEGMENT: Final = rf"(?:\*|(?!\.{{1,2}}(?:/|\Z))[^/*?#\\%;{_CONTROL}]+)"
_PLAIN: Final = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*(?:/|/\*\*)?|\*\*)?\Z").match
_BAD: Final = re.compile(rf"[?#\\%;{_CONTROL}]").search


class PathError(ValueError):
    """The target has no honest reading, or the template no meaning. The message says why."""


class Template(NamedTuple):
    """One template: None for `*`; `open` if it ends in `**`."""

    segments: tuple[str | None, ...]
    open: bool

    def matches(self, path: tuple[str, ...]) -> bool:
        """Whether it matches decoded segments."""
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


def check_template(text: str) -> None:
    """Raises `PathError` exactly if `parse_template` does."""
    if _PLAIN(text) is None:
        parse_template(text)


def parse_template(text: str) -> Template:
    """Parses a template as authors write it. Raises `PathError` with what to write instead."""
    if not text.startswith("/"):
        raise PathError("a path begins with a slash")
    if _BAD(text):
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


def fold_template(template: Template) -> Template:
    """The template's counterpart of `paths.fold`."""
    segments = tuple(None if s is None else s.casefold() for s in template.segments)
    if segments[-1:] == ("",):
        segments = segments[:-1]
    return Template(segments, template.open)


type _Node = dict[Any, Any]
"""Segment to node; None to the node behind `*`; _END and _OPEN mark where a template ends."""
_END: Final = True
_OPEN: Final = False


class TemplateSet:
    """Templates of one condition, compiled for spellings (`paths.spellings`)."""

    __slots__ = ("exact", "prefixes", "trie")

    def __init__(self, templates: Iterable[Template]) -> None:
        exact: set[str] = set()
        prefixes: list[str] = []
        starred: list[Template] = []
        for template in templates:
            if None in template.segments:
                starred.append(template)
                continue
            literal = "".join(f"/{segment}" for segment in template.segments)
            if template.open and len(prefixes) >= MAX_PREFIXES:
                starred.append(template)
                continue
            exact.add(literal)
            if template.open:
                prefixes.append(f"{literal}/" if literal else "")
        self.exact, self.prefixes = frozenset(exact), tuple(prefixes)
        self.trie: _Node | None = _trie(starred) if starred else None

    def has(self, path: str) -> bool:
        """Whether some template matches the spelling."""
        return (
            path in self.exact
            or path.startswith(self.prefixes)
            or (self.trie is not None and _walk(self.trie, path))
        )


def _trie(templates: Iterable[Template]) -> _Node:
    root: _Node = {}
    for template in templates:
        node = root
        for segment in template.segments:
            node = node.setdefault(segment, {})
        node[_OPEN if template.open else _END] = {}
    return root


def _walk(root: _Node, path: str) -> bool:
    nodes = [root]
    for segment in path[1:].split("/") if path else ():
        following: list[_Node] = []
        for node in nodes:
            if _OPEN in node:
                return True
            if segment in node:
                following.append(node[segment])
            if segment and None in node:
                following.append(node[None])
        if not following:
            return False
        nodes = following
    return any(_END in node or _OPEN in node for node in nodes)
