"""Tables are right or not loaded; what loads never surprises a decision."""

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.paths import PathError
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables, TablesError
from edgeguard.policy.templates import check_template, parse_template

NOW = 1_780_000_000.0
POLICY = b"""
edgeguard: 1
module: m
owner: o
flags: {sale: true}
client_groups: {ops: [batch]}
resources: {films: {to: [media.example], paths: [/films/**]}}
rules:
  - {id: a, effect: allow, to: ["**.example.com", "192.0.2.0/24:443"], methods: [GET], paths: [/a/*, /b/**], resolves_to: [10.0.0.0/8]}
  - {id: b, effect: allow, to: [media.example], claims: [c], when: {flags: {sale: true}, hours: "08:00-20:00", days: [mon]}}
  - {id: c, effect: allow, to: [media.example], survive_offline: true, query: {k: ["1"]}}
  - {id: d, effect: deny, to: ["8.8.0.0/16", "*.bad.example.com"], expires: 2027-01-01}
  - {id: e, effect: allow, to: [open.example], tls: passthrough, enforce_percent: 50}
rate_limits:
  - {id: l, match: {to: [media.example]}, limit: 5/s, unit: requests, key: [client, method]}
age_gates:
  - {id: g, match: {resource: films}, regions: [EU], require: {age: 18, assurance: estimated}, legal_ref: x, rationale: y}
exceptions:
  - {id: x, lifts: d, to: [y.bad.example.com], owner: o, reason: r, ticket: t, granted: 2026-05-20, expires: 2026-06-10}
quarantine:
  - {id: q, clients: [bad], except: [media.example, 10.0.0.0/8]}
"""
SECTIONS = compile_policy(load_sources({"m.yaml": POLICY}))
ASKED = [
    Request(client, host, 443, protocol, method, target, user)
    for client in (Client("web", True, claims=frozenset({"c"})), Client("bad", True), Client(None, False, address="192.0.2.1"))
    for host in ("x.example.com", "media.example", "192.0.2.7", "y.bad.example.com", "open.example")
    for protocol in ("tls", "http")
    for method, target in ((None, None), ("GET", "/a/b"), ("GET", "/films/x?k=1"))
    for user in (None, User(18, None, Assurance.VERIFIED, "DE"))
]  # fmt: skip
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70_000) | st.sampled_from(["", "a", "/a", "/..", "tls", "10.0.0.0/8"])
    | st.binary(max_size=2) | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "limit", "rules", 1]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


def spots(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from spots(inner, (*path, key))


SPOTS = [path for path in spots(SECTIONS) if path]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SPOTS), junk, st.booleans()), min_size=1, max_size=3))
def test_damaged_tables_are_refused_or_decide(changes):
    sections = copy.deepcopy(SECTIONS)
    for (*path, last), value, drop in changes:
        where = sections
        try:
            for part in path:
                where = where[part]
            if drop and isinstance(where, dict):
                where.pop(last, None)
            else:
                where[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    try:
        engine = Engine(Tables.load(sections))
    except TablesError:
        return
    for request in ASKED:
        decision = engine.decide(request, NOW)
        assert decision.allow == (decision.reason is None)
        engine.admit(request, ["8.8.8.8", "10.0.0.1"], NOW)
        engine.decide(request, NOW, restricted=True)


@given(st.text(alphabet="/ab*.%;?#\\\x00\ue000\u00e9", max_size=12))
def test_a_template_is_checked_as_it_is_parsed(text):
    try:
        parse_template(text)
    except PathError:
        fine = False
    else:
        fine = True
    try:
        check_template(text)
    except PathError:
        assert not fine
    else:
        assert fine
