"""The line and its schema."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.bundle.snapshot import Ladder
from edgeguard.evidence.lines import encode
from edgeguard.evidence.record import (
    AGE_STEPS,
    MAX_ITEMS,
    MAX_TEXT,
    SCHEMA,
    Record,
    age_band,
    json_schema,
    split_target,
)
from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, User

PUBLISHED = Path(__file__).parents[2] / "docs" / "decision-log.schema.json"
FULL = Record(
    id="1-2",
    time=1_795_268_000.25,
    kind="request",
    connection="c-1",
    verdict="deny",
    reason=Reason.AGE_BELOW_MINIMUM,
    rule="eu-adult",
    near="media",
    would=(("would_deny", "no-paste"),),
    lane=Lane.INSPECT,
    client="web",
    identified=True,
    groups=("media",),
    claims=("web.read",),
    host="media.example.com",
    port=443,
    protocol="tls",
    names=("media.example.com:443",),
    method="GET",
    overrides=("DELETE",),
    path="/restricted/a",
    query_keys=("page",),
    token="valid",
    age="0-17",
    assurance=Assurance.VERIFIED,
    region="DE",
    addresses=("192.0.2.1", "2001:db8::1"),
    bundle="sha256:" + "a" * 64,
    policy_hash="sha256:" + "b" * 64,
    bundle_version=7,
    ladder=Ladder.STALE,
    staleness_s=1.5,
    limits=("per-client",),
    limit="per-client",
    sent=1,
    received=2,
    why="done",
    lost=3,
    near_limits=("calls",),
)


def valid(value, form):
    """As much of JSON Schema as the published one uses."""
    kinds = {"string": str, "integer": int, "number": int | float, "array": list, "boolean": bool}
    if "const" in form:
        return value == form["const"]
    if not isinstance(value, kinds[form["type"]]) or (form["type"] != "boolean" and isinstance(value, bool)):
        return False
    if form["type"] == "array":
        bounds = form.get("minItems", 0) <= len(value) <= form.get("maxItems", len(value))
        return bounds and all(valid(item, form["items"]) for item in value)
    if form["type"] == "string":
        return (
            value in form.get("enum", [value])
            and len(value) <= form.get("maxLength", len(value))
            and re.search(form.get("pattern", ""), value) is not None
        )
    return form.get("minimum", value) <= value <= form.get("maximum", value)


def check(line):
    schema = json_schema()
    entry = json.loads(line)
    assert set(schema["required"]) <= set(entry) <= set(schema["properties"])
    for name, value in entry.items():
        assert valid(value, schema["properties"][name]), (name, value)
    return entry


def test_published_schema_is_the_one_in_the_code():
    assert json.loads(PUBLISHED.read_text()) == json_schema()


def test_schema_names_every_field_of_the_record_in_order():
    properties = list(json_schema()["properties"])
    assert properties[:3] == ["schema", "seq", "prev"]
    properties.remove("chain")  # the log's, not the record's
    assert properties[3:] == list(Record.__struct_fields__)


def test_full_line():
    entry = check(encode(FULL, 5, "0" * 64, chain="worker-1"))
    assert list(entry) == list(json_schema()["properties"])
    assert entry["schema"] == SCHEMA
    assert entry["seq"] == 5
    assert entry["time"] == "2026-11-21T13:33:20.250000Z"
    assert entry["would"] == [["would_deny", "no-paste"]]
    assert entry["assurance"] == "verified"
    assert entry["staleness_s"] == 1.5


def test_unknown_is_left_out():
    entry = check(encode(Record("1-2", 0.0, "connect", verdict="allow"), 1, "0" * 64))
    assert list(entry) == ["schema", "seq", "prev", "id", "time", "kind", "verdict"]


def test_paths_can_be_omitted():
    entry = check(encode(FULL, 1, "0" * 64, paths=False))
    assert "path" not in entry
    assert "query_keys" not in entry


@given(
    host=st.text(max_size=50),
    path=st.text(max_size=50),
    names=st.lists(st.text(max_size=20), max_size=5),
    time=st.floats(0, 4e9),
)
def test_any_text_is_one_ascii_line(host, path, names, time):
    record = Record("x", time, "request", host=host, path=path, names=tuple(names))
    line = encode(record, 1, "0" * 64)
    assert line.isascii()
    assert b"\n" not in line
    assert b"\r" not in line
    entry = check(line)
    assert (entry["host"], entry["path"], entry.get("names", [])) == (host, path, names)


@given(text=st.text(st.characters(), max_size=30), items=st.lists(st.text(max_size=3), max_size=80))
def test_whatever_the_text_it_comes_back(text, items):
    record = Record(
        "x" + text, 0.0, "connect", connection=text, host='","kind":"' + text, limits=tuple(items), sent=7
    )
    entry = json.loads(encode(record, 1, "0" * 64, chain="w"))
    assert (entry["id"], entry["connection"], entry["host"]) == (record.id, text, record.host)
    assert entry["chain"] == "w"
    assert entry.get("limits", []) == items[:MAX_ITEMS]


def test_long_things_are_cut():
    record = Record("x", 0.0, "request", path="a" * 10_000, names=("n",) * 1000)
    entry = check(encode(record, 1, "0" * 64))
    assert len(entry["path"]) == MAX_TEXT
    assert entry["path"].endswith("…")
    assert len(entry["names"]) == MAX_ITEMS


@pytest.mark.parametrize(
    ("user", "band"),
    [
        (None, None),
        (User(), None),
        (User(age_at_least=18), "18+"),
        (User(age_at_least=19), "18+"),
        (User(age_at_least=37, age_at_most=37), "21+"),
        (User(age_at_least=14, age_at_most=14), "13-14"),
        (User(age_at_least=15, age_at_most=15), "15-15"),
        (User(age_at_least=16, age_at_most=17), "16-17"),
        (User(age_at_most=17), "0-17"),
        (User(age_at_most=12), "0-12"),
        (User(age_at_most=64), "0+"),
        (User(age_at_least=17, age_at_most=19), "16-20"),
    ],
)
def test_age_is_a_band(user, band):
    assert age_band(user) == band


@given(st.integers(0, 120))
def test_band_answers_every_usual_gate(age):
    """A replay with the band comes to the same answer for each of the ages that gates ask about."""
    low = int(re.split(r"[-+]", age_band(User(age_at_least=age, age_at_most=age)))[0])
    assert all((age >= step) == (low >= step) for step in AGE_STEPS)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, (None, ())),
        ("/a", ("/a", ())),
        ("/a?", ("/a", ())),
        ("/a?x=1&y=2&alice@example.com&=3", ("/a", ("x", "y", ""))),
        ("/a?b?c=1", ("/a", ("b?c",))),
        ("*", ("*", ())),
    ],
)
def test_query_values_never_leave(target, expected):
    assert split_target(target) == expected


def test_long_queries_are_bounded():
    assert len(split_target("/?" + "a=1&" * 1000)[1]) == MAX_ITEMS
