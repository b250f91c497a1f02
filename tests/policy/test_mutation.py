"""Mutation testing: what is changed, what a case notices, what changes nothing."""

import pytest

from edgeguard.policy.mutation import mutants, mutate, replaced, widened
from edgeguard.policy.source import load_with_places
from edgeguard.policy.testing import load_cases

NOW = 1_780_000_000
POLICY = """\
edgeguard: 1
module: m
owner: o
resources:
  shop: {to: ["shop.example:8443"], paths: ["/items/*"]}
rules:
  - id: shop
    effect: allow
    clients: [web]
    resource: shop
    methods: [GET]
    claims: [buyer]
  - {id: all, effect: allow, to: ["*.all.example"]}
  - {id: d, effect: deny, to: ["x.all.example"]}
  - {id: watched, effect: deny, to: ["w.all.example"], mode: report}
rate_limits:
  - {id: l, match: {rules: [shop]}, limit: 10/s, unit: requests}
age_gates:
  - {id: g, match: {to: ["*.all.example"]}, require: {age: 18, assurance: verified}}
exceptions:
  - {id: e, lifts: d, clients: [web], owner: o, reason: r, ticket: t, granted: 2026-05-20, expires: 2026-06-10}
"""


def sources(text=POLICY):
    return load_with_places({"m.yaml": text.encode()})


def cases(*items):
    body = "".join(
        f"  - {{name: c{i}, request: {{{ask}}}, expect: {{{expect}}}}}\n"
        for i, (ask, expect) in enumerate(items)
    )
    return load_cases({"t.yaml": f"edgeguard_tests: 1\nnow: 2026-06-01\ncases:\n{body}".encode()})


def test_the_mutants():
    found = {(m.statement, m.what) for m in mutants(sources().policy)}
    assert found == {
        ("shop", "removed"), ("shop", "flipped to deny"), ("shop", "method POST added"),
        ("shop", "path /items/* widened to /items/*/**"), ("shop", "port removed"), ("shop", "clients dropped"),
        ("shop", "claims dropped"), ("all", "removed"), ("all", "flipped to deny"), ("d", "removed"), ("d", "flipped to allow"),
        ("watched", "removed"), ("watched", "flipped to allow"), ("l", "removed"), ("l", "limit doubled"), ("g", "removed"),
        ("g", "age lowered to 17"), ("g", "assurance lowered to inferred"), ("e", "removed"),
    }  # fmt: skip


ADULT = "user: {age: 18}"
SHOP = "client: web, claims: [buyer], host: shop.example, port: 8443"
COMPLETE = [
    (f"{SHOP}, path: /items/1", "allow: true, rule: shop, quotas: {l: 10/s}"),
    (f"{SHOP}, method: POST, path: /items/1", "allow: false"),
    (f"{SHOP}, path: /items/1/x", "allow: false"),
    ("client: web, claims: [buyer], host: shop.example, path: /items/1", "allow: false"),
    ("client: bot, claims: [buyer], host: shop.example, port: 8443, path: /items/1", "allow: false"),
    ("client: web, host: shop.example, port: 8443, path: /items/1", "allow: false"),
    (f"host: a.all.example, {ADULT}", "allow: true"),
    ("host: a.all.example, user: {age: 17}", "allow: false, reason: age_below_minimum"),
    ("host: a.all.example, user: {age: 18, assurance: inferred}", "allow: false"),
    (f"client: bot, host: x.all.example, {ADULT}", "allow: false, reason: denied_by_rule"),
    (f"client: web, host: x.all.example, {ADULT}", "allow: true"),
    (f"host: w.all.example, {ADULT}", "allow: true, would: [[would_deny, watched]]"),
]


def test_complete_cases_notice_everything():
    report = mutate(sources(), cases(*COMPLETE), NOW)
    assert (report.survivors, report.mutants, report.equivalent) == ((), 19, 0)
    assert report.passed


@pytest.mark.parametrize(
    ("left_out", "what"),
    [
        (1, "method POST added"), (2, "path /items/* widened to /items/*/**"), (3, "port removed"), (4, "clients dropped"),
        (5, "claims dropped"), (7, "age lowered to 17"), (8, "assurance lowered to inferred"), (11, "removed"),
    ],
)  # fmt: skip
def test_a_case_that_is_missing_shows(left_out, what):
    some = [case for place, case in enumerate(COMPLETE) if place != left_out]
    report = mutate(sources(), cases(*some), NOW)
    assert not report.passed
    assert what in {s.what for s in report.survivors}


def test_survivors_have_a_place():
    report = mutate(sources(), cases((f"host: a.all.example, {ADULT}", "allow: true")), NOW)
    by_id = {(s.statement, s.what): s for s in report.survivors}
    assert by_id["shop", "port removed"].line == 7
    assert str(by_id["shop", "port removed"]) == "m.yaml:7: shop: port removed (no case comes near it)"
    assert by_id["g", "age lowered to 17"].near


def test_a_limit_needs_its_rate():
    loose = [(ask, expect.replace("quotas: {l: 10/s}", "limits: [l]")) for ask, expect in COMPLETE]
    assert [s.what for s in mutate(sources(), cases(*loose), NOW).survivors] == ["limit doubled"]


def test_what_changes_no_decision_is_not_blamed():
    text = "edgeguard: 1\nmodule: m\nowner: o\nrules:\n" + "".join(
        f"  - {{id: {i}, effect: allow, to: [a.example]}}\n" for i in ("one", "two")
    )
    report = mutate(sources(text), cases(("host: a.example", "allow: true")), NOW)
    assert (report.equivalent, report.survivors, report.killed) == (2, (), 2)


@pytest.mark.parametrize(
    ("path", "wider"),
    [
        ("/a", "/a/**"),
        ("/a/", "/a/**"),
        ("/a/b/**", "/a/**"),
        ("/a/**", "/**"),
        ("/**", None),
        ("/a/*", "/a/*/**"),
    ],
)
def test_widened(path, wider):
    assert widened(path) == wider


def test_removing_a_rule_takes_its_exception_and_its_limit_along():
    policy = sources().policy
    gone = {m.statement: m for m in mutants(policy) if m.item is None}
    assert not replaced(policy, gone["d"]).modules[0].exceptions
    assert not replaced(policy, gone["shop"]).modules[0].rate_limits
