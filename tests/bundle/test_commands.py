"""keygen, root, bundle, head: files in, files out, one clear message when something is wrong."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
import typer
from kit import sealed
from typer.testing import CliRunner

from edgeguard.bundle.documents import Head
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.keys import KdfCost, KeyFileError, PassphraseError, SigningKey
from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.trust import BundleOffered, HeadOffered, RootOffered, TrustState, snapshot, step
from edgeguard.cli import bundle, head, keys

pytestmark = pytest.mark.real_policy
POLICY = """\
edgeguard: 1
module: payments
owner: payments-platform
rules:
  - id: stripe-charges
    effect: allow
    clients: [payments-api]
    to: ["api.stripe.com:443"]
"""

app = typer.Typer()
for group in (keys, bundle, head):
    group.register(app)


def edgeguard(*arguments, code=0, stdin=None, env=None):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=env or {}, input=stdin)
    if code is None:
        return result
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "payments.yaml").write_text(POLICY)
    for name in ("root-a", "root-b", "root-c", "release-a", "release-b", "head"):
        edgeguard("keygen", f"keys/{name}", "--no-passphrase")
    edgeguard(
        *(
            "root",
            "init",
            "--environment",
            "prod",
            "--threshold",
            "2",
            "--widening",
            "2",
            "--out",
            "root.msgpack",
        ),
        *("--root-key=keys/root-a.key", "--root-key=keys/root-b.key", "--root-key=keys/root-c.pub"),
        *("--release-key=keys/release-a.pub", "--release-key=keys/release-b.pub", "--head-key=keys/head.pub"),
    )
    return tmp_path


def build(version=1, *more, out=None):
    edgeguard(
        "bundle",
        "build",
        "policy",
        "--environment",
        "prod",
        "--version",
        version,
        "-o",
        out or f"{version}.payload",
        *more,
    )
    return out or f"{version}.payload"


def sign(file, *names, out):
    edgeguard(
        "bundle",
        "sign",
        file,
        "--sources",
        "policy",
        "-o",
        out,
        *(f"--key=keys/{name}.key" for name in names),
    )
    return Path(out)


def test_from_keys_to_a_running_node(place):
    signed = sign(build(), "release-a", "release-b", out="1.bundle").read_bytes()
    assert "valid" in edgeguard(
        "bundle", "verify", "1.bundle", "--root", "root.msgpack", "--environment", "prod"
    )
    repository(signed)
    edgeguard("head", "--dir", "repo", "--environment", "prod", "--key", "keys/head.key")
    data = Path("repo/prod/head").read_bytes()
    assert len(data) <= 450

    state = TrustState.start(Path("root.msgpack").read_bytes(), "prod")
    state, effects = step(state, HeadOffered(data), time.time())
    state, effects = step(state, BundleOffered(signed), time.time())
    found = snapshot(state)
    assert found.ladder(time.time()) == "fresh"
    assert len(found.signers) == 2
    edgeguard("head", "--dir", "repo", "--environment", "prod", "--key", "keys/head.key")
    state, effects = step(state, HeadOffered(Path("repo/prod/head").read_bytes()), time.time())
    assert [type(effect).__name__ for effect in effects] == ["Store", "RaiseMarks", "Activate"]


def repository(*blobs):
    Path("repo/root").mkdir(parents=True, exist_ok=True)
    Path("repo/blobs").mkdir(exist_ok=True)
    shutil.copy("root.msgpack", "repo/root/1.root")
    for blob in blobs:
        Path("repo/blobs", hashlib.sha256(blob).hexdigest()).write_bytes(blob)


def current():
    return Head.parse(Envelope.parse(Path("repo/prod/head").read_bytes()).payload)


def renew(*more, code=0):
    return edgeguard(
        "head", "--dir", "repo", "--environment", "prod", "--key", "keys/head.key", *more, code=code
    )


def test_the_head_names_the_newest_bundle_that_nodes_accept(place):
    one = sign(build(1), "release-a", "release-b", out="1.bundle").read_bytes()
    two = sign(build(2), "release-a", out="2.bundle").read_bytes()
    repository(one)
    renew()
    assert current().bundle.version == 1
    repository(two, b"junk", sealed_elsewhere())
    Path("repo/blobs", "0" * 64).write_bytes(two)
    renew()
    assert current().bundle.version == 2, "one signature is enough while no gated section changes"
    before = current().version
    renew("--quarantine")
    assert current().quarantine == 1
    renew()
    assert current().quarantine == 1, "carried on"
    assert current().version > before


def sealed_elsewhere():
    from kit import L1
    from kit import bundle as make

    return sealed(make(9), L1)


def test_the_head_waits_for_the_full_quorum_on_first_contact(place):
    repository(sign(build(1), "release-a", out="1.bundle").read_bytes())
    assert "no bundle" in renew(code=1)
    shutil.rmtree("repo/root")
    Path("repo/root").mkdir()
    assert "holds no root" in renew(code=1)


def test_renewing_for_ever_stops_on_request(place):
    import signal
    import subprocess
    import sys

    repository(sign(build(1), "release-a", "release-b", out="1.bundle").read_bytes())
    program = "import typer; from edgeguard.cli import head; app = typer.Typer(); head.register(app); app()"
    command = [
        sys.executable,
        "-c",
        program,
        "--dir",
        "repo",
        "--environment",
        "prod",
        "--key",
        "keys/head.key",
    ]
    process = subprocess.Popen(
        [*command, "--watch", "--every", "1s", "--lifetime", "5s"], stdout=subprocess.PIPE, text=True
    )
    assert "bundle 1" in process.stdout.readline()
    first = current().version
    end = time.monotonic() + 10
    while current().version == first and time.monotonic() < end:
        time.sleep(0.05)
    assert current().version > first
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(10) == 0
    assert "too long" in renew("--watch", "--lifetime", "10s", "--every", "9s", code=1)


def test_signing_apart_and_merging_gives_the_same_bytes(place):
    build()
    both = sign("1.payload", "release-b", "release-a", out="both").read_bytes()
    sign("1.payload", "release-a", out="a")
    sign("1.payload", "release-b", out="b")
    edgeguard("bundle", "merge", "a", "b", "-o", "merged")
    assert Path("merged").read_bytes() == both
    sign("2.payload" if build(2) else "", "release-a", out="other")
    with pytest.raises(Refusal):
        edgeguard("bundle", "merge", "a", "other", "-o", "merged")


def test_the_same_sources_give_the_same_bytes(place):
    fixed = {"SOURCE_DATE_EPOCH": "1800000000"}
    for name in ("x", "y"):
        edgeguard("bundle", "build", "policy", "--environment", "prod", "--version", 1, "-o", name, env=fixed)
        (place / "policy" / "payments.yaml").rename(place / "policy" / f"renamed-{name}.yaml")
        (place / "policy" / f"renamed-{name}.yaml").rename(place / "policy" / "payments.yaml")
    assert Path("x").read_bytes() == Path("y").read_bytes()


def test_what_was_not_reviewed_is_not_signed(place):
    build()
    (place / "policy" / "payments.yaml").write_text(POLICY.replace("api.stripe.com", "evil.example"))
    output = edgeguard(
        "bundle", "sign", "1.payload", "--sources", "policy", "--key", "keys/release-a.key", code=1
    )
    assert "differs from its sources (rules)" in output
    assert Envelope.parse(Path("1.payload").read_bytes()).signatures == ()


def test_promotion_keeps_the_policy_hash(place):
    sign(build(), "release-a", "release-b", out="1.bundle")
    promote = (
        "bundle",
        "promote",
        "1.bundle",
        "--root",
        "root.msgpack",
        "--from",
        "prod",
        "--environment",
        "canary",
    )
    edgeguard(*promote, "--version", 7, "-o", "c.payload")
    old = json.loads(edgeguard("bundle", "inspect", "1.bundle", "--json"))
    new = json.loads(edgeguard("bundle", "inspect", "c.payload", "--json"))
    assert old["policy_hash"] == new["policy_hash"]
    assert old["identity"] != new["identity"]
    assert (new["environment"], new["version"], new["signatures"]) == ("canary", 7, [])


def test_rotation(place):
    edgeguard("keygen", "keys/release-c", "--no-passphrase")
    edgeguard(
        *("root", "rotate", "root.msgpack", "-o", "2.root", "--environment", "prod", "--floor", 5),
        *("--release-key=keys/release-c.pub", "--widening", 1, "--key=keys/root-a.key"),
    )
    assert "not valid yet" in edgeguard("root", "inspect", "2.root")
    edgeguard("root", "sign", "2.root", "--key=keys/root-c.key")
    facts = json.loads(edgeguard("root", "inspect", "2.root", "--json"))
    assert (facts["version"], facts["environments"]["prod"]["floor"]) == (2, 5)
    state = TrustState.start(Path("root.msgpack").read_bytes(), "prod")
    state, _ = step(state, RootOffered(Path("2.root").read_bytes(), 2), time.time())
    assert state.root.version == 2


def test_a_sealed_key_wants_its_passphrase(place):
    Path("phrase").write_text("correct horse\n")
    edgeguard("keygen", "keys/sealed", "--passphrase-file", "phrase")
    assert Path("keys/sealed.key").stat().st_mode & 0o777 == 0o600
    assert "seed" not in Path("keys/sealed.key").read_text()
    with pytest.raises(PassphraseError, match="--passphrase-file"):
        edgeguard("root", "sign", "root.msgpack", "--key", "keys/sealed.key")
    with pytest.raises(PassphraseError, match="wrong passphrase"):
        edgeguard(
            "root", "sign", "root.msgpack", "--key", "keys/sealed.key", env={"EDGEGUARD_PASSPHRASE": "no"}
        )
    edgeguard(
        "root",
        "sign",
        "root.msgpack",
        "--key",
        "keys/sealed.key",
        env={"EDGEGUARD_PASSPHRASE": "correct horse"},
    )
    assert "no passphrase" in edgeguard("keygen", "keys/other", code=1)


def test_bad_input_is_named(place):
    assert "exists already" in edgeguard("keygen", "keys/head", "--no-passphrase", code=1)
    with pytest.raises(FileNotFoundError, match="absent"):
        edgeguard("root", "sign", "root.msgpack", "--key", "absent.key")
    with pytest.raises(KeyFileError, match=r"root\.msgpack: not a key file"):
        edgeguard("root", "sign", "root.msgpack", "--key", "root.msgpack")
    with pytest.raises(KeyFileError, match=r"head\.pub: not an edgeguard secret key"):
        edgeguard("root", "sign", "root.msgpack", "--key", "keys/head.pub")
    sign(build(), "release-a", "release-b", out="1.bundle")
    Path("half").write_bytes(Path("1.bundle").read_bytes()[:100])
    for command in (
        ("inspect", "half"),
        ("verify", "half", "--root", "root.msgpack", "--environment", "prod"),
    ):
        result = edgeguard("bundle", *command, code=None)
        assert result.exit_code != 0
        assert "cut short" in str(result.exception) + result.output
    verify = ("bundle", "verify", "1.bundle", "--root", "root.msgpack", "--environment", "staging")
    assert "knows no environment" in edgeguard(*verify, code=1)
    sign(build(2), "release-a", out="2.bundle")
    output = edgeguard(
        "bundle", "verify", "2.bundle", "--root", "root.msgpack", "--environment", "prod", code=1
    )
    assert "gated" in output
    late = ("bundle", "verify", "1.bundle", "--root", "root.msgpack", "--environment", "prod", "--now", 2**40)
    assert "not valid now" in edgeguard(*late, code=1)
    assert "no such policy folder" in edgeguard(
        "bundle", "build", "absent", "--environment", "prod", "--version", 1, "-o", "x", code=1
    )
    one = "--root-key=keys/head.key", "--release-key=keys/release-a.pub", "--head-key=keys/head.pub"
    assert "two roles" in edgeguard("root", "init", "--environment", "prod", "-o", "x", *one, code=1)


def test_key_files_are_portable_text():
    cheap = KdfCost(1, 8192)
    fixed = SigningKey(bytes(range(32)))
    text = fixed.to_text(b"pass", bytes, name="fixed", cost=cheap)
    assert SigningKey.from_text(text, b"pass").public == fixed.public
    for field, value in (
        ("passes", "x"),
        ("memory_bytes", "99999999999999"),
        ("salt", "AAAA"),
        ("sealed", "AAAA"),
    ):
        broken = "\n".join(
            f"{field}: {value}" if line.startswith(field) else line for line in text.splitlines()
        )
        with pytest.raises(KeyFileError):
            SigningKey.from_text(broken, b"pass")
    other = SigningKey(bytes(32)).to_text(None, bytes).splitlines()
    mixed = "\n".join([*text.splitlines()[:3], *other[3:]])
    with pytest.raises(KeyFileError, match="does not belong"):
        SigningKey.from_text(mixed)
