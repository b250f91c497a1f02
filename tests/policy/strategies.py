"""Random policies and requests over a small universe, where rules meet."""

from hypothesis import strategies as st

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.model import Module, Policy
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.tables import Tables

NOW = 1_800_000_000
DAY = 86400
HOSTS = [
    "example.com",
    "a.example.com",
    "b.a.example.com",
    "example.org",
    "x.example.org",
    "192.0.2.7",
    "8.8.8.8",
    "2606:4700::1",
]
TARGETS = [
    "example.com", "a.example.com", "*.example.com", "**.example.com", "*.a.example.com", "example.org:8443", "**.example.org:80",
    "example.com:400-500", "8.8.0.0/16:443", "8.8.8.8", "[2606:4700::/32]:443", "example.com:80",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "DELETE"]
PATHS = ["/a", "/a/*", "/a/**", "/**", "/a/b", "/A/b/", "/*/b", "/secret/**"]
CLIENTS = ["web", "batch", "group:ops", "any"]


def moment(value):
    from datetime import UTC, datetime

    return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")


def subset(values, minimum=1):
    return st.lists(st.sampled_from(values), min_size=minimum, max_size=3, unique=True)


def maybe(strategy):
    return st.one_of(st.none(), strategy)


where = {
    "to": subset(TARGETS),
    "clients": maybe(subset(CLIENTS)),
    "methods": maybe(subset(METHODS)),
    "paths": maybe(subset(PATHS)),
    "query": maybe(st.just({"k": ["1", "2"]})),
    "protocol": maybe(subset(["tls", "http", "websocket"])),
}
timed = {
    "mode": st.sampled_from([None, None, None, "report"]),
    "expires": maybe(st.sampled_from([moment(NOW - DAY), moment(NOW + DAY)])),
}
allow = st.fixed_dictionaries(
    {
        "effect": st.just("allow"),
        **where,
        **timed,
        "claims": maybe(subset(["c1", "c2"])),
        "survive_offline": st.booleans(),
    }
)
deny = st.fixed_dictionaries(
    {
        "effect": st.just("deny"),
        **where,
        "to": maybe(subset(TARGETS)),
        **timed,
        "claims": maybe(subset(["c1"])),
    }
)
gate = st.fixed_dictionaries(
    {
        "match": st.fixed_dictionaries({**where, "to": maybe(subset(TARGETS))}),
        "regions": maybe(subset(["EU", "DE", "US-TX", "US"])),
        "require": st.fixed_dictionaries(
            {"age": st.sampled_from([13, 18]), "assurance": maybe(st.sampled_from(["estimated", "verified"]))}
        ),
        **timed,
    }
)
lift = st.fixed_dictionaries(
    {
        "clients": maybe(subset(["web", "group:ops"])),
        "methods": maybe(subset(METHODS)),
        "paths": st.one_of(st.just(["/a/**"]), subset(PATHS)),
        "owner": st.just("o"),
        "reason": st.just("r"),
        "ticket": st.just("t"),
        "granted": st.just(moment(NOW - 2 * DAY)),
        "expires": st.sampled_from([moment(NOW - DAY), moment(NOW + DAY)]),
    }
)


def prune(data):
    return {
        k: prune(v) if isinstance(v, dict) and k in {"match", "require"} else v
        for k, v in data.items()
        if v is not None
    }


@st.composite
def modules(draw, max_rules=5):
    """Plain data of two modules."""
    out = []
    number = 0
    for name in ("one", "two"):
        data = {"edgeguard": 1, "module": name, "owner": "o"}
        rules = [prune(r) for r in draw(st.lists(st.one_of(allow, allow, deny), max_size=max_rules))]
        gates = [prune(g) for g in draw(st.lists(gate, max_size=1))]
        for rule in [*rules, *gates]:
            rule["id"] = f"r{number}"
            number += 1
        data["rules"], data["age_gates"] = rules, gates
        denies = [r["id"] for r in rules if r["effect"] == "deny"]
        if denies:
            data["exceptions"] = [
                {**prune(e), "lifts": draw(st.sampled_from(denies)), "id": f"e{name}{i}"}
                for i, e in enumerate(draw(st.lists(lift, max_size=2)))
            ]
        out.append(data)
    out[0]["client_groups"] = {"ops": ["batch"]}
    return out


def build(data):
    """(policy, engine) of plain module data."""
    policy = Policy(modules=tuple(sorted((Module.model_validate(d) for d in data), key=lambda m: m.module)))
    return policy, Engine(Tables.load(compile_policy(policy)))


clients = st.builds(
    Client,
    st.sampled_from(["web", "batch", None]),
    st.booleans(),
    st.sampled_from([frozenset(), frozenset({"ops"})]),
    st.sampled_from([frozenset(), frozenset({"c1"}), frozenset({"c1", "c2"})]),
).map(lambda c: c._replace(identified=True) if c.name else c)
users = st.one_of(
    st.none(),
    st.builds(
        User,
        maybe(st.sampled_from([13, 18, 30])),
        st.none(),
        maybe(st.sampled_from(list(Assurance))),
        st.sampled_from([None, "DE", "EU", "US", "US-TX", "JP"]),
        maybe(st.sampled_from([NOW - 5, NOW + 5])),
        st.booleans(),
    ),
    st.builds(
        User,
        st.none(),
        st.sampled_from([12, 15]),
        st.just(Assurance.VERIFIED),
        st.sampled_from([None, "DE", "JP"]),
    ),
)
targets = st.sampled_from(
    [
        "/",
        "/a",
        "/a/",
        "/a/b",
        "/a/b/c",
        "/A/b",
        "/secret/x",
        "/a/../secret/x",
        "/a//b",
        "/a%2fb",
        "/x;y/b",
        "/a?k=1",
        "/a/b?k=1&k=3",
        "/a/b?k=2",
        "/%2561/b",
    ]
)
requests = st.builds(
    Request,
    clients,
    st.sampled_from(HOSTS),
    st.sampled_from([80, 443, 8443]),
    st.sampled_from(["tls", "http", "websocket", "tcp"]),
    st.sampled_from([*METHODS, "get", "TRACE", "PURGE"]),
    targets,
    users,
    st.sampled_from([(), (), ("DELETE",), ("post",)]),
)
