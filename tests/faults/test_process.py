"""The process itself: crash loops, names, memory that changes, swaps while requests run (rows E12 to E17)."""

import asyncio
import itertools
import threading
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edgeguard.bundle.snapshot import Ladder
from edgeguard.policy.request import Client, Request
from edgeguard.server.repository import head_location, locate
from edgeguard.sync.audit import checksum
from edgeguard.sync.boots import CRASHES, HOLD_S, STEADY_S
from edgeguard.sync.reconcile import DriftClass, Reconciler
from edgeguard.verdict import Facts
from tests.sync.signing import policy_for
from tests.test_guard import Bench


def row(*names):
    return pytest.mark.parametrize("case", [pytest.param(None, id=name) for name in names])


# E17: crash loops


async def start_again(node):
    """A start of a process that enforces; what came before it ended without a word."""
    await node.close()
    node.snapshots.clear()
    node.events.clear()
    node.open()
    await node.updater.load(counted=True)


@row("fault-E17")
async def test_a_bundle_that_takes_the_node_down_is_held_back(node, web, authority, case):
    for _ in range(CRASHES):
        await start_again(node)
        assert node.ladder is Ladder.FRESH
    await start_again(node)
    assert node.snapshot is None
    assert "crashloop" in node.codes(alarm=True)
    assert node.updater.status()["held_back"]["until"] == pytest.approx(node.now + HOLD_S)
    # The server still names it: it is not taken again, and nothing older either.
    assert (await node.refresh()).code == "crashloop"
    assert node.snapshot is None
    # A bundle with a higher version is taken at once.
    newer = replace(authority, policy=policy_for("two.example")).bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).ok
    assert (node.version, node.ladder) == (2, Ladder.FRESH)
    assert node.updater.status()["held_back"] is None


@row("fault-E17-half-open")
async def test_a_held_bundle_gets_another_try(node, web, case):
    for _ in range(CRASHES + 1):
        await start_again(node)
    assert node.snapshot is None
    assert node.updater.retry_at == pytest.approx(node.now + HOLD_S)
    node.now += HOLD_S + 1
    web.twist = lambda *_: (500, {}, b"")
    await node.refresh()
    assert node.version == 1  # from the disk, server or no server
    await start_again(node)
    assert node.snapshot is None  # that was one crash more
    node.now += HOLD_S + 1
    web.twist = None
    assert (await node.refresh()).ok
    node.now += STEADY_S + 1
    await node.updater.steady()
    await start_again(node)
    assert node.version == 1


@row("fault-E17-clean")
async def test_ends_in_good_order_are_not_counted(node, case):
    for _ in range(CRASHES + 3):
        await start_again(node)
        assert node.version == 1
        await node.updater.steady(ending=True)


# E12: names


NAMES = ["../prod", "prod/../test", "?", "#", "a b", "a\0b", "..", "", "PROD", "%2e%2e", "a" * 33, "-a"]


@pytest.mark.parametrize("name", [pytest.param(n, id=f"fault-E12-{n!r}") for n in NAMES])
def test_a_name_that_is_none(tmp_path, authority, name):
    import typer

    from edgeguard.cli import sync

    (tmp_path / "root").write_bytes(authority.root())
    app = typer.Typer(pretty_exceptions_enable=False)
    sync.register(app)
    state = tmp_path / "state"
    arguments = ["sync", "init", "--state", str(state), "--root", str(tmp_path / "root"), f"--env={name}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    assert not state.exists()
    assert locate(f"{name}/head") is None
    with pytest.raises(ValueError, match="an environment is"):
        head_location(name)


# E14: memory


@row("fault-E14-tables")
async def test_tables_that_change_in_memory_are_made_anew(node, case):
    reconciler = Reconciler(node.updater, lambda: node.snapshot, node.root)
    assert await reconciler.run(full=True) == []
    tables = node.snapshot.engine.tables
    tables.rules.exact["evil.example"] = tables.rules.exact["one.example"]
    question = Request(Client("x", identified=True), "evil.example", 443, "tls")
    assert node.snapshot.engine.decide(question, node.now).allow
    assert await reconciler.run(full=False) == []  # the quick comparison does not look there
    assert [drift.kind for drift in await reconciler.run(full=True)] == [DriftClass.TABLES]
    assert "tables" in node.codes(alarm=True)
    assert not node.snapshot.engine.decide(question, node.now).allow
    assert (node.version, node.ladder) == (1, Ladder.FRESH)
    assert await reconciler.run(full=True) == []


@row("fault-E14-bytes")
async def test_bytes_that_change_in_memory_close_the_node(node, case):
    state = node.updater.state
    node.updater._state = replace(
        state, in_force=replace(state.in_force, data=b"x" + state.in_force.data[1:])
    )
    reconciler = Reconciler(node.updater, lambda: node.snapshot, node.root)
    drifts = await reconciler.run(full=True)
    assert DriftClass.TABLES in {drift.kind for drift in drifts}
    assert node.snapshot is None
    assert (await node.refresh()).ok  # the verified bytes come back from the server
    assert (node.version, node.ladder) == (1, Ladder.FRESH)


@row("fault-E14-checksum")
async def test_deciding_does_not_change_the_checksum(case):
    """The checksum covers the policy, and nothing that deciding fills in."""
    from pathlib import Path

    from edgeguard.bundle.build import decode_section, encode_section
    from edgeguard.folder import read_modules
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.engine import Engine
    from edgeguard.policy.source import load_sources
    from edgeguard.policy.tables import Tables

    bundles = Path(__file__).parents[2] / "bundles"
    folders = sorted(path for path in bundles.iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        policy = load_sources(read_modules(folder))
        section = encode_section(compile_policy(policy))
        tables = Tables.load(decode_section(section))
        before = await checksum(tables)
        engine = Engine(tables)
        hosts = [*list(tables.rules.exact)[:50], "nowhere.example", "10.0.0.1"]
        for host, port in itertools.product(hosts, (80, 443, 8443)):
            for method, path in ((None, None), ("GET", "/"), ("POST", "/a/b")):
                request = Request(Client("x", identified=True), host, port, "tls", method, path)
                engine.decide(request, 1.8e9)
                engine.explain(request, 1.8e9)
        assert await checksum(tables) == before
        assert await checksum(Tables.load(decode_section(section))) != 0


# The approved release


@row("fault-F2-drift")
async def test_what_no_release_approved_freezes(node, web, authority, case):
    from edgeguard.bundle.manifest import BundleName, Manifest

    state = node.updater.state
    running = BundleName(state.in_force.bundle.version, state.in_force.identity)
    manifest = Manifest(
        authority.env,
        1,
        authority.now,
        "sha256:" + "a" * 64,
        "sha256:" + "b" * 64,
        running,
        state.in_force.policy_hash,
        (state.in_force.policy_hash,),
    )
    reconciler = Reconciler(node.updater, lambda: node.snapshot, node.root)

    async def kinds(bundle):
        node.updater._state = replace(
            state, manifest_required=True, manifest=replace(manifest, bundle=bundle), manifest_bytes=b""
        )
        return {drift.kind for drift in await reconciler.run(full=False)}

    assert await kinds(running) == set()
    assert await kinds(running._replace(version=2)) == set()  # a release on its way
    assert await kinds(running._replace(identity="sha256:" + "c" * 64)) == {DriftClass.MANIFEST}
    assert "manifest" in node.codes(alarm=True)
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert not (await node.refresh()).ok
    assert (node.version, bool(node.updater.frozen)) == (1, True)


# E15: a swap while requests run


@row("fault-E15")
async def test_each_decision_is_made_by_one_snapshot(case):
    """Policies take turns, some thousand times; no verdict mixes one's rules with the other's name."""
    from edgeguard.bundle.build import decode_section
    from edgeguard.policy.engine import Engine
    from edgeguard.policy.tables import Tables
    from tests.test_guard import snapshot

    def make(host, letter, version):
        tables = Tables.load(decode_section(policy_for(host)))
        return snapshot(Engine(tables), bundle_id=f"sha256:{letter * 64}", bundle_version=version)

    one, two = make("one.example", "1", 1), make("two.example", "2", 2)
    bench = Bench()
    bench.guard.activate(one)
    stop = threading.Event()

    def swap():
        for current in itertools.cycle((two, one)):
            bench.guard.activate(current)
            if stop.is_set():
                return

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        client = Client("x", identified=True)
        for _ in range(20_000):
            verdict = bench.guard.judge(Facts("c", client, "one.example", 443))
            assert verdict.allow is (verdict.bundle_id == one.bundle_id)
            assert verdict.engine is verdict.snapshot.engine
            seen.add(verdict.bundle_id)
    finally:
        stop.set()
        await asyncio.to_thread(thread.join)
    assert seen == {one.bundle_id, two.bundle_id}
