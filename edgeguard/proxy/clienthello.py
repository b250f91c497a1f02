"""Reading a TLS ClientHello out of the first bytes of a tunnel (RFC 8446, 4.1.2; RFC 6066, 3).

Only one thing is wanted: the server name, with certainty. So the structure is read strictly:
every length must fit exactly, no extension may stand twice, exactly one name of type host_name.
A hello that was cut into several records or segments is put together first. Pure functions; the
outcome is `Hello`, None (more bytes are needed) or `HelloError`, and it does not depend on how
the bytes were cut.
"""

from collections import Counter
from collections.abc import Callable
from struct import Struct, calcsize
from typing import Final, NamedTuple

HANDSHAKE: Final = 0x16
CLIENT_HELLO: Final = 1
MAX_RECORD_BYTES: Final = 1 << 14
MAX_RECORDS: Final = 32
"""A hello is re-read from its start at every segment; this bounds what that costs."""
SERVER_NAME: Final = 0
ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D
ENCRYPTED_SERVER_NAME: Final = 0xFFCE
LAYOUTS: Final = 256
"""Of earlier hellos, kept to know the next one by."""
RELEARN: Final = 16
"""Hellos of one size and another layout until theirs is kept instead."""

ACCESS_DENIED: Final = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal alert, access_denied (49), as a whole record: what refuses a tunnel that is already open."""

_extension_header: Final = Struct("!HH").unpack_from
_new = tuple.__new__  # builds a NamedTuple at half the price of its constructor


class HelloError(Exception):
    """These bytes are no ClientHello that can be read with certainty."""


class NotTLSError(HelloError):
    """These bytes do not begin a TLS handshake."""


class Hello(NamedTuple):
    """What a ClientHello says."""

    sni: str | None
    """The server name as sent; None when the extension is absent."""
    ech: bool
    """An encrypted hello (or GREASE in its place) is included: `sni` may be only the outer name."""


def read_hello(data: bytes, limit: int) -> Hello | None:
    """Reads the ClientHello at the start of `data`.

    Args:
        data: All bytes received so far.
        limit: The largest handshake message that is taken, in bytes.

    Returns:
        None while the hello is incomplete.

    Raises:
        NotTLSError: the first byte is not that of a handshake record.
        HelloError: the bytes cannot become a hello that is read with certainty.
    """
    if not data:
        return None
    if data[0] != HANDSHAKE:
        raise NotTLSError("no TLS handshake")
    if len(data) > 9 and data[1] == 3 and data[2] <= 4 and data[5] == CLIENT_HELLO:
        # Nearly always the hello is one whole record; this says of it what the loop below would say.
        length = data[3] << 8 | data[4]
        needed = 4 + (data[6] << 16 | data[7] << 8 | data[8])
        if length == needed <= limit and length <= MAX_RECORD_BYTES and len(data) >= 5 + length:
            return _parse(data[5 : 5 + length])
    position = 0
    message = b""
    declared = 0  # handshake bytes that the records seen so far promise
    needed = 0  # length of the whole message with its header, once known
    for _ in range(MAX_RECORDS):
        header = data[position : position + 5]
        _check_record_header(header)
        if len(header) < 5:
            return None
        length = header[3] << 8 | header[4]
        declared += length
        message += data[position + 5 : position + 5 + length]
        position += 5 + length
        if message and message[0] != CLIENT_HELLO:
            raise HelloError("the first handshake message is not a ClientHello")
        if len(message) >= 4:
            needed = 4 + int.from_bytes(message[1:4])
            if needed > limit:
                raise HelloError(f"the ClientHello is longer than {limit} bytes")
            if declared > needed:
                raise HelloError("something follows the ClientHello in its record")
            if len(message) == needed:
                return _parse(message)
        if position > len(data):
            return None
    raise HelloError("the ClientHello is cut into too many records")


def _check_record_header(header: bytes) -> None:
    """Refuses as soon as a byte of a record header is wrong, however few have arrived."""
    size = len(header)
    if size >= 1 and header[0] != HANDSHAKE:
        raise HelloError("another record stands inside the ClientHello")
    if (size >= 2 and header[1] != 3) or (size >= 3 and header[2] > 4):
        raise HelloError("unknown record version")
    if size >= 5 and not 0 < header[3] << 8 | header[4] <= MAX_RECORD_BYTES:
        raise HelloError("a record has no valid length")


class _Layout(NamedTuple):
    """Where a hello that was read has its lengths and types, and what they were."""

    unpack: Callable[[bytes], tuple[int, ...]]
    """Takes a message of this size apart: its lengths and types, and nothing else."""
    values: tuple[int, ...]
    name: slice
    """The server name; empty where there is none."""
    ech: bool


_layouts: Final[dict[int, _Layout]] = {}
"""By the size of the message: clients repeat themselves but for keys, randoms and the letters of the name."""
_misses: Final[Counter[int]] = Counter()


def _parse(message: bytes) -> Hello:
    """Reads a complete handshake message, its 4-byte header included.

    Two hellos with the same lengths and types in the same places differ in nothing that `_read` looks at but the
    letters of the name. So one comparison tells what `_read` would say.
    """
    size = len(message)
    known = _layouts.get(size)
    if known is not None:
        unpack, values, name, ech = known
        if unpack(message) == values:
            return _new(Hello, (_host_name(message[name]) if name.stop else None, ech))
    hello, places, name = _read(message)
    _misses[size] += 1
    if known is None or _misses[size] >= RELEARN:
        if len(_layouts) >= LAYOUTS:
            _layouts.clear()
            _misses.clear()
        del _misses[size]
        unpack = _take_apart(places, size)
        _layouts[size] = _Layout(unpack, unpack(message), name, hello.ech)
    return hello


def _take_apart(places: list[tuple[int, str]], size: int) -> Callable[[bytes], tuple[int, ...]]:
    form, at = "!", 0
    for place, kind in places:
        form += f"{place - at}x{kind}"
        at = place + calcsize("!" + kind)
    return Struct(f"{form}{size - at}x").unpack


def _read(message: bytes) -> tuple[Hello, list[tuple[int, str]], slice]:
    """The hello, the place and kind of all that it was told by but the letters of the name, and their place."""
    size = len(message)
    at = 38  # header 4, legacy_version 2, random 32
    if size < at + 1 or message[4] != 3:
        raise HelloError("not a ClientHello of SSL 3 or TLS")
    places = [(0, "I"), (4, "B"), (at, "B")]
    if message[at] > 32:
        raise HelloError("the session id is too long")
    at += 1 + message[at]
    if at + 2 > size:
        raise HelloError("the cipher suites do not fit")
    places.append((at, "H"))
    suites = message[at] << 8 | message[at + 1]
    if suites < 2 or suites % 2:
        raise HelloError("the cipher suites do not fit")
    at += 2 + suites
    if at >= size or message[at] < 1:
        raise HelloError("the compression methods do not fit")
    places.append((at, "B"))
    at += 1 + message[at]
    if at == size:
        return Hello(None, ech=False), places, slice(0, 0)
    if at + 2 > size or at + 2 + (message[at] << 8 | message[at + 1]) != size:
        raise HelloError("the extensions do not fit")
    places.append((at, "H"))
    at += 2
    sni: str | None = None
    name = slice(0, 0)
    kinds: list[int] = []
    header, last = _extension_header, size - 4
    while at <= last:
        kind, length = header(message, at)
        kinds.append(kind)
        places.append((at, "I"))
        at += 4 + length
        if kind == SERVER_NAME:
            sni = _server_name(message[at - length : at])
            places.append((at - length, "HBH"))
            name = slice(at - length + 5, at)
    if at < size:
        raise HelloError("an extension is cut off")
    if at != size:
        raise HelloError("an extension is longer than the hello")
    if len(set(kinds)) != len(kinds):
        raise HelloError("an extension stands twice")
    ech = ENCRYPTED_CLIENT_HELLO in kinds or ENCRYPTED_SERVER_NAME in kinds
    return Hello(sni, ech), places, name


def _server_name(body: bytes) -> str:
    """The one host_name of a server_name extension: list length 2, type 1, name length 2, name."""
    size = len(body)
    if size < 6 or body[0] << 8 | body[1] != size - 2 or body[2] or body[3] << 8 | body[4] != size - 5:
        raise HelloError("the server name list is not exactly one host name")
    return _host_name(body[5:])


def _host_name(name: bytes) -> str:
    """RFC 6066, 3: ASCII, without a trailing dot."""
    if len(name) > 255 or not name.isascii() or name.endswith(b"."):
        raise HelloError("the server name is not a host name")
    return name.decode("ascii")
