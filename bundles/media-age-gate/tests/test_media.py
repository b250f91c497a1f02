"""The age gate as a product manager would state it."""

import pytest


def test_cases(policy_engine, policy_case):
    result = policy_engine.run(policy_case)
    assert result.passed, result.problems


def test_eu_age_gate(policy_engine):
    answer = policy_engine.evaluate(
        {"region": "EU", "user": {"age_verified": False}, "resource": "restricted_content", "action": "view"}
    )
    assert answer["allow"] is False
    assert answer["reason"] == "age_verification_required"


def test_worker_without_the_claim(policy_engine):
    answer = policy_engine.evaluate(
        {"service": "notification-worker", "action": "read_pii_export", "claims": ["worker.basic"]}
    )
    assert answer["allow"] is False
    assert answer["reason"] == "claim_missing"


@pytest.mark.parametrize(
    "path", ["/restricted", "/Restricted/", "//restricted/x", "/%72estricted/x", "/a/../restricted/x"]
)
def test_no_spelling_walks_around_the_gate(policy_engine, path):
    answer = policy_engine.evaluate({"region": "IE", "user": {}, "host": "media.example", "path": path})
    assert answer["allow"] is False
