"""Questions in network terms and in the policy's own words."""

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import QuestionError, evaluate
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables

NOW = 1_780_000_000
TEXT = """
edgeguard: 1
module: m
owner: o
resources:
  shop: {to: ["*.shop.example"], paths: ["/items/**"]}
  lonely: {to: [lonely.example]}
actions:
  view: {methods: [GET, HEAD]}
  buy: {methods: [POST], resource: shop}
rules:
  - {id: shop, effect: allow, to: ["*.shop.example"]}
  - {id: no-secret-item, effect: deny, to: ["eu.shop.example"], paths: ["/items/secret/**"]}
  - {id: some-of-it, effect: allow, to: [lonely.example], paths: ["/a/**"]}
"""


@pytest.fixture(scope="module")
def engine():
    return Engine(Tables.load(compile_policy(load_sources({"m.yaml": TEXT.encode()}))))


def test_all_requests_of_a_resource_must_be_allowed(engine):
    answer = evaluate(engine, {"resource": "shop", "action": "view"}, NOW)
    assert (answer["allow"], answer["reason"], answer["rule"]) == (False, "denied_by_rule", "no-secret-item")
    assert answer["request"]["host"] == "eu.shop.example"
    assert answer["request"]["path"].startswith("/items/secret")


def test_part_of_a_resource_is_not_the_resource(engine):
    answer = evaluate(engine, {"resource": "lonely", "action": "view"}, NOW)
    assert answer["reason"] == "path_not_allowed"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "ask about"),
        ({"host": "a", "resource": "shop"}, "ask about"),
        ({"hosts": "a"}, "did you mean 'host'"),
        ({"resource": "shopp", "action": "view"}, "did you mean 'shop'"),
        ({"action": "view"}, "names no resource"),
        ({"resource": "shop", "action": "vieww"}, "did you mean 'view'"),
        ({"host": "a..b"}, "empty label"),
        ({"host": "a", "port": 0}, "port"),
        ({"host": "a", "protocol": "ftp"}, "protocol"),
        ({"host": "a", "claims": "x"}, "list of texts"),
        ({"host": "a", "client": "a", "service": "b"}, "same thing"),
        ({"host": "a", "user": {"age_verified": "true"}}, "true or false"),
        ({"host": "a", "user": {"age": True}}, "whole number"),
        ({"host": "a", "user": {"agee": 3}}, "unknown key"),
        ({"host": "a", "user": {"assurance": "certain"}}, "one of"),
    ],
)
def test_bad_questions(engine, question, words):
    with pytest.raises(QuestionError, match=words):
        evaluate(engine, question, NOW)


def test_host_and_port_in_one(engine):
    assert evaluate(engine, {"host": "a.shop.example:443"}, NOW)["allow"]
    assert evaluate(engine, {"host": "::1"}, NOW)["reason"] == "host_not_allowed"


SHAPES = """
edgeguard: 1
module: shapes
owner: o
resources:
  restricted_content: {to: [media.example], paths: ["/restricted/**"]}
  pii_export: {to: [profiles.example], paths: ["/export/**"]}
  counted: {to: [api.example]}
actions:
  view: {methods: [GET, HEAD]}
  read_pii_export: {methods: [GET], resource: pii_export}
rules:
  - {id: media, effect: allow, to: [media.example]}
  - {id: pii, effect: allow, clients: [notification-worker], action: read_pii_export, claims: [worker.pii]}
  - {id: api, effect: allow, to: [api.example]}
age_gates:
  - {id: adult, match: {resource: restricted_content, action: view}, regions: [EU], require: {age: 18}}
rate_limits:
  - {id: calls, match: {rules: [api]}, limit: 1200/2h, burst: 7, unit: requests}
  - {id: volume, match: {rules: [api]}, limit: 2GB/h, unit: bytes}
  - {id: open, match: {rules: [api]}, limit: 4, unit: concurrent_tunnels}
"""


@pytest.fixture(scope="module")
def shapes():
    return Engine(Tables.load(compile_policy(load_sources({"m.yaml": SHAPES.encode()}))))


@pytest.mark.parametrize(
    ("question", "allow", "reason"),
    [
        ({"region": "EU", "user": {"age_verified": False}, "resource": "restricted_content", "action": "view"}, False, "age_verification_required"),
        ({"region": "EU", "user": {"age_verified": True}, "resource": "restricted_content", "action": "view"}, True, None),
        ({"service": "notification-worker", "action": "read_pii_export", "claims": ["worker.basic"]}, False, "claim_missing"),
        ({"service": "notification-worker", "action": "read_pii_export", "claims": ["worker.pii"]}, True, None),
        ({"service": "notification-worker", "action": "read_pii_export", "resource": "pii_export", "claims": ["worker.pii"]}, True, None),
        ({"client": "notification-worker", "host": "profiles.example", "path": "/export/1", "claims": ["worker.pii"]}, True, None),
        ({"client": "notification-worker", "host": "profiles.example", "port": 8443}, False, "port_not_allowed"),
        ({"region": "DE", "user": {}, "host": "media.example", "method": "GET", "path": "/restricted/x"}, False, "age_verification_required"),
    ],
)  # fmt: skip
def test_both_shapes_of_a_question(shapes, question, allow, reason):
    """In network terms, and in the policy's own words; an action may name the resource that it is about."""
    answer = evaluate(shapes, question, NOW)
    assert (answer["allow"], answer["reason"]) == (allow, reason)


@pytest.mark.parametrize(
    "question", [{"action": "view"}, {"action": "veiw", "resource": "counted"}, {"resource": "count"}]
)
def test_words_that_lead_nowhere(shapes, question):
    with pytest.raises(QuestionError):
        evaluate(shapes, question, NOW)


def test_answers_carry_the_rates(shapes):
    assert evaluate(shapes, {"client": "a", "host": "api.example", "path": "/"}, NOW)["quotas"] == {
        "calls": "1200/2h burst 7"
    }
    assert evaluate(shapes, {"client": "a", "host": "api.example"}, NOW)["quotas"] == {
        "open": "4",
        "volume": "2GB/h",
    }


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [("1200/2h", True), ("1200/2h burst 7", True), ("1200/2h burst 8", False), ("600/h", False)],
)
def test_a_case_may_state_the_rate(shapes, wanted, passes):
    from edgeguard.policy.testing import load_cases, run_case

    text = f"edgeguard_tests: 1\ncases:\n  - {{name: x, request: {{host: api.example, path: /}}, expect: {{allow: true, quotas: {{calls: {wanted}}}}}}}\n"
    (case,) = load_cases({"t.yaml": text.encode()})
    assert run_case(shapes, case, NOW).passed is passes
