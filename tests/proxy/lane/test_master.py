"""The embedded engine: what it is made of, and how it starts and stops."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from mitmproxy.net import tls as engine_tls

from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.listeners import ListenError
from edgeguard.proxy.master import FIXED_OPTIONS, EdgeMaster, serve, silence_key_logs


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_chain_is_short_and_ours_is_first(lane):
    await lane.start()
    assert [type(addon).__name__ for addon in lane.master.addons.chain] == [
        "EdgeguardAddon",
        "Core",
        "Proxyserver",
        "NextLayer",
        "TlsConfig",
    ]
    for name, value in FIXED_OPTIONS.items():
        assert getattr(lane.master.options, name) == value
    assert lane.master.options.ssl_verify_upstream_trusted_ca == str(lane.certificates.ca_file)
    assert not list(lane.directory.glob("**/mitmproxy-ca.p12"))


async def test_a_port_in_use_is_one_error(lane, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        lane.modes = [f"regular@127.0.0.1:{port}"]
        with pytest.raises(ListenError, match=str(port)):
            await lane.start()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_serve_tells_when_it_is_ready_and_ends_cleanly(lane):
    await lane.start()
    await lane.stop()
    addon = EdgeguardAddon(lane.guard, lane.names, lane.passages, lane.settings)
    edge = EdgeMaster(addon, lane.settings, lane.authority, ["regular@127.0.0.1:0"])
    heard: list = []

    def ready(addresses):
        heard.extend(addresses)
        asyncio.get_running_loop().call_later(0.1, edge.shutdown)

    await asyncio.wait_for(serve(edge, ready=ready), 5)
    assert heard[0][0] == "127.0.0.1"
    with socket.socket() as probe:
        assert probe.connect_ex(heard[0]) != 0
    del lane.task


async def test_open_connections_end_at_shutdown(lane):
    await lane.start()
    up = await lane.upstream("a.test")
    reader, _ = await lane.tunnel("a.test", up.port)
    await lane.stop()
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    assert len(lane.passages) == 0
    del lane.task


def test_session_keys_are_never_logged(monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere")
    monkeypatch.setattr(engine_tls, "log_master_secret", lambda *args: None)
    silence_key_logs()
    assert engine_tls.log_master_secret is None
    assert "SSLKEYLOGFILE" not in os.environ


async def test_no_sockets_are_left_behind(lane, respond):
    """Connections that are cut in the middle of a body release their sockets."""
    await lane.start()
    up = await lane.upstream()
    before = open_files()
    for _ in range(20):
        _, writer = await lane.connect()
        writer.write(
            f"POST http://a.test:{up.port}/ HTTP/1.1\r\nHost: a.test:{up.port}\r\nContent-Length: 99\r\n\r\nx".encode()
        )
        await asyncio.sleep(0.01)
        writer.transport.abort()
    await asyncio.sleep(0.3)
    assert open_files() <= before + 3
    assert len(lane.master.proxyserver.connections) == 0
    assert len(lane.passages) == 0


async def test_a_dial_has_a_deadline(lane):
    lane.bounds["dial_s"] = 0.2
    await lane.start()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = []
        for _ in range(3):  # fill the accept queue, so that a further SYN is not answered
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        await asyncio.sleep(0.05)
        reply = await asyncio.wait_for(
            lane.exchange(f"GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n".encode()), 5
        )
        for filler in fillers:
            filler.close()
    assert b"upstream_unreachable" in reply
