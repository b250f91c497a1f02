"""Long documents: decoded piece by piece with the verdict of one walk, in bounded memory, in short steps."""

import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import fallback

from edgeguard.bundle import codec
from edgeguard.bundle.pieces import decode_large
from edgeguard.bundle.refusal import Refusal

ROOM = codec.Limits(1 << 26, memory_factor=1000)
CONSTANT = 2 << 20
"""What any input may cost: `memory_base`, one piece, and the interpreter's own small change."""

ATOMS = """c0 01 cd0102 a161 a26263 d90164 c40161 a0 90 80 ca00000000 c1 d40561 d6ff00000000 a1ff e0 dc0000"""
atoms = st.sampled_from([bytes.fromhex(text) for text in ATOMS.split()])
well_formed = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=20).map(lambda v: b"\xdc" + len(v).to_bytes(2) + b"".join(v))
        | st.lists(inner, min_size=1, max_size=3).map(lambda v: bytes([0x90 | len(v)]) + b"".join(v))
        | st.lists(st.tuples(atoms, inner), max_size=6).map(
            lambda v: b"\xde" + len(v).to_bytes(2) + b"".join(k + x for k, x in v)
        )
    ),
    max_leaves=60,
)
damaged = st.tuples(well_formed, st.integers(0, 400), st.binary(max_size=3)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
)


def verdict(read, data):
    try:
        return read(data)
    except Refusal as refusal:
        return refusal.code


def by_one_walk(data):
    codec.scan(data, ROOM.depth)
    return codec.unpack(data)


@pytest.fixture
def tiny_pieces(monkeypatch):
    monkeypatch.setattr(codec, "PIECE_BYTES", 6)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("engine", ["c", "pure"])
def test_pieces_give_the_verdict_of_one_walk(engine, monkeypatch):
    if engine == "pure":
        monkeypatch.setattr(msgpack, "unpackb", fallback.unpackb)
        monkeypatch.setattr(msgpack, "Unpacker", fallback.Unpacker)

    @settings(max_examples=400, deadline=None)
    @given(well_formed | damaged | st.binary(min_size=1, max_size=60))
    def check(data):
        if data:
            assert verdict(lambda d: decode_large(d, ROOM), data) == verdict(by_one_walk, data)

    check()


DEEP = [
    pytest.param(b"\x91" * depth + b"\xc0" * 9000, id=f"fault-D13-{depth}")
    for depth in (20, 900, 1030, 50_000)
]
LARGE = [
    *DEEP,
    pytest.param(b"\xdd\x00\x00\x23\x28" + b"\xc0" * 8999, id="fault-D16-cut"),
    pytest.param(b"\xdd\x00\x00\x23\x28" + b"\xc0" * 9001, id="fault-D15-more"),
    pytest.param(b"\xdd\xff\xff\xff\xff" + b"\xc0" * 9000, id="fault-D10-announced"),
    pytest.param(b"\xc6\x00\x00\x30\x00" + b"a" * 9000, id="fault-D11-bin"),
    pytest.param(b"\xdf\x00\x00\x20\x00" + b"\xa1a\xc0" * 0x2000, id="fault-D1-far-apart"),
    pytest.param(b"\xdf\x00\x00\x20\x00" + b"\x01\xc0" * 0x2000, id="fault-D4-keys"),
    pytest.param(b"\xdd\x00\x00\x23\x28" + b"\xc0" * 8999 + b"\xd4\x01a", id="fault-D8-late"),
    pytest.param(b"\xdd\x00\x00\x23\x28" + b"\xc0" * 8999 + b"\xcb" + bytes(8), id="fault-D6-late"),
    pytest.param(b"\xdd\x00\x00\x23\x28" + b"\xc0" * 8999 + b"\xd6\xff" + bytes(4), id="fault-D7-late"),
    pytest.param(b"\xc1" * 9000, id="fault-D16-reserved"),
]


@pytest.mark.parametrize("data", LARGE)
@pytest.mark.parametrize("engine", ["c", "pure"])
def test_what_is_wrong_in_a_long_document(engine, data, monkeypatch):
    if engine == "pure":
        monkeypatch.setattr(msgpack, "unpackb", fallback.unpackb)
        monkeypatch.setattr(msgpack, "Unpacker", fallback.Unpacker)
    assert verdict(lambda d: codec.decode(d, ROOM), data) == "malformed"


def peak(data, limits):
    tracemalloc.start()
    with contextlib.suppress(Refusal):
        codec.decode(data, limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


COSTLY = """
    80 90 a0 a161 a26263 cd0102 ce00010000 c0 01 81a0c0 81a16180 82a161a162a163a164 919190 93010203
    a4f09f9880 a3e282ac c400 c40161 d3808080808080808080 99808080808080808080
"""
shapes = st.lists(
    st.sampled_from(
        [*map(bytes.fromhex, COSTLY.split()), b"\xbf\xf0\x9f\x98\x80" + b"a" * 27, b"\xd9\x21" + b"a" * 33]
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("wrap", ["array", "map", "arrays"])
@settings(max_examples=25, deadline=None)
@given(parts=shapes, size=st.sampled_from([9_000, 70_000, 300_000]))
def test_memory_stays_under_ten_times_the_input(wrap, parts, size):
    """Any mixture of the costliest forms, well-formed, so that the decoding goes as far as it can."""
    unit = b"".join(parts)
    times = max(size // (len(unit) + 6), 1)
    if wrap == "array":
        data = b"\xdd" + (times * len(parts)).to_bytes(4) + unit * times
    elif wrap == "arrays":
        data = b"\xdd" + times.to_bytes(4) + (bytes([0x90 | len(parts)]) + unit) * times
    else:
        keyed = (b"\xa5%05d" % n + bytes([0x90 | len(parts)]) + unit for n in range(times))
        data = b"\xdf" + times.to_bytes(4) + b"".join(keyed)
    assert peak(data, codec.Limits(1 << 26)) <= CONSTANT + 10 * len(data)


@pytest.mark.long
@pytest.mark.timeout(600)
@settings(max_examples=5000, deadline=None)
@given(st.binary(max_size=400) | damaged, st.integers(1, 2000))
def test_memory_stays_in_proportion_for_any_bytes(data, times):
    data = b"\xdd" + times.to_bytes(4) + data * times
    assert peak(data[: 1 << 19], codec.Limits(1 << 26)) <= CONSTANT + 10 * min(len(data), 1 << 19)
