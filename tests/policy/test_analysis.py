"""The linter: what it finds, and what it leaves alone."""

import pytest

from edgeguard.policy.analysis import analyse
from edgeguard.policy.covering import template_covers
from edgeguard.policy.paths import parse_template
from edgeguard.policy.source import load_with_places


def codes(text, module="m"):
    source = f"edgeguard: 1\nmodule: {module}\nowner: o\n" + text
    return [
        (f.code, f.severity.value, f.place.line)
        for f in analyse(load_with_places({"m.yaml": source.encode()}))
    ]


def rules(*lines):
    return "rules:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


GATE = "rules:\n  - {id: a, effect: allow, to: [a.example]}\nage_gates:\n  - {id: g, match: {to: [%s]}, require: {age: 18}%s}\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(
            rules("id: a, effect: allow, to: ['*.co.uk']"), [("public-suffix", "error", 5)], id="attack-W03"
        ),
        pytest.param(
            rules("id: a, effect: allow, to: ['**.github.io']"),
            [("public-suffix", "error", 5)],
            id="attack-W03-private",
        ),
        (rules("id: a, effect: deny, to: ['*.co.uk']"), []),
        (rules("id: a, effect: allow, to: ['*.example.co.uk']"), []),
        (rules("id: a, effect: allow, to: ['10.0.0.1:443']"), [("unreachable", "error", 5)]),
        (
            rules("id: a, effect: allow, to: ['169.254.169.254:80'], resolves_to: [169.254.0.0/16]"),
            [("unreachable", "error", 5)],
        ),
        (rules("id: a, effect: allow, to: [metadata.google.internal]"), [("unreachable", "error", 5)]),
        (
            rules("id: a, effect: allow, to: [a.example], resolves_to: [0.0.0.0/0]"),
            [("broad-network", "warning", 5)],
        ),
        (
            rules("id: a, effect: allow, to: [x.a.example]", "id: d, effect: deny, to: ['*.a.example']"),
            [("unreachable", "error", 5)],
        ),
        (
            rules(
                "id: a, effect: allow, to: ['a.example:1-65535'], clients: any",
                "id: d, effect: deny, to: [a.example]",
            ),
            [("conflict", "error", 5)],
        ),
        (
            rules(
                "id: a, effect: allow, to: [a.example]", "id: d, effect: deny, to: [a.example], paths: [/x]"
            ),
            [],
        ),
        (
            rules(
                "id: a, effect: allow, to: [a.example]", "id: d, effect: deny, to: [a.example], mode: report"
            ),
            [],
        ),
        (
            rules(
                "id: a, effect: allow, to: ['*.a.example']",
                "id: b, effect: allow, to: [x.a.example], paths: [/x]",
            ),
            [("shadowed", "warning", 6)],
        ),
        (
            rules(
                "id: a, effect: allow, to: ['*.a.example']",
                "id: b, effect: allow, to: [x.a.example], survive_offline: true",
            ),
            [],
        ),
        (
            rules("id: a, effect: allow, to: [a.example]", "id: b, effect: allow, to: [a.example]"),
            [("redundant", "warning", 6)],
        ),
        (
            rules(
                "id: a, effect: allow, to: [a.example], expires: 2030-01-01",
                "id: b, effect: allow, to: [a.example]",
            ),
            [("shadowed", "warning", 5)],
        ),
        (
            rules("id: a, effect: allow, to: [a.example], when: {flags: {f: true}}"),
            [("unknown-flag", "warning", 5)],
        ),
        (GATE % ("a.example", ""), [("no-reason", "error", 7)]),
        (GATE % ("a.example", ", rationale: r, legal_ref: l"), []),
        (GATE % ("b.example", ", rationale: r, legal_ref: l"), [("unreachable", "warning", 7)]),
    ],
)
def test_findings(text, found):
    assert codes(text) == found


def test_a_privacy_rule_needs_its_reason():
    assert codes(rules("id: a, effect: allow, to: [a.example]"), "privacy") == [("no-reason", "error", 5)]


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("/**", "/a/*", True),
        ("/a/**", "/a", True),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/", False),
        ("/a/*", "/a/**", False),
        ("/a/b", "/a/*", False),
        ("/a", "/a/b", False),
    ],
)
def test_template_covers(wide, narrow, covers):
    assert template_covers(parse_template(wide), parse_template(narrow)) is covers
