"""Fault rows F1 to F3 and F12: the release manifest, the application it binds, and the way back."""

from dataclasses import replace

import pytest
from kit import (
    DAY,
    ENV,
    H1,
    HOUR,
    L1,
    L2,
    L3,
    S1,
    T0,
    Node,
    alarm,
    bundle,
    code,
    environment,
    head,
    kinds,
    ref,
    root,
    sealed,
    sealed_root,
)

from edgeguard.bundle import build, codec
from edgeguard.bundle.envelope import identity
from edgeguard.bundle.manifest import BundleName, Manifest
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.trust import (
    BundleOffered,
    Fetch,
    HeadOffered,
    ManifestOffered,
    RootOffered,
    TrustState,
    snapshot,
    step,
)

APP, OTHER_APP, PLAN = ("sha256:" + digit * 64 for digit in "abc")


def manifest(version, document, *, app=APP, rollback=None, env=ENV, **changes):
    policy = build.policy_hash(document.policy)
    name = BundleName(document.version, identity(document.to_payload()))
    made = Manifest(env, version, T0, app, PLAN, name, policy, (policy,), {"beta": True}, rollback)
    return replace(made, **changes)


def name_of(document):
    return BundleName(document.version, identity(document.to_payload()))


def required(document=None, **more):
    return Node.new(document, **{"manifest_required": True, **more})


def offer_release(node, number, document, named, *signers, now=T0 + 1, bundle_signers=(L1,)):
    """A head that names a bundle and its manifest, then what the node asks for, as an executor does."""
    blob, paper = sealed(document, *bundle_signers), sealed(named, *(signers or (L1,)))
    blobs = {"bundle": BundleOffered(blob), "manifest": ManifestOffered(paper)}
    member = {"manifest": ref(paper, named.version)}
    waiting = list(node.head(head(number, blob, document.version, issued=int(now) - 1, **member), now=now))
    seen = []
    while waiting:
        effect = waiting.pop(0)
        seen.append(effect)
        if isinstance(effect, Fetch):
            waiting += node.offer(blobs[effect.member], now)
    return seen


@pytest.fixture
def node():
    node = required()
    assert code(offer_release(node, 1, bundle(1), manifest(1, bundle(1)))) is None
    return node


def test_the_manifest_comes_before_the_bundle_and_is_kept_after_it():
    node = required()
    seen = offer_release(node, 1, bundle(1), manifest(1, bundle(1)))
    assert [item.member for item in seen if isinstance(item, Fetch)] == ["manifest", "bundle"]
    assert [item.role for item in seen if kinds([item]) == ["Store"]] == ["head", "bundle", "manifest"]
    assert kinds(seen)[-2:] == ["RaiseMarks", "Activate"]


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F1")])
def test_a_manifest_for_another_application(case):
    node = required(app=OTHER_APP)
    assert code(offer_release(node, 1, bundle(1), manifest(1, bundle(1)))) == "manifest_mismatch"
    assert snapshot(node.state) is None, "nothing is enforced: closed"
    assert code(offer_release(node, 2, bundle(2), manifest(2, bundle(2), app=OTHER_APP))) is None
    assert node.state.bundle.version == 2
    before = node.state.in_force
    assert code(offer_release(node, 3, bundle(3), manifest(3, bundle(3)))) == "manifest_mismatch"
    assert node.state.in_force is before, "what was approved together stays together"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F1-start")])
def test_an_application_that_is_not_the_stored_manifests_starts_closed(case):
    paper, blob = sealed(manifest(1, bundle(1)), L1), sealed(bundle(1), L1)
    for app, enforced in ((APP, True), (OTHER_APP, False), ("", True)):
        node = required(app=app)
        node.offer(ManifestOffered(paper, stored=True))
        node.offer(BundleOffered(blob, stored=True))
        assert (snapshot(node.state) is not None) is enforced


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"bundle": BundleName(2, "sha256:" + "0" * 64)}, id="fault-F2-identity"),
        pytest.param({"bundle": BundleName(3, name_of(bundle(2)).identity)}, id="fault-F2-version"),
        pytest.param({"policy_hash": PLAN, "tested": (PLAN,)}, id="fault-F2-policy"),
        pytest.param({"tested": (PLAN,)}, id="fault-F2-untested"),
    ],
)
def test_a_bundle_that_the_manifest_does_not_name(node, change):
    before = node.state.in_force
    seen = offer_release(node, 2, bundle(2), manifest(2, bundle(2), **change))
    assert code(seen) == "manifest_mismatch"
    assert node.state.in_force is before
    assert code(offer_release(node, 3, bundle(2), manifest(3, bundle(2)))) is None, "mended by a newer one"
    assert node.state.bundle.version == 2


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F2-none")])
def test_a_head_without_a_manifest(case):
    node = required()
    blob = sealed(bundle(1), L1)
    effects = node.head(head(1, blob, 1, quarantine=1))
    assert code(effects) == "manifest_mismatch"
    assert node.state.quarantined, "the head still counts"
    assert code(node.head(head(1, blob, 1, quarantine=1))) == "manifest_mismatch", "said again, not fetched"
    assert code(node.offer(BundleOffered(blob))) == "manifest_mismatch"
    assert snapshot(node.state) is None


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F2-off")])
def test_a_node_that_was_not_told_ignores_manifests(case):
    node = Node.new()
    seen = offer_release(node, 1, bundle(1), manifest(9, bundle(2), app=OTHER_APP))
    assert code(seen) is None
    assert [item.member for item in seen if isinstance(item, Fetch)] == ["bundle"]


@pytest.mark.parametrize(
    ("named", "signer", "kind", "reason"),
    [
        pytest.param(manifest(2, bundle(2), env="staging"), L1, None, "env", id="fault-F3-type"),
        pytest.param(manifest(2, bundle(2), env="staging"), L1, ENV, "env", id="fault-F3-inside"),
        pytest.param(manifest(2, bundle(2)), H1, None, "key_unknown", id="fault-F3-head-key"),
        pytest.param(manifest(2, bundle(2)), S1, None, "key_unknown", id="fault-F3-other-key"),
    ],
)
def test_a_manifest_of_somebody_else(node, named, signer, kind, reason):
    blob, paper = sealed(bundle(2), L1), sealed(named, signer, env=kind)
    node.head(head(2, blob, 2, manifest=ref(paper, 2)))
    assert code(node.offer(ManifestOffered(paper))) == reason
    assert code(node.offer(BundleOffered(blob))) == "manifest_mismatch"
    assert node.state.bundle.version == 1


@pytest.mark.parametrize(
    ("paper", "reason"),
    [
        pytest.param(sealed(manifest(3, bundle(2)), L1), "version_mismatch", id="fault-B6-manifest"),
        pytest.param(sealed(manifest(2, bundle(2)), L1)[:-1], "hash_mismatch", id="fault-B7-manifest"),
        pytest.param(sealed(bundle(2), L1), "type", id="fault-A12-manifest"),
        pytest.param(
            sealed(manifest(2, bundle(2), issued_at=T0 + HOUR), L1), "not_before", id="fault-B12-manifest"
        ),
    ],
)
def test_manifests_are_judged_as_everything_else(node, paper, reason):
    blob = sealed(bundle(2), L1)
    named = sealed(manifest(2, bundle(2)), L1) if reason == "hash_mismatch" else paper
    node.head(head(2, blob, 2, manifest=ref(named, 2)))
    assert code(node.offer(ManifestOffered(paper))) == reason


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-B5-manifest")])
def test_another_manifest_under_a_known_version(node, case):
    seen = offer_release(node, 2, bundle(1), manifest(1, bundle(1), app=OTHER_APP))
    assert code(seen) == "equivocation"
    assert alarm(seen)


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-B8-manifest")])
def test_a_manifest_does_not_vanish_or_go_back(node, case):
    assert code(offer_release(node, 2, bundle(2), manifest(2, bundle(2)))) is None
    assert code(node.head(head(3, sealed(bundle(2), L1), 2))) == "member_missing"
    assert code(offer_release(node, 4, bundle(3), manifest(1, bundle(3)))) == "rollback_bundle"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12-new-app")])
def test_a_new_application_with_the_same_bundle(node, case):
    before = node.state.in_force.identity
    seen = offer_release(node, 2, bundle(1), manifest(2, bundle(1), app=OTHER_APP))
    assert code(seen) is None
    assert [item.role for item in seen if kinds([item]) == ["Store"]] == ["head", "manifest"]
    assert node.state.in_force.identity == before
    assert node.state.manifest.app == OTHER_APP


# The way back


def back_of(old, version):
    """The old policy under a version reserved for it."""
    return replace(old, version=version, issued_at=T0, not_before=T0, expires_at=T0 + 25 * DAY)


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12")])
def test_the_way_back_is_a_higher_version_of_the_old_policy_and_application(case):
    policy = {ENV: environment(release=(L1, L2, L3), widening=2)}
    good, bad = bundle(1, gated={"age": {"v": 1}}), bundle(2, gated={"age": {"v": 2}})
    back = back_of(good, 3)
    both = {"bundle_signers": (L1, L2)}
    node = required(root(environments=policy))
    assert code(offer_release(node, 1, good, manifest(1, good), **both)) is None
    released = manifest(2, bad, app=OTHER_APP, rollback=name_of(back))
    assert code(offer_release(node, 2, bad, released, **both)) is None
    # An incident. Only the head key is at hand; all else was signed beforehand.
    assert code(offer_release(node, 3, back, manifest(3, back), **both)) is None
    assert node.state.bundle.version == 3
    assert node.state.in_force.policy_hash == build.policy_hash(good.policy)
    assert node.state.manifest.app == APP
    # The release that was taken back cannot return under its old version.
    assert code(offer_release(node, 4, bad, replace(released, version=4), **both)) == "rollback_bundle"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12-reserved")])
def test_nothing_else_may_use_the_reserved_version(node, case):
    back = back_of(bundle(1), 3)
    assert code(offer_release(node, 2, bundle(2), manifest(2, bundle(2), rollback=name_of(back)))) is None
    other = bundle(3, rules=["of a thief with one release key"])
    assert code(offer_release(node, 3, other, manifest(3, other))) == "manifest_mismatch"
    assert node.state.bundle.version == 2
    assert code(offer_release(node, 4, bundle(4), manifest(4, bundle(4)))) is None, "the next release is free"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12-half")])
def test_half_a_pair_is_no_way_back(node, case):
    """Policy and application go back as a unit: the old policy with the new application is refused."""
    back = back_of(bundle(1), 3)
    released = manifest(2, bundle(2), app=OTHER_APP, rollback=name_of(back))
    assert code(offer_release(node, 2, bundle(2), released)) is None
    assert code(offer_release(node, 3, back, released)) == "manifest_mismatch"
    still_new = required(app=OTHER_APP)
    assert code(offer_release(still_new, 3, back, manifest(3, back))) == "manifest_mismatch"


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12-lower")])
def test_a_way_back_with_a_lower_version_is_no_manifest(case):
    with pytest.raises(Refusal, match="only rise"):
        Manifest.parse(manifest(2, bundle(2), rollback=name_of(bundle(1))).to_payload())


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-A20-manifest")])
def test_a_manifest_whose_signer_was_revoked_is_forgotten(node, case):
    keep = environment(release=(L2,), floor=1)
    node.offer(RootOffered(sealed_root(root(2, environments={ENV: keep})), 2))
    assert node.state.manifest is None
    assert node.state.revoked
    again = offer_release(node, 2, bundle(2), manifest(2, bundle(2)), L2, bundle_signers=(L2,))
    assert code(again) is None
    assert not node.state.revoked


@pytest.mark.parametrize("stored", ["both", "bundle-only"])
def test_a_crash_leaves_a_bundle_with_its_manifest(stored):
    """Killed between the writes of a release: the newest stored pair that belongs together starts."""
    old_paper, new_paper = sealed(manifest(1, bundle(1)), L1), sealed(manifest(2, bundle(2)), L1)
    papers = [new_paper, old_paper] if stored == "both" else [old_paper]
    state = TrustState.start(sealed_root(root()), ENV, manifest_required=True)
    for paper in papers:
        state, effects = step(state, ManifestOffered(paper, stored=True), T0 + 1)
        if code(effects) is None:
            break
    for number in (2, 1):
        state, effects = step(state, BundleOffered(sealed(bundle(number), L1), stored=True), T0 + 1)
        if code(effects) is None:
            break
    assert state.bundle.version == (2 if stored == "both" else 1)


FIELDS = {
    "app": b"short",
    "bundle": [1],
    "tested": [1],
    "flags": {"beta": 1},
    "rollback": [],
    "version": 0,
    "policy": "text",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_manifest_of_the_wrong_form(field):
    data = codec.decode(manifest(1, bundle(1)).to_payload(), codec.Limits(1 << 16))
    assert Manifest.parse(codec.encode(data)) == manifest(1, bundle(1))
    with pytest.raises(Refusal) as caught:
        Manifest.parse(codec.encode({**data, field: FIELDS[field]}))
    assert caught.value.code == "malformed"
    with pytest.raises(Refusal):
        Manifest.parse(codec.encode({name: value for name, value in data.items() if name != field}))


def test_the_head_stays_small():
    paper = sealed(manifest(1, bundle(1)), L1, L2)
    named = head(2**40, b"x" * 1000, 2**31, manifest=ref(paper, 2**31))
    assert len(sealed(named, H1)) <= 450
    assert HeadOffered(sealed(named, H1)).data
