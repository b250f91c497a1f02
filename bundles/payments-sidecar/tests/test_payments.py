"""The same policy through the fixture: what Python says better than YAML."""

import pytest


def test_cases(policy_engine, policy_case):
    result = policy_engine.run(policy_case)
    assert result.passed, result.problems


@pytest.mark.parametrize("host", ["pastebin.com", "a.pastebin.com", "x.y.transfer.sh"])
def test_paste_sites_are_denied_to_everybody(policy_engine, host):
    for client in ("payments-api", "settlement-job", "anything"):
        assert policy_engine.evaluate({"client": client, "host": host})["reason"] == "denied_by_rule"


def test_the_apex_of_a_wildcard_is_not_meant(policy_engine):
    assert not policy_engine.evaluate({"client": "payments-api", "host": "fx-rates.example", "path": "/"})[
        "allow"
    ]
    assert policy_engine.evaluate({"client": "payments-api", "host": "eu.fx-rates.example", "path": "/"})[
        "allow"
    ]
