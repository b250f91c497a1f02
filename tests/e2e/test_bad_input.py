"""Bad input: one clear message (what, where, how to mend it), a non-zero exit, and nothing else happens."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.e2e.kit import edgeguard, plain_environment, wait_until
from tests.ports import free_port

CONFIG = """\
environment = "demo"
[listen]
address = "127.0.0.1:{port}"
[trust]
root = "root.msgpack"
state_dir = "state"
[resolver]
mode = "static"
[admin]
address = ""
[evidence]
log = "decisions.jsonl"
"""

POLICY = """\
edgeguard: 1
module: one
owner: me
rules:
  - id: one
    effect: allow
    to: ["one.example"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, keys):
    """A ceremony, a policy and a signed bundle, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(keys, folder, dirs_exist_ok=True)
    (folder / "policy").mkdir()
    (folder / "policy/one.yaml").write_text(POLICY)
    built = edgeguard(
        *("bundle", "build", "policy", "--environment", "demo", "--version", "1", "--out", "b.payload"),
        cwd=folder,
    )
    assert built.returncode == 0, built.stderr
    signing = ("--key", "keys/release-a.key", "--key", "keys/release-b.key", "--out", "b.signed")
    signed = edgeguard("bundle", "sign", "b.payload", "--sources", "policy", *signing, cwd=folder)
    assert signed.returncode == 0, signed.stderr
    (folder / "token").write_text("t" * 40)
    return folder


@pytest.fixture
def folder(tmp_path, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "edgeguard.toml").write_text(CONFIG.format(port=free_port()))
    return tmp_path


@pytest.fixture
def used():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(folder, *words, says, lines=2, **options):
    """Runs a command that must fail; returns its one message, which holds all of `says`."""
    done = edgeguard(*words, cwd=folder, **options)
    assert done.returncode not in {0, None}, done.stderr
    assert done.returncode > 0
    assert "Traceback" not in done.stderr + done.stdout
    assert not done.stdout.strip() or words[0] == "policy", done.stdout  # which counts what it found
    message = done.stderr.strip()
    assert message.count("edgeguard:") <= 1, message
    assert len(message.splitlines()) <= lines, message
    for text in (says,) if isinstance(says, str) else says:
        assert text in message, message
    return message


def config(folder, old, new):
    file = folder / "edgeguard.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


RUN = ("run", "--config", "edgeguard.toml")


# Policies


@pytest.mark.parametrize(
    "command",
    [
        ("policy", "check", "policy"),
        ("bundle", "build", "policy", "--environment", "demo", "--version", "2", "--out", "x"),
        ("dev", "policy", "--listen", "127.0.0.1:0"),
    ],
    ids=["check", "build", "dev"],
)
def test_a_policy_with_a_mistake(folder, command):
    file = folder / "policy/one.yaml"
    file.write_text(POLICY + "    metods: [GET]\n")
    refused(folder, *command, says=("one.yaml:8:5", "metods", "methods"))
    assert not (folder / "x").exists()


def test_a_policy_that_is_no_yaml(folder):
    (folder / "policy/one.yaml").write_text("rules: [\n")
    refused(folder, "policy", "check", "policy", says="one.yaml:")


def test_every_mistake_of_a_run_is_listed(folder):
    (folder / "policy/one.yaml").write_text(
        POLICY.replace("allow", "alow").replace("one.example", "one example")
    )
    refused(folder, "policy", "check", "policy", says=("one.yaml:6:", "one.yaml:7:"), lines=3)
    (folder / "policy/one.yaml").write_text(POLICY.replace("one.example", "*.co.uk"))
    refused(folder, "policy", "check", "policy", says=("one.yaml:", "co.uk"))


@pytest.mark.parametrize("command", [("dev",), ("policy", "check"), ("policy", "test")])
def test_a_policy_folder_that_is_missing(folder, command):
    refused(folder, *command, "nowhere", says="nowhere")


# Bundles and keys


def test_a_bundle_cut_in_half(folder):
    data = (folder / "b.signed").read_bytes()
    (folder / "half").write_bytes(data[: len(data) // 2])
    refused(
        folder, "bundle", "verify", "half", "--root", "root.msgpack", "--environment", "demo", says="half"
    )
    refused(folder, "bundle", "inspect", "half", says="half")
    refused(
        folder,
        *("publish", "--url", f"http://127.0.0.1:{free_port()}/", "--token-file", "token", "half"),
        says="half",
    )


def test_a_root_cut_in_half(folder):
    data = (folder / "root.msgpack").read_bytes()
    (folder / "root.msgpack").write_bytes(data[: len(data) // 2])
    refused(folder, *RUN, says="root.msgpack")


def test_a_missing_root(folder):
    (folder / "root.msgpack").unlink()
    refused(folder, *RUN, says="root.msgpack")


def test_a_root_that_does_not_know_the_environment(folder):
    config(folder, '"demo"', '"prod"')
    refused(folder, *RUN, says="prod")


SIGN = ("bundle", "sign", "b.payload", "--sources", "policy", "--out", "again", "--key")


def test_a_missing_key_file(folder):
    refused(folder, *SIGN, "keys/nobody.key", says="keys/nobody.key")
    assert not (folder / "again").exists()


def test_a_key_file_that_is_none(folder):
    (folder / "keys/release-a.key").write_text("hello\n")
    refused(folder, *SIGN, "keys/release-a.key", says="keys/release-a.key")


def test_a_wrong_passphrase(folder):
    made = edgeguard("keygen", "keys/safe", cwd=folder, env={"EDGEGUARD_PASSPHRASE": "right"})
    assert made.returncode == 0, made.stderr
    wrong = {"EDGEGUARD_PASSPHRASE": "wrong"}
    refused(folder, *SIGN, "keys/safe.key", says=("keys/safe.key", "passphrase"), env=wrong)
    refused(folder, *SIGN, "keys/safe.key", says=("keys/safe.key", "passphrase"))
    assert not (folder / "again").exists()


def test_sources_that_are_not_what_was_built(folder):
    (folder / "policy/one.yaml").write_text(POLICY.replace("one.example", "two.example"))
    refused(folder, *SIGN, "keys/release-a.key", says="policy")
    assert not (folder / "again").exists()


# Configuration


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[listen]", "[lisen]", ("edgeguard.toml:2", "lisen", "listen")),
        ("state_dir", "state_dri", ("edgeguard.toml:6", "state_dri", "state_dir")),
        ('mode = "static"', "mode = 5", ("edgeguard.toml:8", "resolver.mode")),
        ('root = "root.msgpack"', "root = 5", ("edgeguard.toml:5", "trust.root")),
        ('"demo"', "demo", ("edgeguard.toml:1", "TOML")),
        ("127.0.0.1:", "127.0.0.1/", ("edgeguard.toml:3", "listen.address")),
        ('mode = "static"', 'mode = "static"\nstatic = {"bad name!" = ["127.0.0.1"]}', ("bad name!",)),
        (
            'mode = "static"',
            'mode = "static"\nstatic = {"a.test" = ["nonsense"]}',
            ("edgeguard.toml:", "nonsense"),
        ),
        ('address = ""', 'address = "0.0.0.0:9901"', ("edgeguard.toml:10", "loopback")),
        (
            "[resolver]",
            '[sync]\nurls = ["http://bundles.example/"]\n[resolver]',
            ("edgeguard.toml:", "https"),
        ),
    ],
)
def test_a_configuration_with_a_mistake(folder, old, new, says):
    config(folder, old, new)
    refused(folder, *RUN, "--check", says=says)


def test_a_configuration_that_cannot_be_read(folder):
    refused(folder, "run", "--config", "nowhere.toml", says="nowhere.toml")
    refused(folder, "run", "--config", "policy", says="policy")
    (folder / "edgeguard.toml").write_bytes(b"\xff\xfe")
    refused(folder, *RUN, says="edgeguard.toml")
    refused(folder, "dev", "policy", "--config", "nowhere.toml", says="nowhere.toml")
    refused(folder, "status", "--config", "nowhere.toml", says="nowhere.toml")
    if os.geteuid() != 0:  # root reads everything
        (folder / "edgeguard.toml").chmod(0)
        refused(folder, *RUN, says="permission denied")


# Ports, folders, files


def test_a_port_in_use(folder, used):
    says = (f"127.0.0.1:{used}", "in use")
    refused(folder, "server", "--dir", "repository", "--listen", f"127.0.0.1:{used}", says=says)
    refused(folder, "dev", "policy", "--listen", f"127.0.0.1:{used}", says=says, lines=3)
    config(folder, 'address = ""', f'address = "127.0.0.1:{used}"')
    refused(folder, *RUN, says=says)
    (folder / "edgeguard.toml").write_text(CONFIG.format(port=used))
    refused(folder, *RUN, says=says)


def test_a_state_folder_that_others_may_write_to(folder):
    (folder / "state").mkdir()
    (folder / "state").chmod(0o777)
    refused(folder, *RUN, says=(str(folder / "state"), "chmod"))


def test_a_state_folder_that_is_a_file(folder):
    (folder / "state").touch()
    refused(folder, *RUN, says=str(folder / "state"))


def test_a_decision_log_that_another_process_writes(folder):
    """Two writers would break the chain of both; the first goes on."""
    log = folder / "first.log"
    with log.open("w") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "edgeguard", *RUN], cwd=folder, env=plain_environment(), stderr=output
        )
        try:
            wait_until(lambda: "edgeguard enforces" in log.read_text(), "the first node")
            config(folder, 'address = "127.0.0.1:', 'address = "127.0.0.2:')
            refused(folder, *RUN, says=("decisions.jsonl", "another process"))
            assert first.poll() is None
        finally:
            first.terminate()
            first.wait(10)
    assert "Traceback" not in log.read_text()


def test_a_decision_log_that_cannot_be_opened(folder):
    config(folder, '"decisions.jsonl"', '"token/decisions.jsonl"')
    refused(folder, *RUN, says="token/decisions.jsonl")
    config(folder, '"token/decisions.jsonl"', '"policy"')
    refused(folder, *RUN, says=str(folder / "policy"))


def test_a_repository_that_is_missing(folder):
    refused(folder, "server", "--dir", "nowhere", "--listen", "127.0.0.1:0", says="nowhere")
    refused(
        folder, "head", "--dir", "nowhere", "--environment", "demo", "--key", "keys/head.key", says="nowhere"
    )


def test_nobody_there(folder):
    port = free_port()
    refused(folder, "status", "--admin", f"127.0.0.1:{port}", says=f"127.0.0.1:{port}")
    refused(folder, "status", "--admin", "unix:/nowhere.sock", says="/nowhere.sock")
    refused(folder, "status", "--admin", "nonsense", says="nonsense")
    publish = ("publish", "--url", f"http://127.0.0.1:{port}/", "--token-file", "token", "b.signed")
    refused(folder, *publish, says=f"127.0.0.1:{port}")


def test_init_never_overwrites(folder):
    done = edgeguard("init", "new", cwd=folder)
    assert done.returncode == 0, done.stderr
    before = {file: file.read_bytes() for file in (folder / "new").rglob("*") if file.is_file()}
    refused(folder, "init", "new", says="exists already")
    assert {file: file.read_bytes() for file in (folder / "new").rglob("*") if file.is_file()} == before
