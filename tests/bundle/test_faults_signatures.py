"""Fault rows A1 to A26: signatures, keys, and what they may say."""

import time

import pytest
from kit import (
    DAY,
    ENV,
    H1,
    H2,
    L1,
    L2,
    L3,
    R1,
    R2,
    R3,
    R4,
    R5,
    S1,
    T0,
    Node,
    alarm,
    bundle,
    code,
    environment,
    head,
    kinds,
    root,
    sealed,
    sealed_root,
)

from edgeguard.bundle import codec
from edgeguard.bundle import envelope as envelopes
from edgeguard.bundle.documents import Bundle, Kind, Root, media_type
from edgeguard.bundle.envelope import Envelope, Signature, identity, pae, seal, sign
from edgeguard.bundle.keys import PublicKey
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.trust import BundleOffered, CycleStarted, HeadOffered, RootOffered, TrustState, snapshot
from edgeguard.policy.reasons import Reason


def offered(node, data, now=T0 + 1):
    """Offer a bundle envelope whose address a valid head names."""
    effects = node.head(head(node.state.marks.head_version + 1, data, 2), now=now)
    assert code(effects) is None
    return node.offer(BundleOffered(data), now)


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.fixture
def node():
    return Node.running()


@pytest.mark.parametrize("where", [0, 10, -1], ids=lambda at: f"fault-A1-{at}")
def test_a_flipped_bit_in_the_payload_is_refused_before_parsing(node, where, monkeypatch):
    whole = Envelope.parse(sealed(bundle(2), L1))
    bad = whole._replace(payload=flip(whole.payload, where % len(whole.payload))).encode()
    monkeypatch.setattr(Bundle, "parse", lambda payload: pytest.fail("parsed before it was verified"))
    before = node.state.in_force
    assert code(offered(node, bad)) == "sig_invalid"
    assert node.state.in_force is before


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda good: flip(good, 5), id="fault-A2-flipped"),
        pytest.param(lambda good: bytes(64), id="fault-A2-zero"),
        pytest.param(lambda good: b"", id="fault-A2-empty"),
        pytest.param(lambda good: good[:63], id="fault-A2-63"),
        pytest.param(lambda good: good + b"\0", id="fault-A2-65"),
    ],
)
def test_a_wrong_signature_is_refused(node, value):
    whole = Envelope.parse(sealed(bundle(2), L1))
    bad = whole._replace(signatures=(Signature(L1.public.hint, value(whole.signatures[0].value)),)).encode()
    assert code(offered(node, bad)) == "sig_invalid"


@pytest.mark.parametrize("length", [pytest.param(n, id=f"fault-A2-length-{n}") for n in (0, 63, 65)])
def test_lengths_are_checked_before_cryptography(length, monkeypatch):
    monkeypatch.setattr(PublicKey, "verifies", lambda *_: pytest.fail("cryptography before the length check"))
    bad = codec.encode([1, "x", b"", [[L1.public.hint, bytes(length)]]])
    with pytest.raises(Refusal) as caught:
        Envelope.parse(bad)
    assert caught.value.code == "sig_invalid"


@pytest.mark.parametrize(
    "signers", [pytest.param((S1,), id="fault-A3"), pytest.param((S1, L3), id="fault-A3-two")]
)
def test_only_unknown_keys(node, signers):
    assert code(offered(node, sealed(bundle(2), *signers))) == "key_unknown"


@pytest.mark.parametrize(
    "extra", [pytest.param(S1, id="fault-A4-unknown"), pytest.param(L2, id="fault-A4-known")]
)
def test_an_extra_invalid_signature_does_no_harm(extra):
    node = Node.running(root(environments={ENV: environment(release=(L1, L2))}))
    whole = Envelope.parse(sealed(bundle(2), L1)).merged([Signature(extra.public.hint, bytes(64))])
    assert code(offered(node, whole.encode())) is None
    assert node.state.bundle.version == 2
    assert node.state.in_force.signers == (L1.public.id,)


@pytest.mark.parametrize(
    "twin", [pytest.param(True, id="fault-A5-equal"), pytest.param(False, id="fault-A5-other")]
)
def test_a_repeated_hint_is_refused_even_above_the_threshold(node, twin):
    whole = Envelope.parse(sealed(bundle(2), L1))
    again = whole.signatures[0].value if twin else bytes(64)
    bad = whole._replace(signatures=(*whole.signatures, Signature(L1.public.hint, again)))
    assert code(offered(node, bad.encode())) == "sig_dup"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A6")])
def test_a_key_counts_once_whatever_it_is_called(case):
    # There are no key ids in a root: a hint is computed from the key, so one key cannot have two.
    data = codec.decode(root().to_payload(), codec.Limits(1 << 16))
    data["environments"][ENV]["release"]["ids"] = {"a": L1.public.raw, "b": L1.public.raw}
    with pytest.raises(Refusal) as caught:
        Root.parse(codec.encode(data))
    assert caught.value.code == "malformed"
    whole = Envelope.parse(sealed(bundle(2), L1))
    renamed = whole._replace(signatures=(*whole.signatures, Signature(bytes(8), whole.signatures[0].value)))
    with pytest.raises(Refusal, match="1 of 2"):
        renamed.verify([L1.public, L2.public], 2)


@pytest.mark.parametrize("role", [pytest.param(r, id=f"fault-A7-{r}") for r in ("root", "release", "head")])
def test_a_key_listed_twice_makes_no_root(role):
    def change(data):
        holder = data["root"] if role == "root" else data["environments"][ENV][role]
        holder["keys"].append(holder["keys"][0])

    assert refused_root(change) == "malformed"


def refused_root(change):
    data = codec.decode(root().to_payload(), codec.Limits(1 << 16))
    change(data)
    with pytest.raises(Refusal) as caught:
        Root.parse(codec.encode(data))
    return caught.value.code


@pytest.mark.parametrize("role", ["root", "release", "head"])
@pytest.mark.parametrize(
    "value", [pytest.param(v, id=f"fault-A8-{v}") for v in (0, -1, 4, 2**60, "1", True, None, b"\1", [1])]
)
def test_an_absurd_threshold_makes_no_root(role, value):
    def change(data):
        (data["root"] if role == "root" else data["environments"][ENV][role])["threshold"] = value

    assert refused_root(change) == "malformed"


@pytest.mark.parametrize("value", [pytest.param(v, id=f"fault-A8-widening-{v}") for v in (0, 2, True)])
def test_widening_is_between_threshold_and_keys(value):
    assert (
        refused_root(lambda data: data["environments"][ENV]["release"].update(widening=value)) == "malformed"
    )


@pytest.mark.parametrize(
    ("threshold", "signers"),
    [pytest.param(2, (L1,), id="fault-A9-1-of-2"), pytest.param(3, (L1, L2), id="fault-A9-2-of-3")],
)
def test_too_few_signatures(threshold, signers):
    many = (L1, L2, L3)
    node = Node.new(root(environments={ENV: environment(release=many, threshold=threshold)}))
    assert code(node.update(bundle(1), *signers)) == "threshold"
    assert node.state.in_force is None


@pytest.mark.parametrize("count", [pytest.param(33, id="fault-A10-33"), pytest.param(10_000, id="fault-A10")])
def test_many_signatures_cost_no_cryptography(count, monkeypatch):
    monkeypatch.setattr(PublicKey, "verifies", lambda *_: pytest.fail("cryptography before the count"))
    bad = codec.encode([1, "x", b"", [[n.to_bytes(8), bytes(64)] for n in range(count)]])
    started = time.perf_counter()
    with pytest.raises(Refusal) as caught:
        Envelope.parse(bad)
    assert caught.value.code == "too_big"
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("count", [pytest.param(32, id="fault-A10-32")])
def test_no_more_verifications_than_keys(count, monkeypatch):
    calls = []
    monkeypatch.setattr(PublicKey, "verifies", lambda *a: calls.append(a) or False)
    hints = [L1.public.hint, *(n.to_bytes(8) for n in range(count - 1))]
    whole = Envelope("x", b"", tuple(Signature(hint, bytes(64)) for hint in hints))
    with pytest.raises(Refusal):
        whole.verify([L1.public, L2.public], 1)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "key", [pytest.param(H1, id="fault-A11-head"), pytest.param(R1, id="fault-A11-root")]
)
def test_the_key_of_another_role(node, key):
    assert code(offered(node, sealed(bundle(2), key))) == "key_unknown"


@pytest.mark.parametrize("key", [pytest.param(L1, id="fault-A11-release")])
def test_a_release_key_signs_no_head(node, key):
    assert code(node.head(head(2, b"x", 2), key)) == "key_unknown"


@pytest.mark.parametrize(
    "relabel", [pytest.param(False, id="fault-A12"), pytest.param(True, id="fault-A12-relabelled")]
)
def test_one_document_is_not_another(relabel):
    same = root(environments={ENV: environment(release=(L1,), head=(L1,))})
    node = Node.new(same)
    data = sealed(bundle(1), L1)
    if relabel:
        data = Envelope.parse(data)._replace(type=media_type(Kind.HEAD, ENV)).encode()
    assert code(node.offer(HeadOffered(data))) == ("sig_invalid" if relabel else "type")
    as_bundle = sealed(head(1, b"x", 1), L1)
    assert code(node.head(head(1, as_bundle, 1), L1)) is None
    assert code(node.offer(BundleOffered(as_bundle))) == "type"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A12-payload")])
def test_the_payload_names_its_role_too(case):
    node = Node.new(root(environments={ENV: environment(release=(L1,), head=(L1,))}))
    wrong = seal(media_type(Kind.HEAD, ENV), bundle(1).to_payload(), [L1])
    assert code(node.offer(HeadOffered(wrong))) == "type"


@pytest.mark.parametrize(
    "kind", [pytest.param("bundle", id="fault-A13-bundle"), pytest.param("head", id="fault-A13-C19-head")]
)
def test_another_environment_with_the_same_keys(kind):
    node = Node.running(root(environments={ENV: environment(), "staging": environment()}))
    if kind == "bundle":
        assert code(offered(node, sealed(bundle(2, env="staging"), L1))) == "env"
    else:
        assert code(node.head(head(2, b"x", 2, env="staging"))) == "env"
    assert node.state.bundle.version == 1


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("bundle", id="fault-A13-payload-bundle"),
        pytest.param("head", id="fault-A13-payload-head"),
    ],
)
def test_the_payload_names_its_environment_too(node, kind):
    if kind == "bundle":
        assert code(offered(node, sealed(bundle(2, env="staging"), L1, env=ENV))) == "env"
    else:
        assert code(node.offer(HeadOffered(sealed(head(2, b"x", 2, env="staging"), H1, env=ENV)))) == "env"


@pytest.mark.parametrize(
    ("audience", "mine", "expected"),
    [
        pytest.param(("payments",), "media", "audience", id="fault-A14-other"),
        pytest.param(("payments",), "", "audience", id="fault-A14-none"),
        pytest.param(("media", "payments"), "payments", None, id="fault-A14-mine"),
        pytest.param((), "payments", None, id="fault-A14-everybody"),
    ],
)
def test_audience(audience, mine, expected):
    node = Node.new(audience=mine)
    assert code(node.update(bundle(1, audience=audience))) == expected


@pytest.mark.parametrize(
    ("signers", "expected"),
    [
        pytest.param((R1, R2), "key_unknown", id="fault-A15-old-only"),
        pytest.param((R4, R5), "key_unknown", id="fault-A15-new-only"),
        pytest.param((R1, R4, R5), "threshold", id="fault-A15-one-old"),
        pytest.param((R1, R2, R4), "threshold", id="fault-A15-one-new"),
        pytest.param((R1, R2, R4, R5), None, id="fault-A15-both"),
    ],
)
def test_a_new_root_is_signed_by_old_and_new(signers, expected):
    node = Node.new(root(keys=(R1, R2, R3)))
    assert code(node.root(root(2, keys=(R4, R5)), *signers)) == expected
    assert node.state.root.version == (1 if expected else 2)


ROTATIONS = [
    # (old keys, old threshold, new keys, new threshold, signers, accepted): tuf-conformance test_root_rotation
    ((R1,), 1, (R2,), 1, (R1, R2), True),
    ((R1,), 1, (R2,), 1, (R1, R2, S1), True),
    ((R1, R2, R3, R4, R5), 3, (R1, R2, R3, R4, R5), 3, (R1, R3, R5), True),
    ((R1, R2, R3, R4, R5), 3, (R1, R2, R3, R4, R5), 3, (R2, R3, R4), True),
    ((R1, R2, R3, R4, R5), 3, (R1, R2, R3, R4, S1), 3, (R1, R2, R3), True),
    ((R1, R2, R3), 3, (R4, R5, S1), 3, (R1, R2, R3, R4, R5), False),
    ((R1, R2, R3), 3, (R4, R5, S1), 3, (R1, R2, R4, R5, S1), False),
    ((R1,), 1, (R1, R2, R3), 2, (R1, R2), True),
    ((R1, R2, R3), 2, (R1,), 1, (R1, R2), True),
    ((R1,), 1, (R1, R2), 2, (R1, R2), True),
    ((R1,), 1, (R1, R2, R3), 2, (R1,), False),
    ((R1,), 1, (R2,), 1, (R1,), False),
    ((R1,), 1, (R2,), 1, (R2,), False),
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"fault-A15-rotation-{n}") for n, case in enumerate(ROTATIONS)]
)
def test_root_rotation_as_tuf_conformance_has_it(case):
    old, old_threshold, new, new_threshold, signers, accepted = case
    node = Node.new(root(keys=old, threshold=old_threshold), *old)
    effects = node.root(root(2, keys=new, threshold=new_threshold), *signers)
    assert (code(effects) is None) is accepted
    assert node.state.root.version == (2 if accepted else 1)


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A16")])
def test_a_gap_in_the_chain(case):
    node = Node.new()
    assert code(node.root(root(3))) == "root_gap"
    assert code(node.root(root(2))) is None
    assert code(node.root(root(3))) is None


@pytest.mark.parametrize(("named", "expected"), [pytest.param(2, "version_mismatch", id="fault-A17")])
def test_a_root_under_another_name(named, expected):
    node = Node.new()
    assert code(node.offer(RootOffered(sealed_root(root(3)), named))) == expected
    assert code(node.offer(RootOffered(sealed_root(root(1, issued=T0 - 2 * DAY)), named))) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        pytest.param(1, "equivocation", id="fault-A17-same"),
        pytest.param(1, "equivocation", id="fault-B3-root"),
    ],
)
def test_another_root_of_the_same_version(version, expected):
    node = Node.new()
    effects = node.root(root(version, issued=T0 - 2 * DAY))
    assert code(effects) == expected
    assert alarm(effects)


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A17-lower")])
def test_a_lower_root(case):
    node = Node.new()
    node.root(root(2))
    effects = node.root(root(1, issued=T0 - 2 * DAY))
    assert code(effects) == "rollback_root"
    assert alarm(effects)


@pytest.mark.parametrize(
    ("signers", "expected"),
    [pytest.param((R1,), "threshold", id="fault-A18"), pytest.param((R1, R2), None, id="fault-A18-enough")],
)
def test_a_lowered_threshold_takes_the_old_one(signers, expected):
    node = Node.new(root(threshold=2))
    assert code(node.root(root(2, threshold=1), *signers)) == expected


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A19")])
def test_the_chain_is_bounded_per_cycle(case):
    node = Node.new()
    for version in range(2, 34):
        assert code(node.root(root(version))) is None
    assert code(node.root(root(34))) == "root_chain"
    assert node.state.root.version == 33
    node.offer(CycleStarted())
    assert code(node.root(root(34))) is None


@pytest.mark.parametrize(
    "floor", [pytest.param(0, id="fault-A20-key"), pytest.param(5, id="fault-A20-floor")]
)
def test_revocation_closes_what_is_in_force(floor):
    node = Node.running()
    release = (L1,) if floor else (L2,)
    effects = node.root(root(2, environments={ENV: environment(release=release, floor=floor)}))
    assert kinds(effects) == ["Activate", "Store", "RaiseMarks"]
    found = effects[0].snapshot
    assert found.revoked
    assert found.ladder(T0 + 1) == "closed"
    assert found.closed_reason() is Reason.POLICY_REVOKED
    assert code(node.update(bundle(5), *release, head_version=2)) is None
    assert snapshot(node.state).ladder(T0 + 2) == "fresh"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A20-environment")])
def test_an_environment_that_is_removed_is_revoked(case):
    node = Node.running()
    effects = node.root(root(2, environments={"other": environment()}))
    assert effects[0].snapshot.ladder(T0 + 1) == "closed"
    assert code(node.update(bundle(2))) == "key_unknown"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A20-kept")])
def test_one_of_two_signers_revoked_leaves_the_threshold(case):
    both = {ENV: environment(release=(L1, L2), threshold=1, widening=2)}
    node = Node.new(root(environments=both))
    node.update(bundle(1), L1, L2)
    node.root(root(2, environments={ENV: environment(release=(L1,))}))
    assert not node.state.revoked
    assert node.state.in_force.signers == (L1.public.id,)
    assert node.state.marks.bundle_version == 1


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A21")])
def test_head_marks_fall_only_with_the_rotation(case):
    node = Node.running()
    assert code(node.head(head(100, sealed(bundle(1), L1), 1))) is None
    lower = head(1, sealed(bundle(1), L1), 1, issued=T0 + 1)
    assert code(node.head(lower)) == "rollback_head"
    node.root(root(2, environments={ENV: environment(head=(H1, H2))}))
    assert code(node.head(lower)) == "rollback_head", "a key that was added is no rotation"
    node.root(root(3, environments={ENV: environment(head=(H2,))}))
    assert code(node.head(lower, H1)) == "key_unknown"
    assert code(node.head(lower, H2)) is None


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A21-restart")])
def test_replaying_the_chain_resets_nothing(case):
    node = Node.running()
    second = root(2, environments={ENV: environment(head=(H2,))})
    node.root(second)
    node.head(head(50, sealed(bundle(1), L1), 1), H2)
    again = Node.new(marks=node.state.marks)
    assert code(again.head(head(51, sealed(bundle(1), L1), 1), H1)) == "root_gap", (
        "a newer root is known to exist"
    )
    again.offer(RootOffered(sealed_root(second), 2, stored=True))
    assert again.state.marks.head_version == 50
    assert code(again.head(head(49, sealed(bundle(1), L1), 1), H2)) == "rollback_head"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A21-release")])
def test_bundle_marks_fall_with_a_rotation_but_never_under_what_is_in_force(case):
    node = Node.running(root(environments={ENV: environment(release=(L1, L2))}))
    assert code(node.update(bundle(9), L2, head_version=2)) is None
    node.root(root(2, environments={ENV: environment(release=(L2,))}))
    assert code(node.update(bundle(8), L2, head_version=3)) == "rollback_bundle"
    node.root(root(3, environments={ENV: environment(release=(L3,), floor=2)}))
    assert node.state.revoked
    assert code(node.update(bundle(1), L3, head_version=3)) == "rollback_bundle"
    assert code(node.update(bundle(2), L3, head_version=3)) is None


@pytest.mark.parametrize(
    "version", [pytest.param(2**53, id="fault-A22"), pytest.param(1 + 2**32 + 1, id="fault-A22-just-over")]
)
def test_a_version_far_ahead_is_an_alarm(node, version):
    effects = node.head(head(version, sealed(bundle(1), L1), 1))
    assert code(effects) == "version_jump"
    assert alarm(effects)
    assert code(node.head(head(2**63 - 1, sealed(bundle(1), L1), 1))) == "malformed"
    assert code(node.head(head(1 + 2**32, sealed(bundle(1), L1), 1))) is None


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A22-bundle")])
def test_a_bundle_version_far_ahead_is_an_alarm(case):
    node = Node.running(root(environments={ENV: environment(version_jump=10)}))
    assert code(node.update(bundle(12), head_version=2)) == "version_jump"
    assert code(node.update(bundle(11), head_version=2)) is None


@pytest.mark.parametrize("version", [pytest.param(v, id=f"fault-A23-{v}") for v in (0, 2, True, "1")])
def test_an_unknown_envelope_version(node, version):
    whole = Envelope.parse(sealed(bundle(2), L1))
    bad = codec.encode([version, whole.type, whole.payload, [list(s) for s in whole.signatures]])
    assert code(offered(node, bad)) == "schema_unsupported"


SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # 0, not canonical
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",  # 1, not canonical
]


@pytest.mark.parametrize("point", [pytest.param(p, id=f"fault-A24-{p[:8]}") for p in SMALL_ORDER])
def test_a_weak_key_makes_no_root(point):
    def change(data):
        data["environments"][ENV]["release"]["keys"] = [bytes.fromhex(point)]

    assert refused_root(change) == "malformed"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A24-malleated")])
def test_a_malleated_signature_is_refused_and_changes_no_identity(node, case):
    whole = Envelope.parse(sealed(bundle(2), L1))
    order = 2**252 + 27742317777372353535851937790883648493
    value = whole.signatures[0].value
    other = value[:32] + ((int.from_bytes(value[32:], "little") + order).to_bytes(32, "little"))
    bad = whole._replace(signatures=(Signature(L1.public.hint, other),)).encode()
    assert code(offered(node, bad)) == "sig_invalid"
    assert identity(whole.payload) == identity(Envelope.parse(bad).payload)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda w: codec.encode([1, w.type, w.payload]), id="fault-A25-no-list"),
        pytest.param(lambda w: codec.encode([1, w.type, w.payload, None]), id="fault-A25-nil"),
        pytest.param(lambda w: codec.encode([1, w.type, w.payload, []]), id="fault-A25-empty"),
        pytest.param(lambda w: w.payload, id="fault-A25-bare"),
    ],
)
def test_unsigned_is_refused_always(node, data):
    bad = data(Envelope.parse(sealed(bundle(2), L1)))
    assert code(offered(node, bad)) in {"malformed", "threshold"}
    assert node.state.bundle.version == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: sealed_root(root(), R1), id="fault-A26-threshold"),
        pytest.param(lambda: sealed_root(root(), L1), id="fault-A26-keys"),
        pytest.param(lambda: b"", id="fault-A26-empty"),
        pytest.param(lambda: sealed_root(root())[:-1], id="fault-A26-cut"),
        pytest.param(lambda: sealed(bundle(1), L1), id="fault-A26-type"),
        pytest.param(lambda: sealed_root(root(environments={})), id="fault-A26-environment"),
    ],
)
def test_nothing_starts_from_a_bad_root(data):
    with pytest.raises(Refusal):
        TrustState.start(data(), ENV)


def test_detached_signatures_merge_to_the_same_bytes():
    document = bundle(1)
    kind, payload = media_type(Kind.BUNDLE, ENV), document.to_payload()
    apart = Envelope(kind, payload, ()).merged([sign(kind, payload, L2)]).merged([sign(kind, payload, L1)])
    assert apart.encode() == seal(kind, payload, [L1, L2])


def test_the_pre_authentication_encoding_is_that_of_dsse():
    # The example of the DSSE protocol document.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert envelopes.VERSION == 1


@pytest.mark.parametrize("row", [pytest.param(None, id="fault-F21-new-pod")])
def test_a_node_without_a_past_takes_nothing_that_was_refused(row):
    """A new pod has no last good policy: a rejected bundle leaves it closed, with what the image brought."""
    node = Node.new()
    blob = sealed(bundle(1), L1)
    assert code(node.head(head(1, blob, 1))) is None
    assert code(node.offer(BundleOffered(blob[:-1] + bytes([blob[-1] ^ 1])))) == "hash_mismatch"
    assert snapshot(node.state) is None
    assert code(node.offer(BundleOffered(blob))) is None
    assert snapshot(node.state).bundle_version == 1
