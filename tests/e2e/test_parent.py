"""A whole node behind a stock squid: every lane reaches its upstream through CONNECT with the checked address."""

import json
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.e2e.kit import NAMES, Place, edgeguard, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.long

SQUID = """\
http_port 127.0.0.1:{port}
http_access allow CONNECT
http_access deny all
logformat short %>rm %ru %>Hs
access_log stdio:{home}/access.log short
cache_log {home}/cache.log
pid_filename none
coredump_dir {home}
cache deny all
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname parent
dns_nameservers 127.0.0.1
"""
PARENT = """\
[resolver]
mode = "static"
[resolver.static]
{table}
[upstream.proxy]
address = "127.0.0.1:{port}"
allow_internal = true
no_proxy = ["near.example"]
"""
TABLE = "\n".join(f'"{name}" = ["127.0.0.1"]' for name in NAMES)


@pytest.fixture(scope="module")
def squid(needs):
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o777)  # squid gives up root and still writes here
        (home / "squid.conf").write_text(SQUID.format(port=port, home=home))
        command = [needs("squid"), "-N", "-f", str(home / "squid.conf")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            yield SimpleNamespace(port=port, log=home / "access.log")
            process.kill()


@pytest.fixture(scope="module")
def behind(tmp_path_factory, keys, squid):
    text = PARENT.format(table=TABLE, port=squid.port)
    with Place(tmp_path_factory.mktemp("behind"), keys, resolver=text) as running:
        running.client = running.start_all()
        running.squid = squid
        yield running


def asked(squid):
    return squid.log.read_text().splitlines() if squid.log.exists() else []


@pytest.mark.parametrize(
    ("host", "path", "port"),
    [
        pytest.param("tunnel.example", "/", "tls", id="attack-C19-tunnel"),
        pytest.param("site.example", "/ok/x", "tls", id="attack-C19-inspected"),
        pytest.param("plain.example", "/ok/x", "http", id="attack-C19-plain"),
    ],
)
def test_every_lane_asks_for_the_address(behind, host, path, port):
    before, port = len(asked(behind.squid)), getattr(behind, port)
    call = behind.client.http if port == behind.http else behind.client.https
    seen = call(host, port, path)
    assert (seen.status, seen.error) == (200, None)
    assert json.loads(seen.body)["host"] in {host, f"{host}:{port}"}
    wait_until(lambda: len(asked(behind.squid)) > before, "squid to log")
    lines = asked(behind.squid)[before:]
    assert set(lines) == {f"CONNECT 127.0.0.1:{port} 200"}


def test_what_is_denied_here_is_not_asked_for(behind):
    before = asked(behind.squid)
    assert behind.client.https("evil.example", behind.tls).status == 403
    assert asked(behind.squid) == before


def test_attack_C20_a_parent_on_loopback_has_to_be_said(tmp_path):
    config = tmp_path / "edgeguard.toml"
    config.write_text('environment = "dev"\n[upstream.proxy]\naddress = "127.0.0.1:3128"\n')
    done = edgeguard("run", "--config", config, cwd=tmp_path)
    assert done.returncode != 0
    assert "edgeguard.toml:2: upstream.proxy: 127.0.0.1 is not a public address" in done.stderr
    assert "set allow_internal = true" in done.stderr
