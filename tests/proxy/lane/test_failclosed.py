"""Everything that can raise is made to raise, against the running engine: nothing gets through."""

import asyncio
import contextlib
import ssl

import pytest
from mitmproxy.exceptions import AddonHalt, OptionsError

from edgeguard.policy.decision import Decision, Lane
from edgeguard.proxy import dispatch, failsafe

DECIDING = [
    "client_connected",
    "next_layer",
    "http_connect",
    "requestheaders",
    "tls_clienthello",
    "tls_start_client",
    "tls_established_client",
    "server_connect",
    "tls_start_server",
]
"""Before the request leaves."""
LATE = ["request", "server_connected", "tls_established_server", "responseheaders", "response"]
"""The request may have left; the answer must not arrive."""
AFTER = ["error", "client_disconnected", "server_disconnected", "http_connected"]


class Raises:
    """An addon with one hook."""

    def __init__(self, hook: str, error: type[BaseException], *, asynchronous: bool) -> None:
        def synchronous_hook(data: object) -> None:
            raise error

        async def asynchronous_hook(data: object) -> None:
            await asyncio.sleep(0)
            raise error

        self.name = f"raises-{hook}"
        setattr(self, hook, asynchronous_hook if asynchronous else synchronous_hook)


async def attempt(lane, port: int) -> bytes:
    """One inspected request; whatever came back for it."""
    with contextlib.suppress(ssl.SSLError, OSError, asyncio.IncompleteReadError, TimeoutError):
        reader, writer = await lane.tunnel("a.test", port)
        writer.write(f"GET / HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n".encode())
        return await asyncio.wait_for(reader.read(65536), 3)
    return b""


async def forward(lane, port: int) -> bytes:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        reader, writer = await lane.connect()
        writer.write(f"GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n".encode())
        return await asyncio.wait_for(reader.read(65536), 3)
    return b""


@pytest.mark.parametrize("error", [RuntimeError, AddonHalt, OptionsError], ids=lambda e: e.__name__)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("hook", [*DECIDING, *LATE], ids=lambda hook: f"attack-K04-{hook}")
async def test_a_hook_that_raises_refuses(lane, hook, asynchronous, error):
    raising = Raises(hook, error, asynchronous=asynchronous)
    lane.extra.append(raising)
    await lane.start()
    tls_upstream = await lane.upstream("a.test")
    plain_upstream = await lane.upstream()
    inspected = await attempt(lane, tls_upstream.port)
    assert b"200 OK" not in inspected
    assert not inspected.endswith(b"ok")
    if hook in DECIDING:
        assert tls_upstream.heads == []
    if not hook.startswith("tls_") and hook != "http_connect":
        plain = await forward(lane, plain_upstream.port)
        assert b"200 OK" not in plain
        if hook in DECIDING:
            assert plain_upstream.heads == []
    # The listener lives, and works again once nothing raises.
    lane.master.addons.remove(raising)
    assert b"200 OK" in await attempt(lane, tls_upstream.port)
    assert b"200 OK" in await forward(lane, plain_upstream.port)


@pytest.mark.parametrize(
    "hook", ["client_connected", "next_layer", "http_connect", "tls_clienthello", "server_connect"]
)
async def test_the_tunnel_lane_fails_closed_too(lane, hook):
    lane.guard.decide = lambda facts: Decision(allow=True, lane=Lane.TUNNEL)
    lane.extra.append(Raises(hook, RuntimeError, asynchronous=False))
    await lane.start()
    up = await lane.upstream("a.test")
    assert b"200 OK" not in await attempt(lane, up.port)
    assert up.heads == []


@pytest.mark.parametrize("hook", AFTER)
async def test_a_hook_without_a_decision_may_fail(lane, hook):
    raising = Raises(hook, RuntimeError, asynchronous=False)
    lane.extra.append(raising)
    await lane.start()
    up = await lane.upstream("a.test")
    await attempt(lane, up.port)
    lane.master.addons.remove(raising)
    assert b"200 OK" in await attempt(lane, up.port)


@pytest.mark.parametrize("step", ["identify", "judge", "admit", "settle"])
async def test_a_guard_that_raises_refuses(lane, step):
    await lane.start()
    tls_upstream = await lane.upstream("a.test")
    plain_upstream = await lane.upstream()
    lane.guard.raises = step
    assert b"200 OK" not in await attempt(lane, tls_upstream.port)
    assert b"200 OK" not in await forward(lane, plain_upstream.port)
    assert tls_upstream.connections == plain_upstream.connections == 0
    lane.guard.raises = None
    assert b"200 OK" in await forward(lane, plain_upstream.port)


async def test_a_resolver_that_raises_refuses(lane):
    await lane.start()
    up = await lane.upstream()

    async def fails(host):
        raise ZeroDivisionError

    lane.names.resolve = fails
    reply = await forward(lane, up.port)
    assert b"upstream_unreachable" in reply
    assert up.connections == 0


async def test_the_gate_holds_without_a_grant(lane):
    """A hook that allows without writing a grant reaches nothing."""

    class Grants:
        name = "grants"

        async def requestheaders(self, flow):
            lane.passages.get(flow.client_conn.id).grants.clear()

    lane.extra.append(Grants())
    await lane.start()
    up = await lane.upstream()
    reply = await forward(lane, up.port)
    assert b"502" in reply.split(b"\r\n")[0]
    assert up.connections == 0


async def test_the_whole_matrix_of_hooks_is_known(lane):
    """A hook that a newer engine adds must be looked at."""
    from mitmproxy.hooks import all_hooks

    from edgeguard.proxy import modes

    ours = {modes.EdgeDestinationHook.name}  # forbidden unless the hook says otherwise
    lifecycle = {"configure", "done", "running", "update", "load"}
    no_veto = {
        "server_connected",
        "tls_established_client",
        "tls_established_server",
        "tcp_start",
        "udp_start",
        "websocket_start",
    }
    unused = {"add_log", "flow_detail", "log"}
    assert set(all_hooks) - lifecycle - no_veto - unused - ours - set(failsafe._REFUSALS) == set()


async def test_an_update_hook_is_skipped_when_nobody_has_it(lane):
    await lane.start()
    assert isinstance(lane.master.addons, dispatch.EdgeAddonManager)
    assert lane.master.addons.handlers("update") == ()
    assert lane.master.addons.handlers("requestheaders")[0].__self__ is lane.addon


def test_refusing_never_raises():
    for name in [*failsafe._REFUSALS, "no_such_hook"]:
        failsafe.refuse(name, object())
        failsafe.refuse(name, None)
