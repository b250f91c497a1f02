"""What the comparison says, construct by construct: direction, domain, example, moment."""

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.diff import Domain, Effect, Verdict, compare
from edgeguard.policy.diff.limits import compare_limits
from edgeguard.policy.model import Module, Policy
from edgeguard.policy.tables import Limit
from tests.bench.corpus import corpus

NOW = 1_780_000_000  # 2026-05-28
W, N = Effect.WIDENING, Effect.NARROWING


def sections(**fields):
    data = {"edgeguard": 1, "module": "m", "owner": "o"} | fields
    return compile_policy(Policy(modules=(Module.model_validate(data),)))


def rule(id_="r", **fields):
    return {"id": id_, "effect": "allow", "to": ["a.example"]} | fields


def rules(*items, **fields):
    return sections(rules=list(items), **fields)


def found(old, new):
    difference = compare(old, new, NOW)
    assert not difference.undecided
    return {(change.effect, change.domain, change.what) for change in difference.changes}


DENY = rule("d", effect="deny")
GATE = {"id": "g", "match": {"to": ["a.example"]}, "regions": ["EU"], "require": {"age": 18}}
LIMIT = {"id": "l", "match": {"to": ["a.example"]}, "limit": "10/s", "unit": "requests"}
LIFT = {
    "id": "e", "lifts": "d", "clients": ["web"], "owner": "o", "reason": "r", "ticket": "t", "granted": "2026-05-01",
    "expires": "2026-05-30",
}  # fmt: skip
BROAD = rule("all", to=["**.a.example"])

CASES = [
    # egress
    ("host added", rules(rule()), rules(rule(to=["a.example", "b.example"])), {(W, "egress", "allowed")}),
    ("wildcard", rules(rule(to=["x.a.example"])), rules(rule(to=["*.a.example"])), {(W, "egress", "allowed")}),
    ("apex", rules(rule(to=["*.a.example"])), rules(rule(to=["**.a.example"])), {(W, "egress", "allowed")}),
    ("port", rules(rule(to=["a.example:443-444"])), rules(rule(to=["a.example"])), {(N, "egress", "denied")}),
    ("client", rules(rule(clients=["web"])), rules(rule()), {(W, "egress", "allowed")}),
    ("unknown", rules(rule()), rules(rule(clients="any")), {(W, "egress", "allowed")}),
    ("claim", rules(rule(claims=["c"])), rules(rule(claims=["c", "d"])), {(N, "egress", "denied")}),
    ("method", rules(rule(methods=["GET"])), rules(rule(methods=["GET", "PUT"])), {(W, "egress", "allowed")}),
    ("path", rules(rule(paths=["/a/**"])), rules(rule(paths=["/a/*"])), {(N, "egress", "denied")}),
    ("query", rules(rule(query={"k": "1"})), rules(rule(query={"k": ["1", "2"]})), {(W, "egress", "allowed")}),
    ("protocol", rules(rule(paths=["/**"])), rules(rule(paths=["/**"], protocol=["tls", "websocket"])), {(W, "egress", "allowed")}),
    ("network", rules(rule(to=["8.8.8.0/25"])), rules(rule(to=["8.8.8.0/24"])), {(W, "egress", "allowed")}),
    ("deny gone", rules(BROAD, DENY), rules(BROAD), {(W, "egress", "allowed")}),
    ("deny in another case", rules(BROAD, rule("d", effect="deny", paths=["/A"])), rules(BROAD, rule("d", effect="deny", paths=["/a/"])), set()),
    ("report", rules(BROAD, DENY), rules(BROAD, DENY | {"mode": "report"}), {(W, "egress", "allowed")}),
    ("percent", rules(BROAD, DENY), rules(BROAD, DENY | {"enforce_percent": 50}), {(W, "egress", "allowed")}),
    ("survives", rules(rule()), rules(rule(survive_offline=True)), {(W, "egress", "allowed")}),
    ("flag", rules(rule(when={"flags": {"f": True}}), flags={"f": False}), rules(rule(when={"flags": {"f": True}}), flags={"f": True}), {(W, "egress", "allowed")}),
    ("exception", rules(BROAD, DENY), rules(BROAD, DENY, exceptions=[LIFT]), {(W, "egress", "allowed")}),
    ("learning", rules(rule()), rules(rule(), learning=[{"id": "l", "clients": ["web"], "unmatched": "report", "expires": "2027-01-01"}]), {(W, "egress", "allowed"), (W, "egress", "relayed")}),
    ("quarantine", rules(rule()), rules(rule(), quarantine=[{"id": "q", "clients": ["web"]}]), {(N, "egress", "denied")}),
    ("private space", rules(rule()), rules(rule(resolves_to=["10.0.0.0/8"])), {(W, "egress", "address")}),
    ("less private space", rules(rule(resolves_to=["10.0.0.0/8"])), rules(rule(resolves_to=["10.0.0.0/9"])), {(N, "egress", "address")}),
    ("an address denied", rules(rule()), rules(rule(), rule("n", effect="deny", to=["8.8.8.0/24"])), {(N, "egress", "address")}),
    ("another address denied", rules(rule(), rule("n", effect="deny", to=["8.8.8.0/24"])), rules(rule(), rule("n", effect="deny", to=["9.9.9.0/24"])), {(N, "egress", "address"), (W, "egress", "address")}),
    ("inspected", rules(rule()), rules(rule(tls="inspect")), {(N, "egress", "inspected")}),
    ("relayed", rules(rule(tls="inspect")), rules(rule()), {(W, "egress", "relayed")}),
    # equal in other words
    ("split", rules(rule(methods=["GET", "PUT"])), rules(rule("r1", methods=["GET"]), rule("r2", methods=["PUT"])), set()),
    ("renamed", rules(rule()), rules(rule("other")), set()),
    ("covered", rules(BROAD), rules(BROAD, rule("more", to=["x.a.example"])), set()),
    ("denied anyway", rules(rule()), rules(rule(), rule("d", effect="deny", to=["b.example"])), set()),
    ("expired", rules(rule(), rule("old", to=["b.example"], expires="2026-01-01")), rules(rule()), set()),
    ("prose", rules(rule()), rules(rule(rationale="because")), set()),
    # identity
    ("member", rules(rule(clients=["group:g"]), client_groups={"g": ["a"]}), rules(rule(clients=["group:g"]), client_groups={"g": ["a", "b"]}), {(W, "identity", "allowed")}),
    ("member gone", rules(rule(clients=["group:g"]), client_groups={"g": ["a", "b"]}), rules(rule(clients=["group:g"]), client_groups={"g": ["a"]}), {(N, "identity", "denied")}),
    # age
    ("gate", rules(rule()), rules(rule(), age_gates=[GATE]), {(N, "age", "denied"), (N, "age", "inspected")}),
    ("gate gone", rules(rule(), age_gates=[GATE]), rules(rule()), {(W, "age", "allowed"), (W, "age", "relayed")}),
    ("age", rules(rule(), age_gates=[GATE]), rules(rule(), age_gates=[GATE | {"require": {"age": 16}}]), {(W, "age", "allowed")}),
    ("assurance", rules(rule(), age_gates=[GATE]), rules(rule(), age_gates=[GATE | {"require": {"age": 18, "assurance": "verified"}}]), {(N, "age", "denied")}),
    ("region", rules(rule(), age_gates=[GATE]), rules(rule(), age_gates=[GATE | {"regions": ["DE"]}]), {(W, "age", "allowed")}),
    ("state", rules(rule(), age_gates=[GATE | {"regions": ["US"]}]), rules(rule(), age_gates=[GATE | {"regions": ["US-TX"]}]), {(W, "age", "allowed")}),
    ("region group", rules(rule(), age_gates=[GATE | {"regions": ["NEAR"]}], regions={"NEAR": ["DE"]}), rules(rule(), age_gates=[GATE | {"regions": ["NEAR"]}], regions={"NEAR": ["DE", "FR"]}), {(N, "age", "denied")}),
    # limits
    ("limit", rules(rule()), rules(rule(), rate_limits=[LIMIT]), {(N, "limits", "limit"), (N, "egress", "inspected")}),
    ("limit doubled", rules(rule(), rate_limits=[LIMIT]), rules(rule(), rate_limits=[LIMIT | {"limit": "20/s"}]), {(W, "limits", "limit")}),
    ("limit elsewhere", rules(rule(), rate_limits=[LIMIT | {"match": {}}]), rules(rule(), rate_limits=[LIMIT | {"match": {"to": ["b.example"]}}]), {(W, "limits", "limit"), (W, "egress", "relayed")}),
    ("limit renamed", rules(rule(), rate_limits=[LIMIT]), rules(rule(), rate_limits=[LIMIT | {"id": "m"}]), set()),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_direction_and_domain(old, new, expected):
    assert {(e, d.value, w) for e, d, w in found(old, new)} == expected


@pytest.mark.parametrize(("old", "new", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_the_other_way_round_is_the_opposite(old, new, expected):
    flipped = {(N if effect is W else W, domain) for effect, domain, _ in expected}
    assert {(effect, domain.value) for effect, domain, _ in found(new, old)} == flipped


def test_verdicts():
    one, two = rules(rule()), rules(rule("other"))
    assert compare(one, one, NOW).verdict is Verdict.EQUAL
    assert compare(one, two, NOW).verdict is Verdict.NEUTRAL
    wide = compare(one, rules(rule(), rule("b", to=["b.example"])), NOW)
    assert (wide.verdict, wide.widens, wide.added) == (Verdict.WIDENING, True, ("b",))
    assert wide.domains == {
        Domain.EGRESS: Verdict.WIDENING, Domain.AGE: Verdict.EQUAL, Domain.IDENTITY: Verdict.EQUAL, Domain.LIMITS: Verdict.EQUAL,
    }  # fmt: skip
    assert compare(one, rules(rule(to=["b.example"])), NOW).verdict is Verdict.MIXED


def test_the_example_is_a_whole_request():
    (change,) = compare(
        rules(rule(paths=["/v1/*"])), rules(rule(paths=["/v1/**"], methods=["GET"])), NOW
    ).changes[:1]
    assert change.example.request.method is not None
    difference = compare(rules(rule(paths=["/v1/a"])), rules(rule(paths=["/v1/a", "/v2/b"])), NOW)
    (change,) = difference.changes
    assert change.example.request.target == "/v2/b"
    assert (change.before.reason, change.after.rule) == ("path_not_allowed", "r")
    assert difference.as_dict()["changes"][0]["example"]["path"] == "/v2/b"


def test_a_deny_that_expires_widens_at_that_moment():
    end = "2026-06-15"
    before = rules(BROAD, DENY)
    difference = compare(before, rules(BROAD, DENY | {"expires": end}), NOW)
    (change,) = difference.changes
    assert (change.effect, change.since) == (W, 1_781_481_600)
    assert str(change).endswith("from 2026-06-15T00:00:00Z on")
    assert [str(s) for s in difference.scheduled] == ["widens at 2026-06-15T00:00:00Z: deny `d` ends"]
    new_deny = compare(rules(BROAD), rules(BROAD, DENY | {"expires": end}), NOW)
    assert new_deny.verdict is Verdict.NARROWING
    assert [s.effect for s in new_deny.scheduled] == [W]


def test_a_rule_that_looks_at_paths_refuses_malformed_ones():
    """That is a decision, too, so it is told."""
    difference = compare(rules(rule(tls="inspect")), rules(rule(tls="inspect"), rule("p", paths=["/x"])), NOW)
    (change,) = difference.changes
    assert (change.effect, change.example.request.target, change.after.reason) == (
        N,
        "/..",
        "malformed_request",
    )


def test_hours_and_days():
    day = compare(rules(rule(when={"hours": "09:00-17:00"})), rules(rule(when={"hours": "09:00-18:00"})), NOW)
    (change,) = day.changes
    assert change.effect is W
    assert int(change.since) % 86400 // 3600 == 17
    assert found(rules(rule(when={"days": ["mon", "tue"]})), rules(rule(when={"days": ["mon"]}))) == {
        (N, Domain.EGRESS, "denied")
    }
    assert not found(rules(rule(when={"hours": "00:00-24:00"})), rules(rule()))


def test_an_expiring_exception_has_its_moment():
    (change,) = compare(
        rules(BROAD, DENY), rules(BROAD, DENY, exceptions=[LIFT | {"granted": "2026-05-29"}]), NOW
    ).changes
    assert change.since == 1_780_012_800


@pytest.mark.parametrize(
    ("old", "new", "effects"),
    [
        ({}, {"max_lifetime_s": 7200}, {W}),
        ({}, {"max_lifetime_s": 60}, {N}),
        ({}, {"audience": ["a", "b"]}, {W}),
        ({}, {"keys": [{"kty": "OKP", "x": "2"}]}, {W, N}),
        ({}, {"assurance": "estimated"}, {W, N}),
        ({"assurance": "estimated"}, {"assurance": "verified"}, {W}),
        ({"typ": "at+jwt"}, {"typ": None}, {W}),
        ({}, {}, set()),
    ],
)
def test_issuers(old, new, effects):
    base = {"issuer": "https://id.example", "audience": ["a"], "keys": [{"kty": "OKP", "x": "1"}]}
    difference = compare(rules(rule(), issuers=[base | old]), rules(rule(), issuers=[base | new]), NOW)
    assert {c.effect for c in difference.changes} == effects
    assert {c.domain for c in difference.changes} <= {Domain.IDENTITY}
    gone = compare(rules(rule(), issuers=[base]), rules(rule()), NOW)
    assert gone.domains[Domain.IDENTITY] is Verdict.NARROWING


def limit(**fields):
    return Limit(**({"unit": "requests", "quota": 10, "period_ns": 10**9, "burst": 10, "scope": "process", "key": ("client",), "rules": None} | fields))  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "effects"),
    [
        ({}, set()),
        ({"quota": 600, "period_ns": 60 * 10**9}, set()),
        ({"quota": 20}, {W}),
        ({"burst": 5}, {N}),
        ({"quota": 20, "burst": 5}, {W, N}),
        ({"scope": "fleet"}, {N}),
        ({"key": ("client", "method")}, {W}),
        ({"key": ("client_ip",)}, {W, N}),
        ({"unit": "tunnels"}, {W, N}),
    ],
)
def test_limits_are_ordered(fields, effects):
    assert compare_limits(limit(), limit(**fields)) == effects


def test_past_a_cap_nothing_is_called_equal():
    many = [rule(f"r{i}", claims=[f"c{i}"]) for i in range(9)]
    difference = compare(rules(*many), rules(*many[:-1], many[-1] | {"mode": "report"}), NOW)
    assert difference.undecided
    assert difference.verdict is Verdict.UNDECIDED
    assert difference.widens
    assert "treated as widening" in str(difference.undecided[0])


def test_exceptions_that_look_inside_are_not_called_equal():
    """One deny with a hole, one deny written around it: alike for every plain path, not for one that is read twice."""
    hole = LIFT | {"paths": ["/a/x"], "clients": None}
    hole = {k: v for k, v in hole.items() if v is not None}
    old = rules(BROAD, DENY | {"paths": ["/a/x", "/a/y"]}, exceptions=[hole])
    new = rules(BROAD, DENY | {"paths": ["/a/y"]})
    assert compare(old, new, NOW).widens
    methods = {k: v for k, v in LIFT.items() if k != "clients"} | {"methods": ["GET", "HEAD"]}
    old = rules(BROAD, DENY | {"methods": ["GET", "PUT"]}, exceptions=[methods])
    assert compare(old, rules(BROAD, DENY | {"methods": ["PUT"]}), NOW).widens


def test_unrelated_policies_of_a_thousand_rules_are_told_apart():
    old, new = (compile_policy(corpus(1000, seed=seed).policy()) for seed in (20261, 7))
    difference = compare(old, new, NOW)
    assert difference.verdict is Verdict.MIXED
    assert not difference.undecided
    assert len(difference.changes) > 1500


def test_one_change_among_a_thousand_rules_is_found():
    data = corpus(1000)
    old = compile_policy(data.policy())
    data.modules[3]["rules"][7]["to"].append("new.example")
    difference = compare(old, compile_policy(data.policy()), NOW)
    (change,) = difference.changes
    assert (change.hosts, difference.changed) == (("new.example",), (data.modules[3]["rules"][7]["id"],))
