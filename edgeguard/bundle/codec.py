"""Strict, deterministic msgpack: the subset that edgeguard signs.

nil, bool, int, str, bin, array and map with distinct str keys; no floats, no extension types.
A short input is walked once before the msgpack library allocates anything, so that neither the
nesting nor the announced lengths of hostile bytes cost memory, and the C and the pure-Python
implementations of the library never see input on which they differ. A long one is taken apart
first and decoded piece by piece (`pieces.py`). Wire format: the msgpack specification,
https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgpack

from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

MAX_DEPTH: Final = 16
PIECE_BYTES: Final = 8 * 1024
"""What is decoded in one call of the library: 0.2 ms, and at most 1 MiB of objects."""


class Limits(NamedTuple):
    """What one decoding may cost."""

    size: int
    """Bytes of input."""
    depth: int = 8
    """Containers inside one another."""
    memory_factor: int = 10
    """Estimated bytes of objects per byte of input ..."""
    memory_base: int = 1 << 20
    """... above this many bytes, which any input may use."""


def encode(value: object) -> bytes:
    """The one encoding of `value`: map keys sorted by code point, every form the shortest.

    Takes None, bool, int (-2^63 .. 2^64-1), str, bytes, lists, tuples and dicts with str keys.
    Raises TypeError or ValueError for anything else: what is encoded comes from this program.
    """
    packed: bytes = msgpack.packb(_sorted(value, MAX_DEPTH), use_bin_type=True)
    return packed


def _sorted(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if depth == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"map keys are str, not {type(key).__name__}")
        return {key: _sorted(value[key], depth - 1) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item, depth - 1) for item in value]
    raise TypeError(f"{type(value).__name__} has no encoding in a bundle")


def decode(data: bytes, limits: Limits, *, canonical: bool = False) -> object:
    """The value that `data` encodes: None, bool, int, str, bytes, list or dict.

    With `canonical`, also refuses bytes that `encode` would not have produced. That is a lint for
    tools and servers; no trust rests on it, since hashes and signatures cover received bytes.

    Raises:
        Refusal: too_big or malformed.
    """
    if len(data) > limits.size:
        raise Refusal(RefusalCode.TOO_BIG, f"{len(data)} bytes, at most {limits.size} are accepted")
    if len(data) <= PIECE_BYTES:
        scan(data, limits.depth)
        value = unpack(data)
    else:
        from edgeguard.bundle.pieces import decode_large

        value = decode_large(data, limits)
    if canonical and encode(value) != data:
        raise malformed("not in the deterministic form (key order or a longer encoding than needed)")
    return value


def unpack(data: bytes | memoryview) -> object:
    """One value of the library's idea of msgpack, maps checked. Raises Refusal (malformed)."""
    most = len(data)
    try:
        value: object = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            object_pairs_hook=to_map,
            max_str_len=most,
            max_bin_len=most,
            max_array_len=most,
            max_map_len=most,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise malformed(f"not msgpack of the accepted subset: {error}") from None
    return value


def to_map(pairs: Iterable[tuple[object, object]]) -> dict[str, object]:
    """A map with distinct str keys. Raises Refusal."""
    # The C implementation passes a list, the pure one a generator.
    pairs = pairs if isinstance(pairs, list) else list(pairs)
    result: dict[str, object] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise malformed(f"map key of type {type(key).__name__}; only str is accepted")
        result[key] = value
    if len(result) != len(pairs):
        raise malformed("duplicate map key")
    return result


_REFUSED: Final = {
    0xC1: "reserved byte 0xc1",
    0xCA: "a float",
    0xCB: "a float",
    **dict.fromkeys((0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8), "an extension type"),
}
_LENGTH_BYTES: Final = {
    0xD9: 1,
    0xDA: 2,
    0xDB: 4,
    0xC4: 1,
    0xC5: 2,
    0xC6: 4,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}
CONTAINERS: Final = frozenset((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
MAPS: Final = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))


def _scalar_size(lead: int) -> int:
    if lead <= 0x7F or lead >= 0xE0 or lead in (0xC0, 0xC2, 0xC3):
        return 1
    if 0xA0 <= lead <= 0xBF:
        return 1 + (lead & 0x1F)
    return {0xCC: 2, 0xD0: 2, 0xCD: 3, 0xD1: 3, 0xCE: 5, 0xD2: 5, 0xCF: 9, 0xD3: 9}.get(lead, 0)


_SCALAR: Final = tuple(_scalar_size(lead) for lead in range(256))
"""Whole size in bytes of a value by its first byte; 0 where the first byte does not tell."""


def scan(data: bytes, depth: int) -> None:
    """Refuse what is cut short, too deep or of a refused type, without allocating for it."""
    end = len(data)
    position = 0
    due = 1  # values announced and not yet seen; each takes at least one byte
    left = 1  # values still to come in the innermost open container
    outer: list[int] = []
    while due:
        if due > end - position:
            raise malformed("cut short: more values are announced than bytes follow")
        lead = data[position]
        due -= 1
        left -= 1
        size = _SCALAR[lead]
        if size:
            position += size
        else:
            size, count = long_form(data, position)
            position += size
            if count >= 0:
                if len(outer) >= depth:
                    raise malformed(f"nested deeper than {depth}")
                outer.append(left)
                due += count
                left = count
        while not left and outer:
            left = outer.pop()
    if position != end:
        raise malformed("cut short inside a value" if position > end else "bytes after the value")


def long_form(data: bytes, position: int) -> tuple[int, int]:
    """(bytes to move on, values announced or -1) of a container, or of a str or bin with a length field."""
    lead = data[position]
    if lead in _REFUSED:
        raise malformed(f"{_REFUSED[lead]} at byte {position}")
    if lead not in _LENGTH_BYTES:
        return 1, 2 * (lead & 0x0F) if lead in MAPS else lead & 0x0F
    width = _LENGTH_BYTES[lead]
    field = data[position + 1 : position + 1 + width]
    if len(field) < width:
        raise malformed("cut short inside a length")
    length = int.from_bytes(field)
    if lead not in CONTAINERS:
        return 1 + width + length, -1
    return 1 + width, 2 * length if lead in MAPS else length
