"""Fields: what is read, what is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.proxy.headers import clean_response, fold, scan_request, take_cookie, unshared, with_host

USER = b"edgeguard-user"


@pytest.mark.parametrize("name", [b"X-Api-Key", b"x_api_key", b"X.API.KEY", b"x-api_key"])
def test_aliases_fold_to_one(name):
    assert fold(name) == b"x-api-key"


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=12))
def test_a_scan_never_fails_and_keeps_only_what_came(fields):
    scan = scan_request(tuple(fields), USER)
    added = {(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")}
    assert set(scan.fields) <= set(fields) | added
    for name, _ in set(scan.fields) - added:
        assert not fold(name).startswith(b"edgeguard-")
        assert fold(name) not in {b"proxy-authorization", b"te", b"trailer", b"keep-alive"}
    clean_response(tuple(fields), 200)


@pytest.mark.parametrize(
    "fields",
    [
        ((b"Host", b"a"), (b"Host", b"b")),
        ((b"Host", b"a"), (b"host", b"a")),
        ((b"Content_Length", b"1"),),
        ((b"Transfer.Encoding", b"chunked"),),
        ((b"X", b"a\r\n b"),),
        ((b"X", b"a\0"),),
        ((b"Connection", b"close, content-length"),),
        ((b"Connection", b"Transfer_Encoding"),),
    ],
)
def test_what_has_no_single_reading(fields):
    assert scan_request(fields, USER).fault is not None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")), True),
        (((b"Upgrade", b"WebSocket"), (b"Connection", b"keep-alive, upgrade")), True),
        (((b"Upgrade", b"websocket"),), False),
        (((b"Connection", b"upgrade"),), False),
        (((b"Upgrade", b"h2c, websocket"), (b"Connection", b"upgrade")), False),
        (((b"Upgrade", b"h2c"), (b"Connection", b"upgrade, http2-settings")), False),
    ],
)
def test_upgrade(fields, expected):
    scan = scan_request(fields, USER)
    assert scan.upgrade is expected
    assert (b"Upgrade", b"websocket") in scan.fields if expected else not scan.fields


@pytest.mark.parametrize(
    ("value", "host", "port", "expected"),
    [
        (b"a.test", "a.test", 443, b"a.test"),
        (b"a.test:443", "a.test", 443, b"a.test:443"),
        (b"A.test.", "a.test", 443, b"a.test"),
        (b"a.test", "a.test", 8443, b"a.test:8443"),
        (b"[::1]:443", "::1", 443, b"[::1]:443"),
        (b"[0::1]", "::1", 443, b"[::1]"),
    ],
)
def test_host_says_what_was_judged(value, host, port, expected):
    assert with_host(((b"Host", value),), host, port, 443) == ((b"Host", expected),)


@pytest.mark.parametrize(("value", "body"), [(b"0", False), (b"1", True), (b"00", True)])
def test_a_declared_length(value, body):
    assert scan_request(((b"Content-Length", value),), USER).declares_body is body


def test_plain_fields_are_collected_under_their_exact_names_and_never_sent_on():
    fields = ((b"X-User-Age", b"30"), (b"X_User_Age", b"40"), (b"x.user.age", b"50"), (b"X-Other", b"1"))
    scan = scan_request(fields, USER, frozenset({b"x-user-age"}))
    assert scan.plain == (("x-user-age", "30"),)
    assert scan.fields == ((b"X-Other", b"1"),)


def test_no_cache_keeps_what_a_gate_let_through():
    fields = (
        (b"Cache-Control", b"public, max-age=600"),
        (b"Expires", b"Thu, 01 Jan 2032 00:00:00 GMT"),
        (b"Surrogate-Control", b"max-age=600"),
        (b"CDN-Cache-Control", b"max-age=600"),
        (b"Acme-CDN-Cache-Control", b"max-age=600"),
        (b"ETag", b"x"),
    )
    assert unshared(fields) == ((b"ETag", b"x"), (b"Cache-Control", b"private, no-store"))


@pytest.mark.parametrize(
    ("fields", "tokens", "left"),
    [
        ([b"a=1; eg=T; b=2"], ("T",), [b"a=1; b=2"]),
        ([b"eg=T"], ("T",), []),
        ([b"a=1", b"eg=T", b"b=2"], ("T",), [b"a=1", b"b=2"]),
        ([b"eg=T; eg=U"], ("T", "U"), []),
        ([b"EG=T; e_g=1"], (), [b"e_g=1"]),
        ([b'eg="T"'], ('"T"',), []),
        ([b"xeg=T;egx=U"], (), [b"xeg=T;egx=U"]),
        ([b"a=1;b=2; c=eg=T"], (), [b"a=1;b=2; c=eg=T"]),
        ([b""], (), [b""]),
    ],
    ids=repr,
)
def test_a_cookie_can_carry_the_token_and_goes_no_further(fields, tokens, left):
    given = tuple((b"Cookie", value) for value in fields)
    scan = take_cookie(scan_request(given, USER), b"eg")
    assert scan.tokens == tokens
    assert [value for _, value in scan.fields] == left


def test_a_token_in_the_field_and_one_in_the_cookie_are_two():
    scan = scan_request(((USER, b"A"), (b"cookie", b"eg=B")), USER)
    assert take_cookie(scan, b"eg").tokens == ("A", "B")
