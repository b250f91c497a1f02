"""Reading a decoded map field by field: every field named, typed and bounded, or refused.

Python's bool is an int and dict.get forgives; neither may decide what a signed document means.
"""

import re
from typing import Final

from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

MAX_INT: Final = 2**53
"""Versions and Unix seconds stay exact in every language's numbers."""
SCHEMA: Final = (1, 0)
"""Major and minor of the documents that this code understands."""
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


def check_name(name: str, what: str) -> str:
    """An environment or member name: safe in a URL, a file name and a media type parameter."""
    if not _NAME.fullmatch(name):
        raise malformed(f"{what} {name[:40]!r}: lower-case letters, digits and inner hyphens, at most 32")
    return name


class Fields:
    """One map, consumed field by field; `done` refuses what nobody asked for."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise malformed(f"{where} is not a map")
        self._rest: dict[str, object] = dict(value)
        self._where = where

    def _take(self, name: str) -> object:
        try:
            return self._rest.pop(name)
        except KeyError:
            raise malformed(f"{self._where}.{name} is missing") from None

    def _wrong(self, name: str, expected: str) -> Refusal:
        return malformed(f"{self._where}.{name} is not {expected}")

    def has(self, name: str) -> bool:
        return name in self._rest

    def integer(self, name: str, low: int = 0, high: int = MAX_INT) -> int:
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"an integer from {low} to {high}")
        return value

    def text(self, name: str, longest: int = 256) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > longest:
            raise self._wrong(name, f"a string of at most {longest} characters")
        return value

    def binary(self, name: str) -> bytes:
        value = self._take(name)
        if not isinstance(value, bytes):
            raise self._wrong(name, "a byte string")
        return value

    def items(self, name: str, most: int) -> list[object]:
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, f"an array of at most {most}")
        return value

    def optional_items(self, name: str, most: int) -> list[object] | None:
        """An array, or nil for none."""
        if self._rest.get(name, ...) is None:
            self._take(name)
            return None
        return self.items(name, most)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        values = self.items(name, most)
        result = tuple(value for value in values if isinstance(value, str) and 0 < len(value) <= 256)
        if len(result) != len(values) or len(set(result)) != len(result):
            raise self._wrong(name, "an array of distinct, non-empty strings")
        return result

    def mapping(self, name: str, most: int) -> dict[str, object]:
        value = self._take(name)
        if not isinstance(value, dict) or len(value) > most:
            raise self._wrong(name, f"a map of at most {most}")
        return value

    def sub(self, name: str) -> "Fields":
        return Fields(self._take(name), f"{self._where}.{name}")

    def schema(self, role: str) -> bool:
        """Take `role`, `schema` and `critical`; True if fields that we do not know may follow.

        Raises:
            Refusal: type for another role; schema_unsupported for a newer major version or a
                critical feature, since no critical feature exists yet.
        """
        found = self.text("role")
        if found != role:
            raise Refusal(RefusalCode.TYPE, f"the payload is a {found[:20]!r}, not a {role}")
        version = self.items("schema", 2)
        if len(version) != 2 or any(type(part) is not int for part in version):
            raise self._wrong("schema", "[major, minor]")
        critical = self.texts("critical", 64) if self.has("critical") else ()
        if version[0] != SCHEMA[0]:
            raise Refusal(RefusalCode.SCHEMA_UNSUPPORTED, f"schema {version}, {list(SCHEMA)} is supported")
        if critical:
            raise Refusal(RefusalCode.SCHEMA_UNSUPPORTED, f"critical feature {critical[0]!r} is not known")
        return tuple(version) > SCHEMA

    def done(self, *, lenient: bool = False) -> None:
        """Refuse left-over fields, unless a newer minor schema may have added them."""
        if self._rest and not lenient:
            raise malformed(f"{self._where} has an unknown field {min(self._rest)[:40]!r}")
