"""Readings of paths and templates (rows P of the attack list)."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.policy.paths import PathError, fold, parse_template, query_readings, readings

MEANS = {
    "attack-P01": ("/public/../secret", ("secret",)),
    "attack-P02": ("/public/%2e%2e/secret", ("secret",)),
    "attack-P02-mixed": ("/public/.%2E/secret", ("secret",)),
    "attack-P03": ("/public/..%2fsecret", ("secret",)),
    "attack-P04": ("/o/a%2Fb", ("o", "a/b")),
    "attack-P04-split": ("/o/a%2Fb", ("o", "a", "b")),
    "attack-P05": ("//public/../secret", ("secret",)),
    "attack-P05-merge": ("/public//secret", ("public", "secret")),
    "attack-P06": ("/public/..;/secret", ("secret",)),
    "attack-P06-x": ("/public/..;x=1/secret", ("secret",)),
    "attack-P06-encoded": ("/public/%2e%2e;/secret", ("secret",)),
    "attack-P06-semicolon": ("/public/..%3B/secret", ("secret",)),
    "twice": ("/%2561dult", ("adult",)),
    "twice-dots": ("/public/%252e%252e/secret", ("secret",)),
    "twice-slash": ("/public%252f..%252fsecret", ("secret",)),
    "params": ("/adult;v=1/x", ("adult", "x")),
    "merge-after-dots": ("/a//../b", ("a", "b")),
    "merge-before-dots": ("/a//../b", ("b",)),
}
REFUSED = {
    "attack-P07": "/..",
    "attack-P07-inner": "/a/../..",
    "attack-P07-params": "/..;/..;",
    "attack-P08-nul": "/adult%00.png",
    "attack-P08-lf": "/a%0Ab",
    "attack-P08-cr": "/a%0d",
    "attack-P08-del": "/a%7F",
    "attack-P08-raw": "/a\x01b",
    "attack-P08-utf8": "/é",
    "attack-P09": "/ok#/../adult",
    "attack-P11": "/" + "a" * 9000,
    "attack-S12": "/a%250d",
    "backslash": "/a\\adult",
    "encoded-backslash": "/a%5cadult",
    "broken-escape": "/a%2",
    "overlong": "/a%c0%af",
    "thrice": "/%25252e",
    "private-use": "/a%ee%80%80b",
    "no-slash": "a",
    "empty": "",
    "absolute": "http://x/",
    "many": "/a" * 300,
}


@pytest.mark.parametrize(("target", "path"), MEANS.values(), ids=MEANS)
def test_could_mean(target, path):
    assert path in readings(target)


@pytest.mark.parametrize("target", REFUSED.values(), ids=REFUSED)
def test_refused(target):
    with pytest.raises(PathError):
        readings(target)


@pytest.mark.parametrize(
    "target", ["/", "/a", "/a/b.c-d_e~f", "/a/", "/.well-known/x", "/...", "/@scope/name", "/a?x=/../"]
)
def test_clean_paths_have_one_reading(target):
    assert len(readings(target)) == 1


@given(st.text(alphabet="/.;%2eEfF5cCaAbB\\3?0", max_size=40))
def test_readings_never_fail_otherwise(text):
    try:
        found = readings("/" + text)
    except PathError:
        return
    assert found
    assert len(found) <= 64
    assert all(reading for reading in found)


def test_linear_time():
    worst = "/" + "%2f..;%2561/" * 20 + "//.%2e/x"
    start = time.perf_counter()
    for _ in range(50):
        with suppress(PathError):
            readings("/a" * 100 + worst)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("template", "yes", "no"),
    [
        ("/", ["/"], ["/a", "/a/"]),
        ("/**", ["/", "/a", "/a/", "/a/b/c"], []),
        ("/a", ["/a"], ["/a/", "/A", "/a/b", "/"]),
        ("/a/", ["/a/"], ["/a"]),
        ("/a/*", ["/a/b"], ["/a/", "/a", "/a/b/c"]),
        ("/a/**", ["/a", "/a/", "/a/b", "/a/b/c/"], ["/ab", "/"]),
        ("/*/b", ["/a/b"], ["/b", "//b"]),
    ],
)
def test_templates(template, yes, no):
    parsed = parse_template(template)
    for path in yes:
        assert parsed.matches(readings(path)[-1]), path
    for path in no:
        assert not all(parsed.matches(reading) for reading in readings(path)), path


@pytest.mark.parametrize(
    "text", ["a", "/a/**/b", "/a*", "/a//b", "/a/../b", "/a?x", "/a%20b", "/a;b", "/a\\b", "/.", "//**"]
)
def test_bad_templates(text):
    with pytest.raises(PathError):
        parse_template(text)


def test_fold_forgets_case_and_trailing_slash():
    assert fold(("A", "b", "")) == ("a", "b")


@pytest.mark.parametrize(
    ("target", "query"),
    [
        ("/?a=1&b=2", (("a", "1"), ("b", "2"))),
        pytest.param("/?a=1;b=2", (("a", "1"), ("b", "2")), id="attack-P14-semicolon"),
        ("/?a=%2541", (("a", "A"),)),
        ("/?%61=x+y", (("a", "x y"),)),
        ("/", ()),
    ],
)
def test_query(target, query):
    assert query in query_readings(target)


def test_too_many_fields():
    with pytest.raises(PathError):
        query_readings("/?" + "&".join(f"k{i}" for i in range(600)))
