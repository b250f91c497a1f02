"""Every mistake is found in one run, with its place and what to write instead."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.policy.source import PolicyErrors, load_sources

HEAD = "edgeguard: 1\nmodule: m\nowner: o\n"


def errors(text, **more):
    files = {"m.yaml": (HEAD + text).encode()} | {f"{k}.yaml": v.encode() for k, v in more.items()}
    with pytest.raises(PolicyErrors) as caught:
        load_sources(files)
    return caught.value.errors


def rule(body):
    return "rules:\n  - id: r\n    effect: allow\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("rulez: []\n", 4, "rulez", "did you mean `rules`"),
        (rule("to: [a.example]\nmethod: [GET]"), 8, "rules[0].method", "did you mean `methods`"),
        (
            rule("to: [a.example]\nto: [b.example]"),
            8,
            "rules[0].to",
            "the key stands twice (first in line 7)",
        ),
        (rule("to: []"), 7, "rules[0].to", "at least 1"),
        (rule("paths: [/a]"), 5, "rules[0]", "nothing is allowed everywhere"),
        (rule("to: [a.example]\npaths: ['/a/../b']"), 8, "rules[0].paths[0]", "no dot segments"),
        (rule("to: [a.example]\nmethods: [get]"), 8, "rules[0].methods[0]", "upper case"),
        (rule("to: [a.example]\nmethods: GET"), 8, "rules[0].methods", "it should be a list"),
        pytest.param(
            rule("to: [a.example]\nexpires: soon"), 8, "rules[0].expires", "neither a date", id="attack-K09"
        ),
        (rule("to: [a.example]\nexpires: 2026-01-01T00:00:00"), 8, "rules[0].expires", "end it with Z"),
        (rule("to: [a.example]\nprotocol: tcp\nmethods: [GET]"), 5, "rules[0]", "have no method"),
        (rule("to: [a.example]\nprotocol: tcp"), 5, "r.to", "needs a port"),
        (rule("resource: nowhere"), 5, "r.resource", "there is no resource `nowhere`"),
        (rule("to: &anchor [a.example]"), 7, "rules[0].to", "anchors and aliases"),
        (rule("to: !!set {a}"), 7, "rules[0].to", "the tag"),
        (rule("to: [a.example]\nsurvive_offline: maybe"), 8, "rules[0].survive_offline", "boolean"),
        (rule("to: [a.example]\nenforce_percent: 120"), 8, "rules[0].enforce_percent", "100"),
        (rule("to: [a.example]\nresolves_to: [10.0.0.1/8]"), 8, "rules[0].resolves_to[0]", "not a network"),
        ("rate_limits:\n  - {id: l, limit: fast, unit: requests}\n", 5, "rate_limits[0]", "not a rate"),
        (
            "rate_limits:\n  - {id: l, limit: 1/s, unit: requests, match: {rules: [none]}}\n",
            5,
            "l.match.rules",
            "there is no allow `none`",
        ),
        (
            "rate_limits:\n  - {id: l, limit: 1/s, unit: tunnels, match: {methods: [GET]}}\n",
            5,
            "rate_limits[0]",
            "counts connections",
        ),
        (
            "age_gates:\n  - {id: g, match: {}, require: {age: 18}, regions: [EUROPE]}\n",
            5,
            "g.regions",
            "neither a country nor a group",
        ),
        ("key\n", 5, "", "not YAML"),
    ],
)
def test_one_mistake(text, line, field, words):
    (error,) = errors(text)
    assert (error.file, error.line, error.field) == ("m.yaml", line, field)
    assert words in str(error)
    assert error.column > 0


BAD_TARGETS = {
    "attack-W01": "*",
    "attack-W01-dot": "*.",
    "attack-W02": "*.com",
    "attack-W02-tree": "**.internal",
    "attack-W04-two": "*.*.stripe.com",
    "attack-W04-middle": "login.*.example.com",
    "attack-W04-part": "*bob.example.com",
    "attack-W04-inner": "bob.ex*ample.com",
    "attack-W08": "api-*.example.com",
    "attack-W09-lf": "a\\nb.example.com",
    "attack-W09-nul": "a\\0b.example.com",
    "attack-W09-space": "a b.example.com",
    "attack-W09-hash": "a#b.example.com",
    "attack-W09-quote": "a'b.example.com",
    "attack-W10": "https://example.com",
    "attack-W14-wide": "::ffff:0:0/90",
    "attack-W14-mapped": "::ffff:10.0.0.0/104",
    "attack-W14-brackets": "[::1]/128",
    "attack-W14-33": "10.0.0.0/33",
    "attack-W14-300": "300.1.1.1",
    "attack-H07-0443": "a.example:0443",
    "attack-H07-0": "a.example:0",
    "attack-H07-65536": "a.example:65536",
    "attack-H07-empty": "a.example:",
    "attack-H07-two": "a.example:80:443",
    "attack-H10": "тест.example.com",
    "octal": "0177.0.0.1",
    "host-bits": "10.0.0.1/8",
    "backwards": "a.example:90-80",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_target(target):
    (error,) = errors(rule(f'to: ["{target}"]'))
    assert error.line in {5, 7}


def test_punycode_is_named():
    assert "xn--e1aybc.example.com" in str(errors(rule("to: [тест.example.com]"))[0])


@pytest.mark.parametrize("row", ["attack-W11"])
def test_an_empty_policy_allows_nothing(row):
    assert load_sources({"m.yaml": HEAD.encode()}).modules[0].rules == ()


def test_all_mistakes_of_all_files():
    found = errors(
        "rules:\n  - {id: A, effect: alow, to: [x y]}\n  - {id: b}\n", other="edgeguard: 2\nmodule: q\n"
    )
    assert len(found) >= 5
    assert {e.file for e in found} == {"m.yaml", "other.yaml"}
    assert list(found) == sorted(found)


def test_ids_are_unique_over_all_files():
    (error,) = errors(
        rule("to: [a.example]"), other="edgeguard: 1\nmodule: q\nowner: o\n" + rule("to: [b.example]")
    )
    assert "defined twice" in str(error)


def test_yaml_is_1_2():
    policy = load_sources(
        {"m.yaml": (HEAD + rule("to: [a.example]\nowner: no\nexpires: 2030-01-01")).encode()}
    )
    assert policy.modules[0].rules[0].owner == "no"


def test_billion_laughs_are_not_funny():
    (error,) = errors("a: &a [x,x]\nb: [*a,*a]\n")
    assert "anchors" in str(error)


def test_several_documents():
    (error,) = errors("---\nedgeguard: 1\n")
    assert "several documents" in str(error)


def test_not_utf8():
    with pytest.raises(PolicyErrors, match="UTF-8"):
        load_sources({"m.yaml": b"edgeguard: \xff"})


def test_no_files():
    with pytest.raises(PolicyErrors, match="no policy files"):
        load_sources({})


PASS = "rules:\n  - {id: p, effect: allow, to: ['*.a.example'], tls: passthrough}\n"


@pytest.mark.parametrize(
    "more",
    [
        "  - {id: d, effect: deny, to: [x.a.example], paths: [/x]}\n",
        "  - {id: d, effect: allow, to: [x.a.example], tls: inspect}\n",
        "rate_limits:\n  - {id: l, limit: 1/s, unit: requests, match: {to: ['**.a.example']}}\n",
    ],
)
def test_passthrough_meets_what_looks_inside(more):
    (error,) = errors(PASS + more)
    assert "leaves closed" in str(error)


LIFTED = "rules:\n  - {id: d, effect: deny, to: ['*.a.example'], methods: [GET, POST]}\n  - {id: w, effect: allow, to: [b.example]}\nexceptions:\n"
WHO = "owner: o, reason: r, ticket: t, granted: 2026-01-01"


@pytest.mark.parametrize(
    ("exception", "words"),
    [
        (f"  - {{id: e, lifts: d, {WHO}, expires: 2026-02-15, clients: [x]}}\n", "at most 30 days"),
        (f"  - {{id: e, lifts: d, {WHO}, expires: 2026-01-20}}\n", "narrower"),
        (
            f"  - {{id: e, lifts: d, {WHO}, expires: 2026-01-20, to: ['**.a.example'], methods: [GET, POST]}}\n",
            "as wide as",
        ),
        (f"  - {{id: e, lifts: d, {WHO}, expires: 2026-01-20, to: [c.example]}}\n", "nothing to lift"),
        (f"  - {{id: e, lifts: w, {WHO}, expires: 2026-01-20, clients: [x]}}\n", "not a deny or a limit"),
        (f"  - {{id: e, lifts: q, {WHO}, expires: 2026-01-20, clients: [x]}}\n", "not a deny or a limit"),
    ],
)
def test_bad_exceptions(exception, words):
    (error,) = errors(LIFTED + exception)
    assert words in str(error)


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(data):
    with suppress(PolicyErrors):
        load_sources({"x.yaml": data})


@given(st.text(alphabet="edgurd: 1\nmole-[]{}'\"#&*!|>%@`\t~", max_size=120))
def test_any_text_loads_or_is_refused(text):
    with suppress(PolicyErrors):
        load_sources({"x.yaml": (HEAD + text).encode()})


def test_a_limit_names_no_network_through_a_resource_either():
    found = errors(
        "resources: {inside: {to: ['192.0.2.0/24:443']}}\n"
        "rate_limits:\n  - {id: l, limit: 1/s, unit: requests, match: {resource: inside}}\n"
    )
    assert [(e.line, "not networks" in e.message) for e in found] == [(6, True)]


@pytest.mark.parametrize("row", ["attack-W12"])
def test_contradictions_are_errors(row):
    found = errors(
        rule("to: [a.example]\nprotocol: gopher")
        + "  - {id: d, effect: deny, survive_offline: true}\n  - {id: e, effect: both, to: [a.example]}\n"
    )
    assert len(found) == 3


@pytest.mark.parametrize("row", ["attack-W13"])
def test_report_and_learning_are_checked_like_the_rest(row):
    found = errors(
        rule("to: ['*.com']\nmode: report") + "learning: [{id: x, clients: [web], unmatched: report}]\n"
    )
    assert {e.field for e in found} == {"rules[0]", "learning[0].expires"}


words = st.sampled_from(
    ["edgeguard", "1", "module", "m", "owner", "rules", "id", "effect", "allow", "deny", "to", "a.example", "*.example.com:443-",
     "10.0.0.0/8", "paths", "/a/**", "methods", "GET", "clients", "group:", "any", "rate_limits", "limit", "1/s", "unit", "bytes",
     "match", "when", "hours", "09:00-25:00", "expires", "2026-02-30", "true", "null", "~", "-1", "1e400", "0x", "é", "\x00", "!!x",
     "&a", "*a", "|", ">", "---", "...", "%YAML 9.9", "? ", "<<", "\ufeff", "\u2028", "age_gates", "require", "age", "regions", "EU"]
)  # fmt: skip
glue = st.sampled_from(
    [": ", ":\n  ", "\n", "\n- ", "\n  - ", ", ", "{", "}", "[", "]", "'", '"', "#", " ", "\t", "\r"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, glue), max_size=40), st.booleans())
def test_yaml_in_disorder_loads_or_is_refused(parts, headed):
    text = (HEAD if headed else "") + "".join(word + between for word, between in parts)
    with suppress(PolicyErrors):
        load_sources({"m.yaml": text.encode("utf-8", "surrogatepass")})
