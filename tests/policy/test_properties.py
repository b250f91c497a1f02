"""What must hold for every policy and every request."""

import random

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.decision import Lane
from edgeguard.policy.request import Client, Request
from tests.policy import reference
from tests.policy.strategies import NOW, allow, build, deny, modules, prune, requests

CHECK = settings(max_examples=100, deadline=None)


@CHECK
@given(modules(), st.lists(requests, min_size=1, max_size=6), st.booleans())
def test_engine_agrees_with_the_naive_evaluator(data, asked, restricted):
    policy, engine = build(data)
    for request in asked:
        ours = engine.decide(request, NOW, restricted=restricted)
        theirs = reference.decide(policy, request, NOW, restricted)
        assert (ours.allow, ours.reason) == theirs, (data, request, ours, theirs)


@CHECK
@given(modules(), requests, st.randoms(use_true_random=False))
def test_order_of_rules_and_files_does_not_matter(data, request, rng):
    policy, engine = build(data)
    shuffled = [dict(module) for module in data]
    rng.shuffle(shuffled)
    for module in shuffled:
        for section in ("rules", "age_gates", "exceptions"):
            if section in module:
                module[section] = rng.sample(module[section], len(module[section]))
    other, again = build(shuffled)
    assert compile_policy(policy) == compile_policy(other)
    assert engine.decide(request, NOW) == again.decide(request, NOW)


@CHECK
@given(modules(), allow, requests)
def test_adding_an_allow_never_denies(data, rule, request):
    _, before = build(data)
    data[0]["rules"] = [*data[0]["rules"], {**prune(rule), "id": "added"}]
    _, after = build(data)
    assert not before.decide(request, NOW).allow or after.decide(request, NOW).allow


@CHECK
@given(modules(), deny, requests)
def test_adding_a_deny_never_allows(data, rule, request):
    _, before = build(data)
    data[0]["rules"] = [*data[0]["rules"], {**prune(rule), "id": "added"}]
    _, after = build(data)
    assert before.decide(request, NOW).allow or not after.decide(request, NOW).allow


@CHECK
@given(modules(), st.lists(requests, min_size=2, max_size=8))
def test_the_memo_changes_nothing(data, asked):
    _, warm = build(data)
    for request in [*asked, *asked]:
        _, cold = build(data)
        assert warm.decide(request, NOW) == cold.decide(request, NOW)


@CHECK
@given(modules(), requests)
def test_a_connection_is_refused_only_if_every_request_is(data, request):
    assume(request.protocol == "tls")
    _, engine = build(data)
    connect = engine.decide(request._replace(method=None, target=None, user=None, overrides=()), NOW)
    whole = engine.decide(request, NOW)
    assert connect.allow or not whole.allow
    assert connect.allow or connect.reason is not None


@CHECK
@given(modules(), requests)
def test_a_tunnel_needs_nothing_from_inside(data, request):
    """In the tunnel lane, no well-formed request could have been refused."""
    assume(request.protocol in {"tls", "websocket"} and request.method != "TRACE" and not request.overrides)
    _, engine = build(data)
    connect = engine.decide(request._replace(protocol="tls", method=None, target=None, user=None), NOW)
    if connect.allow and connect.lane is Lane.TUNNEL:
        assert engine.decide(request, NOW).allow


@CHECK
@given(modules(), requests)
def test_restricted_only_narrows(data, request):
    _, engine = build(data)
    assert engine.decide(request, NOW).allow or not engine.decide(request, NOW, restricted=True).allow


def swap_case(path):
    return path.swapcase()


MUTATORS = {
    "double slash": lambda p: p.replace("/", "//", 1),
    "dot": lambda p: "/." + p,
    "up": lambda p: "/zz/.." + p,
    "encoded up": lambda p: "/zz/%2e%2E" + p,
    "params up": lambda p: "/zz/..;" + p,
    "encoded letter": lambda p: p.replace("a", "%61"),
    "twice encoded": lambda p: p.replace("a", "%2561"),
    "params": lambda p: p.partition("?")[0] + ";v=1" + p[len(p.partition("?")[0]) :],
    "encoded slash": lambda p: "/" + p[1:].replace("/", "%2f", 1),
    "twice encoded slash": lambda p: "/" + p[1:].replace("/", "%252f", 1),
    "trailing dot segment": lambda p: p.partition("?")[0] + "/.",
    "mixed": lambda p: "//zz/%2e%2e" + p.replace("b", "%62"),
}


def means_the_same(one, two):
    """Whether some server could read the mutated path as the plain one."""
    from edgeguard.policy.paths import PathError, fold, readings

    try:
        return fold(readings(one)[0]) in {fold(r) for r in readings(two)}
    except PathError:
        return True


@CHECK
@given(modules(), requests, st.sampled_from(sorted(MUTATORS)))
@example(
    [{"edgeguard": 1, "module": "m", "owner": "o", "rules": []}],
    Request(Client("web", True), "example.com", 443, "tls", "GET", "/a"),
    "up",
)
def test_a_mutated_path_is_never_looser(data, request, name):
    assume(request.method in {"GET", "POST"})
    _, engine = build(data)
    mutated = request._replace(target=MUTATORS[name](request.target))
    if means_the_same(request.target, mutated.target):
        assert engine.decide(request, NOW).allow or not engine.decide(mutated, NOW).allow


def test_compilation_is_deterministic():
    rng = random.Random(7)
    data = [
        {
            "edgeguard": 1,
            "module": "m",
            "owner": "o",
            "rules": [{"id": f"r{i}", "effect": "allow", "to": [f"h{i}.example.com"]} for i in range(50)],
        }
    ]
    first = compile_policy(build(data)[0])
    for _ in range(5):
        rng.shuffle(data[0]["rules"])
        assert compile_policy(build(data)[0]) == first
