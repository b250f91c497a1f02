"""`resolves_to` belongs to the allow that says it: a tunnel gets no private address from an allow that looks inside."""

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.decision import Lane
from edgeguard.policy.engine import Engine
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables

CLIENT = Client("x", identified=True)
PRIVATE = "10.1.2.3"


def engine(*rules: str) -> Engine:
    text = "edgeguard: 1\nmodule: m\nowner: o\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    return Engine(Tables.load(compile_policy(load_sources({"m.yaml": text.encode()}))))


INSIDE = (
    'id: priv, effect: allow, to: ["a.example"], methods: [GET], paths: ["/x"], resolves_to: ["10.0.0.0/8"]'
)


def test_a_private_exception_for_some_requests_forces_inspection() -> None:
    asked = engine('id: pub, effect: allow, to: ["a.example"]', INSIDE)
    connect = Request(CLIENT, "a.example", 443)
    assert asked.decide(connect, 0).lane is Lane.INSPECT
    meant = connect._replace(method="GET", target="/x")
    other = connect._replace(method="POST", target="/y")
    assert asked.admit(meant, [PRIVATE], 0).addresses == (PRIVATE,)
    assert asked.admit(other, [PRIVATE], 0).reason is Reason.ADDRESS_NOT_ALLOWED


def test_passthrough_takes_no_private_exception_from_a_rule_that_looks_inside() -> None:
    asked = engine('id: pub, effect: allow, to: ["a.example"], tls: passthrough', INSIDE)
    connect = Request(CLIENT, "a.example", 443)
    decision = asked.decide(connect, 0)
    assert (decision.lane, decision.resolves_to) == (Lane.TUNNEL, ())
    assert asked.admit(connect, [PRIVATE], 0).reason is Reason.ADDRESS_NOT_ALLOWED


def test_an_exception_that_both_share_leaves_the_tunnel_alone() -> None:
    asked = engine('id: pub, effect: allow, to: ["a.example"], resolves_to: ["10.0.0.0/8"]', INSIDE)
    connect = Request(CLIENT, "a.example", 443)
    assert asked.decide(connect, 0).lane is Lane.TUNNEL
    assert asked.admit(connect, [PRIVATE], 0).addresses == (PRIVATE,)


@pytest.mark.parametrize("passthrough", ["", ", tls: passthrough"])
def test_a_literal_is_opened_by_the_allow_that_grants_it(passthrough: str) -> None:
    asked = engine(
        f'id: lit, effect: allow, to: ["{PRIVATE}"]{passthrough}',
        f'id: lit2, effect: allow, to: ["{PRIVATE}"], methods: [GET], resolves_to: ["10.0.0.0/8"]',
    )
    connect = asked.decide(Request(CLIENT, PRIVATE, 443), 0)
    assert connect.lane is Lane.INSPECT or not connect.allow
    refused = asked.decide(Request(CLIENT, PRIVATE, 443, "tls", "POST", "/"), 0)
    assert refused.reason is Reason.ADDRESS_NOT_ALLOWED
