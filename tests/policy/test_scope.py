"""Who shares a limit's counter, how exactly, and by what name: what compiles, and what is refused with its place."""

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.request import Client, Request
from edgeguard.policy.source import PolicyErrors, load_sources
from edgeguard.policy.tables import Tables, TablesError

POLICY = """edgeguard: 1
module: m
owner: o
rules:
  - {id: a, effect: allow, to: ["**.a.example", "**.shop.co.uk", "8.8.8.0/24"]}
rate_limits:
  - {id: l, limit: 1/s, unit: tunnels, SCOPE}
"""
CLIENT = Client("checkout", identified=True)


def compiled(scope: str):
    return compile_policy(load_sources({"m.yaml": POLICY.replace("SCOPE", scope).encode()}))


def hit(scope: str, host: str = "www.a.example"):
    engine = Engine(Tables.load(compiled(scope)))
    return engine.decide(Request(CLIENT, host, 443, "tls"), 0.0).limits[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scope: process", ("process", False, "local_share")),
        ("scope: host", ("host", False, "local_share")),
        ("scope: host, on_store_error: deny", ("host", False, "deny")),
        ("scope: fleet", ("fleet", False, "local_share")),
        ("scope: fleet, accuracy: exact", ("fleet", True, "local_share")),
        ("scope: fleet, on_store_error: allow", ("fleet", False, "allow")),
    ],
)
def test_the_engine_says_who_shares_the_counter(text, expected):
    found = hit(text)
    assert (found.scope, found.exact, found.on_store_error) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scope: host, accuracy: exact", "`accuracy` belongs to `scope: fleet`"),
        ("on_store_error: deny", "belongs to the scopes host and fleet"),
        ("scope: galaxy", "scope"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(text, message):
    with pytest.raises(PolicyErrors, match=rf"m\.yaml:7:.*{message}"):
        compiled(text)


def test_a_limit_that_says_nothing_special_reads_as_before():
    plain = compiled("scope: fleet")["rules"]
    assert plain["rows"][1][5]["limit"] == ["tunnels", 1, 10**9, 1, "fleet", ["client"]]


@pytest.mark.parametrize(
    "row",
    [
        ["tunnels", 1, 10**9, 1, "process", ["client"], True, "local_share"],
        ["tunnels", 1, 10**9, 1, "fleet", ["client"], 1, "local_share"],
        ["tunnels", 1, 10**9, 1, "fleet", ["client"], True, "open"],
        ["tunnels", 1, 10**9, 1, "fleet", ["client"], True],
    ],
)
def test_malformed_rows_are_not_loaded(row):
    sections = compiled("scope: fleet")
    sections["rules"]["rows"][1][5]["limit"] = row
    with pytest.raises(TablesError):
        Tables.load(sections)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("www.a.example", "a.example"),
        ("deep.er.www.a.example", "a.example"),
        ("a.example", "a.example"),
        ("x.shop.co.uk", "shop.co.uk"),
        ("8.8.8.8", "8.8.8.8"),
    ],
    ids=lambda value: f"attack-L02-{value}",
)
def test_names_below_one_registrable_domain_share_a_quota(host, expected):
    """Rotating the sub-domain gains nothing; the last two labels would be wrong for co.uk."""
    engine = Engine(Tables.load(compiled("key: [client, domain]").copy()))
    limits = engine.decide(Request(CLIENT, host, 443, "tls"), 0.0).limits
    assert [found.key for found in limits] == [f"name:checkout|{expected}"]
