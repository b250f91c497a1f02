"""A second process that follows the state folder enforces what was named, verified again, or nothing."""

import asyncio
from dataclasses import replace

import pytest

from edgeguard.sync import follow
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.follow import Follower
from edgeguard.sync.standing import Standing
from edgeguard.sync.store import StoreError
from tests.sync.signing import HOUR


class Following:
    """A follower of a node's folder, and what it was heard to enforce."""

    def __init__(self, node, expected, **changes):
        self.node = node
        self.enforced, self.said, self.events = [], [], []
        self.follower = Follower(
            replace(node.config, **changes),
            node.root,
            self.enforced.append,
            expected=expected,
            clock=TrustedClock(wall=lambda: node.now, boot=lambda: 0.0),
            on_followed=self.said.append,
            on_event=self.events.append,
        )

    def start(self):
        self.follower.start()
        return self

    async def expect(self, standing, *, said=1):
        goal = len(self.said) + said
        self.follower.expect(standing)
        await self.heard(goal)

    async def heard(self, goal):
        async with asyncio.timeout(5):
            while len(self.said) < goal:  # noqa: ASYNC110 - another thread says it
                await asyncio.sleep(0.005)

    @property
    def version(self):
        return self.enforced[-1].bundle_version if self.enforced[-1] else None


def in_force(node):
    return Standing.of(node.snapshot)


@pytest.fixture
def following(request):
    found = []

    def make(node, expected, **changes):
        found.append(Following(node, expected, **changes).start())
        return found[-1]

    yield make
    for one in found:
        one.follower.stop()


async def publish(node, web, authority, version, **changes):
    bundle = authority.bundle(version, **changes)
    web.publish(authority, head=authority.head(version, bundle, version), bundle=bundle)
    assert (await node.refresh()).ok


async def test_what_is_in_force_is_verified_again_and_enforced(node, following):
    one = following(node, in_force(node))
    assert one.follower.wait(0)
    assert Standing.of(one.enforced[-1]) == in_force(node)
    assert one.said[-1] == (in_force(node), "", False)
    assert one.enforced[-1].engine is not node.snapshot.engine


async def test_a_new_policy_and_a_new_head_are_followed(node, web, authority, following):
    one = following(node, in_force(node))
    engine = one.enforced[-1].engine
    bundle = authority.bundle(1)
    web.publish(authority, head=authority.head(2, bundle), bundle=bundle)
    assert (await node.refresh()).ok
    await one.expect(in_force(node))
    assert one.enforced[-1].head_version == 2
    assert one.enforced[-1].engine is engine, "a new head decodes no policy"
    await publish(node, web, authority, 3)
    await one.expect(in_force(node))
    assert (one.version, one.said[-1].problem) == (3, "")


async def test_what_is_not_what_was_named_is_not_enforced(node, web, authority, following):
    one = following(node, in_force(node))
    newer = in_force(node)._replace(bundle="sha256:" + "0" * 64, bundle_version=2, head_version=2)
    await one.expect(newer)
    assert one.enforced[-1] is None
    assert one.said[-1].problem == (
        "verified is bundle 1 under head 1 and root 1, in force is bundle 2 under head 2 and root 1"
    )
    assert not one.follower.wait(0)
    await one.expect(in_force(node))
    assert one.version == 1


async def test_a_folder_that_is_ahead_is_waited_for_but_not_for_ever(
    node, web, authority, following, monkeypatch
):
    monkeypatch.setattr(follow, "AHEAD_S", 0.1)
    first = in_force(node)
    one = following(node, first)
    await publish(node, web, authority, 2)
    between = in_force(node)
    await publish(node, web, authority, 3)
    await one.expect(first)
    assert (one.version, one.said[-1].problem) == (1, ""), "not before it is named"
    await one.expect(between)
    assert (one.version, one.said[-1].waiting) == (1, True)
    await one.heard(len(one.said) + 1)
    assert one.enforced[-1] is None
    await one.expect(in_force(node))
    assert one.version == 3


async def test_nothing_in_force_is_nothing_to_enforce(node, following):
    one = following(node, None)
    assert one.enforced == [None]
    assert one.follower.wait(0)
    await one.expect(in_force(node))
    assert one.version == 1


async def test_a_quarantine_is_not_waited_for(node, web, authority, following):
    one = following(node, in_force(node))
    bundle = authority.bundle(1)
    web.publish(authority, head=authority.head(2, bundle, quarantine=1), bundle=bundle)
    assert (await node.refresh()).ok
    ordered = in_force(node)
    await publish(node, web, authority, 3)
    await one.expect(ordered)
    assert one.enforced[-1] is None
    await one.expect(in_force(node))
    assert one.said[-1].problem == ""
    assert one.enforced[-1].quarantined


@pytest.mark.parametrize("keys", [{"head_keys": ("head-b",)}, {"release_keys": ("release-a", "release-b")}])
async def test_a_root_that_changes_keys_is_followed(new_node, web, authority, following, keys):
    bundle = authority.bundle(1, grace_s=HOUR)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url)
    assert (await node.refresh()).ok
    one = following(node, in_force(node))
    rotated = replace(authority, **keys)
    web.publish(rotated, roots=[authority.root(), rotated.root(2)])
    await node.refresh()
    named = in_force(node)
    assert named.root_version == 2
    node.now += 2.5  # the follower is late: what it says of the time is not its own
    await one.expect(named)
    assert (one.said[-1].problem, Standing.of(one.enforced[-1]).restricted_at) == ("", named.restricted_at)
    web.publish(rotated, head=rotated.head(2, bundle))
    assert (await node.refresh()).ok
    await one.expect(in_force(node))
    assert one.said[-1].problem == ""


async def test_a_revocation_is_followed(node, web, authority, following):
    one = following(node, in_force(node))
    rotated = replace(authority, release_keys=("release-b",))
    web.publish(authority, roots=[authority.root(), rotated.root(2)])
    await node.refresh()
    assert in_force(node).revoked
    await one.expect(in_force(node))
    assert (one.enforced[-1].revoked, one.said[-1].problem) == (True, "")
    fresh = following(node, in_force(node))
    assert (fresh.enforced[-1], fresh.said[-1].problem) == (None, ""), (
        "nothing is what a revoked policy allows"
    )


@pytest.mark.parametrize("role", ["bundle", "head"])
async def test_bytes_that_were_changed_are_not_followed(node, web, authority, following, role):
    one = following(node, in_force(node))
    await publish(node, web, authority, 2)
    for path in node.config.state_dir.glob(f"{role}.2.*"):
        path.write_bytes(b"x" + path.read_bytes()[1:])
    await one.expect(in_force(node))
    assert one.enforced[-1] is None
    assert "disk_damaged" in [event.code for event in one.events if event.alarm]


async def test_the_folder_stays_its_owners(node, following):
    before = sorted(path.name for path in node.config.state_dir.iterdir())
    await node.close()
    one = following(node, in_force(node), reconcile_s=0.05)
    await asyncio.sleep(0.2)
    assert one.version == 1
    node.open()
    assert node.store.writable, "the lock was never taken"
    assert sorted(path.name for path in node.config.state_dir.iterdir()) == before


async def test_tables_that_change_in_memory_are_made_anew(node, following, monkeypatch):
    sums = iter((1, 2, 3, 3, 3, 3, 3, 3))

    async def checksum(_):
        return next(sums, 3)

    monkeypatch.setattr(follow, "checksum", checksum)
    one = following(node, in_force(node), reconcile_s=0.05)
    engine = one.enforced[-1].engine
    await one.heard(2)
    assert one.enforced[-1].engine is not engine
    assert Standing.of(one.enforced[-1]) == in_force(node)
    assert [event.code for event in one.events if event.alarm] == ["tables"]


async def test_deadlines_that_have_passed_need_not_be_the_same(node):
    one = in_force(node)
    other = one._replace(stale_at=one.stale_at - 5)
    assert not one.agrees(other, one.stale_at - 10)
    assert one.agrees(other, one.stale_at + 1)
    assert not one.agrees(one._replace(quarantined=True), one.closed_at + HOUR)
    assert one._replace(head_version=9).ahead_of(one)
    assert not one.ahead_of(one)
    assert not one._replace(head_version=9, bundle_version=0).ahead_of(one)
    assert one.shut(one.closed_at)
    assert one._replace(revoked=True).shut(0)


async def test_a_folder_that_is_missing_starts_nothing(node, tmp_path):
    one = Following(node, in_force(node), state_dir=tmp_path / "none")
    with pytest.raises(StoreError):
        one.start()


async def test_trusted_time_is_shared():
    old = TrustedClock(wall=lambda: 0.0, boot=lambda: 100.0)
    old.anchor(5000.0)
    fresh = TrustedClock(wall=lambda: 0.0, boot=lambda: 160.0)
    fresh.share(old.floor)
    assert fresh.now() == 5060.0
    fresh.share(float("-inf"))
    assert fresh.now() == 5060.0
