"""ClientHellos: read with certainty, or refused; never a third outcome, however the bytes are cut."""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.proxy import clienthello as module
from edgeguard.proxy.clienthello import Hello, HelloError, NotTLSError, read_hello
from tests.fakes import client_hello

LIMIT = 16_384


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + struct.pack("!H", len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def message(
    *extensions: bytes, session: bytes = b"", suites: bytes = b"\x13\x01", tail: bytes = b""
) -> bytes:
    joined = b"".join(extensions)
    body = b"\x03\x03" + bytes(32) + bytes([len(session)]) + session
    body += struct.pack("!H", len(suites)) + suites + b"\x01\x00"
    body += struct.pack("!H", len(joined)) + joined + tail
    return b"\x01" + len(body).to_bytes(3) + body


def records(data: bytes, size: int = 16_384) -> bytes:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)


def outcome(data: bytes, cuts: list[int]) -> object:
    edges = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    try:
        for edge in edges:
            hello = read_hello(data[:edge], LIMIT)
            if hello is not None:
                return hello
    except NotTLSError:
        return "not TLS"
    except HelloError:
        return "refused"
    return None


mutations = st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=4))


@given(
    st.sampled_from(
        [
            client_hello("good.test"),
            client_hello(),
            records(message(server_name(b"good.test")), 7),
            records(message(server_name(b"good.test"), extension(0xFE0D, b"x"))),
        ]
    ),
    st.lists(mutations, max_size=4),
    st.lists(st.integers(0, 700), max_size=5),
)
def test_mutated_hellos_have_one_outcome_however_they_are_cut(data, changes, cuts):
    for at, patch in changes:
        data = data[:at] + patch + data[at + len(patch) :]
    whole = outcome(data, [])
    assert outcome(data, cuts) == whole
    assert outcome(data, list(range(len(data)))) == whole


@given(st.binary(max_size=300).map(lambda data: b"\x16\x03\x01" + data))
def test_noise_is_read_or_refused(data):
    assert outcome(data, list(range(len(data)))) == outcome(data, [])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(client_hello("good.test"), Hello("good.test", False), id="openssl"),
        pytest.param(client_hello(), Hello(None, False), id="attack-A03-no-sni"),
        pytest.param(records(message(server_name(b"good.test")), 10), Hello("good.test", False), id="attack-A05-split-records"),
        pytest.param(records(message(server_name(b"Good.Test"))), Hello("Good.Test", False), id="attack-A02-case"),
        pytest.param(records(message(extension(0x1A1A, b""), server_name(b"g.test"), extension(0x2A2A, b"\0"))), Hello("g.test", False), id="grease"),
        pytest.param(records(message(server_name(b"g.test"), extension(0xFE0D, b"\0" * 40))), Hello("g.test", True), id="attack-A16-ech"),
        pytest.param(records(message(server_name(b"g.test"))) + b"\x14\x03\x03\x00\x01\x01", Hello("g.test", False), id="more-records"),
        pytest.param(records(message()[:-2].replace(b"\x00\x00\x2b", b"\x00\x00\x29", 1)), Hello(None, False), id="no-extensions"),
    ],
)  # fmt: skip
def test_hellos_that_are_read(data, expected):
    assert outcome(data, []) == expected
    assert outcome(data, list(range(len(data)))) == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(records(message(server_name(b"good.test", b"evil.test"))), id="attack-A04-two-names"),
        pytest.param(
            records(message(server_name(b"good.test"), server_name(b"evil.test"))),
            id="attack-A04-two-extensions",
        ),
        pytest.param(records(message(server_name(b"good.test", kind=1))), id="attack-A04-name-type"),
        pytest.param(records(message(server_name(b""))), id="attack-A04-empty"),
        pytest.param(records(message(extension(0, b""))), id="attack-A04-no-list"),
        pytest.param(records(message(server_name(b"good.test."))), id="attack-A02-trailing-dot"),
        pytest.param(records(message(server_name(b"g\xc3\xb6od.test"))), id="not-ascii"),
        pytest.param(records(message(extension(5, b"a"), extension(5, b"a"))), id="extension-twice"),
        pytest.param(records(message(tail=b"\0")), id="bytes-after-extensions"),
        pytest.param(records(message(session=b"s" * 33)), id="long-session-id"),
        pytest.param(records(message(suites=b"\x13")), id="odd-suites"),
        pytest.param(records(message(server_name(b"g.test")) + b"\x01"), id="bytes-after-hello-in-record"),
        pytest.param(records(b"\x02" + message()[1:]), id="server-hello"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="empty-record"),
        pytest.param(b"\x16\x03\x01\x40\x01", id="attack-A06-oversized-record"),
        pytest.param(b"\x16\x02\x01", id="version"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", id="attack-A06-oversized-hello"),
        pytest.param(records(message(server_name(b"g.test")), 1), id="too-many-records"),
        pytest.param(b"\x16\x03\x01\x00\x02\x01\x00\x17\x03\x03", id="other-record-inside"),
    ],
)
def test_hellos_that_are_refused(data):
    assert outcome(data, []) == "refused"


@pytest.mark.parametrize("data", [b"GET /", b"\x80\x2e\x01\x03\x01", b"SSH-2.0", b"\x00"])
def test_what_is_not_tls(data):
    assert outcome(data, []) == "not TLS"


def test_a_hello_that_arrives_byte_by_byte_costs_little():
    padding = extension(21, bytes(15_000))
    data = records(message(server_name(b"good.test"), padding), 500)
    started = time.perf_counter()
    assert outcome(data, list(range(len(data)))) == Hello("good.test", False)
    assert time.perf_counter() - started < 5


def parsed(data: bytes) -> object:
    try:
        return read_hello(data, LIMIT)
    except HelloError as error:
        return type(error), str(error)


KNOWN = client_hello("good.test")


@given(
    st.sampled_from(
        [KNOWN, records(message(server_name(b"a.test"), extension(65037, b"x"))), records(message())]
    ),
    mutations,
)
def test_what_is_read_does_not_depend_on_what_was_read_before(
    known: bytes, mutation: tuple[int, bytes]
) -> None:
    """A known layout changes the time that reading takes, and nothing else."""
    place, put = mutation
    changed = known[:place] + put + known[place + len(put) :]
    module._layouts.clear()
    alone = parsed(changed)
    module._layouts.clear()
    parsed(known)
    assert len(module._layouts) == 1
    assert parsed(changed) == alone


def test_every_length_and_type_is_looked_at_again() -> None:
    """Whatever byte makes a difference to the reading makes one to the known layout too."""
    module._layouts.clear()
    same = read_hello(KNOWN, LIMIT)
    for place in range(len(KNOWN)):
        changed = bytearray(KNOWN)
        changed[place] ^= 1
        module._layouts.clear()
        alone = parsed(bytes(changed))
        module._layouts.clear()
        assert read_hello(KNOWN, LIMIT) == same
        assert parsed(bytes(changed)) == alone


def test_layouts_are_bounded_and_follow_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAYOUTS", 4)
    module._layouts.clear()
    for number in range(20):
        read_hello(records(message(extension(9, bytes(number)))), LIMIT)
        assert len(module._layouts) <= 4
    one = records(message(extension(9, b""), extension(10, b"")))
    two = records(message(extension(10, b""), extension(9, b"")))
    read_hello(one, LIMIT)
    (known,) = [module._layouts[size] for size in module._layouts if size == len(one) - 5]
    for _ in range(module.RELEARN + 1):
        read_hello(two, LIMIT)
    assert module._layouts[len(one) - 5] != known
