"""The commands `server`, `publish` and `sync`, as processes."""

import datetime as dt
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from edgeguard.cli import publish, server, sync
from tests.server.conftest import TOKEN

PROGRAM = """
import typer
from edgeguard.cli import publish, server, sync
app = typer.Typer(pretty_exceptions_enable=False)
for group in (publish, server, sync):
    group.register(app)
app()
"""


def edgeguard(*arguments, env=None, check=None):
    """In this process, to save its start."""
    app = typer.Typer(pretty_exceptions_enable=False)
    for group in (publish, server, sync):
        group.register(app)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if check is not None:
        assert done.exit_code == check, done.stderr
    return done


class Server:
    def __init__(self, *arguments):
        ready, write = os.pipe()
        command = [sys.executable, "-c", PROGRAM, "server", *map(str, arguments), "--ready-fd", str(write)]
        self.process = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.PIPE, text=True)
        os.close(write)
        with os.fdopen(ready) as pipe:
            self.url = pipe.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, self.errors = self.process.communicate(timeout=10)
        assert "Traceback" not in self.errors, self.errors


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def test_from_publishing_to_an_enforced_policy(served, authority, tmp_path, token_file):
    from dataclasses import replace

    from tests.sync.signing import policy_for

    authority = replace(authority, policy=policy_for("one.example"))
    bundle = authority.bundle(2)
    for name, data in (("b", bundle), ("h", authority.head(2, bundle, 2)), ("r", authority.root())):
        (tmp_path / name).write_bytes(data)
    state = tmp_path / "state"
    with Server("--dir", served, "--listen", "127.0.0.1:0", "--token-file", token_file) as running:
        done = edgeguard(
            "publish",
            "--url",
            running.url,
            "--token-file",
            token_file,
            tmp_path / "h",
            tmp_path / "b",
            check=0,
        )
        assert "bundle 2 published at blobs/" in done.stdout
        assert "head 2 published at test/head" in done.stdout
        edgeguard("sync", "init", "--state", state, "--root", tmp_path / "r", "--env", "test", check=0)
        report = json.loads(
            edgeguard("sync", "refresh", "--state", state, "--url", running.url, "--json", check=0).stdout
        )
        assert (report["ladder"], report["bundle"]["version"]) == ("fresh", 2)
        assert Path(report["files"]["bundle"]).read_bytes() == bundle
        later = ("--now", str(authority.now + 7200))
        edgeguard("sync", "refresh", "--state", state, "--url", running.url, *later, check=1)
    status = json.loads(edgeguard("sync", "status", "--state", state, "--json", check=0).stdout)
    assert (status["ladder"], status["last_refusal"], status["last_failure"]["code"]) == (
        "fresh",
        None,
        "freeze",
    )
    status = json.loads(
        edgeguard("sync", "status", "--state", state, "--now", str(authority.now + 7200), "--json").stdout
    )
    assert status["ladder"] == "restricted"
    edgeguard("sync", "refresh", "--state", state, "--url", "http://127.0.0.1:9/", check=1)
    edgeguard("sync", "refresh", "--state", state, "--url", "http://bundles.example/", check=2)
    edgeguard("sync", "refresh", "--state", state, check=2)
    bad = edgeguard(
        "sync", "init", "--state", tmp_path / "x", "--root", tmp_path / "b", "--env", "test", check=1
    )
    assert "the root is refused" in bad.stderr
    assert not (tmp_path / "x").exists()


def test_stopping_is_quick_and_quiet(served):
    with Server("--dir", served, "--listen", "127.0.0.1:0") as running:
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert running.process.returncode in {0, -signal.SIGTERM}
    assert "publishing off" in running.errors


def test_messages_say_what_and_how_to_mend(served, tmp_path, token_file):
    with Server("--dir", served, "--listen", "127.0.0.1:0") as running:
        port = running.url.rstrip("/").rsplit(":", 1)[1]
        done = edgeguard("server", "--dir", served, "--listen", f"127.0.0.1:{port}", check=1)
        assert "Address already in use" in done.stderr
        assert "choose another port" in done.stderr
        (tmp_path / "junk").write_text("junk")
        done = edgeguard(
            "publish", "--url", running.url, "--token-file", token_file, tmp_path / "junk", check=1
        )
        assert "junk: not published (malformed)" in done.stderr
    assert "no such folder" in edgeguard("server", "--dir", tmp_path / "none", check=1).stderr
    assert (
        "write an address and a port" in edgeguard("server", "--dir", served, "--listen", "x", check=2).stderr
    )
    token_file.write_text("short")
    done = edgeguard("server", "--dir", served, "--token-file", token_file, check=2)
    assert "line 1" in done.stderr
    assert "short" not in done.stderr.replace("short\n", "")
    done = edgeguard("publish", "--url", "http://127.0.0.1:9/", tmp_path / "junk", check=2)
    assert "EDGEGUARD_PUBLISH_TOKEN" in done.stderr


def test_without_the_extra_the_server_says_so(served):
    block = "import sys\nsys.modules['uvicorn'] = None\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", block, "server", "--dir", str(served)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'edgeguard[server]'" in done.stderr.replace("\n", " ")


@pytest.fixture
def certificate(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, False, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_https_with_an_authority_of_its_own(served, certificate, token_file, tmp_path, authority):
    cert, key = certificate
    (tmp_path / "b").write_bytes(authority.bundle(2))
    arguments = ("--dir", served, "--listen", "127.0.0.1:0", "--token-file", token_file)
    with Server(*arguments, "--certificate", cert, "--key", key) as running:
        assert running.url.startswith("https://")
        command = ("publish", "--url", running.url, "--token-file", token_file, tmp_path / "b")
        assert "unreachable" in edgeguard(*command, check=1).stderr
        edgeguard(*command, "--ca-file", cert, check=0)
        edgeguard(
            "publish",
            "--url",
            running.url,
            tmp_path / "b",
            "--ca-file",
            cert,
            env={"EDGEGUARD_PUBLISH_TOKEN": TOKEN},
            check=0,
        )
