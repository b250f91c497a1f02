"""The settled questions, one by one, and the rows of the attack list that the engine answers."""

import gc

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.decision import Lane
from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import QuestionError, evaluate
from edgeguard.policy.inside import MAX_RECENT
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables, TablesError

NOW = 1_780_000_000.0  # 2026-05-28T20:26:40Z, a Thursday
WEB = Client("web", True)


def engine(text):
    source = "edgeguard: 1\nmodule: m\nowner: o\n" + text
    return Engine(Tables.load(compile_policy(load_sources({"m.yaml": source.encode()}))))


def rules(*lines, rest=""):
    return engine("rules:\n" + "".join(f"  - {{{line}}}\n" for line in lines) + rest)


def ask(
    e,
    host="a.example",
    port=443,
    protocol="tls",
    method=None,
    target=None,
    client=WEB,
    user=None,
    now=NOW,
    **more,
):
    return e.decide(
        Request(client, host, port, protocol, method, target, user, more.pop("overrides", ())), now, **more
    )


def admit(e, addresses, host="a.example", port=443, **more):
    return e.admit(Request(WEB, host, port, **more), addresses, NOW)


def test_special_addresses_need_resolves_to():
    e = rules(
        "id: a, effect: allow, to: [a.example], resolves_to: [10.0.0.0/8]",
        "id: b, effect: allow, to: [b.example]",
    )
    assert admit(e, ["10.1.2.3", "192.168.0.1", "8.8.8.8"]).addresses == ("10.1.2.3", "8.8.8.8")
    assert admit(e, ["10.1.2.3"], "b.example") == ((), Reason.ADDRESS_NOT_ALLOWED, None)


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1", "::a00:1"])
@pytest.mark.parametrize("row", ["attack-T07"])
def test_embedded_forms_inherit_nothing(row, address):
    e = rules("id: a, effect: allow, to: [a.example], resolves_to: [10.0.0.0/8]")
    assert admit(e, ["10.0.0.1"]).addresses
    assert not admit(e, [address]).addresses


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200"]
)
@pytest.mark.parametrize("row", ["attack-W15"])
def test_broad_networks_hold_no_metadata(row, address):
    e = rules("id: a, effect: allow, to: [a.example], resolves_to: [0.0.0.0/0, '::/0']")
    assert not admit(e, [address]).addresses


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "metadata.google.internal", "metadata", "::ffff:169.254.169.254"]
)
@pytest.mark.parametrize("method", [None, "GET"], ids=["connect", "request"])
@pytest.mark.parametrize("row", ["attack-M05"])
def test_metadata_is_refused_by_name_and_number(row, host, method):
    target = f"[{host}]:80" if ":" in host else f"{host}:80"
    if host.startswith("::ffff"):
        e = rules("id: a, effect: allow, to: ['[::/0]:80'], resolves_to: ['::/0'], protocol: [http, tls]")
    else:
        e = rules(f"id: a, effect: allow, to: ['{target}'], resolves_to: [0.0.0.0/0], protocol: [http, tls]")
    decision = ask(e, host, 80, method=method, target="/" if method else None)
    assert decision.reason is Reason.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize("row", ["attack-D03"])
def test_denied_candidates_are_dropped(row):
    e = rules("id: a, effect: allow, to: [a.example]", "id: no, effect: deny, to: [8.8.0.0/16]")
    assert admit(e, ["8.8.8.8", "1.1.1.1", "64:ff9b::808:808"]).addresses == ("1.1.1.1",)
    assert admit(e, ["8.8.8.8"]) == ((), Reason.ADDRESS_NOT_ALLOWED, "no")


@pytest.mark.parametrize("row", ["attack-D04"])
def test_localhost_is_loopback_only(row):
    e = rules(
        "id: a, effect: allow, to: [localhost, '*.localhost:443', notlocalhost], resolves_to: [127.0.0.0/8, 10.0.0.0/8]"
    )
    assert admit(e, ["127.0.0.1", "10.0.0.1", "8.8.8.8"], "localhost").addresses == ("127.0.0.1",)
    assert admit(e, ["8.8.8.8"], "app.dev.localhost").addresses == ()
    assert admit(e, ["8.8.8.8"], "notlocalhost").addresses == ("8.8.8.8",)


@pytest.mark.parametrize("row", ["attack-I14"])
def test_literals_need_their_own_rule(row):
    e = rules(
        "id: a, effect: allow, to: ['**.example.com']", "id: n, effect: allow, to: ['93.184.216.0/24:443']"
    )
    assert ask(e, "8.8.8.8").reason is Reason.HOST_NOT_ALLOWED
    assert ask(e, "93.184.216.34").allow


@pytest.mark.parametrize("row", ["attack-I07"])
def test_a_denied_address_is_denied_in_every_dress(row):
    e = rules("id: a, effect: allow, to: ['[::/0]:443']", "id: d, effect: deny, to: [8.8.8.8]")
    assert ask(e, "::ffff:8.8.8.8").reason is Reason.DENIED_BY_RULE
    assert ask(e, "64:ff9b::808:808").reason is Reason.DENIED_BY_RULE
    assert ask(e, "64:ff9b::808:809").allow


def test_private_literals_need_resolves_to():
    e = rules(
        "id: a, effect: allow, to: ['10.0.0.5:443']",
        "id: b, effect: allow, to: ['10.0.0.6:443'], resolves_to: [10.0.0.6/32]",
    )
    assert ask(e, "10.0.0.5").reason is Reason.ADDRESS_NOT_ALLOWED
    assert ask(e, "10.0.0.6").allow


@pytest.mark.parametrize(
    "host", ["evilexample.com", "example.com.attacker.com", "notgithub.com", "github.com.evil.com"]
)
@pytest.mark.parametrize("row", ["attack-H19"])
def test_lookalikes(row, host):
    e = rules("id: a, effect: allow, to: ['**.example.com', '**.github.com']")
    assert not ask(e, host).allow


@pytest.mark.parametrize("row", ["attack-W05", "attack-W06"])
def test_wildcards(row):
    e = rules("id: a, effect: allow, to: ['*.example.com']", "id: b, effect: allow, to: ['**.example.org']")
    assert not ask(e, "example.com").allow
    assert ask(e, "a.b.c.example.com").allow
    assert ask(e, "example.org").allow
    assert ask(e, "x.example.org").allow


@pytest.mark.parametrize("row", ["attack-C02"])
def test_ports(row):
    e = rules(
        "id: a, effect: allow, to: [a.example]",
        "id: d, effect: deny, to: [b.example]",
        "id: b, effect: allow, to: ['b.example:8443']",
    )
    assert ask(e, port=22).reason is Reason.PORT_NOT_ALLOWED
    assert ask(e, "b.example", 8443).reason is Reason.DENIED_BY_RULE


@pytest.mark.parametrize("row", ["attack-C04"])
def test_opaque_bytes(row):
    e = rules(
        "id: a, effect: allow, to: [a.example]",
        "id: t, effect: allow, to: ['db.example:5432'], protocol: tcp",
    )
    assert ask(e, protocol="tcp").reason is Reason.OPAQUE_TUNNEL
    assert ask(e, "db.example", 5432, "tcp").allow
    assert ask(e, "db.example", 5432, "tls").allow


@pytest.mark.parametrize("row", ["attack-P15"])
def test_methods_and_overrides(row):
    e = rules(
        "id: a, effect: allow, to: [a.example], methods: [GET, POST]",
        "id: d, effect: deny, to: [a.example], methods: [POST], paths: [/admin]",
    )
    assert ask(e, method="get", target="/").reason is Reason.METHOD_NOT_ALLOWED
    assert ask(e, method="PROPFIND", target="/").reason is Reason.METHOD_NOT_ALLOWED
    assert ask(e, method="POST", target="/", overrides=("DELETE",)).reason is Reason.METHOD_NOT_ALLOWED
    assert ask(e, method="GET", target="/admin", overrides=("post",)).reason is Reason.DENIED_BY_RULE
    assert ask(e, method="POST", target="/", overrides=("GET",)).allow


def test_trace_and_connect_are_never_implied():
    e = rules(
        "id: a, effect: allow, to: [a.example]", "id: t, effect: allow, to: [t.example], methods: [TRACE]"
    )
    for method in ("TRACE", "CONNECT", "trace"):
        assert ask(e, method=method, target="/").reason is Reason.METHOD_NOT_ALLOWED
    assert ask(e, "t.example", method="TRACE", target="/").allow


@pytest.mark.parametrize("method", ["GE T", "", "G\r\n", "A" * 40])
def test_malformed_methods(method):
    e = rules("id: a, effect: allow, to: [a.example]")
    assert ask(e, method=method, target="/").reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("target", ["x", "/a#b", "/\x00", "*", "http://b/"])
def test_malformed_targets(target):
    e = rules("id: a, effect: allow, to: [a.example]")
    assert ask(e, method="GET", target=target).reason is Reason.MALFORMED_REQUEST


def test_encoded_oddities_only_matter_where_paths_do():
    e = rules(
        "id: a, effect: allow, to: [a.example]", "id: b, effect: allow, to: [b.example], paths: ['/**']"
    )
    assert ask(e, method="GET", target="/a%5cb").allow
    assert ask(e, "b.example", method="GET", target="/a%5cb").reason is Reason.MALFORMED_REQUEST


@pytest.mark.parametrize("row", ["attack-P17"])
def test_websocket_paths(row):
    e = rules(
        "id: a, effect: allow, to: [a.example], paths: ['/ws/**'], protocol: [tls, websocket]",
        "id: b, effect: allow, to: [b.example], paths: ['/**']",
    )
    assert ask(e, protocol="websocket", method="GET", target="/ws/x").allow
    assert ask(e, protocol="websocket", method="GET", target="/ws/../x").reason is Reason.PATH_NOT_ALLOWED
    assert (
        ask(e, "b.example", protocol="websocket", method="GET", target="/x").reason
        is Reason.PROTOCOL_NOT_ALLOWED
    )


@pytest.mark.parametrize("row", ["attack-X01"])
def test_a_host_only_allow_carries_websockets(row):
    e = rules("id: a, effect: allow, to: [a.example]")
    assert ask(e, protocol="websocket", method="GET", target="/x").allow
    assert ask(e).lane is Lane.TUNNEL


def test_plain_http():
    e = rules(
        "id: a, effect: allow, to: ['a.example:80']",
        "id: b, effect: allow, to: [b.example]",
        "id: c, effect: allow, to: [c.example], protocol: http",
    )
    assert ask(e, port=80, protocol="http", method="GET", target="/").allow
    assert ask(e, port=80).reason is Reason.PROTOCOL_NOT_ALLOWED
    assert ask(e, "b.example", 443, "http", "GET", "/").reason is Reason.PROTOCOL_NOT_ALLOWED
    assert ask(e, "c.example", 80, "http", "GET", "/").allow


GATE = "age_gates:\n  - {id: g, match: {to: [a.example]%s}, require: {age: 18}, rationale: r, legal_ref: l}\n"
ADULT = User(30, 30, 5, "DE", NOW + 60)


def test_a_gate_forces_inspection_of_its_destination_only():
    e = rules("id: a, effect: allow, to: [a.example, b.example]", rest=GATE % ", paths: [/x]")
    assert ask(e).lane is Lane.INSPECT
    assert ask(e, "b.example").lane is Lane.TUNNEL
    assert ask(e).allow


def test_a_gate_behind_passthrough_is_judged_when_the_connection_opens():
    e = rules("id: a, effect: allow, to: [a.example], tls: passthrough", rest=GATE % ", paths: [/x]")
    assert ask(e).reason is Reason.AGE_VERIFICATION_REQUIRED
    decision = ask(e, user=ADULT)
    assert (decision.allow, decision.lane, decision.until) == (True, Lane.TUNNEL, NOW + 60)


def test_an_expired_user_is_unknown():
    e = rules("id: a, effect: allow, to: [a.example]", rest=GATE % "")
    assert ask(e, method="GET", target="/", user=ADULT).until == NOW + 60
    assert (
        ask(e, method="GET", target="/", user=ADULT, now=NOW + 60).reason is Reason.AGE_VERIFICATION_REQUIRED
    )


def test_lane_is_per_client():
    e = rules(
        "id: a, effect: allow, to: [a.example], clients: [web]",
        "id: b, effect: allow, to: [a.example], clients: [batch], paths: [/x]",
        "id: d, effect: deny, to: [a.example], clients: [batch], paths: [/y]",
    )
    assert ask(e).lane is Lane.TUNNEL
    assert ask(e, client=Client("batch", True)).lane is Lane.INSPECT


def test_report_never_forces_inspection_unless_it_says_so():
    quiet = rules(
        "id: a, effect: allow, to: [a.example]",
        "id: d, effect: deny, to: [a.example], paths: [/x], mode: report",
    )
    loud = rules(
        "id: a, effect: allow, to: [a.example]",
        "id: d, effect: deny, to: [a.example], paths: [/x], mode: report, tls: inspect",
    )
    assert ask(quiet).lane is Lane.TUNNEL
    assert ask(loud).lane is Lane.INSPECT
    assert ask(loud, method="GET", target="/x").would == (("would_deny", "d"),)


def test_would_allow():
    e = rules("id: a, effect: allow, to: [a.example], mode: report")
    assert ask(e) == ask(e)._replace(
        allow=False, reason=Reason.HOST_NOT_ALLOWED, would=(("would_allow", "a"),)
    )


def test_times_are_judged_when_the_decision_is_made():
    e = rules(
        "id: a, effect: allow, to: [a.example], expires: '2026-05-28T20:27:00Z', valid_from: '2026-05-28T20:26:00Z'"
    )
    edge = 1_780_000_020
    assert ask(e, now=NOW).until == edge
    assert [ask(e, now=t).allow for t in (edge - 61, edge - 60, edge - 1, edge, edge - 1)] == [
        False,
        True,
        True,
        False,
        True,
    ]


def test_windows():
    e = rules(
        "id: a, effect: allow, to: [a.example], when: {days: [thu], hours: '20:00-21:00'}",
        "id: n, effect: allow, to: [n.example], when: {days: [thu], hours: '22:00-06:00'}",
    )
    hour = NOW - NOW % 3600
    assert ask(e).until == hour + 3600
    assert [ask(e, now=hour + h * 3600).allow for h in (-1, 0, 1, 24)] == [False, True, False, False]
    assert [ask(e, "n.example", now=hour + h * 3600).allow for h in (0, 2, 9, 10, 26)] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_an_unknown_flag_restricts():
    e = rules(
        "id: a, effect: allow, to: [a.example, b.example]",
        "id: f, effect: allow, to: [f.example], when: {flags: {nobody: true}}",
        "id: d, effect: deny, to: [b.example], when: {flags: {nobody: true}}",
    )
    assert ask(e).allow
    assert not ask(e, "f.example").allow
    assert ask(e, "b.example").reason is Reason.DENIED_BY_RULE


def test_enforce_percent_is_sticky_and_grows():
    def denied(percent):
        e = rules(
            "id: a, effect: allow, to: [a.example]",
            f"id: d, effect: deny, to: [a.example], enforce_percent: {percent}",
        )
        return {i for i in range(400) if not ask(e, client=Client(f"c{i}", True)).allow}

    some, more, all_ = denied(20), denied(60), denied(100)
    assert some < more < all_
    assert len(all_) == 400
    assert 40 < len(some) < 120


def test_limits():
    rest = (
        "rate_limits:\n"
        "  - {id: r, match: {rules: [a]}, limit: 10/s, burst: 20, unit: requests}\n"
        "  - {id: t, match: {to: [a.example]}, limit: 5/m, unit: tunnels, key: [client, rule]}\n"
        "  - {id: c, match: {to: [a.example]}, limit: 3, unit: concurrent_tunnels}\n"
        "  - {id: w, limit: 10MB/s, unit: bytes, mode: report, key: [client_ip]}\n"
        "  - {id: m, match: {to: [a.example]}, limit: 9/s, unit: requests, key: [method]}\n"
    )
    e = rules("id: a, effect: allow, to: [a.example]", "id: b, effect: allow, to: [b.example]", rest=rest)
    connect = ask(e)
    assert [(h.limit, h.key, h.quota, h.burst, h.enforced) for h in connect.limits] == [
        ("c", "name:web", 3, 3, True),
        ("t", "name:web|a", 5, 5, True),
        ("w", "addr:-", 10_000_000, 10_000_000, False),
    ]
    assert connect.lane is Lane.INSPECT
    assert ask(e, "b.example").lane is Lane.TUNNEL
    assert [(h.limit, h.key) for h in ask(e, method="GET", target="/").limits] == [
        ("m", "GET"),
        ("r", "name:web"),
    ]
    assert [h.key for h in ask(e, method="PURGE", target="/").limits] == ["other", "name:web"]


@pytest.mark.parametrize("row", ["attack-L03"])
def test_unknown_clients_share_a_network(row):
    e = rules(
        "id: a, effect: allow, to: [a.example], clients: any",
        rest="rate_limits:\n  - {id: r, limit: 1/s, unit: tunnels}\n",
    )
    keys = {
        ask(e, client=Client(address=a)).limits[0].key for a in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9")
    }
    assert keys == {"addr:2001:db8:1:2::/64"}
    assert ask(e, client=Client(address="::ffff:192.0.2.1")).limits[0].key == "addr:192.0.2.1"


def test_exceptions_never_survive_offline():
    rest = "exceptions:\n  - {id: e, lifts: d, clients: [web], owner: o, reason: r, ticket: t, granted: 2026-05-20, expires: 2026-06-10}\n"
    e = rules(
        "id: a, effect: allow, to: [a.example], survive_offline: true",
        "id: d, effect: deny, to: [a.example]",
        rest=rest,
    )
    assert ask(e).allow
    assert ask(e, client=Client("other", True)).reason is Reason.DENIED_BY_RULE
    assert ask(e, restricted=True).reason is Reason.DENIED_BY_RULE


def test_an_exception_needs_every_reading():
    rest = "exceptions:\n  - {id: e, lifts: d, paths: ['/x/ok'], owner: o, reason: r, ticket: t, granted: 2026-05-20, expires: 2026-06-10}\n"
    e = rules(
        "id: a, effect: allow, to: [a.example]",
        "id: d, effect: deny, to: [a.example], paths: ['/x/**']",
        rest=rest,
    )
    assert ask(e, method="GET", target="/x/ok").allow
    assert ask(e, method="GET", target="/x/no").reason is Reason.DENIED_BY_RULE
    assert ask(e, method="GET", target="/x/ok/../no").reason is Reason.DENIED_BY_RULE
    assert ask(e, method="GET", target="/y/../x/ok").reason is Reason.DENIED_BY_RULE


def test_learning_grants_no_private_address():
    e = engine("learning:\n  - {id: l, clients: [web], unmatched: report, expires: 2026-12-01}\n")
    assert ask(e).would == (("would_deny", "l"),)
    assert not admit(e, ["10.0.0.1"]).addresses
    assert ask(e, "169.254.169.254", 80).reason is Reason.ADDRESS_NOT_ALLOWED


def test_near_miss_is_the_allow_that_got_furthest():
    e = rules(
        "id: a-port, effect: allow, to: ['a.example:8443']",
        "id: b-client, effect: allow, to: [a.example], clients: [other]",
        "id: c-claim, effect: allow, to: [a.example], claims: [x]",
        "id: d-claim, effect: allow, to: [a.example], claims: [y]",
    )
    assert (ask(e).reason, ask(e).near) == (Reason.CLAIM_MISSING, "c-claim")


def test_the_memo_is_bounded():
    from edgeguard.policy import engine as module

    e = rules("id: a, effect: allow, to: ['*.example.com']")
    for i in range(3 * module.MEMO):
        e.decide(Request(WEB, f"h{i}.example.com", 443), NOW)
    assert len(e._memo) + len(e._old) <= 2 * module.MEMO


SECTIONS = compile_policy(
    load_sources(
        {
            "m.yaml": b"edgeguard: 1\nmodule: m\nowner: o\nrules:\n  - {id: a, effect: allow, to: ['*.a.example', 9.9.9.9], paths: [/x]}\n"
        }
    )
)


def broken(path, value):
    import copy

    data = copy.deepcopy(SECTIONS)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rules",), None),
        (("rules", "v"), 2),
        (("rules", "rows"), {}),
        (("rules", "rows", 0), [1]),
        (("rules", "rows", 0, 0), 5),
        (("rules", "rows", 0, 1), 3),
        (("rules", "rows", 0, 2), 101),
        (("rules", "rows", 0, 3), 7),
        (("rules", "rows", 0, 4), -2),
        (("rules", "rows", 0, 5), {"other": 1}),
        (("rules", "conds", 0), [None, None, ["x"], None]),
        (("rules", "conds", 0), [None]),
        (("rules", "below", "a.example"), [0, 443]),
        (("rules", "below", "a.example"), [9, 443, 443]),
        (("rules", "below", "a.example"), [0, 443, True]),
        (("rules", "nets"), {"nonsense": [0, 1, 2]}),
        (("rules", "depth"), 0),
        (("rules", "depth"), "2"),
        (("rules", "everywhere"), [4]),
        (("age", "groups"), []),
        (("identity", "issuers"), [1]),
        (("identity", "groups"), {"g": "x"}),
        (("exceptions", "rows"), [[1]]),
    ],
)
def test_tables_are_right_or_not_loaded(path, value):
    Tables.load(SECTIONS)
    with pytest.raises(TablesError):
        Tables.load(broken(path, value))


@pytest.mark.parametrize("row", ["attack-M04", "attack-M06"])
@pytest.mark.parametrize("host", ["metadata.google.internal.", "METADATA.azure.internal", "metadata"])
def test_metadata_names_in_any_spelling(row, host):
    e = rules(
        "id: a, effect: allow, to: [metadata.google.internal, metadata.azure.internal, 'metadata:80', 'metadata:443']"
    )
    assert evaluate(e, {"host": host}, NOW)["reason"] == "address_not_allowed"
    assert evaluate(e, {"host": host, "port": 80}, NOW)["reason"] in {
        "address_not_allowed",
        "port_not_allowed",
    }


@pytest.mark.parametrize("row", ["attack-H13", "attack-H14", "attack-H24"])
@pytest.mark.parametrize("host", ["api.github.com", "API.GitHub.com", "api.github.com.", "ApI.gItHuB.CoM."])
def test_lane_and_verdict_follow_the_canonical_name(row, host):
    e = rules("id: a, effect: allow, to: [api.github.com], paths: ['/repos/**']")
    assert evaluate(e, {"host": host}, NOW)["lane"] == "inspect"
    assert evaluate(e, {"host": host, "path": "/repos/x"}, NOW)["allow"]
    assert evaluate(e, {"host": host, "path": "/user"}, NOW)["reason"] == "path_not_allowed"


@pytest.mark.parametrize(
    "host", ["\uff41pi.github.com", "api%2egithub.com", "api.github.com..", "api..github.com"]
)
@pytest.mark.parametrize("row", ["attack-H13"])
def test_a_host_of_two_readings_is_no_question(row, host):
    with pytest.raises(QuestionError, match="host"):
        evaluate(rules("id: a, effect: allow, to: [api.github.com]"), {"host": host}, NOW)


@pytest.mark.parametrize("row", ["attack-I15"])
def test_an_ipv6_literal_is_judged_like_any_other_destination(row):
    e = rules("id: a, effect: allow, to: ['[2606:4700::/32]:443']")
    assert ask(e, "2606:4700::1").allow
    assert ask(e, "2606:4700::1", 8443).reason is Reason.PORT_NOT_ALLOWED
    assert ask(e, "2607::1").reason is Reason.HOST_NOT_ALLOWED


@pytest.mark.parametrize("row", ["attack-P16"])
@pytest.mark.parametrize(
    ("method", "target", "fine"),
    [
        ("GET", "/o/r/info/refs?service=git-upload-pack", True),
        ("POST", "/o/r/git-upload-pack", True),
        ("GET", "/o/r/info/refs?service=git-receive-pack", False),
        ("GET", "/o/r/info/refs?service=git-upload-pack&service=git-receive-pack", False),
        ("GET", "/o/r/info/refs?service=git-upload-pack;service=git-receive-pack", False),
        ("GET", "/o/r/info/refs?%73ervice=git-receive-pack", False),
        ("GET", "/o/r/info/refs", False),
        ("POST", "/o/r/git-receive-pack", False),
        ("POST", "/o/r/git-upload-pack/../git-receive-pack", False),
    ],
)
def test_reading_git_is_not_pushing(row, method, target, fine):
    e = rules(
        "id: refs, effect: allow, to: [git.example], methods: [GET], paths: ['/*/*/info/refs'], query: {service: git-upload-pack}",
        "id: pack, effect: allow, to: [git.example], methods: [POST], paths: ['/*/*/git-upload-pack']",
    )
    assert ask(e, "git.example", method=method, target=target).allow is fine


def test_a_request_known_from_before_is_judged_anew_for_another_person():
    e = rules(
        "id: a, effect: allow, to: [a.example], paths: ['/x/**']",
        rest="age_gates:\n  - {id: g, match: {to: [a.example]}, require: {age: 18}, legal_ref: x, rationale: y}\n",
    )
    adult = User(18, None, Assurance.VERIFIED, "DE", NOW + 10)
    for _ in range(3):
        assert ask(e, method="GET", target="/x/1", user=adult).until == NOW + 10
        assert ask(e, method="GET", target="/x/1", user=None).reason is Reason.AGE_VERIFICATION_REQUIRED
        assert (
            ask(e, method="GET", target="/x/1", user=adult, now=NOW + 11).reason
            is Reason.AGE_VERIFICATION_REQUIRED
        )
        assert (
            ask(e, method="GET", target="/x/1", user=adult, overrides=("TRACE",)).reason
            is Reason.METHOD_NOT_ALLOWED
        )


def test_the_same_limit_and_key_are_the_same_object():
    e = rules(
        "id: a, effect: allow, to: ['*.example.com']",
        rest="rate_limits:\n  - {id: l, match: {rules: [a]}, limit: 5/s, unit: requests}\n",
    )
    hits = [ask(e, f"{n}.example.com", method="GET", target=f"/{n}").limits[0] for n in range(3)]
    assert hits[0] is hits[1] is hits[2]


def test_what_is_remembered_is_bounded():
    e = rules("id: a, effect: allow, to: [a.example], paths: ['/**']")
    for number in range(2 * MAX_RECENT + 10):
        assert ask(e, method="GET", target=f"/{number}").allow
    assert len(e._recent) <= MAX_RECENT


@pytest.mark.parametrize("target", ["/..", "/%zz", "/a%00"])
def test_what_is_only_reported_refuses_no_target(target):
    """The verdict is as if the rule were absent."""
    base = 'id: a, effect: allow, to: ["a.example:443"], tls: inspect'
    report = 'id: d, effect: deny, to: ["a.example"], paths: ["/x/**"], mode: report'
    enforced = report.replace("report", "enforce")
    assert ask(rules(base), method="GET", target=target).allow
    assert ask(rules(base, report), method="GET", target=target).allow
    assert ask(rules(base, report), method="GET", target="/x/%2e").would == (("would_deny", "d"),)
    assert ask(rules(base, enforced), method="GET", target=target).reason is Reason.MALFORMED_REQUEST


def test_an_engine_that_forgets_decides_the_same_and_leaves_no_garbage():
    e = rules(
        "id: one, effect: allow, to: [a.example]",
        "id: two, effect: allow, to: ['*.b.example'], paths: ['/open/**']",
        "id: no, effect: deny, to: [x.b.example], paths: ['/open/secret']",
    )
    asked = [
        {"host": host, "method": method, "target": target}
        for host in ("a.example", "x.b.example", "c.example")
        for method, target in ((None, None), ("GET", "/open/x"), ("GET", "/open/secret"))
    ]
    before = [ask(e, **one) for one in asked]
    assert len({decision.allow for decision in before}) == 2
    e.forget()
    assert [ask(e, **one) for one in asked] == before
    e.forget()
    gc.collect()
    gc.disable()
    try:
        del e
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert gc.garbage == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


NOBODY = Client(None, False, address="192.0.2.1")


@pytest.mark.parametrize("client", [WEB, NOBODY], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("alias", "method", "target", "closed", "denied"),
    [
        ("bad.example", None, None, False, "whole"),
        ("bad.example", "GET", "/", False, "whole"),
        ("part.example", None, None, False, None),
        ("part.example", None, None, True, "part"),
        ("part.example", "GET", "/secret/%61", False, "part"),
        ("part.example", "GET", "/", False, None),
        ("mild.example", None, None, True, None),
    ],
)
def test_a_deny_of_an_alias_holds_for_whoever_asks(client, alias, method, target, closed, denied):
    """attack-D12"""
    e = rules(
        "id: all, effect: allow, clients: any, to: [good.example]",
        "id: whole, effect: deny, to: [bad.example]",
        'id: part, effect: deny, to: [part.example], paths: ["/secret/**"]',
        "id: mild, effect: deny, to: [mild.example], mode: report",
    )
    request = Request(client, "good.example", 443, "tls", method, target)
    assert e.decide(request, NOW).allow
    assert e.denied(request, ["harmless.example", alias], NOW, closed=closed) == denied
