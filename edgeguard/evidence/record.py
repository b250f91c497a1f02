"""What one line of the decision log says: schema `edgeguard.decision/1`.

A record holds the facts that a replay of the decision needs, and nothing about a person: no
subject, no token, no query values; an age only as a band. Fields that are unknown or empty are left
out of the line. `docs/decision-log.schema.json` is `json_schema()`; a test keeps them equal.

Nearly every line is what a JSON encoder makes of the record. What it would not write as the schema asks
(text beyond ASCII, long text, long lists, the name of an assurance) takes the longer way of `_spelled`.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from edgeguard.bundle.snapshot import Ladder
from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, User

SCHEMA: Final = "edgeguard.decision/1"
AGE_STEPS: Final = (13, 15, 16, 18, 21)
"""Ages that laws ask about: the bounds of a band. A finer age is never recorded."""
MAX_TEXT: Final = 2_048
"""Longest text of a record, in characters; longer ones are cut and end in `…`."""
MAX_ITEMS: Final = 64
"""Longest list of a record."""

type Kind = Literal["connect", "request", "close", "event"]


class Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One decision, the end of what was allowed (`close`), or something about the log itself (`event`)."""

    id: str
    """Id of the decision, as the client sees it. A `close` repeats the id of its decision."""
    time: float
    """Unix seconds."""
    kind: Kind
    connection: str | None = None
    verdict: Literal["allow", "deny"] | None = None
    reason: Reason | None = None
    rule: str | None = None
    near: str | None = None
    would: tuple[tuple[str, str], ...] = ()
    lane: Lane | None = None
    client: str | None = None
    identified: bool | None = None
    groups: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    host: str | None = None
    port: int | None = None
    protocol: str | None = None
    names: tuple[str, ...] = ()
    method: str | None = None
    overrides: tuple[str, ...] = ()
    path: str | None = None
    query_keys: tuple[str, ...] = ()
    token: Literal["valid", "invalid"] | None = None
    age: str | None = None
    assurance: Assurance | None = None
    region: str | None = None
    addresses: tuple[str, ...] = ()
    bundle: str | None = None
    policy_hash: str | None = None
    bundle_version: int | None = None
    ladder: Ladder | None = None
    staleness_s: float | None = None
    limits: tuple[str, ...] = ()
    limit: str | None = None
    sent: int | None = None
    received: int | None = None
    why: str | None = None
    lost: int | None = None
    near_limits: tuple[str, ...] = ()


def age_band(user: User | None) -> str | None:
    """The band that the known bounds of an age fall into, as `13-14`, `0-17` or `18+`; None if unknown.

    The bounds are widened to `AGE_STEPS`, so that a birthdate does not show through.
    """
    if user is None or (user.age_at_least is None and user.age_at_most is None):
        return None
    known = user.age_at_least or 0
    low = max((step for step in AGE_STEPS if step <= known), default=0)
    high = None
    if user.age_at_most is not None:
        high = min((step - 1 for step in AGE_STEPS if step > user.age_at_most), default=None)
    return f"{low}+" if high is None else f"{low}-{high}"


def split_target(target: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The path of a request target, and the names in its query. Values are dropped, bare words too."""
    if target is None:
        return None, ()
    path, _, query = target.partition("?")
    if not query:
        return path, ()
    return path, tuple(
        pair.partition("=")[0] for pair in query.split("&", MAX_ITEMS)[:MAX_ITEMS] if "=" in pair
    )


def _text(value: str) -> str:
    return _quote(value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…")


def _texts(values: tuple[str, ...]) -> str:
    return "[" + ",".join([_text(value) for value in values[:MAX_ITEMS]]) + "]"


def _pairs(values: tuple[tuple[str, str], ...]) -> str:
    return "[" + ",".join([_texts(pair) for pair in values[:MAX_ITEMS]]) + "]"


_quote: Final = json.encoder.encode_basestring_ascii


@lru_cache(8)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def encode(record: Record, seq: int, prev: str, *, paths: bool = True, chain: str | None = None) -> bytes:
    """The line of a record without its newline: JSON in ASCII, fields in the order of the schema.

    Args:
        record: What to write.
        seq: Number of the line in its chain, from 1.
        prev: SHA-256 (hexadecimal) of the previous line's bytes, 64 zeros for the first.
        paths: False leaves the path and the query's names out.
        chain: Name of the chain, where a node has several.
    """
    if not paths and (record.path is not None or record.query_keys):
        record = msgspec.structs.replace(record, path=None, query_keys=())
    line = _short(record)
    if line is None:
        line = _spelled(record)
    # Inside a text a quote has a backslash before it, so these are the members themselves.
    time, kind = line.index(b',"time":'), line.index(b',"kind":"')
    whole = int(record.time // 1)
    head = f'{{"schema":"{SCHEMA}","seq":{seq},"prev":"{prev}",'
    at = f',"time":"{_second(whole)}.{int((record.time - whole) * 1_000_000):06}Z"'
    if chain is None:
        return b"".join((head.encode(), line[1:time], at.encode(), line[kind:]))
    rest = kind + len(',"kind":""') + len(record.kind)
    return b"".join(
        (
            head.encode(),
            line[1:time],
            at.encode(),
            line[kind:rest],
            f',"chain":{_text(chain)}'.encode(),
            line[rest:],
        )
    )


def _short(record: Record) -> bytes | None:
    """The record as JSON, the time a number; None if it needs more than an encoder."""
    if record.assurance is not None:
        return None
    try:
        line = _encoder.encode(record)
    except UnicodeEncodeError:  # a lone surrogate: only escapes can write it
        return None
    # No text in so short a line can be too long, and no list with so few separators.
    short = len(line) <= MAX_TEXT and line.count(b'","') < MAX_ITEMS and line.isascii()
    return line if short else None


def _spelled(record: Record) -> bytes:
    """The same of any record, member by member."""
    text = f'{{"id":{_text(record.id)},"time":0,"kind":"{record.kind}"'
    for value, (label, write) in zip(msgspec.structs.astuple(record)[3:], _WRITERS, strict=True):
        if value is not None and value != ():
            text += label + write(value)
    return (text + "}").encode("ascii")


_encoder: Final = msgspec.json.Encoder()
_TEXT: Final[dict[str, Any]] = {"type": "string", "maxLength": MAX_TEXT}
_TEXTS: Final[dict[str, Any]] = {"type": "array", "maxItems": MAX_ITEMS, "items": _TEXT}
_PAIRS: Final[dict[str, Any]] = {**_TEXTS, "items": {**_TEXTS, "minItems": 2, "maxItems": 2}}
_DIGEST: Final[dict[str, Any]] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_AGE: Final[dict[str, Any]] = {"type": "string", "pattern": r"^[0-9]{1,3}(-[0-9]{1,3}|\+)$"}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_HEAD: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "schema": ({"const": SCHEMA}, "Name and version of this schema."),
    "seq": ({"type": "integer", "minimum": 1}, "Number of the line in its chain, without gaps."),
    "prev": (
        {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "SHA-256 of the previous line's bytes without the newline; zeros in the first line.",
    ),
    "id": (_TEXT, "Id of the decision, as the client sees it. A close repeats the id of its decision."),
    "time": (
        {"type": "string", "format": "date-time"},
        "When it was decided, or when it ended, on the trusted clock, UTC.",
    ),
    "kind": (
        _one_of("connect", "request", "close", "event"),
        "A destination was judged, a request was judged, what was allowed has ended, or the log speaks of itself.",
    ),
}
"""The fields that every line has."""

_CHAIN: Final = (
    _TEXT,
    "Which chain the line belongs to, where a node has several: numbers and hashes count in it alone.",
)
"""The field `chain`, which is the log's and not the record's."""

_REST: Final[dict[str, tuple[dict[str, Any], str, Callable[[Any], str]]]] = {
    "connection": (_TEXT, "Id of the client connection.", _text),
    "verdict": (_one_of("allow", "deny"), "What was decided.", _text),
    "reason": (_one_of(*Reason), "Why it was refused.", _text),
    "rule": (_TEXT, "The rule that decided.", _text),
    "near": (_TEXT, "Near miss of a refusal: the allow that got furthest.", _text),
    "would": (_PAIRS, "What rules in report mode would have done, as pairs of outcome and rule.", _pairs),
    "lane": (_one_of(*Lane), "How the connection is carried.", _text),
    "client": (_TEXT, "Name of the client.", _text),
    "identified": ({"type": "boolean"}, "Whether the client is identified.", json.dumps),
    "groups": (_TEXTS, "Groups of the client.", _texts),
    "claims": (_TEXTS, "Claims of the client.", _texts),
    "host": (_TEXT, "Canonical host; as it was received if it has no canonical form.", _text),
    "port": ({"type": "integer", "minimum": 0, "maximum": 65535}, "Port of the destination.", str),
    "protocol": (_TEXT, "tls, http, tcp or websocket.", _text),
    "names": (_TEXTS, "Every other name that was claimed for the destination: SNI, Host, :authority.", _texts),
    "method": (_TEXT, "Method, as on the wire.", _text),
    "overrides": (_TEXTS, "Values of method-override headers.", _texts),
    "path": (_TEXT, "Path on the wire, without the query. Absent if the configuration omits paths.", _text),
    "query_keys": (_TEXTS, "Names in the query. Never its values.", _texts),
    "token": (_one_of("valid", "invalid"), "What became of the user token, if there was one.", _text),
    "age": (_AGE, "Band of the person's age, with bounds at " + ", ".join(map(str, AGE_STEPS)) + ".", _text),
    "assurance": (
        _one_of(*[a.name.lower() for a in Assurance]),
        "How well the age is known.",
        lambda value: f'"{Assurance(value).name.lower()}"',
    ),
    "region": (_TEXT, "Region that the gates were judged for.", _text),
    "addresses": (_TEXTS, "Addresses that might be dialled.", _texts),
    "bundle": (_DIGEST, "Identity of the bundle in force.", _text),
    "policy_hash": (_DIGEST, "Hash of its policy, the same in every environment.", _text),
    "bundle_version": (_COUNT, "Version of the bundle in force.", str),
    "ladder": (_one_of(*Ladder), "How far the policy could be proved current.", _text),
    "staleness_s": ({"type": "number", "minimum": 0}, "Seconds since the head expired; 0 while it is fresh.", "{:.3f}".format),
    "limits": (_TEXTS, "Rate limits that matched.", _texts),
    "limit": (_TEXT, "The rate limit that refused.", _text),
    "sent": (_COUNT, "Bytes from the client to the upstream.", str),
    "received": (_COUNT, "Bytes from the upstream to the client.", str),
    "why": (_TEXT, "What ended it; of an event: started, torn, resumed, limits_reset with its reason.", _text),
    "lost": (_COUNT, "Records that could not be taken since the last line.", str),
    "near_limits": (_TEXTS, "Rate limits that let this pass and of which four fifths or more are used.", _texts),
}  # fmt: skip
"""The fields that a line has if they are known, in the order of `Record`."""

_WRITERS: Final = tuple((f',"{name}":', write) for name, (_, _, write) in _REST.items())


def json_schema() -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of a line."""
    properties = {name: {**form, "description": about} for name, (form, about) in _HEAD.items()}
    properties["chain"] = {**_CHAIN[0], "description": _CHAIN[1]}
    properties |= {name: {**form, "description": about} for name, (form, about, _) in _REST.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgeguard decision log, one line",
        "type": "object",
        "additionalProperties": False,
        "required": list(_HEAD),
        "properties": properties,
    }
