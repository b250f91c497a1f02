"""Fault rows D1 to D26, for both msgpack implementations, and what they may cost."""

import contextlib
import struct
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import (
    ENV,
    H1,
    H2,
    HOUR,
    L1,
    L2,
    S1,
    T0,
    Node,
    bundle,
    code,
    environment,
    head,
    root,
    sealed,
    sealed_root,
    sections,
)
from msgpack import fallback

from edgeguard.bundle import build, codec
from edgeguard.bundle.documents import BlobRef, Bundle, Head, Kind, Root, media_type
from edgeguard.bundle.envelope import Envelope, seal
from edgeguard.bundle.keys import KeyFileError, PublicKey, SigningKey
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.trust import BundleOffered, HeadOffered, Marks, RootOffered

LIMITS = codec.Limits(1 << 20)


@pytest.fixture(params=["c", "pure"])
def engine(request, monkeypatch):
    pure = request.param == "pure"
    monkeypatch.setattr(msgpack, "unpackb", fallback.unpackb if pure else msgpack._cmsgpack.unpackb)
    return request.param


def nested(depth, inner=b"\xc0"):
    return b"\x91" * depth + inner


def extension(kind, data):
    return {1: b"\xd4", 4: b"\xd6", 8: b"\xd7"}.get(len(data), b"\xc7" + bytes([len(data)])) + kind + data


BAD = {
    "D1": b"\x82\xa1a\x01\xa1a\x02",
    "D1-deep": b"\x91\x82\xa1a\x01\xa1a\x01",
    "D2": b"\x82\xa1a\x01\xd9\x01a\x02",
    "D3-bin-key": b"\x81\xc4\x01a\x01",
    "D3-both": b"\x82\xa1a\x01\xc4\x01a\x02",
    "D4-int-key": b"\x81\x01\x01",
    "D4-bool-key": b"\x81\xc3\x01",
    "D4-nil-key": b"\x81\xc0\x01",
    "D4-array-key": b"\x81\x90\x01",
    "D4-map-key": b"\x81\x80\x01",
    "D6-float32": b"\xca" + struct.pack(">f", 1.0),
    "D6-float64": b"\xcb" + struct.pack(">d", 1.0),
    "D6-nan": b"\xcb" + struct.pack(">d", float("nan")),
    "D6-inf": b"\xcb" + struct.pack(">d", float("inf")),
    "D6-minus-zero": b"\xcb" + struct.pack(">d", -0.0),
    "D7-timestamp32": extension(b"\xff", bytes(4)),
    "D7-timestamp64": extension(b"\xff", bytes(8)),
    "D7-timestamp96": b"\xc7\x0c\xff" + bytes(12),
    "D8-ext8": b"\xc7\x02\x05ab",
    "D8-ext16": b"\xc8\x00\x02\x05ab",
    "D8-ext32": b"\xc9\x00\x00\x00\x02\x05ab",
    "D8-fixext": extension(b"\x05", b"a"),
    "D10-array32": b"\xdd\xff\xff\xff\xff",
    "D10-map32": b"\xdf\xff\xff\xff\xff",
    "D10-array32-filled": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
    "D11-str32": b"\xdb\xff\xff\xff\xffabc",
    "D11-bin32": b"\xc6\xff\xff\xff\xffabc",
    "D11-str8": b"\xd9\x05abc",
    "D12": b"\xdd\x00\x00\x27\x10" * 1000 + b"\xc0" * 10_000,
    "D13-9": nested(9),
    "D13-1023": nested(1023),
    "D13-1025": nested(1025),
    "D13-100000": nested(100_000),
    "D13-maps": b"\x81\xa1a" * 9 + b"\xc0",
    "D15-nil": b"\x01\xc0",
    "D15-zero": b"\x90\x00",
    "D16-reserved": b"\xc1",
    "D16-empty": b"",
    "D16-cut-array": b"\x92\x01",
    "D16-cut-int": b"\xcd\x01",
    "D16-cut-length": b"\xda\x01",
    "D16-cut-string": b"\xa5abc",
    "D17-utf8": b"\xa2\xff\xfe",
    "D17-overlong": b"\xa2\xc0\xaf",
    "D17-surrogate": b"\xa3\xed\xa0\x80",
    "D17-key": b"\x81\xa1\xff\x01",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=f"fault-{name}") for name, data in BAD.items()])
def test_bad_msgpack(engine, data):
    with pytest.raises(Refusal) as caught:
        codec.decode(data, LIMITS)
    assert caught.value.code == "malformed"


LONG = {
    "uint8": b"\xcc\x01",
    "uint32": b"\xce\x00\x00\x00\x01",
    "int64": b"\xd3" + bytes(7) + b"\x01",
    "negative": b"\xd0\xff",
    "str8": b"\xd9\x01a",
    "str32": b"\xdb\x00\x00\x00\x01a",
    "bin16": b"\xc5\x00\x01a",
    "array16": b"\xdc\x00\x01\xc0",
    "map16": b"\xde\x00\x01\xa1a\xc0",
    "key-order": b"\x82\xa1b\x01\xa1a\x02",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=f"fault-D5-{name}") for name, data in LONG.items()])
def test_another_encoding_is_a_lint(engine, data):
    value = codec.decode(data, LIMITS)
    assert codec.decode(codec.encode(value), LIMITS, canonical=True) == value
    with pytest.raises(Refusal, match="deterministic"):
        codec.decode(data, LIMITS, canonical=True)


@pytest.mark.parametrize("document", ["root", "head", "bundle"])
@pytest.mark.parametrize(
    "value", [pytest.param(True, id="fault-D9-true"), pytest.param(False, id="fault-D9-false")]
)
def test_a_bool_is_no_version(document, value):
    kind, payload = {
        "root": (Root, root().to_payload()),
        "head": (Head, head(1, b"x", 1).to_payload()),
        "bundle": (Bundle, bundle(1).to_payload()),
    }[document]
    data = codec.decode(payload, LIMITS)
    with pytest.raises(Refusal):
        kind.parse(codec.encode({**data, "version": value}))


def peak(data, limits):
    tracemalloc.start()
    with contextlib.suppress(Refusal):
        codec.decode(data, limits)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


BOMBS = {
    "fault-D12": b"\xdd\x00\x00\x27\x10" * 1000 + b"\xc0" * 10_000,
    "fault-D13": nested(1 << 20),
    "fault-D14": b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20),
    "fault-D14-arrays": b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
    "fault-D14-strings": b"\xdd\x00\x05\x00\x00" + b"\xa2ab" * 0x50000,
    "fault-D14-nested": b"\xdd\x00\x05\x00\x00" + b"\x91\x91\x90" * 0x50000,
    "fault-D14-maps": b"\xdd\x00\x05\x00\x00" + b"\x81\xa1a\x80"[:3] * 0x50000,
    "fault-D14-keys": b"\xdf\x00\x04\x00\x00"
    + b"".join(b"\xa3%c%c%c\xc0" % (n >> 12 | 64, n >> 6 & 63, n & 63) for n in range(0x40000)),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in BOMBS.items()])
def test_memory_stays_in_proportion(data):
    assert peak(data, codec.Limits(1 << 24)) <= (1 << 20) + 10 * len(data) + (1 << 16)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(t, id=f"fault-D18-{n}")
        for n, t in enumerate(["", "../x", "Prod", "a\0b", "prod;env=dev", "a" * 33, "é", "-a", "a?b"])
    ],
)
def test_an_environment_name_is_safe_everywhere(text):
    with pytest.raises(Refusal):
        Bundle.parse(replace(bundle(1), environment=text).to_payload())
    with pytest.raises(Refusal):
        Root.parse(root(environments={text: environment()}).to_payload())


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D19")])
def test_a_failure_leaves_no_state_behind(engine, case):
    for _ in range(3):
        with pytest.raises(Refusal):
            codec.decode(b"\x92\x01", LIMITS)
        assert codec.decode(b"\x92\x01\x02", LIMITS) == [1, 2]


def changed(document, **changes):
    return codec.encode({**codec.decode(document.to_payload(), LIMITS), **changes})


DOCUMENTS = [(Root, root()), (Head, head(1, b"x", 1)), (Bundle, bundle(1))]


@pytest.mark.parametrize(
    ("kind", "document"), [pytest.param(*item, id=f"fault-D20-{item[0].__name__}") for item in DOCUMENTS]
)
def test_a_newer_minor_schema_may_add_fields(kind, document):
    assert kind.parse(changed(document, schema=[1, 7], novelty="x")) == document
    with pytest.raises(Refusal) as caught:
        kind.parse(changed(document, novelty="x"))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": [2, 0]},
        {"schema": [0, 9]},
        {"critical": ["novelty"]},
        {"schema": [1, 1], "critical": ["x"]},
    ],
)
@pytest.mark.parametrize(
    ("kind", "document"), [pytest.param(*item, id=f"fault-D21-{item[0].__name__}") for item in DOCUMENTS]
)
def test_a_newer_major_schema_or_a_critical_feature_is_not_guessed_at(kind, document, change):
    with pytest.raises(Refusal) as caught:
        kind.parse(changed(document, **change))
    assert caught.value.code == "schema_unsupported"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D21-engine")])
def test_a_bundle_for_a_newer_engine(case):
    node = Node.running()
    assert code(node.update(replace(bundle(2), min_engine=2))) == "schema_unsupported"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D22")])
def test_another_encoding_of_a_signed_payload_stays_what_it_is(case):
    """Nothing is serialised again: a foreign encoder's bytes verify, hash and are stored as they came."""
    document = bundle(1)
    data = codec.decode(document.to_payload(), LIMITS)
    foreign = msgpack.packb(dict(reversed(data.items())))
    assert foreign != document.to_payload()
    sent = seal(media_type(Kind.BUNDLE, ENV), foreign, [L1])
    node = Node.new()
    node.head(head(1, sent, 1))
    effects = node.offer(BundleOffered(sent))
    assert effects[0].data == sent
    assert node.state.in_force.identity == "sha256:" + __import__("hashlib").sha256(foreign).hexdigest()


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D23")])
def test_what_was_verified_is_what_is_parsed(case, monkeypatch):
    verified, parsed = [], []
    verify, parse = Envelope.verify, Bundle.parse
    monkeypatch.setattr(
        Envelope, "verify", lambda self, *a: verified.append(self.payload) or verify(self, *a)
    )
    monkeypatch.setattr(Bundle, "parse", lambda payload: parsed.append(payload) or parse(payload))
    Node.new().update(bundle(1))
    assert parsed[0] is verified[-1]


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D25")])
def test_counts_are_capped(case):
    many = [n.to_bytes(4) * 8 for n in range(33)]
    data = codec.decode(root().to_payload(), LIMITS)
    data["root"]["keys"] = many
    with pytest.raises(Refusal):
        Root.parse(codec.encode(data))
    environments = {f"e{n}": environment() for n in range(33)}
    with pytest.raises(Refusal):
        Root.parse(root(environments=environments).to_payload())
    with pytest.raises(Refusal):
        Head.parse(head(1, b"x", 1, **{f"m{n}": BlobRef(1, "00" * 32, 1) for n in range(16)}).to_payload())
    node = Node.new(root(environments={ENV: environment(bundle_bytes=1000)}))
    assert code(node.update(bundle(1, rules=["x" * 10_000]))) == "too_big"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-D26")])
def test_no_rules_is_a_policy(case):
    node = Node.new()
    empty = replace(bundle(1), policy=build.encode_section(sections()))
    assert code(node.update(empty)) is None
    assert node.state.engine.tables.sections == sections()


SECTION_FAULTS = {
    "missing": lambda parts: parts.pop("age"),
    "unknown": lambda parts: parts.update(more=b"\x80"),
    "not-bytes": lambda parts: parts.update(age={}),
    "not-msgpack": lambda parts: parts.update(age=b"\xc1"),
}


@pytest.mark.parametrize("change", SECTION_FAULTS.values(), ids=SECTION_FAULTS)
def test_a_policy_section_of_the_wrong_form(change):
    parts = dict(build.section_parts(build.encode_section(sections())))
    change(parts)
    with pytest.raises(Refusal):
        build.decode_section(codec.encode(parts))
    node = Node.running()
    assert code(node.update(replace(bundle(2), policy=codec.encode(parts)))) == "malformed"


# Properties

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=30,
)


@given(plain)
def test_encoding_and_decoding_are_inverse(value):
    data = codec.encode(value)
    assert codec.decode(data, codec.Limits(1 << 20, depth=16), canonical=True) == value
    assert codec.encode(codec.decode(data, codec.Limits(1 << 20, depth=16))) == data


msgpack_ish = st.binary(max_size=200) | st.lists(
    st.sampled_from(
        [
            b"\x81",
            b"\x82",
            b"\x91",
            b"\x93",
            b"\xa1a",
            b"\xd9\x01a",
            b"\xc0",
            b"\x01",
            b"\xc4\x01a",
            b"\xdc\x00\x02",
            b"\xde\x00\x01",
        ]
    ),
    max_size=40,
).map(b"".join)


def verdict(data):
    try:
        return codec.decode(data, LIMITS)
    except Refusal as refusal:
        return refusal.code


@settings(max_examples=500)
@given(msgpack_ish)
def test_both_implementations_agree(data):
    theirs = msgpack.unpackb
    try:
        msgpack.unpackb = fallback.unpackb
        pure = verdict(data)
        msgpack.unpackb = msgpack._cmsgpack.unpackb
        assert verdict(data) == pure
    finally:
        msgpack.unpackb = theirs


READERS = [
    Envelope.parse,
    Root.parse,
    Head.parse,
    Bundle.parse,
    Marks.decode,
    build.section_parts,
    build.decode_section,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__qualname__)
@given(data=msgpack_ish | plain.map(codec.encode))
def test_arbitrary_bytes_raise_nothing_but_refusal(reader, data):
    with contextlib.suppress(Refusal):
        reader(data)


VALID = [sealed_root(root()), sealed(head(1, b"x", 1), H1), sealed(bundle(1), L1)]


@settings(max_examples=300)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 300),
)
def test_a_changed_envelope_is_refused_or_means_the_same(data, changes, cut):
    bad = bytearray(data)
    for position, value in changes:
        bad[position % len(bad)] = value
    node = Node.new()
    for event in (
        RootOffered(bytes(bad), 2),
        HeadOffered(bytes(bad)),
        BundleOffered(bytes(bad[: len(bad) - cut])),
    ):
        node.offer(event)
    if bytes(bad) != data:
        assert node.state.root.version == 1
        assert node.state.in_force is None


@given(
    st.text(max_size=300)
    | st.text(alphabet="abc:= \n", max_size=80).map("edgeguard-secret-key-v1\n{}".format)
)
def test_arbitrary_text_is_no_key(text):
    for read in (PublicKey.from_text, SigningKey.from_text):
        with contextlib.suppress(KeyFileError):
            read(text)


offers = st.lists(
    st.tuples(
        st.sampled_from(["head", "bundle", "root"]),
        st.integers(1, 6),
        st.integers(1, 4),
        st.sampled_from([L1, L2, S1]),
        st.sampled_from([H1, H2]),
        st.integers(-2, 3),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(offers)
def test_nothing_ever_goes_back(history):
    """Whatever is offered, in whatever order: no older policy, no lower mark without a rotation."""
    node = Node.new(root(environments={ENV: environment(release=(L1, L2), head=(H1, H2))}))
    for kind, version, blob_version, release, head_key, hours in history:
        before, now = node.state, T0 + hours * HOUR
        blob = sealed(bundle(blob_version), release)
        if kind == "head":
            effects = node.head(
                head(version, blob, blob_version, issued=T0 + max(hours, 0) * HOUR), head_key, now=now
            )
        elif kind == "bundle":
            effects = node.offer(BundleOffered(blob), now)
        else:
            keep = environment(release=(L1, L2), head=(H1, H2))
            effects = node.root(root(version, environments={ENV: keep}), now=now)
        old, new = before.marks, node.state.marks
        for name in ("root_version", "head_version", "bundle_version", "newest_signed_time", "quarantine"):
            assert getattr(new, name) >= getattr(old, name)
        assert node.state.root.version >= before.root.version
        if before.in_force:
            assert node.state.in_force.bundle.version >= before.in_force.bundle.version
        if code(effects):
            assert node.state.marks == old
            assert node.state.in_force is before.in_force
