"""The admin address: four pages, loopback names only, nothing that changes anything."""

import socket
import stat

import aiohttp
import pytest

from edgeguard.evidence.metrics import Metrics
from edgeguard.proxy.admin import AdminError, AdminServer
from edgeguard.settings import Admin


class Node:
    ready = (True, "fresh")

    def __init__(self, address):
        self.server = AdminServer(
            Admin(address=address), lambda: {"ladder": "fresh"}, lambda: self.ready, Metrics()
        )


@pytest.fixture
async def node():
    node = Node("127.0.0.1:0")
    await node.server.start()
    yield node
    await node.server.stop()


async def get(node, path, method="GET", **headers):
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{node.server.address}{path}", headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers


async def test_pages(node):
    assert (await get(node, "/healthz"))[:2] == (200, "ok\n")
    assert (await get(node, "/readyz"))[:2] == (200, "ready: fresh\n")
    status, text, headers = await get(node, "/status")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert '"ladder": "fresh"' in text
    status, text, headers = await get(node, "/metrics")
    assert status == 200
    assert "edgeguard_build_info" in text
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert headers["Cache-Control"] == "no-store"


async def test_not_ready_says_why(node):
    node.ready = (False, "policy_expired")
    assert (await get(node, "/readyz"))[:2] == (503, "not ready: policy_expired\n")
    assert (await get(node, "/healthz"))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_reads_only(node, method):
    status, _, headers = await get(node, "/status", method)
    assert status == 405
    assert headers["Allow"] == "GET,HEAD"


async def test_other_paths(node):
    assert (await get(node, "/"))[0] == 404
    assert (await get(node, "/config"))[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9901", "127.0.0.1.evil.example", "10.0.0.1:9901", "[fd00::1]"]
)
async def test_rebinding_is_refused(node, host):
    status, text, _ = await get(node, "/status", Host=host)
    assert status == 421
    assert "ladder" not in text


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9901", "127.0.0.1", "127.0.0.2:1", "[::1]:9901", "[::1]"]
)
async def test_loopback_names_are_answered(node, host):
    assert (await get(node, "/status", Host=host))[0] == 200


async def test_unix_socket_is_private_and_removed(tmp_path):
    path = tmp_path / "run" / "admin.sock"
    node = Node(f"unix:{path}")
    await node.server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://localhost/healthz") as response,
    ):
        assert response.status == 200
    await node.server.stop()
    assert not path.exists()


async def test_leftover_socket_is_replaced_but_a_live_one_is_not(tmp_path):
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first, second = Node(f"unix:{path}"), Node(f"unix:{path}")
    await first.server.start()
    with pytest.raises(AdminError, match=r"cannot listen on .admin. address unix:.*Address already in use"):
        await second.server.start()
    assert path.exists()
    await first.server.stop()


async def test_port_in_use_is_one_clear_error(node):
    taken = node.server.address
    with pytest.raises(AdminError, match=f"cannot listen on .admin. address {taken}: Address already in use"):
        await Node(taken).server.start()


async def test_no_address_serves_nothing():
    node = Node("")
    await node.server.start()
    assert node.server.address == ""
    await node.server.stop()
