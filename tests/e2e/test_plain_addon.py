"""The addon under stock mitmdump, against the policy that a real bundle server serves: the same verdicts."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeguard.demo.client import Client
from tests.e2e.kit import free_port, plain_environment, wait_until

PLAIN = find_spec("edgeguard.proxy.plain").origin
MITMDUMP = Path(sys.executable).with_name("mitmdump")


@pytest.fixture(scope="module")
def addon(place, tmp_path_factory):
    """A second node beside the world's proxy, with a state and a log of its own."""
    folder = tmp_path_factory.mktemp("addon")
    for name in ("root.msgpack", "upstream-ca.pem"):
        shutil.copy(place.folder / name, folder / name)
    admin = free_port()
    text = (place.folder / "edgeguard.toml").read_text()
    text = text.replace(str(place.decisions), str(folder / "decisions.jsonl")).replace(
        str(place.admin), str(admin)
    )
    (folder / "edgeguard.toml").write_text(text)
    port = free_port()
    log = folder / "mitmdump.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [MITMDUMP, "-s", PLAIN, "--listen-host", "127.0.0.1", "--listen-port", str(port)],
            cwd=folder,
            env={**plain_environment(), "EDGEGUARD_CONFIG": str(folder / "edgeguard.toml")},
            stdout=output,
            stderr=output,
        )
    try:
        authorities = folder / "both.pem"
        own = folder / "state/ca/mitmproxy-ca-cert.pem"
        wait_until(own.exists, "the addon's authority", within_s=20)
        authorities.write_bytes((folder / "upstream-ca.pem").read_bytes() + own.read_bytes())
        client = Client(port, authorities)

        def fresh():
            assert process.poll() is None, log.read_text()
            return client.http("plain.example", place.http, "/ok/").status == 200

        wait_until(fresh, "an allowed request", within_s=20)
        yield client
    finally:
        process.terminate()
        process.wait(10)
    assert "Traceback" not in log.read_text()


CASES = [
    pytest.param("https", "site.example", "tls", "/ok/page", "GET", None, id="path-allowed"),
    pytest.param("https", "tunnel.example", "tls", "/any", "GET", None, id="tunnel-allowed"),
    pytest.param("http", "plain.example", "http", "/ok/page", "GET", None, id="plain-allowed"),
    pytest.param("https", "site.example", "tls", "/secret", "GET", "path_not_allowed", id="path"),
    pytest.param("https", "site.example", "tls", "/ok/x", "DELETE", "method_not_allowed", id="method"),
    pytest.param("https", "evil.example", "tls", "/", "GET", "host_not_allowed", id="host"),
    pytest.param("https", "tunnel.example", "http", "/", "GET", "port_not_allowed", id="port"),
    pytest.param("http", "evil.example", "http", "/", "GET", "host_not_allowed", id="plain-host"),
    pytest.param("http", "plain.example", "http", "/secret", "GET", "path_not_allowed", id="plain-path"),
]


@pytest.mark.parametrize(("scheme", "host", "port", "path", "method", "reason"), CASES)
def test_the_addon_and_the_front_door_agree(place, addon, scheme, host, port, path, method, reason):
    for client in (place.client, addon):
        before = place.upstream.connections
        seen = getattr(client, scheme)(host, getattr(place, port), path, method=method)
        assert (seen.status, seen.reason) == ((200, None) if reason is None else (403, reason))
        if reason in {"host_not_allowed", "port_not_allowed"}:
            assert place.upstream.connections == before


def test_without_settings_mitmdump_does_not_serve(tmp_path):
    done = subprocess.run(
        [MITMDUMP, "-s", PLAIN, "--listen-host", "127.0.0.1", "--listen-port", str(free_port())],
        cwd=tmp_path,
        env={**plain_environment(), "HOME": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert "edgeguard has no settings" in done.stdout + done.stderr
