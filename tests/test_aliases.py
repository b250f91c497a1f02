"""A name that is an alias (CNAME) of a denied name is denied as that name is (attack-D12)."""

import pytest

from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client
from edgeguard.verdict import Resolved
from tests.policy.test_engine import NOW, rules
from tests.test_guard import Bench, facts

ALLOW = "id: a, effect: allow, to: [good.example]"
PUBLIC = "93.184.216.34"


def guard_of(*lines):
    bench = Bench(rules(*lines))
    bench.now = NOW
    bench.activate(stale_at=NOW + 100, restricted_at=NOW + 200, closed_at=NOW + 300)
    return bench


@pytest.mark.parametrize(
    ("deny", "aliases", "reason"),
    [
        pytest.param("to: ['**.bad.example']", ("x.cdn.example", "bad.example"), "no", id="attack-D12"),
        pytest.param("to: ['*.bad.example:443']", ("a.bad.example",), "no", id="attack-D12-port"),
        pytest.param("to: ['*.bad.example:80']", ("a.bad.example",), None, id="another-port"),
        pytest.param(
            "to: ['*.bad.example'], clients: [other]", ("a.bad.example",), None, id="another-client"
        ),
        pytest.param("to: ['*.bad.example'], mode: report", ("a.bad.example",), None, id="report"),
        pytest.param(
            "to: ['*.bad.example'], methods: [POST]", ("a.bad.example",), "no", id="nobody-looks-inside"
        ),
        pytest.param("to: ['**.bad.example']", ("neutral.example",), None, id="nobody-denies"),
    ],
)
def test_a_deny_on_a_name_of_the_chain(deny, aliases, reason):
    bench = guard_of(ALLOW, f"id: no, effect: deny, {deny}")
    verdict = bench.guard.judge(facts())
    assert verdict.allow
    verdict = bench.guard.admit(verdict, Resolved((PUBLIC,), aliases))
    assert verdict.rule == (reason or "a")
    assert verdict.reason is (Reason.DENIED_BY_RULE if reason else None)
    assert verdict.addresses == (() if reason else (PUBLIC,))
    assert verdict.resolved == (PUBLIC,)


def test_requests_that_are_resolved_each_see_denies_of_paths_too():
    bench = guard_of(
        "id: a, effect: allow, to: ['good.example:80'], protocol: http",
        "id: no, effect: deny, to: ['bad.example:80'], protocol: http, paths: ['/secret/**']",
    )
    for path, allow in (("/open", True), ("/secret/x", False)):
        verdict = bench.guard.judge(facts(port=80, protocol="http", method="GET", target=path))
        assert verdict.allow
        assert bench.guard.admit(verdict, Resolved((PUBLIC,), ("bad.example",))).allow is allow


def test_the_chain_is_remembered_for_what_stays_open():
    bench = guard_of(ALLOW)
    verdict = bench.guard.admit(bench.guard.judge(facts()), Resolved((PUBLIC,), ("bad.example",)))
    verdict = verdict._replace(addresses=(PUBLIC,))
    assert bench.guard.rejudge(verdict).allow
    bench.engine = rules(ALLOW, "id: no, effect: deny, to: [bad.example]")
    bench.activate(stale_at=NOW + 100, restricted_at=NOW + 200, closed_at=NOW + 300)
    assert bench.guard.rejudge(verdict).reason is Reason.DENIED_BY_RULE


def test_denies_stay_where_only_some_allows_survive():
    bench = guard_of(
        f"{ALLOW}, survive_offline: true",
        "id: b, effect: allow, to: [bad.example]",
        "id: no, effect: deny, to: [bad.example]",
    )
    bench.now = NOW + 250
    verdict = bench.guard.judge(facts(client=Client("checkout", identified=True)))
    assert verdict.allow
    verdict = bench.guard.admit(verdict, Resolved((PUBLIC,), ("bad.example",)))
    assert verdict.reason is Reason.DENIED_BY_RULE
