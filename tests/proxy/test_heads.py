"""Heads: parsed strictly, or refused; never a third outcome, however the bytes arrive."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.heads import Claim, HeadError, head_end, is_absolute, parse_head

LIMIT = 2048
GOOD = b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\nAccept: text/html\r\n\r\n"


def outcome(data: bytes, cuts: list[int]) -> object:
    """What the door makes of `data` that arrives in pieces: a head, None, or a reason."""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    scanned = 0
    try:
        for edge in edges:
            end = head_end(data[:edge], scanned, LIMIT)
            if end >= 0:
                return parse_head(data[:end])
            scanned = edge
    except HeadError as error:
        return error.reason
    return None


heads = st.one_of(
    st.binary(max_size=3000),
    st.lists(
        st.sampled_from([
            b"CONNECT", b"GET", b"PRI", b" ", b"good.test:443", b"http://good.test/", b"*", b"HTTP/1.1", b"HTTP/2.0", b"\r\n",
            b"\n", b"\r", b"Host: good.test:443", b"Host:", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"\t", b":",
            b"\x00", b"\xff", b"a" * 700, b"\r\n\r\n",
        ]),
        max_size=20,
    ).map(b"".join),
)  # fmt: skip


@given(heads, st.lists(st.integers(0, 3000), max_size=5))
def test_every_input_is_parsed_or_refused_however_it_is_cut(data, cuts):
    whole = outcome(data, [])
    assert outcome(data, cuts) == whole
    assert outcome(data, list(range(len(data)))) == whole


@given(st.binary(max_size=400))
def test_noise_after_a_good_line_is_parsed_or_refused(noise):
    outcome(b"CONNECT good.test:443 HTTP/1.1\r\n" + noise + b"\r\n\r\n", [])


def test_a_connect_head():
    head = parse_head(GOOD)
    assert (head.method, head.target, head.version) == ("CONNECT", "good.test:443", "1.1")
    assert head.values("accept") == ("text/html",)
    assert head.claim == Claim("good.test", 443, (), bare=True)
    assert parse_head(GOOD) is head, "the same bytes are parsed once"


def test_credentials_are_not_kept():
    data = GOOD[:-2] + b"Proxy-Authorization: Basic secret\r\n\r\n"
    assert parse_head(data) is not parse_head(data)


def test_the_host_field_counts_unless_it_repeats_the_target():
    head = parse_head(b"CONNECT good.test:443 HTTP/1.1\r\nHost: Good.test\r\n\r\n")
    assert head.claim == Claim("good.test", 443, ("Good.test",), bare=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"CONNECT good.test HTTP/1.1\r\nHost: good.test\r\n\r\n", id="attack-H06"),
        pytest.param(b"CONNECT 2001:DB8::1337 HTTP/1.0\r\n\r\n", id="attack-H06-ipv6"),
        pytest.param(b"CONNECT good.test\x00.evil.test:443 HTTP/1.0\r\n\r\n", id="attack-H17"),
        pytest.param("CONNECT \uff41.test:443 HTTP/1.0\r\n\r\n".encode(), id="attack-H12"),
        pytest.param(b"CONNECT  good.test:443 HTTP/1.0\r\n\r\n", id="two-spaces"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.0 \r\n\r\n", id="trailing-space"),
        pytest.param(b"CONNECT good.test:443\r\n\r\n", id="http-0.9"),
        pytest.param(b"\r\nCONNECT good.test:443 HTTP/1.0\r\n\r\n", id="leading-empty-line"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.0\r\nX: a\x00b\r\n\r\n", id="nul-in-value"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.0\r\nX: a\rb\r\n\r\n", id="attack-S04-bare-cr"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.0\r\nX\r\n\r\n", id="no-colon"),
        pytest.param(b"CONNECT good.test:443 HTTP/1.0\r\nContent-Length: +0\r\n\r\n", id="attack-S02"),
    ],
)
def test_what_is_malformed(data):
    assert outcome(data, []) is Reason.MALFORMED_REQUEST


def test_a_head_that_does_not_end():
    assert outcome(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000, []) is Reason.REQUEST_TOO_LARGE


def test_hostile_heads_are_read_in_linear_time():
    data = b"GET / HTTP/1.1\r\nX:" + b" " * 200_000 + b"\x00\r\n\r\n"
    started = time.perf_counter()
    with pytest.raises(HeadError):
        parse_head(data)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://a/", True),
        ("HTTPS://a/", True),
        ("/", False),
        ("*", False),
        ("a:443", False),
        ("ftp://a/", False),
    ],
)
def test_the_absolute_form(target, expected):
    assert is_absolute(target) is expected
