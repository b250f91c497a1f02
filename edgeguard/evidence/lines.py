"""Lines of the decision log, written from what earlier ones have said.

A node asks the same few things thousands of times: the same client, destination, rule and bundle. What the
records of one *sort* have in common is written as JSON once; a line is then that text and, in its gaps,
what the record has of its own. However a record comes, its line is made here.
"""

from collections.abc import Hashable
from typing import Final, NamedTuple, Protocol

from msgspec import structs

from edgeguard.evidence.record import MAX_ITEMS, SCHEMA, Record, members, second, text, texts

KNOWN_SORTS: Final = 1024
KNOWN_CHARS: Final = 2_000
"""Of a sort that is kept. A text that was cut is longer, so all that is kept is small."""
_START: Final = f'{{"schema":"{SCHEMA}","seq":'


class Own(NamedTuple):
    """What a record does not share with others of its sort: the fields of `Record` with these names."""

    id: str
    time: float
    connection: str | None
    path: str | None
    query_keys: tuple[str, ...]
    staleness_s: float | None
    sent: int | None
    received: int | None


class Written(NamedTuple):
    """What observers of the log are told."""

    record: Record
    """Of the same sort: only what is in `own` may differ."""
    own: Own

    def whole(self) -> Record:
        """The record itself."""
        return structs.replace(self.record, **self.own._asdict())


class Shaped(Protocol):
    """Something that makes a record when it is called, in the writer's thread."""

    def __call__(self) -> Record: ...

    def parts(self) -> tuple[Hashable, Own]:
        """A key that is equal for two of them only if their records are of one sort, and what the record has of its own."""


class Sort:
    """Records that differ in their `Own` alone.

    Attributes:
        record: One of them.
        small: It costs little to keep.
    """

    __slots__ = ("_kind", "_middle", "_origin", "_outcome", "_paths", "record", "small")

    def __init__(self, record: Record, *, paths: bool = True, chain: str | None = None) -> None:
        self.record = record
        self._paths = paths
        named = "" if chain is None else f',"chain":{text(chain)}'
        self._kind = f'Z","kind":{text(record.kind)}{named}'
        self._origin, self._middle, limits, why = members(record)
        self._outcome = limits, why + "}"
        said = len(self._origin) + len(self._middle) + len(limits) + len(why)
        self.small = said <= KNOWN_CHARS and max(len(record.names), len(record.overrides)) <= MAX_ITEMS

    def line(self, own: Own, seq: int, prev: str) -> bytes:
        """The line without its newline: JSON in ASCII, fields in the order of the schema.

        Args:
            own: What is written into the gaps.
            seq: Number of the line in its chain, from 1.
            prev: SHA-256 (hexadecimal) of the previous line's bytes, 64 zeros for the first.
        """
        ident, time, connection, path, query_keys, stale, sent, received = own
        whole = int(time)
        said = "" if connection is None else f',"connection":{text(connection)}'
        where = ""
        if path is not None and self._paths:
            where = f',"path":{text(path)}'
            if query_keys:
                where += f',"query_keys":{texts(query_keys)}'
        late = "" if stale is None else f',"staleness_s":{stale:.3f}' if stale else ',"staleness_s":0.000'
        moved = "" if sent is None else f',"sent":{sent:d}'
        if received is not None:
            moved += f',"received":{received:d}'
        limits, end = self._outcome
        return (
            f'{_START}{seq},"prev":"{prev}","id":{text(ident)},'
            f'"time":"{second(whole)}.{int((time - whole) * 1_000_000):06}{self._kind}{said}'
            f"{self._origin}{where}{self._middle}{late}{limits}{moved}{end}"
        ).encode("ascii")


class UnwritableError(Exception):
    """A field of a record is of a wrong type.

    Attributes:
        record: The record.
    """

    def __init__(self, record: Record) -> None:
        super().__init__("a field is of a wrong type")
        self.record = record


class Lines:
    """Writes records of all sorts. For one thread.

    Args:
        paths: False leaves paths and the names in queries out.
        chain: Name of the chain, where a node has several.
    """

    def __init__(self, *, paths: bool = True, chain: str | None = None) -> None:
        self._paths = paths
        self._chain = chain
        self._sorts: dict[Hashable, Sort] = {}

    def sort_of(self, entry: Record | Shaped) -> tuple[Sort, Own]:
        """The sort of an entry, and what it has of its own. Raises UnwritableError, and whatever shaping raises."""
        if isinstance(entry, Record):
            return self._new(entry), own_of(entry)
        key, own = entry.parts()
        sort = self._sorts.get(key)
        if sort is None:
            sort = self._new(entry())
            if sort.small:
                if len(self._sorts) >= KNOWN_SORTS:
                    self._sorts.clear()
                self._sorts[key] = sort
        return sort, own

    def _new(self, record: Record) -> Sort:
        try:
            return Sort(record, paths=self._paths, chain=self._chain)
        except Exception as error:
            # Whatever is wrong with a record, it leaves a line.
            raise UnwritableError(record) from error


def encode(record: Record, seq: int, prev: str, *, paths: bool = True, chain: str | None = None) -> bytes:
    """The line of one record, without its newline. Arguments as of `Sort` and `Sort.line`."""
    return Sort(record, paths=paths, chain=chain).line(own_of(record), seq, prev)


def own_of(record: Record) -> Own:
    """What a record has of its own."""
    r = record
    return Own(r.id, r.time, r.connection, r.path, r.query_keys, r.staleness_s, r.sent, r.received)
