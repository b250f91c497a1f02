"""The agent against a real server: in its own thread, woken, starved, restarted, killed."""

import threading
import time
from dataclasses import replace

import pytest

from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.snapshot import Ladder
from edgeguard.server.app import ServerLimits
from edgeguard.sync.agent import SyncAgent
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import FetchLimits
from edgeguard.sync.store import Store, StoreError
from tests.server.conftest import Running
from tests.sync.signing import HOUR, lay_out, place, policy_for


def row(*names):
    return pytest.mark.parametrize("case", [pytest.param(None, id=name) for name in names])


class Watcher:
    def __init__(self):
        self.snapshots = []
        self.events = []
        self.threads = set()

    def on_snapshot(self, snapshot):
        self.threads.add(threading.current_thread().name)
        self.snapshots.append(snapshot)

    @property
    def version(self):
        return self.snapshots[-1].bundle_version if self.snapshots and self.snapshots[-1] else None

    def until(self, condition, timeout=8.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)


@pytest.fixture
def watcher():
    return Watcher()


@pytest.fixture
def begin(tmp_path, authority, watcher):
    agents = []

    def make(*urls, start=True, root=None, **changes):
        options = {
            "long_poll_s": 20.0,
            "poll_s": 0.2,
            "backoff_base_s": 0.05,
            "backoff_max_s": 0.2,
            "pause_s": 0.02,
            "reconcile_s": 0.1,
            "fetch": FetchLimits(deadline_s=2.0),
        }
        config = SyncConfig(authority.env, tmp_path / "state", urls, **(options | changes))
        agent = SyncAgent(config, root or authority.root(), watcher.on_snapshot, watcher.events.append)
        agents.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in agents:
        agent.stop()
        assert agent._thread is None or not agent._thread.is_alive()


def release(directory, authority, version):
    bundle = replace(authority, policy=policy_for(f"v{version}.example")).bundle(version)
    lay_out(directory, authority.env, blobs=[bundle])
    place(directory / authority.env / "head", authority.head(version, bundle, version))


async def test_a_change_arrives_within_the_long_poll(served, start, begin, watcher, authority):
    running = start(served)
    agent = begin(running.url)
    watcher.until(lambda: watcher.version == 1)
    watcher.until(lambda: running.app.state.server.watch.waiting == 1)
    began = time.monotonic()
    release(served, authority, 2)
    watcher.until(lambda: watcher.version == 2)
    assert time.monotonic() - began < 1.5
    assert watcher.threads == {"edgeguard-sync"}
    status = agent.status()
    assert (status["ladder"], status["bundle"]["version"]) == ("fresh", 2)
    assert status["servers"] == [{"url": running.url, "last": "ok"}]


@row("fault-E7-server-down")
async def test_a_restart_without_a_server_enforces_at_once(served, begin, watcher, authority, case):
    running = Running(served).start()
    agent = begin(running.url)
    watcher.until(lambda: watcher.version == 1)
    running.stop()
    agent.stop()
    watcher.snapshots.clear()
    began = time.monotonic()
    agent = begin(running.url)
    assert watcher.version == 1  # before `start` returns
    assert time.monotonic() - began < 1
    watcher.until(lambda: agent.status()["servers"][0]["last"] == "unreachable")
    assert agent.status()["ladder"] == "fresh"


async def test_a_server_that_comes_back_is_found(served, begin, watcher, authority):
    first = Running(served).start()
    agent = begin(first.url)
    watcher.until(lambda: watcher.version == 1)
    first.stop()
    release(served, authority, 2)
    watcher.until(lambda: agent.status()["servers"][0]["last"] == "unreachable")
    second = Running(served, port=first.port).start()
    try:
        watcher.until(lambda: watcher.version == 2)
        assert any(event.kind == "recovered" for event in watcher.events)
    finally:
        second.stop()


@row("fault-B21")
async def test_deadlines_need_no_poll(served, start, begin, watcher, authority, case):
    bundle = authority.bundle(1)
    now = int(time.time())
    place(served / "test" / "head", authority.head(2, bundle, issued_at=now, expires_at=now + 2))
    running = start(served)
    agent = begin(running.url, long_poll_s=0.0, poll_s=500.0)
    watcher.until(lambda: watcher.version == 1)
    watcher.until(lambda: agent.status()["cycles"] == 2)  # after a change it looks once more, then rests
    snapshot = watcher.snapshots[-1]
    assert snapshot.ladder(agent.clock.now()) is Ladder.FRESH
    watcher.until(lambda: snapshot.ladder(agent.clock.now()) is Ladder.RESTRICTED)
    assert time.time() >= now + 2
    assert agent.status()["ladder"] == "restricted"
    assert agent.status()["cycles"] == 2


async def test_refresh_ends_the_waiting(served, start, begin, watcher, authority):
    running = start(served)
    agent = begin(running.url, pause_s=0.01)
    watcher.until(lambda: running.app.state.server.watch.waiting == 1)
    before = agent.status()["cycles"]
    agent.refresh()
    watcher.until(lambda: agent.status()["cycles"] > before, timeout=2)


async def test_a_server_without_long_poll_is_polled(served, start, begin, watcher, authority):
    running = start(served, limits=ServerLimits(wait_s=0))
    begin(running.url)
    watcher.until(lambda: watcher.version == 1)
    release(served, authority, 2)
    watcher.until(lambda: watcher.version == 2)


async def test_any_static_web_server_will_do(served, begin, watcher, authority):
    import functools
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))
    ) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            agent = begin(f"http://127.0.0.1:{web.server_port}/")
            watcher.until(lambda: watcher.version == 1)
            release(served, authority, 2)
            watcher.until(lambda: watcher.version == 2)
            agent.stop()
        finally:
            web.shutdown()
            thread.join()


@row("fault-E18")
def test_a_storm_of_heads_is_slowed_down(served, start, begin, watcher, authority, case):
    running = start(served)
    agent = begin(running.url, pause_s=0.3)
    watcher.until(lambda: watcher.version == 1)
    before = agent.status()["cycles"]
    began = time.monotonic()
    bundle = authority.bundle(1)
    for version in range(2, 40):
        place(served / "test" / "head", authority.head(version, bundle))
        time.sleep(0.03)
    cycles = agent.status()["cycles"] - before
    assert cycles <= (time.monotonic() - began) / 0.3 + 2


async def test_what_cannot_be_started_says_so(begin, tmp_path, authority):
    with pytest.raises(Refusal):
        begin("http://127.0.0.1:9/", root=authority.root(signers=[]))
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(StoreError, match="chmod 700"):
        begin("http://127.0.0.1:9/")
    with pytest.raises(ValueError, match="loopback"):
        begin("http://bundles.example/")
    with pytest.raises(ValueError, match="no certificates can be read"):
        begin("http://127.0.0.1:9/", ca_file=str(tmp_path / "none"))


async def test_without_servers_the_state_is_enforced(served, start, begin, watcher):
    running = start(served)
    first = begin(running.url)
    watcher.until(lambda: watcher.version == 1)
    first.stop()
    watcher.snapshots.clear()
    agent = begin()
    assert watcher.version == 1
    assert agent.status()["servers"] == []


async def test_drift_in_what_is_enforced_heals(served, start, authority, tmp_path, watcher):
    running = start(served)
    config = SyncConfig(
        authority.env,
        tmp_path / "state",
        (running.url,),
        long_poll_s=0,
        poll_s=0.1,
        pause_s=0.05,
        reconcile_s=0.05,
    )
    enforced = []
    agent = SyncAgent(
        config,
        authority.root(),
        enforced.append,
        watcher.events.append,
        enforced=lambda: enforced[-1] if enforced else None,
    )
    agent.start()
    try:
        watcher.until(lambda: enforced[-1] is not None)
        good = enforced[-1]
        enforced.append(None)
        watcher.until(lambda: enforced[-1] is not None)
        assert enforced[-1].bundle_id == good.bundle_id
        assert any(event.code == "generation" and event.alarm for event in watcher.events)
    finally:
        agent.stop()


@row("fault-C25")
async def test_a_stuck_server_costs_the_traffic_loop_nothing(begin, watcher, authority, case):
    import asyncio

    async def stuck(_reader, writer):
        try:
            await asyncio.sleep(60)
        finally:
            writer.close()

    listening = await asyncio.start_server(stuck, "127.0.0.1", 0)
    agent = begin(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/")
    gaps = []
    for _ in range(100):
        began = time.monotonic()
        await asyncio.sleep(0.005)
        gaps.append(time.monotonic() - began)
    assert sorted(gaps)[90] < 0.05
    await asyncio.to_thread(agent.stop)
    listening.close()
    listening.close_clients()
    await listening.wait_closed()
    await asyncio.sleep(0.05)


async def test_two_agents_on_one_folder(served, start, begin, watcher):
    running = start(served)
    begin(running.url)
    second = begin(running.url)
    watcher.until(lambda: watcher.version == 1)
    watcher.until(lambda: second.status()["bundle"] is not None)
    assert second.status()["writable"] is False


def test_a_folder_in_use_is_read_by_status(tmp_path, authority):
    import asyncio

    from edgeguard.sync.profile import Profile, run_refresh, run_status

    asyncio.run(Profile(authority.env).keep(tmp_path / "s", authority.root()))
    held = Store.open(tmp_path / "s")
    with pytest.raises(StoreError, match="another process"):
        asyncio.run(run_refresh(tmp_path / "s", ["http://127.0.0.1:9/"]))
    assert asyncio.run(run_status(tmp_path / "s"))["ladder"] == "closed"
    held.close()
    with pytest.raises(StoreError, match="not prepared"):
        asyncio.run(run_refresh(tmp_path / "other", ["http://127.0.0.1:9/"]))
    with pytest.raises(StoreError, match="another root"):
        asyncio.run(
            Profile(authority.env).keep(tmp_path / "s", authority.root(expires_at=authority.now + HOUR))
        )


async def test_a_new_root_ends_the_waiting(served, start, begin, watcher, authority):
    """A rotation is seen at once, not only when the head changes or the long poll is over."""
    running = start(served)
    agent = begin(running.url, long_poll_s=20.0, poll_s=10.0)
    watcher.until(lambda: running.app.state.server.watch.waiting == 1)
    began = time.monotonic()
    place(served / "root" / "2.root", replace(authority, release_keys=("release-a", "release-b")).root(2))
    watcher.until(lambda: agent.status()["root"]["version"] == 2)
    assert time.monotonic() - began < 2
    watcher.until(lambda: running.app.state.server.watch.waiting == 1)  # and it waits again


async def test_the_ladder_is_reported_when_a_deadline_passes(served, start, begin, watcher, authority):
    now = int(time.time())
    head = authority.head(2, authority.bundle(1), issued_at=now, expires_at=now + 2)
    place(served / "test" / "head", head)
    begin(start(served).url, long_poll_s=0.0, poll_s=500.0)
    watcher.until(lambda: watcher.version == 1)
    watcher.until(lambda: any(event.kind == "ladder" and event.alarm for event in watcher.events))
    moved = [event for event in watcher.events if event.kind == "ladder" and event.alarm]
    assert [(event.code, event.alarm) for event in moved] == [("restricted", True)]
    assert moved[0].at - (now + 2) < 0.5


def test_every_cycle_compares(served, start, begin, watcher, authority, tmp_path):
    """Also between the full readings: what is gone from the disk is back after one poll."""
    agent = begin(start(served).url, long_poll_s=0, poll_s=0.1, reconcile_s=3600.0)
    watcher.until(lambda: agent.status()["cycles"] > 1)
    for path in (tmp_path / "state").glob("bundle.*"):
        path.unlink()
    watcher.until(lambda: list((tmp_path / "state").glob("bundle.*")))
    watcher.until(lambda: agent.counts["drift", "disk_missing"] == 1)
    watcher.until(lambda: not any(agent.drifting.values()))
    for path in (tmp_path / "state").glob("bundle.*"):
        path.write_bytes(b"x")
    watcher.until(lambda: agent.counts["drift", "disk_damaged"] == 1)
    watcher.until(lambda: not any(agent.drifting.values()))
    assert agent.status()["drift"] == []


async def test_a_node_that_never_gets_a_policy_says_so(begin, watcher):
    begin("http://127.0.0.1:9/")
    watcher.until(lambda: any(event.kind == "ladder" for event in watcher.events))
    (event,) = [event for event in watcher.events if event.kind == "ladder"]
    assert (event.code, event.alarm) == ("closed", True)
