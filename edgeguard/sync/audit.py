"""Whether the tables in memory are still those that were activated.

Compiled tables are immutable by convention, not by the language: a bug or a patched module could change a
list in place. A checksum is taken when an engine first comes into force, and compared later. The walk is
cut into slices of a millisecond with pauses in between, so that it holds up nobody who needs the
interpreter. What the engine fills in as it goes (statements made on first use, memoised plans) is left
out; what those are made from is in.
"""

import asyncio
import time
from collections.abc import Iterator
from types import MemberDescriptorType
from typing import Final

SLICE_S: Final = 0.001
PAUSE_S: Final = 0.01
MADE_ON_USE: Final = frozenset({"solo", "_exact", "_strict", "_loose", "_loose_methods", "_templates"})
"""Attributes of the tables that fill up while decisions are made; those named `_made...` do as well."""


async def checksum(tables: object) -> int:
    """A checksum of everything that is reachable; the same object gives the same number in one process."""
    result = 0
    until = time.perf_counter() + SLICE_S
    for count, item in enumerate(_walk(tables)):
        result = hash((result, item))
        if count % 64 == 0 and time.perf_counter() >= until:
            await asyncio.sleep(PAUSE_S)
            until = time.perf_counter() + SLICE_S
    return result


def _walk(top: object) -> Iterator[object]:
    """Something hashable for each thing below `top`, in an order that only a change can change."""
    waiting: list[object] = [top]
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, str | bytes | int | float | None):
            yield thing
            continue
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        match thing:
            case dict():
                yield len(thing)
                waiting += thing.keys()
                waiting += thing.values()
            case list() | tuple():
                yield len(thing)
                waiting += thing
            case set() | frozenset():
                yield frozenset(item if _plain(item) else id(item) for item in thing)
            case _:
                yield type(thing).__qualname__
                waiting += _attributes(thing)


def _plain(item: object) -> bool:
    return isinstance(item, str | bytes | int | float)


def _attributes(thing: object) -> Iterator[object]:
    if type(thing).__module__.partition(".")[0] != "edgeguard":
        return  # a standard type, such as a network: immutable
    for kind in type(thing).__mro__:
        for name, member in sorted(vars(kind).items()):
            if isinstance(member, MemberDescriptorType) and not _made_on_use(name):
                yield getattr(thing, name, None)
    for name, value in sorted(getattr(thing, "__dict__", {}).items()):
        if not _made_on_use(name):
            yield value


def _made_on_use(name: str) -> bool:
    return name in MADE_ON_USE or name.startswith("_made")
