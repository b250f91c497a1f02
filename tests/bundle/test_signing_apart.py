"""Signers that are not files, signatures that travel alone, caps, and files that come out the same anywhere."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from test_commands import POLICY, build, edgeguard, place, sign

from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.keys import KeyFileError
from edgeguard.bundle.refusal import Refusal

__all__ = ["place"]
pytestmark = pytest.mark.real_policy

SIGNER = """\
import base64, sys
from pathlib import Path
from edgeguard.bundle.keys import SigningKey
key = SigningKey.from_text(Path(sys.argv[1]).read_text())
request = sys.stdin.buffer.readline().decode().split()
message = sys.stdin.buffer.read()
mode = sys.argv[2] if len(sys.argv) > 2 else ""
if mode == "fail":
    sys.exit("the key service is away")
if request == ["edgeguard-signer-v1", "public"]:
    assert message == b""
    print(key.public.to_text(), end="")
elif request == ["edgeguard-signer-v1", "sign", key.public.id]:
    print(base64.b64encode(key.sign(message + (b"!" if mode == "lie" else b""))).decode())
else:
    sys.exit(f"not understood: {request}")
"""


def command(name, *more):
    Path("signer.py").write_text(SIGNER)
    return "command:" + shlex.join([sys.executable, "signer.py", f"keys/{name}.key", *more])


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_a_command_signs_as_the_file_does(place):
    build()
    by_file = sign("1.payload", "release-a", out="by-file").read_bytes()
    edgeguard(
        *("bundle", "sign", "1.payload", "--sources", "policy", "-o", "by-command"),
        *("--key", command("release-a")),
    )
    assert Path("by-command").read_bytes() == by_file


@pytest.mark.parametrize(
    ("mode", "said"), [("lie", "no signature by key"), ("fail", "the key service is away")]
)
def test_a_command_that_lies_or_fails_is_named(place, mode, said):
    build()
    with pytest.raises(KeyFileError, match=said):
        edgeguard("bundle", "sign", "1.payload", "--sources", "policy", "--key", command("release-a", mode))
    for bad, why in (
        ("command:", "followed by"),
        ("command:/absent/program", "cannot be run"),
        ("fd:x", "number"),
    ):
        with pytest.raises(KeyFileError, match=why):
            edgeguard("bundle", "sign", "1.payload", "--sources", "policy", "--key", bad)


def test_a_key_from_a_descriptor(place):
    reading, writing = os.pipe()
    os.write(writing, Path("keys/root-c.key").read_bytes())
    os.close(writing)
    try:
        edgeguard("root", "sign", "root.msgpack", "--key", f"fd:{reading}", "-o", "three")
    finally:
        os.close(reading)
    assert len(Envelope.parse(Path("three").read_bytes()).signatures) == 3


def test_a_root_made_by_commands_only(place):
    edgeguard(
        *("root", "init", "--environment", "prod", "-o", "kms.root", "--root-key", command("root-a")),
        *("--release-key", command("release-a"), "--head-key", "keys/head.pub"),
    )
    assert "meets its own" in edgeguard("root", "inspect", "kms.root")


def test_signatures_travel_alone(place):
    build()
    both = sign("1.payload", "release-a", "release-b", out="both").read_bytes()
    for name in ("release-a", "release-b"):
        edgeguard(
            *("bundle", "sign", "1.payload", "--sources", "policy", "--detached", "-o", f"{name}.sig"),
            *("--key", f"keys/{name}.key"),
        )
    assert Path("release-a.sig").stat().st_size < 250
    assert Envelope.parse(Path("1.payload").read_bytes()).signatures == ()
    edgeguard("bundle", "merge", "1.payload", "release-b.sig", "release-a.sig", "-o", "merged")
    assert Path("merged").read_bytes() == both
    build(2)
    for bad in ("1.payload", "root.msgpack"):
        with pytest.raises(Refusal, match="different documents"):
            edgeguard("bundle", "merge", "2.payload", bad, "release-a.sig", "-o", "x")
    with pytest.raises(Refusal, match="different documents"):
        edgeguard("bundle", "merge", "2.payload", "release-a.sig", "-o", "x")
    Path("bad.sig").write_text("edgeguard-signature-v1 what\n")
    with pytest.raises(Refusal, match="four words"):
        edgeguard("bundle", "merge", "1.payload", "bad.sig", "-o", "x")


def test_root_signatures_travel_alone(place):
    edgeguard("root", "rotate", "root.msgpack", "-o", "2.root")
    for name in ("root-b", "root-c"):
        edgeguard("root", "sign", "2.root", "--detached", "-o", f"{name}.sig", "--key", f"keys/{name}.key")
    assert "not valid yet" in edgeguard("root", "inspect", "2.root")
    edgeguard("root", "merge", "2.root", "root-b.sig", "root-c.sig", "-o", "2.root")
    assert "meets its own" in edgeguard("root", "inspect", "2.root")


def test_every_cap_can_be_set_and_changed(place):
    caps = ["--head-lifetime=20m", "--bundle-lifetime=7d", "--grace=5m", "--version-jump=100"]
    caps += ["--bundle-bytes=100000", "--essential=vault.internal:443", "--essential=ntp.internal:123"]
    keys = ["--root-key=keys/root-a.key", "--release-key=keys/release-a.pub", "--head-key=keys/head.pub"]
    edgeguard("root", "init", "--environment=prod", "-o", "a.root", *keys, *caps)
    expected = {
        "head_lifetime_s": 1200,
        "bundle_lifetime_s": 7 * 86400,
        "grace_s": 300,
        "version_jump": 100,
        "bundle_bytes": 100_000,
        "essentials": ["ntp.internal:123", "vault.internal:443"],
    }
    assert caps_of("a.root") == expected
    edgeguard("root", "rotate", "a.root", "-o", "b.root", "--key=keys/root-a.key")
    assert caps_of("b.root") == expected
    change = ("root", "rotate", "a.root", "-o", "c.root", "--key=keys/root-a.key")
    edgeguard(*change, "--environment=prod", "--grace=0s", "--version-jump=5", "--essential=")
    assert caps_of("c.root") == {**expected, "grace_s": 0, "version_jump": 5, "essentials": []}
    assert "name it with --environment" in edgeguard(*change, "--grace=1s", code=2)


def caps_of(file):
    return json.loads(edgeguard("root", "inspect", file, "--json"))["environments"]["prod"]["caps"]


MODULES = {"payments": POLICY, "audit": POLICY.replace("payments", "audit").replace("stripe", "audit")}


@pytest.mark.parametrize("fixed", ["option", "variable"])
def test_the_same_sources_give_the_same_file_anywhere(place, fixed):
    """Two folders with the same statements: other places, other file names, another order on the disk."""
    for number, names in enumerate([("a", "z"), ("z", "a")]):
        folder = place / f"copy-{number}" / "policy"
        folder.mkdir(parents=True)
        for name, text in zip(names, MODULES.values(), strict=True):
            (folder / f"{name}.yaml").write_text(text)
            os.utime(folder / f"{name}.yaml", (number, number))
        more = ["--issued-at=1800000000"] if fixed == "option" else []
        env = {"SOURCE_DATE_EPOCH": "1800000000"} if fixed == "variable" else {"SOURCE_DATE_EPOCH": "7"}
        edgeguard(
            *("bundle", "build", folder, "--environment=prod", "--version=1", "-o", f"{number}.file"),
            *("--audience=b", "--audience=a") if number else ("--audience=a", "--audience=b"),
            *more,
            env=env,
        )
    assert Path("0.file").read_bytes() == Path("1.file").read_bytes()
    facts = json.loads(edgeguard("bundle", "inspect", "0.file", "--json"))
    assert (facts["issued_at"], facts["not_before"]) == (1_800_000_000,) * 2


def test_a_source_date_that_is_none_is_refused(place):
    command = ("bundle", "build", "policy", "--environment=prod", "--version=1", "-o", "x")
    assert "SOURCE_DATE_EPOCH" in edgeguard(*command, env={"SOURCE_DATE_EPOCH": "yesterday"}, code=2)
