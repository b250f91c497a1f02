"""A sandbox that can read the world's packages and tell nobody."""

import pytest


def test_cases(policy_engine, policy_case):
    result = policy_engine.run(policy_case)
    assert result.passed, result.problems


@pytest.mark.parametrize(
    "host",
    ["example.com", "github.com.evil.example", "notgithub.com", "raw.githubusercontent.com", "8.8.8.8"],
)
def test_everything_else_is_refused(policy_engine, host):
    assert policy_engine.evaluate({"client": "sandbox", "host": host})["allow"] is False


def test_a_model_call_is_counted(policy_engine):
    answer = policy_engine.evaluate(
        {"client": "sandbox", "host": "api.model.example", "method": "POST", "path": "/v1/messages"}
    )
    assert answer["allow"]
    assert "model-calls" in answer["limits"]
