"""Random histories through the state machine and through python-tuf: the same verdict on what TUF defines.

A history is a server's behavior over some update cycles: key rotations, good and bad; heads and bundles with versions
that rise and fall, expire, are signed by too few, by other roles, or are swapped; files that are missing or damaged. After
each cycle both clients must agree whether they are up to date, and, if they are, on the exact bytes. What one of them
remembers of a cycle that failed shows in the cycles that follow.

Deliberate differences, each normalized below or kept out of the histories (docs/bundle-format.md has the reasons):

1.  Equal head version, other content: an alarm here, a silent discard in TUF. Both keep the old one. (B3)
2.  Equal bundle version, other content: refused here; TUF takes it under a new snapshot. (B5)
3.  Only the head keys are rotated: the versions of bundles stay remembered here; TUF forgets them with the snapshot. (A21)
4.  Only the release keys are rotated: the versions of bundles are forgotten here, down to the root's floor; TUF keeps
    them with the snapshot. Kept out. (A20)
5.  Part of a role's keys is taken away, or retired keys return: a rotation here, as in the specification's 5.3.11;
    python-tuf keeps what the keys of the newest root still carry. Kept out: keys are all replaced or all kept, for good.
6.  A head is timestamp and snapshot in one: refused as one, it moves nothing; a TUF timestamp would stay. (In the profile.)
7.  What TUF does not define is switched off: caps, floor, audience, widening, issue times, marks that outlive a lost
    cache (E6), and a signature of the wrong length.
"""

import hashlib
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from kit import DAY, ENV, HOUR, R1, R2, R3, S1, T0, Node, code, quorum, ref, root, sealed
from kit import bundle as make_bundle
from kit import environment as make_environment
from tuf_profile import Oracle

from edgeguard.bundle.documents import Head
from edgeguard.bundle.envelope import Envelope, Signature
from edgeguard.bundle.keys import SigningKey
from edgeguard.bundle.refusal import RefusalCode
from edgeguard.bundle.trust import BundleOffered, CycleStarted, Fetch, HeadOffered, RootOffered

LONG = 100 * 365 * DAY
FREE = {"head_lifetime_s": LONG, "bundle_lifetime_s": LONG, "version_jump": 2**50}


@cache
def pair_of(role, generation):
    """Two keys of one role; a rotation never returns to old ones (difference 5)."""
    return tuple(SigningKey(hashlib.sha256(f"{role} {generation} {n}".encode()).digest()) for n in (1, 2))


ROOTS = [(R1, R2, R3), (R2, R3, S1)]

small = st.integers(0, 9)
ROOT_KINDS = ["none"] * 12 + ["renew", "root-keys", "head-keys", "both-keys", "both-keys", "expiring"]
ROOT_KINDS += ["old-only", "new-only", "one-short", "gap", "misnamed"]
cycles = st.fixed_dictionaries(
    {
        "root": st.sampled_from(ROOT_KINDS),
        "hours": st.sampled_from([0, 0, 0, 1, 1, 3, 30]),
        "head_step": st.sampled_from([1, 1, 1, 1, 1, 0, -1, -2, 5]),
        "bundle_step": st.sampled_from([1, 1, 1, 0, 0, 0, -1, 3]),
        "head_hours": st.sampled_from([2, 2, 2, 40, 0]),
        "head_by": st.sampled_from(["both"] * 8 + ["one", "none", "twice", "release", "old", "zero"]),
        "bundle_by": st.sampled_from(["both"] * 8 + ["one", "head", "old"]),
        "bundle_hours": st.sampled_from([2000, 2000, 2000, 2, 0]),
        "extra": st.sampled_from([None, None, None, None, 1, 2]),
        "served": st.sampled_from(["right"] * 8 + ["missing", "damaged", "no-head", "swapped", "same-head"]),
        "head_threshold": st.sampled_from([1, 2]),
    }
)
histories = st.lists(cycles, min_size=2, max_size=9)


class World:
    """A repository, honest or not, and the keys behind it."""

    def __init__(self):
        self.now = T0 + 10
        self.heads, self.releases, self.roots = 1, 1, 0
        self.head_threshold = 1
        self.current = self.document(1, T0 + LONG)
        self.files = {1: sealed(self.current, R1, R2)}
        self.head_version = self.bundle_version = 1
        self.bundles = {}
        self.last_head = None
        self.head_only = False

    def document(self, version, expires):
        made = make_environment(
            release=pair_of("release", self.releases),
            head=pair_of("head", self.heads),
            head_threshold=self.head_threshold,
            **FREE,
        )
        made = replace(made, release=quorum(*pair_of("release", self.releases), threshold=2), widening=2)
        return root(version, keys=ROOTS[self.roots], environments={ENV: made}, issued=T0, expires=expires)

    def turn(self, cycle):
        self.now += cycle["hours"] * HOUR
        self._root(cycle["root"], cycle["head_threshold"])
        return self._files(cycle)

    def _root(self, kind, threshold):
        if kind == "none":
            return
        before = (self.heads, self.releases, self.roots, self.head_threshold)
        old_keys = ROOTS[self.roots]
        version = self.current.version + 1
        if kind in {"head-keys", "both-keys"}:
            # Other keys only with another quorum: the same keys under a higher threshold are no rotation.
            self.heads, self.head_threshold = self.heads + 1, threshold
        if kind == "both-keys":
            self.releases += 1
        if kind in {"root-keys", "old-only", "new-only", "one-short"}:
            self.roots = 1 - self.roots
        expires = self.now + 2 * HOUR if kind == "expiring" else T0 + LONG
        document = self.document(version + (kind == "gap"), expires)
        new_keys = ROOTS[self.roots]
        signers = {
            "old-only": set(old_keys) - set(new_keys) | {old_keys[1]},
            "new-only": set(new_keys) - set(old_keys) | {new_keys[0]},
            "one-short": {old_keys[0]},
        }.get(kind, {*old_keys[:2], *new_keys[:2]})
        name = version + 1 if kind == "misnamed" else version
        data = sealed(document, *signers)
        self.files = {**self.files, name: data}
        if kind in {"old-only", "new-only", "one-short", "gap", "misnamed"}:
            self.heads, self.releases, self.roots, self.head_threshold = before
            return
        self.current = document
        self.head_only |= kind == "head-keys"

    def _files(self, cycle):
        self.head_version = max(self.head_version + cycle["head_step"], 1)
        self.bundle_version = max(self.bundle_version + cycle["bundle_step"], 1)
        blob = self._bundle(cycle)
        heads = {
            "both": pair_of("head", self.heads),
            "one": pair_of("head", self.heads)[:1],
            "none": (),
            "release": pair_of("release", self.releases),
            "old": pair_of("head", self.heads - 1),
        }.get(cycle["head_by"], pair_of("head", self.heads))
        members = {"bundle": ref(blob, self.bundle_version)}
        if cycle["extra"] is not None:
            members["extra"] = ref(b"extra", cycle["extra"])
        document = Head(ENV, self.head_version, T0, self.now + cycle["head_hours"] * HOUR, members)
        data = sealed(document, *heads)
        if cycle["head_by"] in {"twice", "zero"}:
            envelope = Envelope.parse(data)
            first = envelope.signatures[0]
            more = (first,) if cycle["head_by"] == "twice" else (Signature(S1.public.hint, bytes(64)),)
            data = envelope._replace(signatures=(*envelope.signatures, *more)).encode()
        blobs = {hashlib.sha256(blob).hexdigest(): blob}
        served = cycle["served"]
        if served == "same-head" and self.last_head is not None:
            data, blobs = self.last_head
        self.last_head = (data, blobs)
        if served == "damaged":
            blobs = {name: body[:-1] + bytes([body[-1] ^ 1]) for name, body in blobs.items()}
        return (
            dict(self.files),
            (blob if served == "swapped" else None if served == "no-head" else data),
            ({} if served == "missing" else blobs),
        )

    def _bundle(self, cycle):
        # One content for one version: equal versions with other contents are difference 2.
        hours = self.bundles.setdefault(self.bundle_version, (self.now, cycle["bundle_hours"]))
        document = make_bundle(self.bundle_version, issued=T0, expires=hours[0] + hours[1] * HOUR)
        signers = {
            "both": pair_of("release", self.releases),
            "one": pair_of("release", self.releases)[:1],
            "head": pair_of("head", self.heads),
            "old": pair_of("release", self.releases - 1),
        }[cycle["bundle_by"]]
        return sealed(document, *signers)


class Ours:
    """The state machine, driven as `sync` drives it."""

    def __init__(self, data):
        from edgeguard.bundle.trust import TrustState

        self.node = Node(TrustState.start(data, ENV))
        self.codes = []

    def offer(self, event_, now):
        effects = self.node.offer(event_, now)
        refused = code(effects)
        self.codes += [refused] if refused else []
        return refused, [effect for effect in effects if isinstance(effect, Fetch)]

    def refresh(self, server, now):
        roots, head, blobs = server
        self.codes = []
        self.offer(CycleStarted(), now)
        while (data := roots.get(self.node.state.root.version + 1)) is not None:
            if self.offer(RootOffered(data, self.node.state.root.version + 1), now)[0]:
                return False
        if head is None:
            return False
        refused, wanted = self.offer(HeadOffered(head), now)
        if refused and refused is not RefusalCode.EQUIVOCATION:
            return False
        if refused:  # difference 1: refused aloud, and the old one kept, as TUF does in silence
            wanted = (
                self.offer(HeadOffered(self.node.state.head_bytes), now)[1] if self.node.state.head else []
            )
        for item in wanted:
            data = blobs.get(item.ref.sha256)
            if data is None or self.offer(BundleOffered(data), now)[0]:
                return False
        return self._current(now)

    def _current(self, now):
        state = self.node.state
        if state.head is None or state.in_force is None or state.revoked:
            return False
        fresh = now < min(state.root.expires_at, state.head.expires_at, state.in_force.bundle.expires_at)
        return fresh and state.in_force.sha256 == state.head.bundle.sha256


def compare(history):
    world = World()
    ours, oracle = Ours(world.files[1]), Oracle(world.files[1], ENV)
    verdicts = []
    for number, cycle in enumerate(history):
        server = world.turn(cycle)
        mine, theirs = ours.refresh(server, world.now), oracle.refresh(server, world.now)
        if mine != theirs and not mine and world.head_only and RefusalCode.ROLLBACK_BUNDLE in ours.codes:
            verdicts.append("difference 3")
            return verdicts
        state = ours.node.state
        assert state.root.version == oracle.root_version, f"cycle {number}: {ours.codes}"
        assert mine == theirs, f"cycle {number}: here {mine} {ours.codes}, python-tuf {theirs}"
        if mine:
            assert (state.head_bytes, state.in_force.data) == (oracle.head, oracle.bundle), f"cycle {number}"
        verdicts.append("current" if mine else str(ours.codes[-1]) if ours.codes else "not current")
        # A root that is refused stands in the way for ever; the repository's owner takes it away.
        world.files = {name: data for name, data in world.files.items() if name <= world.current.version}
    return verdicts


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories)
def test_the_same_verdict_as_python_tuf(history):
    for verdict in compare(history):
        event(verdict)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories)
def test_the_same_verdict_as_python_tuf_ten_thousand_times(history):
    compare(history)


PLAIN = {
    "root": "none",
    "hours": 0,
    "head_step": 1,
    "bundle_step": 0,
    "head_hours": 2,
    "head_by": "both",
    "bundle_by": "both",
    "bundle_hours": 2000,
    "extra": None,
    "served": "right",
    "head_threshold": 1,
}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ([{}, {"bundle_step": 1}], ["current", "current"]),
        ([{}, {"head_step": -1}, {"head_step": 2}], ["current", "rollback_head", "current"]),
        ([{"head_step": 5}, {"head_step": -2}], ["current", "rollback_head"]),
        ([{"bundle_step": 3}, {"bundle_step": -1}], ["current", "rollback_bundle"]),
        ([{}, {"root": "both-keys"}], ["current", "current"]),
        (
            [{"bundle_step": 3, "head_step": 5}, {"root": "both-keys", "bundle_step": -1, "head_step": -2}],
            ["current"] * 2,
        ),
        ([{"bundle_step": 3}, {"root": "head-keys", "bundle_step": -1}], ["current", "difference 3"]),
        ([{}, {"root": "one-short"}, {}], ["current", "threshold", "current"]),
        ([{}, {"root": "old-only"}], ["current", "threshold"]),
        ([{}, {"root": "expiring", "hours": 1}, {"hours": 3}], ["current", "current", "root_expired"]),
        ([{"extra": 1}, {}], ["current", "member_missing"]),
        ([{"extra": 2}, {"extra": 1}], ["current", "rollback_bundle"]),
        ([{}, {"served": "swapped"}], ["current", "type"]),
        ([{}, {"bundle_step": 1, "served": "damaged"}], ["current", "hash_mismatch"]),
        ([{}, {"head_by": "twice"}], ["current", "sig_dup"]),
        ([{}, {"head_by": "zero"}], ["current", "current"]),
        ([{}, {"head_hours": 0}], ["current", "freeze"]),
    ],
)
def test_the_histories_reach_what_they_are_for(changes, verdicts):
    """Known histories, so that agreement is not the agreement of two clients that always refuse."""
    assert compare([{**PLAIN, **change} for change in changes]) == verdicts
