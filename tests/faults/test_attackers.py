"""The attacker's table of docs/threat-model.md, line by line: what each holder can do at worst, and for how long."""

import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from edgeguard.bundle.build import encode_section
from edgeguard.bundle.documents import Caps, Environment
from edgeguard.bundle.snapshot import Ladder
from edgeguard.sync.update import Mirror
from tests.sync.conftest import FAST, Fetcher
from tests.sync.signing import DAY, HOUR, Authority, policy_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "threat-model.md"


def row(*names):
    return pytest.mark.parametrize("case", [pytest.param(None, id=name) for name in names])


@dataclass
class TwoKeys(Authority):
    """Two release keys, both needed to widen; caps that are tight enough to meet."""

    release_keys: tuple[str, ...] = ("release-a", "release-b")
    caps: Caps = field(
        default_factory=lambda: Caps(
            head_lifetime_s=2 * HOUR, bundle_lifetime_s=10 * DAY, grace_s=HOUR, version_jump=1000
        )
    )

    def environment(self):
        return replace(super().environment(), widening=2)


@pytest.fixture
def authority(request):
    import time

    return TwoKeys(now=int(time.time()), policy=policy_for("one.example"))


def gated_policy():
    """The same rules, and one more person in a group: a change of a gated section."""
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.source import load_sources

    source = (
        b"edgeguard: 1\nmodule: m\nowner: o\nrules:\n  - id: r\n    effect: allow\n    to: ['one.example:443']\n"
        b"client_groups:\n  admins: [mallory]\n"
    )
    return encode_section(compile_policy(load_sources({"m.yaml": source})))


# The bundle server, and the network to it


@row("threat-server-freeze")
async def test_who_holds_the_server_can_freeze_until_the_signed_deadlines(new_node, web, authority, case):
    bundle = authority.bundle(1, grace_s=HOUR, expires_at=authority.now + 4 * HOUR)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url)
    assert (await node.refresh()).ok
    seen = {}
    for minute in range(0, 5 * 60, 10):  # the same answers for ever
        node.now = authority.now + minute * 60
        await node.refresh()
        seen.setdefault(node.ladder, minute)
    assert seen == {Ladder.FRESH: 0, Ladder.STALE: 60, Ladder.RESTRICTED: 120, Ladder.CLOSED: 240}


@row("threat-server-replace")
async def test_who_holds_the_server_can_change_nothing(node, web, authority, case):
    """Every published byte is changed in turn; nothing that comes of it is enforced."""
    before = node.snapshot
    newer = authority.bundle(2)
    head = authority.head(2, newer, 2)
    for path, data in (("test/head", head), ("root/2.root", authority.root(2))):
        for index in range(0, len(data), 37):
            changed = bytearray(data)
            changed[index] ^= 0x01
            web.publish(authority, bundle=newer)
            web.files[path] = bytes(changed)
            cycle = await node.refresh()
            assert not cycle.ok, (path, index)
            assert node.snapshot is before
        del web.files[path]


# The head key


@row("threat-head-key")
async def test_who_holds_the_head_key_can_freeze_choose_and_quarantine(node, web, authority, case):
    first = node.snapshot
    second = authority.bundle(2)
    # Choose: anything that release keys signed and that is not older than what was seen.
    web.publish(authority, head=authority.head(2, second, 2), bundle=second)
    assert (await node.refresh()).ok
    # Not: roll back, sign policy, live for long, run away with the versions.
    forged = authority.bundle(2, signers=["head-a"])
    for head, code in (
        (authority.head(3, authority.bundle(1), 1), "rollback_bundle"),
        (authority.head(3, forged, 2), "key_unknown"),
        (authority.head(4, second, 2, expires_at=authority.now + 3 * HOUR), "lifetime"),
        (authority.head(5000, second, 2), "version_jump"),
    ):
        web.publish(authority, head=head, bundle=forged)
        assert (await node.refresh()).code == code
        assert node.version == 2
        node.mirror.etag = None
    # Quarantine: closes, and the release keys end it.
    web.publish(authority, head=authority.head(10, second, 2, quarantine=1))
    await node.refresh()
    assert node.ladder is Ladder.QUARANTINED
    ended = authority.bundle(3, released=1)
    web.publish(authority, head=authority.head(11, ended, 3, quarantine=1), bundle=ended)
    assert (await node.refresh()).ok
    assert node.ladder is Ladder.FRESH
    # Until the root rotates the key.
    rotated = replace(authority, head_keys=("head-b",))
    web.publish(authority, roots=[authority.root(), rotated.root(2)])
    assert (await node.refresh()).code == "key_unknown"
    web.publish(rotated, head=rotated.head(1, ended, 3, quarantine=1))
    assert (await node.refresh()).ok
    assert first.bundle_version == 1


# One release key of two


@row("threat-release-key")
async def test_who_holds_one_release_key_can_change_rules_only(node, web, authority, case):
    mine = ["release-a"]

    async def publish(version, **changes):
        bundle = authority.bundle(version, signers=mine, **changes)
        web.publish(authority, head=authority.head(version, bundle, version), bundle=bundle)
        return await node.refresh()

    assert (await publish(2, policy=policy_for("evil.example"))).ok  # rules, within root's caps
    cycle = await publish(3, policy=gated_policy())
    assert (cycle.code, cycle.alarm) == ("gated", True)
    assert (await publish(4, expires_at=authority.now + 30 * DAY)).code == "lifetime"
    assert (await publish(5, grace_s=DAY)).code == "lifetime"
    assert node.version == 2
    # Revocation closes what it signed, at once.
    rotated = replace(authority, release_keys=("release-b", "release-c"))
    web.publish(authority, roots=[authority.root(), rotated.root(2)])
    await node.refresh()
    assert (node.ladder, node.snapshot.revoked) == (Ladder.CLOSED, True)


@row("threat-release-key-first-contact")
async def test_one_release_key_is_not_enough_for_a_new_node(new_node, web, authority, case):
    bundle = authority.bundle(1, signers=["release-a"])
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url)
    assert (await node.refresh()).code == "gated"
    assert node.snapshot is None


# One root key of two


@row("threat-root-key")
async def test_one_root_key_is_nothing(node, web, authority, case):
    mine = replace(authority, release_keys=("mallory-1", "mallory-2"))
    web.publish(authority, roots=[authority.root(), mine.root(2, signers=["root-a"])])
    assert (await node.refresh()).code == "threshold"
    assert (node.updater.state.root.version, node.ladder) == (1, Ladder.FRESH)


# The node's disk


@row("threat-disk")
async def test_who_holds_the_disk_can_put_back_an_older_state_until_the_next_sync(
    node, web, authority, tmp_path, case
):
    """The whole folder of an earlier day is what that day's node was: its deadlines, and the floor, still hold."""
    state = node.config.state_dir
    shutil.copytree(state, tmp_path / "before", copy_function=shutil.copy2)
    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)
    assert (await node.refresh()).ok
    deadlines = node.snapshot.closed_at

    async def put_back():
        await node.close()
        for path in state.iterdir():
            path.unlink()
        for path in (tmp_path / "before").iterdir():
            shutil.copy2(path, state / path.name)
        await node.restart()

    await put_back()
    assert node.version == 1
    assert node.snapshot.closed_at <= deadlines
    assert (await node.refresh()).ok  # the next sync
    assert node.version == 2
    node.config = replace(node.config, floor=2)
    await put_back()
    assert node.snapshot is None  # the floor of the configuration is not on that disk


@row("threat-disk-forge")
async def test_who_holds_the_disk_cannot_make_it_enforce_what_is_not_signed(node, web, authority, case):
    import hashlib

    forged = authority.bundle(9, signers=["mallory"])
    for path in list(node.config.state_dir.glob("bundle.*")):
        path.unlink()
    path = node.config.state_dir / f"bundle.9.{hashlib.sha256(forged).hexdigest()}"
    path.touch(mode=0o600)
    path.write_bytes(forged)
    await node.restart()
    assert node.snapshot is None
    assert "key_unknown" in node.codes()


# A mirror that lies, beside one that does not


@row("threat-mirror")
async def test_a_lying_mirror_delays_nothing(node, web, authority, case):
    import asyncio

    from edgeguard.sync.agent import SyncAgent

    newer = authority.bundle(2)
    web.publish(authority, head=authority.head(2, newer, 2), bundle=newer)

    async def lie(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlies")
        await writer.drain()
        writer.close()

    liar = await asyncio.start_server(lie, "127.0.0.1", 0)
    mirrors = [
        Mirror(Fetcher(f"http://127.0.0.1:{liar.sockets[0].getsockname()[1]}/", FAST)),
        Mirror(Fetcher(web.url, FAST)),
    ]
    agent = SyncAgent(node.config, authority.root(), lambda _: None)
    assert (await agent._cycle(node.updater, mirrors, asyncio.Event())).ok
    assert node.version == 2
    for mirror in mirrors:
        await mirror.fetcher.close()
    liar.close()
    await liar.wait_closed()


# The workload beside a sidecar


@row("threat-workload")
async def test_the_workload_can_only_read_the_admin_address(case):
    import aiohttp

    from edgeguard.evidence.metrics import Metrics
    from edgeguard.proxy.admin import AdminServer
    from edgeguard.settings import Admin

    server = AdminServer(
        Admin(address="127.0.0.1:0"), lambda: {"ladder": "fresh"}, lambda: (True, "fresh"), Metrics()
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://{server.address}", trust_env=False) as session:
            for page in ("/status", "/readyz", "/healthz", "/metrics"):
                async with session.get(page) as answer:
                    assert answer.status == 200
                for method in ("POST", "PUT", "DELETE", "PATCH"):
                    async with session.request(method, page, data=b"quarantine=0") as answer:
                        assert answer.status == 405
    finally:
        await server.stop()


# The document


def test_every_test_that_the_table_names_exists():
    """A line of the table without a test that can fail would be a claim only."""
    table = DOCUMENT.read_text().split("## Who can do what, at worst")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    sources = "\n".join(
        path.read_text() for path in (DOCUMENT.parents[1] / "tests").rglob("test_*.py") if path.is_file()
    )
    assert len(lines) >= 9
    for line in lines:
        names = re.findall(r"`((?:threat|fault)-[A-Za-z0-9-]+)`", line.rsplit("|", 2)[1])
        assert names, line
        for name in names:
            # Ids are written out, or made of a prefix and a parameter.
            prefix = name.rsplit("-", 1)[0]
            assert f'"{name}"' in sources or f'f"{prefix}-{{' in sources, name


def test_the_environment_of_these_tests_is_what_it_says(authority):
    assert isinstance(authority.environment(), Environment)
    assert authority.environment().widening == 2
