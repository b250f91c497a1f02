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
