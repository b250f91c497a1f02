"""`edgeguard release`: from a manifest to a node that insists on it, and the way back without offline keys."""

import json
import shutil
import time
from pathlib import Path

import pytest
import typer
from test_commands import POLICY, build, current, place, renew, repository, sign
from typer.testing import CliRunner

from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.trust import (
    BundleOffered,
    Fetch,
    HeadOffered,
    ManifestOffered,
    Refuse,
    TrustState,
    snapshot,
    step,
)
from edgeguard.cli import release

__all__ = ["place"]
pytestmark = pytest.mark.real_policy

APP1, APP2, PLAN = ("sha256:" + digit * 64 for digit in "12f")
JUDGE = ("--root=root.msgpack", "--environment=prod")
BOTH = ("--key=keys/release-a.key", "--key=keys/release-b.key")
app = typer.Typer()
release.register(app)


def rel(*arguments, code=0):
    result = CliRunner().invoke(app, ["release", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def create(number, file, image, *more, code=0, keys=BOTH):
    return rel(
        *("create", f"--bundle={file}", *JUDGE, f"--version={number}", f"--app={image}", f"--infra={PLAN}"),
        *("-o", f"{number}.manifest", *keys, *more),
        code=code,
    )


class Node:
    """A node that takes only what a manifest names, fed from the repository folder."""

    def __init__(self):
        self.state = TrustState.start(Path("root.msgpack").read_bytes(), "prod", manifest_required=True)
        self.refusals = []

    def poll(self):
        waiting = self.offer(HeadOffered(Path("repo/prod/head").read_bytes()))
        while waiting:
            wanted = waiting.pop(0)
            data = Path("repo/blobs", wanted.ref.sha256).read_bytes()
            event = ManifestOffered(data) if wanted.member == "manifest" else BundleOffered(data)
            waiting += self.offer(event)
        return snapshot(self.state)

    def offer(self, event):
        self.state, effects = step(self.state, event, time.time())
        self.refusals += [str(effect.refusal.code) for effect in effects if isinstance(effect, Refuse)]
        return [effect for effect in effects if isinstance(effect, Fetch)]


def publish(*files):
    repository(*(Path(file).read_bytes() for file in files))


@pytest.fixture
def first(place):
    """Release 1: policy 1 with application 1, in the repository."""
    sign(build(1), "release-a", "release-b", out="1.bundle")
    create(1, "1.bundle", APP1)
    publish("1.bundle", "1.manifest")
    renew()
    return place


def test_a_release_reaches_a_node(first):
    node = Node()
    assert node.poll().bundle_version == 1
    assert node.refusals == []
    facts = json.loads(rel("show", "1.manifest", "--json"))
    assert facts["app"] == APP1
    assert facts["tested"] == [facts["policy_hash"]]
    assert facts["bundle"]["version"] == 1
    assert current().members["manifest"].version == 1


def test_a_bundle_without_a_manifest_is_not_released(first):
    sign(build(2), "release-a", "release-b", out="2.bundle")
    publish("2.bundle")
    renew()
    assert current().bundle.version == 1
    create(2, "2.bundle", APP1)
    publish("2.manifest")
    renew()
    assert current().bundle.version == 2
    assert Node().poll().bundle_version == 2


def test_a_bundle_that_the_manifest_does_not_name_is_refused(first):
    (first / "policy" / "payments.yaml").write_text(POLICY.replace("api.stripe.com", "other.example"))
    sign(build(1), "release-a", "release-b", out="other.bundle")
    output = rel("verify", "1.manifest", *JUDGE, "--bundle=other.bundle", code=1)
    assert "manifest_mismatch" in output


def test_verify_compares_with_what_is_about_to_run(first):
    assert "valid" in rel(
        "verify", "1.manifest", *JUDGE, "--bundle=1.bundle", f"--app={APP1}", f"--infra={PLAN}"
    )
    assert "manifest_mismatch" in rel("verify", "1.manifest", *JUDGE, f"--app={APP2}", code=1)
    assert "manifest_mismatch" in rel("verify", "1.manifest", *JUDGE, f"--infra={APP2}", code=1)
    assert "64" in rel("verify", "1.manifest", *JUDGE, "--app=latest", code=2)
    wrong = ("--root=root.msgpack", "--environment=staging")
    assert "no environment" in rel("verify", "1.manifest", *wrong, code=1)
    assert "refused" in rel("verify", "1.bundle", *JUDGE, code=1)


def test_what_was_not_tested_is_not_released(first):
    assert "tested" in create(9, "1.bundle", APP1, f"--tested={PLAN}", code=1)


def test_signing_apart(first):
    create(5, "1.bundle", APP1, "--issued-at=1800000000")
    create(6, "1.bundle", APP1, "--issued-at=1800000000", keys=())
    same = json.loads(rel("show", "5.manifest", "--json"))
    assert same["signatures"] != json.loads(rel("show", "6.manifest", "--json"))["signatures"] == []
    for name in ("release-b", "release-a"):
        rel("sign", "6.manifest", "--detached", "-o", f"{name}.sig", f"--key=keys/{name}.key")
    rel("merge", "6.manifest", "release-a.sig", "release-b.sig", "-o", "6.manifest")
    assert "valid" in rel("verify", "6.manifest", *JUDGE)
    assert len(Envelope.parse(Path("6.manifest").read_bytes()).signatures) == 2


@pytest.fixture
def second(first):
    """Release 2, with its way back signed at the same time; then every offline key is locked away."""
    rel(
        *("pair", "--bundle=1.bundle", "--manifest=1.manifest", *JUDGE, "--bundle-version=3", "--version=3"),
        *("-o", "back", *BOTH),
    )
    (first / "policy" / "payments.yaml").write_text(POLICY.replace("api.stripe.com", "broken.example"))
    sign(build(2), "release-a", "release-b", out="2.bundle")
    create(2, "2.bundle", APP2, "--rollback=back/bundle")
    publish("2.bundle", "2.manifest")
    renew()
    for name in ("release-a", "release-b", "root-a", "root-b", "root-c"):
        Path(f"keys/{name}.key").unlink()
    return first


@pytest.mark.parametrize("case", [pytest.param(0, id="fault-F12-commands")])
def test_rolling_back_takes_no_offline_key(second, case):
    node = Node()
    assert node.poll().bundle_version == 2
    old = json.loads(rel("show", "1.manifest", "--json"))
    rel("rollback", "back", *JUDGE, "--dir=repo")
    renew()
    found = node.poll()
    assert (found.bundle_version, found.policy_hash) == (3, old["policy_hash"])
    assert node.state.manifest.app == APP1
    assert node.refusals == []
    assert Node().poll().bundle_version == 3, "and so do nodes that never saw release 2"


def test_only_the_reserved_pair_is_a_way_back(second):
    shutil.copytree("back", "other")
    shutil.copy("1.bundle", "other/bundle")
    assert "manifest_mismatch" in rel("rollback", "other", *JUDGE, "--dir=repo", code=1)
    shutil.copy("1.manifest", "other/manifest")
    assert "not the way back" in rel("rollback", "other", *JUDGE, "--dir=repo", code=1)
    rel("rollback", "back", *JUDGE, "--dir=repo")
    renew()
    assert "not the way back" in rel("rollback", "back", *JUDGE, "--dir=repo", code=1), "it has been taken"


def test_a_pair_rises(first):
    pair = ("pair", "--bundle=1.bundle", "--manifest=1.manifest", *JUDGE, "-o", "x", *BOTH)
    assert "only rise" in rel(*pair, "--bundle-version=1", "--version=3", code=1)
    assert "only rise" in rel(*pair, "--bundle-version=3", "--version=1", code=1)
    rel(*pair[:-1], "--bundle-version=3", "--version=3")
    output = create(2, "1.bundle", APP1, "--rollback=x/bundle", code=1)
    assert "takes 2" in output


def test_flags_are_the_policys_own_or_given(first):
    Path("flags.json").write_text('{"beta": true}')
    create(7, "1.bundle", APP1, "--flags=flags.json")
    assert json.loads(rel("show", "7.manifest", "--json"))["flags"] == {"beta": True}
    Path("flags.json").write_text("[1]")
    assert "JSON object" in create(8, "1.bundle", APP1, "--flags=flags.json", code=1)
    assert json.loads(rel("show", "1.manifest", "--json"))["flags"] == {}


def test_help_is_there():
    assert "rollback" in edgeguard_help()


def edgeguard_help():
    from edgeguard.cli.app import app as whole

    return CliRunner().invoke(whole, ["release", "--help"]).output
