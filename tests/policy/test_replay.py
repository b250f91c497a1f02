"""Replaying a decision log: what flips, what cannot be known, what no policy decided."""

import json

import pytest

from edgeguard.evidence.lines import encode
from edgeguard.evidence.record import AGE_STEPS, SCHEMA, Record
from edgeguard.policy import replay as module
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.decision import Lane
from edgeguard.policy.model import Module, Policy
from edgeguard.policy.reasons import Reason
from edgeguard.policy.replay import Unreadable, recorded, replay
from edgeguard.policy.request import Assurance

NOW = 1_780_000_000.25


def sections(*rules, **fields):
    data = {"edgeguard": 1, "module": "m", "owner": "o", "rules": list(rules)} | fields
    return compile_policy(Policy(modules=(Module.model_validate(data),)))


def rule(id_="r", **fields):
    return {"id": id_, "effect": "allow", "to": ["a.example"]} | fields


def line(**fields):
    usual = {
        "verdict": "allow", "rule": "r", "lane": Lane.INSPECT, "client": "web", "identified": True, "host": "a.example", "port": 443,
        "protocol": "tls", "method": "GET", "path": "/a",
    }  # fmt: skip
    record = Record(**{"id": "d-1", "time": NOW, "kind": "request"} | usual | fields)
    return json.loads(encode(record, 1, "0" * 64))


def answer(candidate, *lines, at=None):
    return replay(list(enumerate(lines, 1)), candidate, at)


def test_the_constants_are_those_of_the_log():
    assert (module.SCHEMA, module.AGES) == (SCHEMA, AGE_STEPS)


def test_what_flips():
    denied = line(verdict="deny", rule=None, reason=Reason.HOST_NOT_ALLOWED, host="b.example")
    result = answer(sections(rule(to=["b.example"])), line(), denied, line(host="b.example"))
    assert (result.decisions, result.newly_allowed, result.newly_refused) == (3, 1, 1)
    first, second = result.flips
    assert (first.line, first.after.reason, first.before.rule) == (1, "host_not_allowed", "r")
    assert (
        str(second) == "web → GET https://b.example/a would be allowed (allowed by r; was host_not_allowed)"
    )
    assert result.as_dict()["flips"][0]["request"]["path"] == "/a"


def test_the_same_policy_flips_nothing():
    assert not answer(sections(rule()), line(), line(kind="connect", method=None, path=None)).flips


def test_other_lines_are_no_decisions():
    event = line(kind="event", verdict=None)
    assert answer(sections(rule()), event, line(kind="close")).decisions == 0


@pytest.mark.parametrize(
    ("rules", "undecided"),
    [
        ([rule()], {}),
        ([rule(paths=["/**"])], {"the path": 1}),  # a malformed path would have been refused
        ([rule(paths=["/a"])], {"the path": 1}),
        ([rule(), rule("d", effect="deny", paths=["/secret"])], {"the path": 1}),
        ([rule(methods=["GET"])], {}),
    ],
)
def test_a_path_that_was_left_out(rules, undecided):
    result = answer(sections(*rules), line(path=None))
    assert (result.undecided, result.flips) == (undecided, ())
    assert not answer(sections(rule(methods=["PUT"])), line(path=None)).undecided


def test_values_in_the_query_are_never_logged():
    asked = line(query_keys=("k",))
    assert answer(sections(rule(query={"k": "1"})), asked).undecided == {"values in the query": 1}
    assert not answer(sections(rule()), asked).undecided
    assert not answer(sections(rule(paths=["/a"])), asked).flips


@pytest.mark.parametrize(
    ("age", "need", "outcome"),
    [
        ("18+", 18, "same"),
        ("18-20", 19, "undecided"),
        ("18-20", 21, "flip"),
        ("21+", 30, "undecided"),
        ("0-17", 18, "flip"),
        ("16+", 17, "undecided"),
    ],
)
def test_ages_are_bands(age, need, outcome):
    gate = {"id": "g", "match": {"to": ["a.example"]}, "regions": ["DE"], "require": {"age": need}}
    facts = {"token": "valid", "age": age, "assurance": Assurance.VERIFIED, "region": "DE"}
    result = answer(sections(rule(), age_gates=[gate]), line(**facts))
    found = "flip" if result.flips else "undecided" if result.undecided else "same"
    assert found == outcome
    assert answer(sections(rule(), age_gates=[gate]), line(**facts | {"token": "invalid"})).newly_refused == 1


def test_what_no_policy_decided_is_skipped():
    lines = [
        line(verdict="deny", reason=Reason.POLICY_MISSING, ladder="closed"),
        line(verdict="deny", reason=Reason.UPSTREAM_UNREACHABLE),
        line(verdict="allow", rule="essentials", ladder="closed"),
        line(verdict="deny", reason=Reason.MALFORMED_REQUEST, host="no host!"),
    ]
    result = answer(sections(rule()), *lines)
    assert (result.skipped, result.flips) == (4, ())


def test_limits_are_not_replayed():
    limited = line(verdict="deny", reason=Reason.RATE_LIMITED, limit="l", limits=("l",))
    limit = {"id": "l", "match": {"to": ["a.example"]}, "limit": "1/s", "unit": "requests"}
    assert not answer(sections(rule(), rate_limits=[limit]), limited).undecided
    assert answer(sections(rule()), limited).undecided == {"the state of the limits": 1}
    assert not answer(sections(), limited).undecided


def test_addresses():
    private = line(addresses=("10.0.0.1",))
    assert not answer(sections(rule(resolves_to=["10.0.0.0/8"])), private).flips
    (flip,) = answer(sections(rule()), private).flips
    assert flip.after.reason == "address_not_allowed"
    refused = line(verdict="deny", reason=Reason.ADDRESS_NOT_ALLOWED)
    assert answer(sections(rule()), refused).undecided == {"the resolved addresses": 1}


def test_restricted_and_moments():
    offline = line(ladder="restricted")
    assert answer(sections(rule()), offline).newly_refused == 1
    assert not answer(sections(rule(survive_offline=True)), offline).flips
    ends = sections(rule(expires="2026-06-01"))
    assert not answer(ends, line()).flips
    assert answer(ends, line(), at=NOW + 30 * 86400).newly_refused == 1


def test_cut_texts_are_undecided():
    assert answer(sections(rule()), line(path="/" + "x" * 5000)).undecided


@pytest.mark.parametrize(
    "change", [{"schema": "other/1"}, {"port": "x"}, {"verdict": None, "host": None}, {"age": "x"}]
)
def test_unreadable_lines_are_named(change):
    broken = {**line(), **change}
    with pytest.raises(Unreadable):
        recorded(broken)
    result = replay([(1, broken), (2, "not JSON")], sections(rule()))
    assert [text.partition(":")[0] for text in result.unreadable] == ["line 1", "line 2"]
