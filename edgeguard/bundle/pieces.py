"""Long documents, decoded piece by piece: bounded memory, and never long in one call.

A container is first measured, child by child, by the library's own skipping, which allocates nothing. That proves
that every announced value is there, so no announced length is worth a bomb. Then its children are decoded, a few
kilobytes at a time; after each piece its objects are counted, and the decoding ends when they cost more than the
input warrants. One call of the library holds the interpreter for a fraction of a millisecond, whatever the
document's size, and the two implementations of the library meet the same questions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgpack

from edgeguard.bundle import codec
from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

# What objects cost in CPython, in bytes, allocation included.
_SLOT: Final = 8
_TEXT: Final = 48
_NUMBER: Final = 32
_CONTAINER: Final = 64
_TABLE: Final = 128
_ENTRY: Final = 60
_WIDE: Final = bytes((0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3))
"""First bytes of integers for which an object is made; the others share theirs."""
_PLAIN: Final = frozenset({type(None), bool, int, str, bytes, list, dict})


class _Span(NamedTuple):
    """Neighbouring children of a container: where they are, and how many."""

    start: int
    end: int
    values: int


def decode_large(data: bytes, limits: codec.Limits) -> object:
    """As `codec.decode`, for an input of any size. Raises Refusal."""
    return _Decoder(data, limits).value(0, len(data), 0)


class _Decoder:
    __slots__ = ("_budget", "_data", "_depth", "_view")

    def __init__(self, data: bytes, limits: codec.Limits) -> None:
        self._data = data
        self._view = memoryview(data)
        self._depth = limits.depth
        # Measuring keeps one copy of the container.
        self._budget = limits.memory_base + (limits.memory_factor - 1) * len(data)

    def value(self, start: int, end: int, depth: int) -> object:
        """The one value that fills `start` to `end`, inside `depth` containers."""
        lead = self._data[start]
        if lead not in codec.CONTAINERS:
            value = codec.unpack(self._view[start:end])
            self._charge([value], end - start, 0, depth)
            return value
        if depth >= self._depth:
            raise malformed(f"nested deeper than {self._depth}")
        header, count = codec.long_form(self._data, start)
        if count > end - start - header:
            raise malformed("cut short: more values are announced than bytes follow")
        is_map = lead in codec.MAPS
        self._spend(_CONTAINER + _SLOT * count + (_TABLE + _ENTRY * count // 2 if is_map else 0))
        items: list[object] = []
        for span in self._measured(start + header, end, count):
            items += self._piece(span, depth + 1)
        return _paired(items) if is_map else items

    def _measured(self, start: int, end: int, count: int) -> Sequence[_Span]:
        """The children, grouped into pieces; together they fill `start` to `end`."""
        unpacker = msgpack.Unpacker(max_buffer_size=max(end - start, 1))
        spans: list[_Span] = []
        try:
            unpacker.feed(self._view[start:end])
            spans.extend(_grouped(unpacker, count))
        except (ValueError, RecursionError, msgpack.UnpackException) as error:
            raise malformed(f"not msgpack of the accepted subset, or cut short: {error}") from None
        if (spans[-1].end if spans else 0) != end - start:
            raise malformed("bytes after the value")
        return [_Span(span.start + start, span.end + start, span.values) for span in spans]

    def _piece(self, span: _Span, depth: int) -> list[object]:
        start, end, count = span
        if count == 1 and end - start > codec.PIECE_BYTES:
            return [self.value(start, end, depth)]
        chunk = self._data[start:end]
        items = codec.unpack(b"\xdd" + count.to_bytes(4) + chunk)
        assert isinstance(items, list)  # noqa: S101 - the header says so
        self._charge(items, end - start, len(chunk) - len(chunk.translate(None, _WIDE)), depth)
        return items

    def _charge(self, items: list[object], size: int, wide: int, depth: int) -> None:
        """Counts objects below a container that has paid for its slots; `wide` bounds the large integers."""
        self._spend(size - _SLOT * len(items))
        level: list[object] = items
        numbers = 0
        while level:
            kinds = Counter(map(type, level))
            if not _PLAIN.issuperset(kinds):
                raise malformed("a float or an extension type")
            numbers += kinds[int]
            inner = kinds[list] + kinds[dict]
            self._spend(_SLOT * len(level) + _TEXT * (kinds[str] + kinds[bytes]) + _CONTAINER * inner)
            if not inner:
                break
            depth += 1
            if depth > self._depth:
                raise malformed(f"nested deeper than {self._depth}")
            below: list[object] = []
            for item in level:
                if type(item) is list:
                    below += item
                elif type(item) is dict and item:
                    self._spend(_TABLE + (_ENTRY + _TEXT) * len(item))
                    below += item.values()
            level = below
        self._spend(_NUMBER * min(numbers, wide))

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise Refusal(RefusalCode.TOO_BIG, "would take far more memory than its size warrants")


def _grouped(unpacker: "msgpack.Unpacker", count: int) -> Iterator[_Span]:
    """Pieces of the next `count` values; a value that is a piece of its own stands alone."""
    skip, tell = unpacker.skip, unpacker.tell
    first = at = number = 0
    for _ in range(count):
        skip()
        now: int = tell()
        if now - first > codec.PIECE_BYTES and number:
            yield _Span(first, at, number)
            first, number = at, 0
        number += 1
        at = now
    if number:
        yield _Span(first, at, number)


def _paired(items: list[object]) -> dict[str, object]:
    keys = iter(items)
    result = dict(zip(keys, keys, strict=True)) if all(type(key) is str for key in items[::2]) else {}
    if not result and items:
        raise malformed("a map key that is not a str")
    if 2 * len(result) != len(items):
        raise malformed("duplicate map key")
    return result  # type: ignore[return-value]
