"""Fault rows B1 to B23: versions and time."""

import itertools
from dataclasses import replace

import pytest
from kit import (
    DAY,
    ENV,
    H1,
    H2,
    HOUR,
    L1,
    L2,
    L3,
    L4,
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
    sections,
)

from edgeguard.bundle import build
from edgeguard.bundle.documents import BlobRef, Bundle, Head
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.trust import BundleOffered, HeadOffered, Marks, snapshot

ONE = sealed(bundle(1), L1)


@pytest.fixture
def node():
    return Node.running()


def row(name):
    return pytest.mark.parametrize("case", [pytest.param(0, id=f"fault-{name}")])


@row("B1")
def test_a_lower_head(node, case):
    node.head(head(5, ONE, 1))
    before = node.state
    effects = node.head(head(4, ONE, 1))
    assert code(effects) == "rollback_head"
    assert alarm(effects)
    assert node.state is before


@row("B2")
def test_the_same_head_again_extends_nothing(node, case):
    before = snapshot(node.state)
    again = node.state.head_bytes
    effects = node.offer(HeadOffered(again), T0 + 1000)
    assert effects == ()
    assert snapshot(node.state) == before


@row("B2-fetch")
def test_the_same_head_again_asks_for_what_is_missing(case):
    node = Node.new()
    first = node.head(head(1, ONE, 1))
    assert kinds(first) == ["Store", "RaiseMarks", "Fetch"]
    assert kinds(node.head(head(1, ONE, 1))) == ["Fetch"]


@row("B3")
def test_two_heads_of_one_version(node, case):
    before = node.state
    effects = node.head(head(1, ONE, 1, issued=T0 + 1))
    assert code(effects) == "equivocation"
    assert alarm(effects)
    assert node.state is before


@row("B3-signatures")
def test_more_signatures_are_not_other_content(case):
    node = Node.running(root(environments={ENV: environment(head=(H1, H2))}))
    assert node.head(node.state.head, H1, H2) == ()


@row("B4")
def test_a_head_that_names_a_lower_bundle(node, case):
    assert code(node.update(bundle(3), head_version=2)) is None
    effects = node.head(head(3, sealed(bundle(2), L1), 2))
    assert code(effects) == "rollback_bundle"
    assert alarm(effects)
    assert node.state.bundle.version == 3
    assert node.state.head.version == 2


@row("B4-unfetched")
def test_a_head_goes_back_on_no_promise(node, case):
    node.head(head(2, sealed(bundle(3), L1), 3))
    assert code(node.head(head(3, sealed(bundle(2), L1), 2))) == "rollback_bundle"


@row("B5")
def test_two_bundles_of_one_version(node, case):
    effects = node.update(bundle(1, rules=["other"]), head_version=2)
    assert code(effects) == "equivocation"
    assert alarm(effects)
    assert node.state.bundle == bundle(1)


@row("B5-signatures")
def test_a_bundle_that_gained_a_signature_is_the_same_bundle(case):
    node = Node.running(root(environments={ENV: environment(release=(L1, L2))}))
    engine = node.state.engine
    assert code(node.update(bundle(1), L1, L2, head_version=2)) is None
    assert len(node.state.in_force.signers) == 2
    assert node.state.engine is engine


@row("B6")
def test_a_bundle_of_another_version_than_the_head_says(node, case):
    data = sealed(bundle(3), L1)
    node.head(head(2, data, 2))
    assert code(node.offer(BundleOffered(data))) == "version_mismatch"


@row("B7")
def test_another_blob_is_refused_before_signatures(node, case, monkeypatch):
    from edgeguard.bundle.envelope import Envelope

    named, other = sealed(bundle(2), L1), sealed(bundle(2, rules=["other"]), L1)
    node.head(head(2, named, 2))
    monkeypatch.setattr(Envelope, "parse", lambda *a, **k: pytest.fail("looked inside"))
    for data in (other, named + b"\0", named[:-1], b""):
        assert code(node.offer(BundleOffered(data))) == "hash_mismatch"


@row("B7-none")
def test_a_bundle_without_a_head(case):
    assert code(Node.new().offer(BundleOffered(ONE))) == "head_missing"


@row("B8")
def test_a_member_that_vanishes(node, case):
    node.head(head(2, ONE, 1, manifest=BlobRef(7, "00" * 32, 10)))
    assert code(node.head(head(3, ONE, 1))) == "member_missing"
    assert code(node.head(head(3, ONE, 1, manifest=BlobRef(6, "00" * 32, 10)))) == "rollback_bundle"
    with pytest.raises(Refusal) as caught:
        Head.parse(replace(head(1, ONE, 1), members={}).to_payload())
    assert caught.value.code == "member_missing"


@row("B9")
def test_an_expired_head_is_a_freeze(node, case):
    before = node.state
    assert code(node.head(head(2, ONE, 1), now=T0 + HOUR)) == "freeze"
    assert node.state is before
    assert snapshot(node.state).ladder(T0 + HOUR) == "restricted"


@row("B10")
def test_a_replayed_head_serves_until_it_expires(case):
    node = Node.new()
    node.update(bundle(1, grace=600))
    for now in range(T0 + 10, T0 + HOUR, 600):
        assert node.offer(HeadOffered(node.state.head_bytes), now) == ()
    found = snapshot(node.state)
    walk = [found.ladder(T0 + HOUR + seconds) for seconds in (-1, 0, 599, 600)]
    assert walk == ["fresh", "stale", "stale", "restricted"]


@row("B11")
def test_an_expired_bundle_closes_at_once(case):
    node = Node.new()
    node.update(bundle(1, expires=T0 + 60, grace=HOUR))
    found = snapshot(node.state)
    assert found.ladder(T0 + 59) == "fresh"
    assert found.ladder(T0 + 60) == "closed"
    assert found.restricted_at <= found.closed_at


@row("B12")
def test_a_bundle_that_is_not_valid_yet(node, case):
    effects = node.update(bundle(2, not_before=T0 + 100))
    assert code(effects) == "not_before"
    assert effects[-1].refusal.retry_at == T0 + 100
    assert kinds(node.offer(HeadOffered(node.state.head_bytes))) == ["Fetch"], "it is asked for again"
    assert code(node.offer(BundleOffered(sealed(bundle(2, not_before=T0 + 100), L1)), T0 + 100)) is None


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(bundle(2, expires=T0 - 1), id="fault-B13-before-issue"),
        pytest.param(bundle(2, expires=T0), id="fault-B13-empty"),
        pytest.param(bundle(2, not_before=T0 + DAY, expires=T0 + DAY), id="fault-B13-not-before"),
        pytest.param(bundle(2, expires=T0 + 31 * DAY), id="fault-B13-cap"),
        pytest.param(bundle(2, expires=2**53), id="fault-B13-absurd"),
        pytest.param(bundle(2, grace=DAY + 1), id="fault-B13-grace"),
    ],
)
def test_an_absurd_lifetime_of_a_bundle(node, document):
    assert code(node.update(document)) == "lifetime"


@pytest.mark.parametrize(
    "expires",
    [pytest.param(T0 + 2 * HOUR + 1, id="fault-B13-head-cap"), pytest.param(T0, id="fault-B13-head-empty")],
)
def test_an_absurd_lifetime_of_a_head(node, expires):
    assert code(node.head(head(2, ONE, 1, expires=expires))) == "lifetime"


@row("B13-root")
def test_an_absurd_lifetime_of_a_root(case):
    assert code(Node.new().root(root(2, expires=T0 - DAY))) == "lifetime"


@row("B13-lowered")
def test_lowered_caps_bind_the_bundle_in_force(case):
    node = Node.new()
    node.update(bundle(1, expires=T0 + 20 * DAY, grace=DAY))
    node.root(root(2, environments={ENV: environment(bundle_lifetime_s=DAY, grace_s=10)}))
    found = snapshot(node.state)
    assert found.closed_at == T0 + DAY
    assert found.restricted_at == found.stale_at + 10


@row("B14")
def test_an_expired_final_root_is_kept_and_freezes_the_rest(node, case):
    effects = node.root(root(2, expires=T0 + 10), now=T0 + 20)
    assert "Store" in kinds(effects)
    assert code(node.head(head(2, ONE, 1), now=T0 + 20)) == "root_expired"
    assert snapshot(node.state).ladder(T0 + 20) == "fresh"
    assert snapshot(node.state).ladder(T0 + HOUR) == "restricted"


@row("B15")
def test_an_expired_intermediate_root(node, case):
    node.root(root(2, expires=T0 + 10), now=T0 + 20)
    node.root(root(3), now=T0 + 20)
    assert code(node.head(head(2, ONE, 1), now=T0 + 20)) is None


@row("B16")
def test_an_expired_stored_head_blocks_nothing(node, case):
    later = T0 + 5 * HOUR
    again = Node.new(marks=node.state.marks)
    again.offer(HeadOffered(node.state.head_bytes, stored=True), later)
    effects = again.offer(BundleOffered(ONE, stored=True), later)
    assert kinds(effects) == ["RaiseMarks", "Activate"]
    assert replace(snapshot(again.state), engine=node.state.engine) == snapshot(node.state), (
        "no grace is restarted"
    )
    assert snapshot(again.state).ladder(later) == "restricted"
    assert code(again.head(head(2, ONE, 1, issued=later), now=later)) is None
    assert snapshot(again.state).ladder(later) == "fresh"


@row("B16-orphan")
def test_a_restart_between_head_and_bundle_restarts_no_grace(node, case):
    newer = sealed(bundle(2), L1)
    node.head(head(2, newer, 2, issued=T0 + 600), now=T0 + 600)
    assert snapshot(node.state).stale_at == T0 + HOUR, "the new head does not vouch for the old bundle"
    again = Node.new(marks=node.state.marks)
    again.offer(HeadOffered(node.state.head_bytes, stored=True), T0 + 700)
    again.offer(BundleOffered(ONE, stored=True), T0 + 700)
    assert snapshot(again.state).stale_at == T0 + HOUR
    assert kinds(again.offer(HeadOffered(node.state.head_bytes), T0 + 700)) == ["Fetch"]


@row("B16-lost")
def test_lost_marks_give_a_stored_bundle_no_freshness(node, case):
    again = Node.new()
    again.offer(BundleOffered(ONE, stored=True))
    assert snapshot(again.state).stale_at == T0


@row("B16-expired-bundle")
def test_an_expired_stored_bundle_is_held_closed(node, case):
    again = Node.new(marks=node.state.marks)
    again.offer(BundleOffered(ONE, stored=True), T0 + 25 * DAY)
    assert snapshot(again.state).ladder(T0 + 25 * DAY) == "closed"
    assert snapshot(again.state).closed_reason() == "policy_expired"


@row("B16-older")
def test_an_older_stored_bundle_is_no_policy(node, case):
    marks = replace(node.state.marks, bundle_version=2, bundle_identity="sha256:x")
    again = Node.new(marks=marks)
    assert code(again.offer(BundleOffered(ONE, stored=True))) == "rollback_bundle"


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [pytest.param(300, None, id="fault-B17"), pytest.param(301, "not_before", id="fault-B17-beyond")],
)
def test_clock_slack(node, ahead, expected):
    assert code(node.head(head(2, ONE, 1, issued=T0 + 1 + ahead))) == expected
    assert code(node.update(bundle(2, issued=T0 + 1 + ahead, not_before=T0), head_version=3)) == expected


@row("B18")
def test_a_clock_set_back_never_revives(node, case):
    node.head(head(2, ONE, 1, issued=T0 + 2 * HOUR), now=T0 + 2 * HOUR)
    assert node.state.marks.newest_signed_time == T0 + 2 * HOUR
    old = head(3, ONE, 1, issued=T0 + 1)
    assert code(node.head(old, now=T0 - 400 * DAY)) == "freeze"
    again = Node.new(marks=node.state.marks)
    assert code(again.head(old, now=T0 - 400 * DAY)) == "freeze", "also after a restart"


@row("B19")
def test_a_clock_that_jumps_ahead_recovers(node, case):
    future = T0 + 3 * 365 * DAY
    marks = node.state.marks
    assert snapshot(node.state).ladder(future) == "closed"
    assert code(node.head(head(2, ONE, 1, issued=T0 + 10), now=future)) == "root_expired"
    assert code(node.head(head(2, ONE, 1, issued=T0 + 10), now=T0 + 100 * DAY)) == "freeze"
    assert node.state.marks == marks, "the jump is never kept"
    assert code(node.head(head(2, ONE, 1, issued=T0 + 10), now=T0 + 11)) is None
    assert snapshot(node.state).ladder(T0 + 12) == "fresh"


@row("B19-refetch")
def test_a_bundle_refused_by_a_wrong_clock_is_asked_for_again(node, case):
    blob = sealed(bundle(2, expires=T0 + DAY), L1)
    node.head(head(2, blob, 2), now=T0 + 1)
    assert code(node.offer(BundleOffered(blob), T0 + 2 * DAY)) == "expired"
    assert kinds(node.offer(HeadOffered(node.state.head_bytes))) == ["Fetch"]
    assert code(node.offer(BundleOffered(blob))) is None


@row("B20")
def test_one_time_for_a_whole_update(case):
    # The caller passes the update's start time to every step of it.
    node = Node.new()
    start = T0 + HOUR - 1
    assert code(node.head(head(1, ONE, 1), now=start)) is None
    assert code(node.offer(BundleOffered(ONE), start)) is None
    assert snapshot(node.state).ladder(start + 2) == "restricted"


@row("B21")
def test_deadlines_say_when_to_wake(case):
    node = Node.new()
    node.update(bundle(1, grace=600))
    found, now, seen = snapshot(node.state), float(T0), []
    while now is not None:
        seen.append((found.ladder(now), now))
        assert found.ladder(now - 0.001) != found.ladder(now) or now == T0
        now = found.next_deadline(now)
    assert [name for name, _ in seen] == ["fresh", "stale", "restricted", "closed"]
    assert seen[-1][1] == T0 + 20 * DAY


@pytest.mark.parametrize(
    "epoch", [pytest.param(2**31, id="fault-B23-2038"), pytest.param(2**32, id="fault-B23-2106")]
)
def test_times_past_32_bits(epoch):
    node = Node.new(root(issued=epoch - DAY, expires=epoch + 365 * DAY))
    assert code(node.update(bundle(1, issued=epoch - 5), now=epoch + 3)) is None
    assert snapshot(node.state).ladder(epoch + 3) == "fresh"


@pytest.mark.parametrize(
    "value", [pytest.param(v, id=f"fault-B23-{v!r}") for v in (-1, 2**53 + 1, True, "1", None)]
)
@pytest.mark.parametrize("name", ["issued", "expires", "not_before", "version", "grace_s", "released"])
def test_times_and_versions_are_bounded_integers(name, value):
    from edgeguard.bundle import codec

    data = codec.decode(bundle(1).to_payload(), codec.Limits(1 << 20))
    with pytest.raises(Refusal) as caught:
        Bundle.parse(codec.encode({**data, name: value}))
    assert caught.value.code == "malformed"


# Gated sections

BOTH = {ENV: environment(release=(L1, L2, L3), threshold=1, widening=2)}


def test_first_contact_takes_the_widening_quorum():
    node = Node.new(root(environments=BOTH))
    effects = node.update(bundle(1), L1)
    assert code(effects) == "gated"
    assert alarm(effects)
    assert node.state.in_force is None
    assert code(node.update(bundle(2), L1, L3)) is None


@pytest.mark.parametrize("section", ["age", "identity", "exceptions"])
def test_one_signature_changes_no_gated_section(section):
    node = Node.new(root(environments=BOTH))
    node.update(bundle(1), L1, L2)
    change = bundle(2, gated={section: {"changed": True}})
    assert code(node.update(change, L1)) == "gated"
    assert node.state.bundle.version == 1
    assert code(node.update(bundle(3), L3)) is None, "rules alone take one signature"
    assert code(node.update(replace(change, version=4), L1, L2)) is None
    assert code(node.update(bundle(5), L1)) == "gated", "back to the old sections is a change too"


def test_the_gate_holds_across_a_restart():
    node = Node.new(root(environments=BOTH))
    node.update(bundle(1), L1, L2)
    node.update(bundle(2), L1)
    again = Node.new(root(environments=BOTH), marks=node.state.marks)
    assert code(again.offer(BundleOffered(node.state.in_force.data, stored=True))) is None
    lost = Node.new(root(environments=BOTH))
    assert code(lost.offer(BundleOffered(node.state.in_force.data, stored=True))) == "gated"


def test_a_revocation_closes_the_gate():
    node = Node.new(root(environments=BOTH))
    node.update(bundle(1), L1, L2)
    node.root(root(2, environments={ENV: environment(release=(L3, L4), threshold=1, widening=2)}))
    assert node.state.revoked
    assert code(node.update(bundle(2), L3)) == "gated"
    assert code(node.update(bundle(3), L3, L4)) is None


# Floor, quarantine, restart


@pytest.mark.parametrize("where", ["root", "config"])
def test_the_floor(where):
    floor = {"floor": 5} if where == "config" else {}
    node = Node.new(root(environments={ENV: environment(floor=5 if where == "root" else 0)}), **floor)
    assert code(node.update(bundle(4))) == "rollback_bundle"
    assert code(node.update(bundle(5))) is None


def test_quarantine_is_put_in_force_before_anything_is_stored():
    node = Node.running()
    effects = node.head(head(2, ONE, 1, quarantine=1))
    assert kinds(effects) == ["Activate", "Store", "RaiseMarks"]
    assert effects[0].snapshot.ladder(T0 + 1) == "quarantined"


def test_only_release_ends_a_quarantine():
    node = Node.running()
    node.head(head(2, ONE, 1, quarantine=1))
    node.head(head(3, ONE, 1, quarantine=0))
    assert node.state.quarantined, "the head alone does not"
    again = Node.new(marks=node.state.marks)
    again.offer(BundleOffered(ONE, stored=True))
    assert again.state.quarantined, "a restart does not"
    node.update(bundle(2), head_version=4)
    assert node.state.quarantined, "a bundle that says nothing does not"
    effects = node.update(bundle(3, released=1), head_version=5, quarantine=1)
    assert effects[-1].snapshot.ladder(T0 + 2) == "fresh"
    assert kinds(node.head(head(6, sealed(bundle(3, released=1), L1), 3, quarantine=2)))[0] == "Activate"
    assert node.state.quarantined, "a new order counts"


def test_a_thief_of_the_head_key_cannot_use_up_quarantine_numbers():
    assert code(Node.running().head(head(2, ONE, 1, quarantine=2**53))) == "version_jump"


def test_storing_comes_before_marks_before_activation():
    node = Node.new()
    assert kinds(node.update(bundle(1))) == ["Store", "RaiseMarks", "Activate"]
    assert kinds(node.effects)[:3] == ["Store", "RaiseMarks", "Fetch"]
    stored = [effect for effect in node.effects if type(effect).__name__ == "Store"]
    assert [(item.role, item.version) for item in stored] == [("head", 1), ("bundle", 1)]
    assert stored[1].data == ONE


def test_a_policy_that_breaks_the_engine_changes_nothing():
    node = Node.running()
    broken = replace(bundle(2), policy=build.encode_section(sections() | {"rules": "broken"}))
    assert code(node.update(broken)) == "policy_invalid"
    assert node.state.bundle.version == 1
    assert node.offer(HeadOffered(node.state.head_bytes)) == (), "and is not fetched for ever"


def test_a_newer_bundle_on_disk_than_the_mark_is_taken():
    # Killed between storing and raising the mark (E3).
    node = Node.running()
    node.update(bundle(2))
    again = Node.new(marks=replace(node.state.marks, bundle_version=1, bundle_identity=identity_of(1)))
    assert code(again.offer(BundleOffered(node.state.in_force.data, stored=True))) is None
    assert again.state.marks.bundle_version == 2


def identity_of(version):
    from edgeguard.bundle.envelope import identity

    return identity(bundle(version).to_payload())


def test_marks_survive_their_own_encoding():
    marks = Node.running().state.marks
    assert Marks.decode(marks.encode()) == marks
    for bad in (b"", marks.encode()[:-1], b"\x80"):
        with pytest.raises(Refusal):
            Marks.decode(bad)


def test_order_of_offers_never_leads_back():
    blobs = {version: sealed(bundle(version), L1) for version in (1, 2, 3)}
    heads = [head(version, blobs[version], version) for version in (1, 2, 3)]
    for order in itertools.permutations(heads):
        node, seen = Node.new(), []
        for item in order:
            node.head(item)
            for blob in blobs.values():
                node.offer(BundleOffered(blob))
            seen.append(node.state.bundle.version if node.state.bundle else 0)
        assert seen == sorted(seen)
        assert seen[-1] == 3
