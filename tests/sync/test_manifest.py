"""A node that takes only what a release manifest names: fetching, storing, restarting, publishing."""

import contextlib

import pytest

from edgeguard.bundle import build
from edgeguard.bundle.documents import Bundle, Kind, media_type
from edgeguard.bundle.envelope import Envelope, identity, seal
from edgeguard.bundle.manifest import BundleName, Manifest
from edgeguard.bundle.trust import TrustState
from edgeguard.server.publishing import Publisher, PublishRefused
from edgeguard.server.repository import Repository
from edgeguard.settings import SettingsError, load_settings
from edgeguard.sync.config import SyncConfig
from tests.sync.signing import key, lay_out, policy_for, ref

APP, OTHER = ("sha256:" + digit * 64 for digit in "12")


def paper(authority, version, bundle, *, app=APP, **changes):
    payload = Envelope.parse(bundle).payload
    document = Bundle.parse(payload)
    policy = build.policy_hash(document.policy)
    name = BundleName(document.version, identity(payload))
    made = Manifest(authority.env, version, authority.now, app, OTHER, name, policy, (policy,), **changes)
    return seal(media_type(Kind.MANIFEST, authority.env), made.to_payload(), [key("release-a")])


def release(web, authority, number, bundle, manifest, version):
    members = {"bundle": ref(bundle, number), "manifest": ref(manifest, version)}
    head = authority.head(version, bundle, members=members)
    web.publish(authority, roots=[authority.root()], head=head, bundle=bundle)
    name = members["manifest"].sha256
    web.files[f"blobs/{name}"] = manifest
    return head


@pytest.fixture
def bundles(authority):
    two = authority.bundle(2, policy=policy_for("two.example"))
    return {1: authority.bundle(1), 2: two, 3: authority.bundle(3)}


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F2-sync")])
async def test_only_what_the_manifest_names_is_taken_and_a_restart_knows_it(
    new_node, web, authority, bundles, case
):
    release(web, authority, 1, bundles[1], paper(authority, 1, bundles[1]), 1)
    node = await new_node(web.url, manifest_required=True)
    assert (await node.refresh()).ok
    stored = sorted(path.name.split(".")[0] for path in node.config.state_dir.iterdir())
    assert "manifest" in stored

    release(web, authority, 2, bundles[2], paper(authority, 2, bundles[1]), 2)
    cycle = await node.refresh()
    assert (cycle.ok, cycle.code) == (False, "manifest_mismatch")
    assert node.version == 1
    await node.restart()
    assert node.version == 1, "the stored pair belongs together"

    release(web, authority, 2, bundles[2], paper(authority, 3, bundles[2]), 3)
    assert (await node.refresh()).ok
    assert node.version == 2
    await node.restart()
    assert node.version == 2
    for path in node.config.state_dir.glob("manifest.*"):
        path.unlink()
    await node.restart()
    assert node.version is None, "without its manifest nothing is enforced"
    assert (await node.refresh()).ok
    assert node.version == 2


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F1-sync")])
async def test_a_node_beside_another_application_stays_closed(new_node, web, authority, bundles, case):
    release(web, authority, 1, bundles[1], paper(authority, 1, bundles[1]), 1)
    node = await new_node(web.url, app=OTHER)
    assert (await node.refresh()).code == "manifest_mismatch"
    assert node.version is None


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F2-bare")])
async def test_a_head_without_a_manifest_fetches_nothing(new_node, web, authority, bundles, case):
    head = authority.head(1, bundles[1])
    web.publish(authority, roots=[authority.root()], head=head, bundle=bundles[1])
    node = await new_node(web.url, manifest_required=True)
    assert (await node.refresh()).code == "manifest_mismatch"
    assert not [path for path, _ in web.requests if path.startswith("blobs/")]


@pytest.mark.parametrize("kill_after", range(8))
async def test_killed_between_two_writes_of_a_release(
    new_node, web, authority, bundles, monkeypatch, kill_after
):
    release(web, authority, 1, bundles[1], paper(authority, 1, bundles[1]), 1)
    node = await new_node(web.url, manifest_required=True)
    assert (await node.refresh()).ok
    release(web, authority, 2, bundles[2], paper(authority, 2, bundles[2]), 2)
    write, left = node.store.write, [kill_after]

    class Killed(BaseException):
        pass

    async def counted(*arguments, **options):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return await write(*arguments, **options)

    monkeypatch.setattr(node.store, "write", counted)
    with contextlib.suppress(Killed):
        await node.refresh()
    await node.restart()
    assert node.version in {1, 2}, "a pair that belongs together, never none"
    assert (await node.refresh()).ok
    assert node.version == 2


async def test_publishing(tmp_path, authority, bundles):
    lay_out(tmp_path, authority.env, roots=[authority.root()])
    publisher = Publisher(Repository(tmp_path), now=lambda: authority.now)
    manifest = paper(authority, 1, bundles[1])
    members = {"bundle": ref(bundles[1], 1), "manifest": ref(manifest, 1)}
    head = authority.head(1, bundles[1], members=members)
    await publisher.publish(bundles[1])
    with pytest.raises(PublishRefused, match="publish the manifest"):
        await publisher.publish(head)
    found = await publisher.publish(manifest)
    assert (found.role, found.version, found.created) == ("manifest", 1, True)
    assert (await publisher.publish(head)).role == "head"
    wrong = authority.head(
        2, bundles[2], members={"bundle": ref(bundles[2], 2), "manifest": ref(manifest, 1)}
    )
    await publisher.publish(bundles[2])
    with pytest.raises(PublishRefused, match="manifest_mismatch"):
        await publisher.publish(wrong)
    stolen = seal(media_type(Kind.MANIFEST, authority.env), Envelope.parse(manifest).payload, [key("head-a")])
    with pytest.raises(PublishRefused, match="key_unknown"):
        await publisher.publish(stolen)


@pytest.mark.parametrize(
    ("text", "required", "app"),
    [
        ("", False, ""),
        ('manifest = "required"', True, ""),
        (f'app = "{APP}"', True, APP),
    ],
)
def test_a_configuration_asks_for_it(tmp_path, authority, text, required, app):
    path = tmp_path / "edgeguard.toml"
    path.write_text(f'environment = "test"\n[trust]\n{text}\n')
    config = SyncConfig.from_settings(load_settings(path, {}))
    state = TrustState.start(
        authority.root(), "test", manifest_required=config.manifest_required, app=config.app
    )
    assert (state.manifest_required, state.app) == (required, app)


@pytest.mark.parametrize("text", ['manifest = "maybe"', 'app = "latest"', 'app = "sha256:12"'])
def test_a_configuration_that_says_something_else_is_refused(tmp_path, text):
    path = tmp_path / "edgeguard.toml"
    path.write_text(f'environment = "test"\n[trust]\n{text}\n')
    with pytest.raises(SettingsError, match=r"trust\.(manifest|app)"):
        load_settings(path, {})
