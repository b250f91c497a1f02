"""The comparison against brute force: whatever a small universe of requests shows, it must say, and nothing that is not so."""

import itertools
import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.diff import Domain, Effect, Verdict, compare
from edgeguard.policy.diff.admits import admits
from edgeguard.policy.engine import Engine
from edgeguard.policy.model import Module, Policy
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.tables import Tables
from tests.policy.strategies import DAY, NOW, allow, deny, gate, lift, maybe, modules, moment, prune, subset

CHECK = settings(max_examples=15, deadline=None)

CLIENTS = [
    Client(name, identified, frozenset(groups), frozenset(claims))
    for name, identified in (("web", True), ("batch", True), ("other", True), (None, True), (None, False))
    for groups in ([], ["ops"])
    for claims in ([], ["c1"], ["c1", "c2"])
]
HOSTS = [
    "example.com", "a.example.com", "b.a.example.com", "c.example.com", "example.org", "x.example.org", "else.example",
    "8.8.8.8", "8.8.9.9", "2606:4700::1", "2606:4700::5efe:808:808",
]  # fmt: skip
PORTS = [80, 443, 450, 8443]
METHODS = ["GET", "HEAD", "POST", "DELETE", "get", "TRACE", "PURGE"]
TARGETS = [
    "/", "/a", "/a/", "/a/b", "/a/b/", "/A/b", "/a/B", "/x/b", "/a/x/y", "/secret", "/secret/x", "/SECRET/x", "/a//b", "//a",
    "/a/../secret/x", "/a%2fb", "/x;y/b", "/a?k=1", "/a/b?k=1&k=3", "/a?k=2&k=1", "/a?K=1", "/%2561/b", "/..",
]  # fmt: skip
USERS = [
    None,
    User(invalid=True),
    *(
        User(age, None, level, region)
        for age in (None, 12, 13, 18)
        for level in (None, Assurance.ESTIMATED, Assurance.VERIFIED)
        for region in (None, "DE", "EU", "US", "US-TX", "JP")
    ),
]
OVERRIDES = [(), (), (), ("DELETE",), ("post",)]
MOMENTS = [NOW, NOW + DAY - 1, NOW + DAY, NOW + 40 * DAY]

WHENS = [
    {"hours": "09:00-17:00"},
    {"hours": "22:00-06:00", "days": ["fri", "sat"]},
    {"days": ["mon", "tue"]},
    {"flags": {"on": True}},
    {"flags": {"unknown": True}},
]
SELDOM = {
    "when": st.sampled_from(WHENS),
    "enforce_percent": st.sampled_from([1, 30, 60, 100]),
    "valid_from": st.just(moment(NOW + DAY // 2)),
    "claims": st.just(["c2"]),
    "tls": st.just("inspect"),
    "resolves_to": st.sampled_from([["10.0.0.0/8"], ["10.0.0.0/9", "fd00::/8"]]),
}


@st.composite
def unusual(draw):
    """Fields that few statements have, and sections that few policies have."""
    limit = {
        "id": "limit",
        "limit": draw(st.sampled_from(["10/s", "20/s", "10/m"])),
        "unit": "requests",
        "match": prune(
            {
                "to": draw(maybe(subset(["example.com", "*.example.com"]))),
                "paths": draw(maybe(subset(["/a/**"]))),
            }
        ),
    }
    return {
        "rate_limits": draw(st.sampled_from([[], [limit]])),
        "learning": draw(
            st.sampled_from([[], [], [{"id": "learn", "clients": ["web"], "unmatched": "report", "expires": moment(NOW + DAY)}]])
        ),
        "quarantine": draw(
            st.sampled_from([[], [], [{"id": "q", "clients": ["group:ops"], "except": ["a.example.com"]}], [{"id": "q", "clients": "any", "except": ["**.example.com:443", "8.8.0.0/16"], "expires": moment(NOW + DAY)}]])
        ),
        "salt": draw(st.sampled_from([None, "one", "two"])),
        "flags": draw(st.sampled_from([{}, {"on": True}, {"on": False}])),
    }  # fmt: skip


def compiled(data):
    policy = Policy(modules=tuple(sorted((Module.model_validate(d) for d in data), key=lambda m: m.module)))
    return compile_policy(policy)


@st.composite
def pairs(draw):
    """A policy and what somebody made of it: statements dropped, added, changed, or another policy altogether."""
    old = draw(modules())
    if draw(st.integers(0, 5)) == 0:
        return old, draw(modules())
    new = [dict(module) for module in old]
    for module in new:
        rules = list(module["rules"])
        if rules and draw(st.booleans()):
            rules.pop(draw(st.integers(0, len(rules) - 1)))
        if rules and draw(st.booleans()):
            place = draw(st.integers(0, len(rules) - 1))
            other = prune(draw(allow if rules[place]["effect"] == "allow" else deny))
            field = draw(
                st.sampled_from(
                    ["to", "clients", "methods", "paths", "query", "expires", "protocol", "mode", "claims"]
                )
            )
            changed = {k: v for k, v in rules[place].items() if k != field or k == "to"}
            if field in other:
                changed[field] = other[field]
            rules[place] = changed
        if draw(st.integers(0, 3)) == 0:
            rules.append({**prune(draw(st.one_of(allow, deny))), "id": f"new-{module['module']}"})
        module["rules"] = rules
        gates = list(module["age_gates"])
        if draw(st.integers(0, 3)) == 0:
            gates = [{**prune(draw(gate)), "id": f"gate-{module['module']}"}]
        module["age_gates"] = gates
        denies = {r["id"] for r in rules if r["effect"] == "deny"}
        lifts = [e for e in module.get("exceptions", []) if e["lifts"] in denies]
        if denies and draw(st.integers(0, 3)) == 0:
            lifts.append(
                {
                    **prune(draw(lift)),
                    "lifts": draw(st.sampled_from(sorted(denies))),
                    "id": f"lift-{module['module']}",
                }
            )
        module["exceptions"] = lifts
    if draw(st.integers(0, 3)) == 0:
        new[0]["client_groups"] = {"ops": ["web"]}
    if draw(st.booleans()):
        old[0] |= draw(unusual())
        new[0] |= {name: old[0][name] for name in ("rate_limits", "learning", "quarantine", "salt", "flags")}
    if draw(st.integers(0, 3)) == 0:
        some = draw(unusual())
        name = draw(st.sampled_from(sorted(some)))
        new[0][name] = some[name]
    if new[0]["rules"] and draw(st.booleans()):
        rule = dict(new[0]["rules"][0])
        name = draw(st.sampled_from(sorted(SELDOM)))
        rule.pop({"enforce_percent": "mode", "valid_from": "expires"}.get(name), None)
        if name != "resolves_to" or rule["effect"] == "allow":
            rule[name] = draw(SELDOM[name])
        new[0]["rules"] = [rule, *new[0]["rules"][1:]]
    return old, new


def universe(rng, count):
    for _ in range(count):
        request = Request(
            rng.choice(CLIENTS), rng.choice(HOSTS), rng.choice(PORTS), rng.choice(["tls", "http", "websocket", "tls", "tcp"]),
        )  # fmt: skip
        if request.protocol != "tcp" and rng.random() < 0.8:
            request = request._replace(
                method=rng.choice(METHODS), target=rng.choice(TARGETS), overrides=rng.choice(OVERRIDES)
            )
        at = rng.choice(MOMENTS) if rng.random() < 0.7 else NOW + rng.randrange(0, 9 * DAY)
        yield request._replace(user=rng.choice(USERS)), at, rng.random() < 0.25


def near(change, rng):
    """Requests around an example, so that the universe is not looked at blindly."""
    base = change.example
    if base is None:
        return
    for client, user in itertools.product(CLIENTS[:6], USERS[::5]):
        yield base.request._replace(client=client, user=user), base.at, base.restricted
    del rng


ADDRESSES = [
    "8.8.8.8",
    "8.8.9.9",
    "9.9.9.9",
    "10.1.2.3",
    "10.200.0.1",
    "192.168.1.1",
    "fd00::1",
    "64:ff9b::808:808",
    "2606:4700::1",
]


def effects(old, new, request, at, restricted):
    """What one request shows: which way its verdict goes, its lane, its addresses, its limits."""
    one, two = old.decide(request, at, restricted=restricted), new.decide(request, at, restricted=restricted)
    if one.allow is not two.allow:
        return {Effect.WIDENING if two.allow else Effect.NARROWING}
    if not one.allow:
        return set()
    found = set()
    if request.method is None and one.lane is not two.lane:
        found.add(Effect.WIDENING if two.lane == "tunnel" else Effect.NARROWING)
    if not request.host[-1].isdigit():
        for address in ADDRESSES:
            before, after = (
                bool(admits(e, request, address, at, restricted=restricted).addresses) for e in (old, new)
            )
            if before is not after:
                found.add(Effect.WIDENING if after else Effect.NARROWING)
    mine, theirs = ({h.limit: (h.quota, h.period_ns) for h in d.limits if h.enforced} for d in (one, two))
    if mine.keys() - theirs.keys():
        found.add(Effect.WIDENING)
    if theirs.keys() - mine.keys():
        found.add(Effect.NARROWING)
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            looser = theirs[name][0] * mine[name][1] > mine[name][0] * theirs[name][1]
            found.add(Effect.WIDENING if looser else Effect.NARROWING)
    return found


def check(old_data, new_data, seed):
    old_sections, new_sections = compiled(old_data), compiled(new_data)
    difference = compare(old_sections, new_sections, NOW)
    old, new = Engine(Tables.load(old_sections)), Engine(Tables.load(new_sections))
    said = {change.effect for change in difference.changes}
    rng = random.Random(seed)
    asked = list(universe(rng, 1000))
    for change in difference.changes:
        asked += near(change, rng)
    for request, at, restricted in asked:
        shown = effects(old, new, request, at, restricted)
        assert shown <= said or difference.undecided, (request, at, restricted, shown, difference.changes)
    for change in difference.changes:
        sound(change, old, new)
    if old_sections == new_sections:
        assert difference.verdict is Verdict.EQUAL
    assert difference.widens is (Effect.WIDENING in said or bool(difference.undecided))
    assert (difference.verdict in {Verdict.EQUAL, Verdict.NEUTRAL}) is (not said and not difference.undecided)
    return difference


def sound(change, old, new):
    request, at, restricted, address = change.example
    one, two = old.decide(request, at, restricted=restricted), new.decide(request, at, restricted=restricted)
    if change.what in {"allowed", "denied"}:
        assert (one.allow, two.allow) == (change.what == "denied", change.what == "allowed")
        assert (change.before.allow, change.after.allow) == (one.allow, two.allow)
    elif change.what in {"relayed", "inspected"}:
        assert one.allow
        assert two.allow
        assert two.lane == ("tunnel" if change.what == "relayed" else "inspect") != one.lane
    elif change.what == "address":
        found = [bool(admits(e, request, address, at, restricted=restricted).addresses) for e in (old, new)]
        assert found == ([False, True] if change.effect is Effect.WIDENING else [True, False])
    else:
        assert change.domain is Domain.LIMITS
        assert one.allow
        assert two.allow
    assert change.since is None or change.since > NOW


@CHECK
@given(pairs(), st.integers(0, 1 << 30))
def test_agrees_with_brute_force(pair, seed):
    check(*pair, seed)


@CHECK
@given(modules(), st.integers(0, 1 << 30))
def test_a_policy_equals_itself_in_any_order(data, seed):
    shuffled = [{**module, "rules": module["rules"][::-1]} for module in data[::-1]]
    assert compare(compiled(data), compiled(shuffled), NOW).verdict is Verdict.EQUAL


@CHECK
@given(modules(), st.one_of(allow, deny), st.integers(0, 1 << 30))
@example([{"edgeguard": 1, "module": "m", "owner": "o", "rules": []}], {"effect": "deny"}, 1)
def test_one_more_statement_goes_one_way(data, rule, seed):
    """An allow never narrows, a deny never widens, except that one more look may move a lane."""
    more = [{**data[0], "rules": [*data[0]["rules"], {**prune(rule), "id": "added"}]}, *data[1:]]
    difference = check(data, more, seed)
    wrong = Effect.NARROWING if rule["effect"] == "allow" else Effect.WIDENING
    for change in difference.changes:
        assert change.effect is not wrong or change.what in {"relayed", "inspected"} or change.before.reason == "malformed_request" or change.after.reason == "malformed_request", change  # fmt: skip
