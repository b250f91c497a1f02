"""What one line of the decision log says: schema `edgeguard.decision/1`.

A record holds the facts that a replay of the decision needs, and nothing about a person: no
subject, no token, no query values; an age only as a band. Fields that are unknown or empty are left
out of the line. `docs/decision-log.schema.json` is `json_schema()`; a test keeps them equal.
"""

import json
from collections.abc import Callable, Iterator
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


def text(value: str) -> str:
    return _quote(value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…")


def texts(values: tuple[str, ...]) -> str:
    return "[" + ",".join([text(value) for value in values[:MAX_ITEMS]]) + "]"


def _pairs(values: tuple[tuple[str, str], ...]) -> str:
    return "[" + ",".join([texts(pair) for pair in values[:MAX_ITEMS]]) + "]"


_quote: Final = json.encoder.encode_basestring_ascii


@lru_cache(8)
def second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def members(record: Record) -> list[str]:
    """The members of the JSON object after `connection`, each with a comma before it, without those in `GAPS`.

    In pieces: what comes before, between and after them.
    """
    pieces = [""] * PIECES
    for value, (piece, label, write) in zip(msgspec.structs.astuple(record)[4:], _WRITERS, strict=True):
        if piece is not None and value is not None and value != ():
            pieces[piece] += label + write(value)
    return pieces


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
    "connection": (_TEXT, "Id of the client connection.", text),
    "verdict": (_one_of("allow", "deny"), "What was decided.", text),
    "reason": (_one_of(*Reason), "Why it was refused.", text),
    "rule": (_TEXT, "The rule that decided.", text),
    "near": (_TEXT, "Near miss of a refusal: the allow that got furthest.", text),
    "would": (_PAIRS, "What rules in report mode would have done, as pairs of outcome and rule.", _pairs),
    "lane": (_one_of(*Lane), "How the connection is carried.", text),
    "client": (_TEXT, "Name of the client.", text),
    "identified": ({"type": "boolean"}, "Whether the client is identified.", json.dumps),
    "groups": (_TEXTS, "Groups of the client.", texts),
    "claims": (_TEXTS, "Claims of the client.", texts),
    "host": (_TEXT, "Canonical host; as it was received if it has no canonical form.", text),
    "port": ({"type": "integer", "minimum": 0, "maximum": 65535}, "Port of the destination.", str),
    "protocol": (_TEXT, "tls, http, tcp or websocket.", text),
    "names": (_TEXTS, "Every other name that was claimed for the destination: SNI, Host, :authority.", texts),
    "method": (_TEXT, "Method, as on the wire.", text),
    "overrides": (_TEXTS, "Values of method-override headers.", texts),
    "path": (_TEXT, "Path on the wire, without the query. Absent if the configuration omits paths.", text),
    "query_keys": (_TEXTS, "Names in the query. Never its values.", texts),
    "token": (_one_of("valid", "invalid"), "What became of the user token, if there was one.", text),
    "age": (_AGE, "Band of the person's age, with bounds at " + ", ".join(map(str, AGE_STEPS)) + ".", text),
    "assurance": (
        _one_of(*[a.name.lower() for a in Assurance]),
        "How well the age is known.",
        lambda value: f'"{Assurance(value).name.lower()}"',
    ),
    "region": (_TEXT, "Region that the gates were judged for.", text),
    "addresses": (_TEXTS, "Addresses that might be dialled.", texts),
    "bundle": (_DIGEST, "Identity of the bundle in force.", text),
    "policy_hash": (_DIGEST, "Hash of its policy, the same in every environment.", text),
    "bundle_version": (_COUNT, "Version of the bundle in force.", str),
    "ladder": (_one_of(*Ladder), "How far the policy could be proved current.", text),
    "staleness_s": ({"type": "number", "minimum": 0}, "Seconds since the head expired; 0 while it is fresh.", "{:.3f}".format),
    "limits": (_TEXTS, "Rate limits that matched.", texts),
    "limit": (_TEXT, "The rate limit that refused.", text),
    "sent": (_COUNT, "Bytes from the client to the upstream.", str),
    "received": (_COUNT, "Bytes from the upstream to the client.", str),
    "why": (_TEXT, "What ended it; of an event: started, torn, resumed, limits_reset with its reason.", text),
    "lost": (_COUNT, "Records that could not be taken since the last line.", str),
    "near_limits": (_TEXTS, "Rate limits that let this pass and of which four fifths or more are used.", texts),
}  # fmt: skip
"""The fields that a line has if they are known, in the order of `Record`."""

GAPS: Final = (("path", "query_keys"), ("staleness_s",), ("sent", "received"))
"""What records that are alike in all other fields may differ in, beside the first four: neighbours together."""
PIECES: Final = len(GAPS) + 1


def _writers() -> Iterator[tuple[int | None, str, Callable[[Any], str]]]:
    """For each field after `connection` the piece that it is written to, None for a gap; its label; what writes it."""
    own = [name for gap in GAPS for name in gap]
    ends = [gap[-1] for gap in GAPS]
    piece = 0
    for name, (_, _, write) in list(_REST.items())[1:]:
        yield None if name in own else piece, f',"{name}":', write
        piece += name in ends


_WRITERS: Final = tuple(_writers())


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
