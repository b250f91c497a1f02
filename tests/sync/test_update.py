"""Update cycles against a server that lies, a disk that fails and a clock that moves."""

import errno
import hashlib
from dataclasses import replace

import pytest

from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Ladder
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.reconcile import DriftClass, reconcile
from edgeguard.sync.store import Store
from edgeguard.sync.update import Mirror
from tests.sync.conftest import FAST, Fetcher, Node
from tests.sync.signing import DAY, HOUR, policy_for


def row(*names):
    return pytest.mark.parametrize("case", [pytest.param(None, id=name) for name in names])


async def test_first_contact_in_the_order_root_head_member(new_node, web, authority):
    bundle = authority.bundle(1)
    head = authority.head(1, bundle)
    web.publish(authority, roots=[authority.root()], head=head, bundle=bundle)
    node = await new_node(web.url)
    assert node.snapshots == [None]
    cycle = await node.refresh()
    assert (cycle.ok, cycle.changed) == (True, True)
    blob = f"blobs/{hashlib.sha256(bundle).hexdigest()}"
    assert [path for path, _ in web.requests] == ["root/2.root", "test/head", blob]
    assert (node.version, node.ladder) == (1, Ladder.FRESH)
    status = node.updater.status()
    assert status["ladder"] == "fresh"
    assert status["bundle"]["sha256"] == hashlib.sha256(bundle).hexdigest()
    assert status["head"]["sha256"] == hashlib.sha256(head).hexdigest()
    assert status["last_refusal"] is None
    assert status["last_success"] == pytest.approx(node.now)
    stored = {path.name.split(".")[0]: path.read_bytes() for path in node.config.state_dir.iterdir()}
    assert (stored["head"], stored["bundle"]) == (head, bundle)


@row("fault-E13")
async def test_a_restart_with_the_server_down_keeps_enforcing(node, web, case):
    before = node.snapshot
    web.twist = lambda *_: (500, {}, b"")
    await node.restart()
    assert node.snapshots[0].bundle_id == before.bundle_id
    assert node.ladder is Ladder.FRESH
    assert not (await node.refresh()).ok
    assert node.ladder is Ladder.FRESH
    assert "unavailable" in node.codes()


async def test_a_restart_never_restarts_a_grace(new_node, web, authority):
    bundle = authority.bundle(1, grace_s=HOUR)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url)
    await node.refresh()
    seen = []
    for hours, expected in (
        (0.5, "fresh"),
        (1.5, "stale"),
        (1.9, "stale"),
        (2.1, "restricted"),
        (24 * 8, "closed"),
    ):
        node.now = authority.now + hours * HOUR
        await node.restart()
        assert node.updater.status()["ladder"] == expected
        seen.append((node.snapshot.stale_at, node.snapshot.restricted_at, node.snapshot.closed_at))
    assert len(set(seen)) == 1
    # With the head's file gone as well, the marks still say until when it vouched.
    for path in node.config.state_dir.glob("head.*"):
        path.unlink()
    await node.restart()
    assert node.snapshot.stale_at == seen[0][0]


@row("fault-E5")
async def test_damaged_state_is_closed_and_never_older(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).ok
    for path in node.config.state_dir.glob("bundle.2.*"):
        path.write_bytes(b"x")
    await node.restart()
    assert node.snapshot is None
    assert "disk_damaged" in node.codes(alarm=True)
    assert (await node.refresh()).ok
    assert (node.version, node.ladder) == (2, Ladder.FRESH)


@row("fault-E3")
async def test_killed_between_the_bundle_and_its_mark(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    marks = {path.name: path.read_bytes() for path in node.config.state_dir.glob("marks.*")}
    await node.refresh()
    for path in node.config.state_dir.glob("marks.*"):
        path.unlink()
    for name, data in marks.items():
        (node.config.state_dir / name).write_bytes(data)
        (node.config.state_dir / name).chmod(0o600)
    await node.restart()
    assert (node.version, node.ladder) == (2, Ladder.FRESH)
    assert node.updater.state.marks.bundle_version == 2


@row("fault-E6")
async def test_lost_marks_fall_back_to_the_documents(node, web, authority, case):
    newer = authority.bundle(5)
    web.publish(authority, head=authority.head(5, newer, 5), bundle=newer)
    await node.refresh()
    for path in node.config.state_dir.glob("marks.*"):
        path.unlink()
    await node.restart()
    assert "marks_lost" in node.codes(alarm=True)
    assert node.updater.state.marks.bundle_version == 5
    web.publish(authority, head=authority.head(1, authority.bundle(1)))
    assert (await node.refresh()).code == "rollback_head"
    assert node.version == 5


@row("fault-E7")
async def test_first_contact_stands_on_the_floor(new_node, web, authority, case):
    old = authority.bundle(4)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, old, 4), bundle=old)
    node = await new_node(web.url, floor=5)
    assert (await node.refresh()).code == "rollback_bundle"
    assert node.snapshot is None


@row("fault-A26")
async def test_a_root_that_is_none_starts_nothing(tmp_path, web, authority, case):
    for root in (authority.root(signers=["root-a"]), b"", b"<html>", authority.bundle(1)):
        node = Node(SyncConfig(authority.env, tmp_path / "state", (web.url,)), root)
        with pytest.raises(Refusal):
            await node.load()
        await node.close()
    node = Node(SyncConfig("other", tmp_path / "state", (web.url,)), authority.root())
    with pytest.raises(Refusal, match="knows no environment"):
        await node.load()
    await node.close()
    assert web.requests == []


OFFERS = {
    "fault-B1": (lambda a, n: a.head(1, n, 2, issued_at=a.now - 1), "rollback_head", True),
    "fault-B3": (lambda a, n: a.head(2, n, 2, expires_at=a.now + 2 * HOUR), "equivocation", True),
    "fault-B4": (lambda a, n: a.head(3, a.bundle(1), 1), "rollback_bundle", True),
    "fault-B9": (lambda a, n: a.head(3, n, 2, issued_at=a.now - HOUR, expires_at=a.now - 1), "freeze", False),
    "fault-A11": (lambda a, n: a.head(3, n, 2, signers=["release-a"]), "key_unknown", False),
    "fault-A13": (lambda a, n: replace(a, env="prod").head(3, n, 2), "env", False),
    "fault-C11": (lambda a, n: b"<html>please log in</html>", "malformed", False),
    "fault-A22": (lambda a, n: a.head(2**52, n, 2), "version_jump", True),
}


@pytest.mark.parametrize("case", OFFERS)
async def test_a_head_that_is_refused_changes_nothing(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    await node.refresh()
    before, marks = node.snapshot, node.updater.state.marks
    make, code, alarm = OFFERS[case]
    web.publish(authority, head=make(authority, newer))
    cycle = await node.refresh()
    assert (cycle.ok, cycle.code, cycle.alarm) == (False, code, alarm)
    assert node.snapshot is before
    assert node.updater.state.marks == marks
    refusal = node.updater.status()["last_refusal"]
    assert (refusal["code"], refusal["alarm"]) == (code, alarm)
    assert refusal["at"] == pytest.approx(node.now)
    await node.restart()
    assert node.snapshot.bundle_id == before.bundle_id
    assert node.updater.status()["last_refusal"]["code"] == code


@row("fault-B7")
async def test_another_blob_under_the_right_name(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2))
    tampered = bytearray(newer)
    tampered[-1] ^= 1
    web.files[f"blobs/{hashlib.sha256(newer).hexdigest()}"] = bytes(tampered)
    assert (await node.refresh()).code == "hash_mismatch"
    assert node.version == 1
    web.files[f"blobs/{hashlib.sha256(newer).hexdigest()}"] = newer
    await node.refresh()
    await node.refresh()
    assert node.version in {1, 2}


@row("fault-B2")
async def test_the_same_head_again_extends_nothing(node, web, case):
    deadline = node.snapshot.stale_at
    node.now += 600
    assert (await node.refresh()).ok
    assert node.snapshot.stale_at == deadline
    assert web.asked("test/head")[0]["if-none-match"]
    node.now += 2 * HOUR
    assert (await node.refresh()).code == "freeze"
    assert node.ladder is not Ladder.FRESH


@row("fault-C15")
async def test_a_validator_is_kept_only_after_activation(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2))
    assert (await node.refresh()).code == "missing"
    web.publish(authority, bundle=newer)
    assert (await node.refresh()).ok
    assert ["if-none-match" in headers for headers in web.asked("test/head")] == [True, False]
    assert node.version == 2


@row("fault-C13")
async def test_a_304_with_a_foreign_validator_brings_a_full_fetch(node, web, case):
    web.twist = lambda path, headers: (304, {"ETag": '"other"'}, b"") if "if-none-match" in headers else None
    assert (await node.refresh()).ok
    assert (await node.refresh()).ok
    assert ["if-none-match" in headers for headers in web.asked("test/head")] == [True, False]


@row("fault-C12")
async def test_a_304_to_an_unconditional_request(node, web, case):
    await node.restart()
    web.twist = lambda path, _: (304, {}, b"") if path == "test/head" else None
    assert (await node.refresh()).code == "not_modified_unasked"
    assert node.version == 1


@row("fault-C16")
async def test_a_full_fetch_now_and_then(node, web, case):
    for _ in range(node.config.full_every):
        assert (await node.refresh()).ok
    assert [("if-none-match" in headers) for headers in web.asked("test/head")].count(False) == 1


@row("fault-C20")
async def test_the_second_mirror_is_as_good_as_the_first(node, web, authority, case):
    from edgeguard.sync.agent import SyncAgent

    agent = SyncAgent(node.config, authority.root(), lambda _: None)
    mirrors = [Mirror(Fetcher("http://127.0.0.1:9/", FAST)), Mirror(Fetcher(web.url, FAST))]
    import asyncio

    cycle = await agent._cycle(node.updater, mirrors, asyncio.Event())
    assert cycle.ok
    assert str(mirrors[0].fetcher.url) == web.url
    for mirror in mirrors:
        await mirror.fetcher.close()


@row("fault-A20")
async def test_a_revoked_release_key_closes_at_once(node, web, authority, case):
    rotated = replace(authority, release_keys=("release-b",))
    web.publish(authority, roots=[authority.root(), rotated.root(2)])
    assert not (await node.refresh()).ok
    assert (node.ladder, node.snapshot.revoked) == (Ladder.CLOSED, True)
    await node.restart()
    assert node.ladder is Ladder.CLOSED
    newer = rotated.bundle(2)
    web.publish(rotated, head=rotated.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).ok
    assert (node.version, node.ladder) == (2, Ladder.FRESH)


@row("fault-A15")
async def test_a_root_that_its_predecessor_did_not_sign(node, web, authority, case):
    stranger = replace(authority, root_keys=("root-x", "root-y"))
    web.publish(authority, roots=[authority.root(), stranger.root(2)])
    assert (await node.refresh()).code == "key_unknown"
    assert node.updater.state.root.version == 1
    assert node.ladder is Ladder.FRESH


async def test_a_chain_of_roots_survives_a_restart(node, web, authority):
    second = replace(authority, root_keys=("root-c", "root-d"))
    third = replace(authority, root_keys=("root-e",))
    roots = [
        authority.root(),
        second.root(2, before=authority.root_keys),
        third.root(3, before=second.root_keys),
    ]
    web.publish(authority, roots=roots)
    assert (await node.refresh()).ok
    assert node.updater.state.root.version == 3
    await node.restart()
    assert node.updater.state.root.version == 3
    assert node.ladder is Ladder.FRESH


@row("fault-B12")
async def test_a_bundle_of_tomorrow_is_fetched_once_and_taken_in_time(node, web, authority, case):
    newer = authority.bundle(2, not_before=authority.now + 600)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).code == "not_before"
    assert (await node.refresh()).code == "not_before"
    assert node.updater.retry_at == authority.now + 600
    assert node.version == 1
    node.now = authority.now + 601
    assert (await node.refresh()).ok
    assert node.version == 2
    assert len(web.asked(f"blobs/{hashlib.sha256(newer).hexdigest()}")) == 1
    assert node.updater.retry_at is None


def break_disk(monkeypatch):
    async def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgeguard.sync.store.write_durably", full)


@row("fault-E8")
async def test_a_full_disk_keeps_what_is_in_force(node, web, authority, monkeypatch, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    break_disk(monkeypatch)
    assert (await node.refresh()).code == "persist_failed"
    assert (node.version, node.ladder) == (1, Ladder.FRESH)
    assert node.updater.status()["persisted"] is False
    monkeypatch.undo()
    assert (await node.refresh()).ok
    assert node.version == 2


@row("fault-E8-quarantine", "fault-F20")
async def test_a_quarantine_holds_on_a_full_disk(node, web, authority, monkeypatch, case):
    bundle = authority.bundle(1)
    web.publish(authority, head=authority.head(2, bundle, quarantine=1))
    break_disk(monkeypatch)
    await node.refresh()
    assert node.ladder is Ladder.QUARANTINED
    await node.refresh()
    assert node.ladder is Ladder.QUARANTINED
    monkeypatch.undo()
    await reconcile(node.updater, node.snapshot, node.root)
    assert node.updater.status()["persisted"] is True
    await node.restart()
    assert node.ladder is Ladder.QUARANTINED
    ended = authority.bundle(2, released=1)
    web.publish(authority, head=authority.head(3, ended, 2, quarantine=1), bundle=ended)
    assert (await node.refresh()).ok
    assert node.ladder is Ladder.FRESH


@row("fault-E16")
async def test_who_cannot_take_a_policy_keeps_the_old_one(node, web, authority, case):
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)

    def broken(_snapshot):
        raise MemoryError

    node.updater._on_snapshot = broken
    assert (await node.refresh()).code == "activation_failed"
    assert node.version == 1
    node.updater._on_snapshot = node.snapshots.append
    drifts = await reconcile(node.updater, node.snapshot, node.root)
    assert [drift.kind for drift in drifts] == [DriftClass.GENERATION]
    assert node.version == 2


async def drift(node, enforced="same"):
    found = await reconcile(node.updater, node.snapshot if enforced == "same" else enforced, node.root)
    return {item.kind for item in found}


@row("fault-E14")
async def test_drift_heals(node, authority, case):
    state = node.config.state_dir
    assert await drift(node) == set()
    assert await drift(node, None) == {DriftClass.GENERATION}
    for path in state.glob("bundle.*"):
        path.unlink()
    assert await drift(node) == {DriftClass.DISK_MISSING}
    assert await drift(node) == set()
    for path in state.glob("head.*"):
        path.write_bytes(b"x")
    assert await drift(node) == {DriftClass.DISK_DAMAGED, DriftClass.DISK_MISSING}
    assert await drift(node) == set()
    foreign = authority.bundle(9)
    await node.store.write("bundle", foreign)
    assert await drift(node) == {DriftClass.DISK_FOREIGN}
    assert await drift(node) == set()
    for path in state.glob("marks.*"):
        path.unlink()
    assert await drift(node) == {DriftClass.MARKS_BEHIND}
    assert await drift(node) == set()
    await node.restart()
    assert (node.version, node.ladder) == (1, Ladder.FRESH)


@row("fault-E14-freeze")
async def test_marks_that_somebody_raised_freeze_the_node(node, web, authority, case):
    marks = replace(node.updater.state.marks, bundle_version=77)
    await node.store.write("marks", marks.encode())
    assert await drift(node) == {DriftClass.MARKS_AHEAD}
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).code == "frozen"
    assert node.version == 1
    web.publish(authority, head=authority.head(3, newer, 2, quarantine=1))
    await node.refresh()
    assert node.ladder is Ladder.QUARANTINED
    assert "marks_ahead" in node.codes(alarm=True)


@row("fault-E9")
async def test_a_second_process_follows_without_writing(node, web, authority, case):
    second = Node(node.config, node.root, web.url)
    await second.load()
    assert (second.version, second.store.writable) == (1, False)
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    before = sorted(node.config.state_dir.iterdir())
    assert (await second.refresh()).ok
    assert second.version == 2
    assert sorted(node.config.state_dir.iterdir()) == before
    assert await drift(second, None) == {DriftClass.GENERATION}
    await second.close()


@row("fault-B18")
async def test_a_clock_set_back_does_not_bring_an_expired_policy_back(node, web, authority, case):
    later = replace(authority, now=authority.now + 6 * DAY)
    bundle = authority.bundle(1)
    node.now = later.now
    web.publish(authority, head=later.head(2, bundle))
    assert (await node.refresh()).ok
    node.now = authority.now - 400 * DAY
    await node.restart()
    assert node.clock.now() >= later.now
    assert node.ladder is Ladder.FRESH


@row("fault-F19")
async def test_status_never_says_well_when_it_is_not(node, web, case):
    web.twist = lambda *_: (503, {"Retry-After": "5"}, b"")
    cycle = await node.refresh()
    assert (cycle.ok, cycle.code, cycle.retry_after_s) == (False, "unavailable", 5)
    assert node.updater.status()["last_failure"]["code"] == "unavailable"
    web.twist = None
    assert (await node.refresh()).ok
    assert node.updater.status()["last_failure"] is None
    assert node.codes()[-1] == "ok"


@row("fault-C1")
async def test_a_bundle_over_the_configured_size_is_not_fetched(new_node, web, authority, case):
    bundle = authority.bundle(1)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url, bundle_bytes=100)
    assert (await node.refresh()).code == "too_big"
    assert not [path for path, _ in web.requests if path.startswith("blobs/")]


async def test_a_policy_change_swaps_the_engine(node, web, authority):
    first = node.snapshot
    other = replace(authority, policy=policy_for("two.example")).bundle(2)
    web.publish(authority, head=authority.head(2, other, 2), bundle=other)
    assert (await node.refresh()).changed
    assert node.snapshot.engine is not first.engine
    assert node.snapshot.policy_hash != first.policy_hash
    renewed = authority.head(3, other, 2, expires_at=authority.now + 2 * HOUR)
    web.publish(authority, head=renewed)
    engine = node.snapshot.engine
    assert (await node.refresh()).ok
    assert node.snapshot.engine is engine
    assert node.snapshot.stale_at == authority.now + 2 * HOUR


def test_a_store_that_is_closed_twice(tmp_path):
    store = Store.open(tmp_path / "x")
    store.close()
    store.close()
