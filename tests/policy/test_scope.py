"""A limit that this version cannot keep is refused, not weakened."""

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.source import PolicyErrors, load_sources

POLICY = """edgeguard: 1
module: m
owner: o
rules:
  - {id: a, effect: allow, to: ["a.example"]}
rate_limits:
  - {id: l, match: {rules: [a]}, limit: 1/s, unit: requests, key: [client], scope: SCOPE}
"""


def test_a_limit_of_the_fleet_is_an_error_with_its_place() -> None:
    with pytest.raises(PolicyErrors, match=r"m\.yaml:7:.*scope.*not enforced by this version"):
        compile_policy(load_sources({"m.yaml": POLICY.replace("SCOPE", "fleet").encode()}))


@pytest.mark.parametrize("scope", ["process", "host"])
def test_other_scopes_compile(scope: str) -> None:
    compile_policy(load_sources({"m.yaml": POLICY.replace("SCOPE", scope).encode()}))
