"""No mutation of a request makes an age gate looser: what somebody behind us might still read as the gated resource stays gated."""

import time
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard.guard import Guard
from edgeguard.identity.clients import ClientDirectory
from edgeguard.identity.plain import PlainReader
from edgeguard.limits.process import ProcessLimiter
from edgeguard.policy.request import Client
from edgeguard.proxy import headers
from edgeguard.settings import Identity
from edgeguard.settings.model import PlainHeaders
from edgeguard.verdict import Facts
from tests.attacks.conftest import MemoryLog, Rig

RULES = """\
issuers:
  - {issuer: "https://age.test", audience: edgeguard, algorithms: [ES256], jwks_file: none.jwks}
rules:
  - {id: site, effect: allow, clients: any, to: ["media.test"]}
age_gates:
  - {id: paths, match: {to: ["media.test"], paths: ["/restricted/films/**"]}, require: {age: 18}, rationale: r, legal_ref: l}
  - {id: methods, match: {to: ["media.test"], paths: ["/viewing/**"], methods: [GET, HEAD]}, require: {age: 18}, rationale: r, legal_ref: l}
"""
PLAIN = frozenset({b"x-user-age"})
VISITOR = Client(address="192.0.2.1")


class Asked:
    """A request that mutators change."""

    def __init__(self, path, method):
        self.path, self.method, self.query = path, method, ""
        self.host = "media.test"
        self.fields = []


def at(index, path, change):
    """Changes one segment."""
    parts = path.split("/")
    index = 1 + index % (len(parts) - 1)
    parts[index] = change(parts[index])
    return "/".join(parts)


def coded(text, upper=True):
    made = "".join(f"%{ord(c):02x}" for c in text)
    return made.upper() if upper else made


def path(change):
    return lambda asked, n: setattr(asked, "path", change(asked.path, n))


def field(name, value):
    return lambda asked, n: asked.fields.append((name, value))


def attribute(name, change):
    return lambda asked, n: setattr(asked, name, change(getattr(asked, name)))


def overridden(name):
    def change(asked, n):
        asked.fields.append((name, asked.method))
        asked.method = "POST"

    return change


def asked_in_query(asked, n):
    asked.query += f"&_method={asked.method}"
    asked.method = "POST"


MUTATORS = {
    "escape a letter": path(lambda p, n: at(n, p, lambda s: s[:1] and coded(s[0]) + s[1:])),
    "escape in lower case": path(lambda p, n: at(n, p, lambda s: s[:-1] + coded(s[-1:], upper=False))),
    "escape a segment": path(lambda p, n: at(n, p, coded)),
    "escape twice": path(lambda p, n: at(n, p, lambda s: quote(coded(s)))),
    "upper case": path(lambda p, n: at(n, p, str.upper)),
    "swap case": path(lambda p, n: at(n, p, str.swapcase)),
    "dot": path(lambda p, n: at(n, p, lambda s: f"./{s}")),
    "escaped dot": path(lambda p, n: at(n, p, lambda s: f"%2e/{s}")),
    "there and back": path(lambda p, n: at(n, p, lambda s: f"free/../{s}")),
    "escaped there and back": path(lambda p, n: at(n, p, lambda s: f"free/%2e%2E/{s}")),
    "back with a parameter": path(lambda p, n: at(n, p, lambda s: f"free/..;x=1/{s}")),
    "escaped slash back": path(lambda p, n: at(n, p, lambda s: f"free/..%2f{s}")),
    "twice escaped back": path(lambda p, n: at(n, p, lambda s: f"free/%252e%252e/{s}")),
    "slashes": path(lambda p, n: at(n, p, lambda s: f"//{s}")),
    "escaped slash": path(lambda p, n: p.replace("/restricted/films", "/restricted%2Ffilms")),
    "twice escaped slash": path(lambda p, n: p.replace("/restricted/films", "/restricted%252Ffilms")),
    "slash behind": path(lambda p, n: f"{p}/"),
    "dot behind": path(lambda p, n: f"{p}/."),
    "parameter": path(lambda p, n: at(n, p, lambda s: f"{s};v=1")),
    "empty parameter": path(lambda p, n: at(n, p, lambda s: f"{s};")),
    "escaped parameter": path(lambda p, n: at(n, p, lambda s: f"{s}%3Bv")),
    "backslash": path(lambda p, n: at(n, p, lambda s: f"free\\..\\{s}")),
    "escaped backslash": path(lambda p, n: at(n, p, lambda s: f"free%5c..%5c{s}")),
    "nul behind": path(lambda p, n: f"{p}%00.png"),
    "tab": path(lambda p, n: at(n, p, lambda s: f"\t{s}")),
    "fragment": path(lambda p, n: f"{p}#/free"),
    "overlong": path(lambda p, n: at(n, p, lambda s: f"free/%c0%ae%c0%ae/{s}")),
    "query": attribute("query", lambda q: f"{q}&x=1"),
    "path in the query": attribute("query", lambda q: f"{q}&/free/../x"),
    "age in the query": attribute("query", lambda q: f"{q}&age_over_18=true&edgeguard-user=x"),
    "method in lower case": attribute("method", str.lower),
    "head for get": attribute("method", lambda m: "HEAD" if m == "GET" else m),
    "override": overridden("X-HTTP-Method-Override"),
    "override under an alias": overridden("x_http.method"),
    "override in the query": asked_in_query,
    "host in upper case": attribute("host", str.upper),
    "host with a dot": attribute("host", lambda h: f"{h}." if not h.endswith(".") else h),
    "host with its port": attribute("host", lambda h: h if ":" in h else f"{h}:443"),
    "forged token": field("edgeguard-user", "e30.e30.e30"),
    "token under an alias": field("Edgeguard_User", "e30.e30.e30"),
    "plain age": field("X-User-Age", "30"),
    "plain age under an alias": field("x_user.age", "30"),
    "another path in a field": field("X-Original-URL", "/free"),
    "another host in a field": field("X-Forwarded-Host", "free.test"),
    "another address": field("X-Forwarded-For", "127.0.0.1"),
    "a listed field": field("Connection", "edgeguard-user, x-user-age"),
    "two hosts": field("Host", "free.test"),
}


@pytest.fixture(scope="module")
def guard():
    guard = Guard(
        clients=ClientDirectory(Identity()),
        limiter=ProcessLimiter(100),
        log=MemoryLog(),
        plain=PlainReader(PlainHeaders(clients=("gateway",), headers={"x-user-age": "age_at_least"})),
    )
    rig = Rig.__new__(Rig)
    rig.guard, rig.version = guard, 0
    rig.enforce(RULES)
    return guard


def judged(guard, asked):
    """Allowed or not, as the lane asks: the shape, then the guard."""
    raw = [("Host", asked.host), *asked.fields]
    scan = headers.scan_request(
        tuple((name.encode(), value.encode()) for name, value in raw), b"edgeguard-user", PLAIN
    )
    if scan.fault is not None:
        return False
    target = asked.path + (f"?{asked.query[1:]}" if asked.query else "")
    overrides = scan.overrides + headers.overrides_in(target)
    facts = Facts(
        *("c", VISITOR, "media.test", 443, "tls", scan.hosts, asked.method, target),
        scan.tokens,
        overrides,
        scan.plain,
    )
    return guard.judge(facts).allow


GATED = [("/restricted/films/one", "GET"), ("/restricted/films/one", "DELETE"), ("/viewing/one/two", "GET")]


def test_the_site_is_open_where_no_gate_is(guard):
    assert judged(guard, Asked("/free/one", "GET"))
    assert judged(guard, Asked("/viewing/one", "POST"))
    for gated in GATED:
        assert not judged(guard, Asked(*gated))


@pytest.mark.parametrize("name", MUTATORS)
def test_no_mutation_opens_a_gate(guard, name):
    """attack-G01 attack-G02 attack-G03"""
    for gated in GATED:
        for where in range(4):
            asked = Asked(*gated)
            MUTATORS[name](asked, where)
            assert not judged(guard, asked), (asked.method, asked.host, asked.path, asked.fields)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(GATED),
    st.lists(st.tuples(st.sampled_from(sorted(MUTATORS)), st.integers(0, 5)), min_size=2, max_size=5),
)
@example(GATED[0], [("escape a segment", 0), ("there and back", 0), ("parameter", 1)])
def test_no_mutations_together_open_a_gate(guard, gated, steps):
    """attack-G01 attack-G02 attack-G03"""
    asked = Asked(*gated)
    for name, where in steps:
        MUTATORS[name](asked, where)
    assert not judged(guard, asked), (asked.method, asked.host, asked.path, asked.fields)


def test_judging_mutations_is_quick(guard):
    asked = Asked("/restricted/films/one", "GET")
    for step in ("there and back", "escape twice", "parameter", "slashes"):
        MUTATORS[step](asked, 2)
    begun = time.perf_counter()
    for _ in range(100):
        judged(guard, asked)
    assert time.perf_counter() - begun < 1.0
