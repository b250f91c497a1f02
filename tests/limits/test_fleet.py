"""Nodes that share a store: never more than the limit, whatever becomes of the store."""

import asyncio
import time

import pytest
from pydantic import SecretStr

from edgeguard.limits import scripts
from edgeguard.limits.fleet import FleetLimiter
from edgeguard.limits.store import StoreMissingError
from edgeguard.limits.taken import SEAT_RETRY_NS
from edgeguard.settings import Limits
from tests.limits.kit import SECOND, Peers, StoreServer, come, node, take
from tests.limits.kit import hit as any_hit

pytestmark = pytest.mark.usefixtures("redis")

HOUR = 3600 * SECOND


def hit(*args, **kwargs):
    return any_hit(*args, scope="fleet", **kwargs)


@pytest.fixture(scope="module")
def server(tmp_path_factory, redis):
    server = StoreServer(tmp_path_factory.mktemp("store"))
    yield server
    server.stop()


@pytest.fixture
def store(server):
    server.say("FLUSHALL")
    return server


async def allowed(limiter, times, *hits):
    return sum([(await take(limiter, *hits)).allowed for _ in range(times)])


# One store, several nodes


@pytest.mark.parametrize("exact", [False, True])
async def test_two_nodes_share_one_quota(store, exact):
    shared = hit(quota=20, period_ns=HOUR, exact=exact)
    async with node(store) as one, node(store) as two:
        assert await allowed(one, 15, shared) + await allowed(two, 15, shared) == 20
        refused = await take(two, shared)
        assert (refused.limit, refused.allowed) == ("l", False)
        assert 170 * SECOND < refused.retry_after_ns <= 180 * SECOND
        assert refused.states[0].remaining == 0


async def test_the_store_knows_no_names_and_forgets_every_key(store):
    async with node(store) as one:
        await take(one, hit("stripe-per-client", "name:checkout", quota=10))
        (key,) = [key for key in await one._store.scan("*") if "peers" not in key]
        assert key.startswith("edgeguard:test:")
        assert key.count("{") == 1, "a hash tag, so that a cluster can place it"
        assert "checkout" not in key
        assert "stripe" not in key
        assert 0 < int(store.say("PTTL", key)[1:]) <= 2100


async def test_concurrent_requests_share_a_round_trip_and_the_quota_to_the_unit(store):
    shared = hit(quota=50, period_ns=HOUR)
    async with node(store) as one:
        before = one.status(time.monotonic_ns())["round_trips"]
        answers = await asyncio.gather(*[take(one, shared) for _ in range(80)])
        assert sum(taken.allowed for taken in answers) == 50
        assert one.status(time.monotonic_ns())["round_trips"] - before <= 4


async def test_refused_request_drains_no_sibling(store):
    narrow, wide = hit("narrow", quota=1, period_ns=HOUR), hit("wide", quota=100, period_ns=HOUR)
    other = hit("other", quota=100, period_ns=HOUR, exact=True)
    async with node(store) as one, node(store) as two:
        assert (await take(one, narrow, wide, other)).allowed
        for _ in range(10):
            assert (await take(two, narrow, wide, other)).limit == "narrow"
        await asyncio.sleep(0.02)
        left = {state.limit: state.remaining for state in (await take(one, wide, other)).states}
        assert left == {"wide": 98, "other": 98}


async def test_whoever_leaves_while_it_waits_is_not_charged(store):
    shared = hit(quota=5, period_ns=HOUR, exact=True)
    seat = hit("seats", unit="concurrent_tunnels", quota=2)
    async with node(store) as one:
        for _ in range(6):
            waiting = asyncio.ensure_future(one.reserve((shared, seat), time.monotonic_ns()))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.sleep(0.01)
        assert await allowed(one, 7, shared) == 5
        assert await allowed(one, 3, seat) == 2


async def test_ticket_that_is_not_redeemed_goes_back(store):
    shared = hit(quota=2, period_ns=HOUR)
    seat = hit("seats", unit="concurrent_tunnels", quota=1)
    async with node(store) as one:
        for _ in range(3):
            one.give_back(await one.reserve((shared, seat), time.monotonic_ns()))
            await asyncio.sleep(0.01)
        assert await allowed(one, 3, shared) == 2
        assert (await take(one, seat)).allowed


async def test_report_mode_counts_apart_and_waits_for_nobody(store):
    shadow, real = hit(quota=3, period_ns=HOUR, enforced=False), hit(quota=3, period_ns=HOUR)
    async with node(store) as one:
        assert one.reserve((shadow,), time.monotonic_ns()) is None
        would = []
        for _ in range(8):
            would.append((await take(one, shadow)).would)
            await asyncio.sleep(0.01)
        assert would[:3] == [()] * 3
        assert would[-4:] == [("l",)] * 4
        assert await allowed(one, 5, real) == 3


async def test_changed_limit_keeps_its_counter_and_locks_nobody_out(store):
    async with node(store) as one:
        assert await allowed(one, 12, hit(quota=10, period_ns=HOUR)) == 10
        assert await allowed(one, 3, hit(quota=20, period_ns=HOUR)) == 0
        fast = hit(quota=100, burst=10)
        assert not (await take(one, fast)).allowed
        await asyncio.sleep(0.03)
        assert (await take(one, fast)).allowed


async def test_bytes_are_spent_after_the_fact(store):
    budget = hit(unit="bytes", quota=1000, period_ns=HOUR)
    async with node(store) as one, node(store) as two:
        assert (await take(one, budget)).allowed
        assert one.spend((budget,), time.monotonic_ns(), 400).allowed
        one.spend((budget,), time.monotonic_ns(), 5000)
        await asyncio.sleep(0.02)
        assert one.spend((budget,), time.monotonic_ns(), 1).limit == "l"
        assert not (await take(two, budget)).allowed


async def test_seats_are_shared_and_come_back_when_a_node_falls_silent(store):
    seat = hit(unit="concurrent_tunnels", quota=2)
    async with node(store) as one, node(store) as two:
        assert (await take(one, seat)).allowed
        assert (await take(two, seat)).allowed
        refused = await take(one, seat)
        assert (refused.allowed, refused.retry_after_ns) == (False, SEAT_RETRY_NS)
        two.release((seat,))
        await asyncio.sleep(0.02)
        assert (await take(two, seat)).allowed
        two._store._watch.cancel()  # the node is frozen: no beat, no farewell
        assert not (await take(one, seat)).allowed
        await asyncio.sleep(0.7)
        assert (await take(one, seat)).allowed
        assert not (await take(one, seat)).allowed


async def test_a_cluster_serves_every_key(tmp_path):
    cluster = StoreServer(tmp_path, cluster=True)
    try:
        hits = [hit(key=str(n), quota=2, period_ns=HOUR) for n in range(8)]
        seat = hit("seats", unit="concurrent_tunnels", quota=1)
        async with node(cluster, cluster=True) as one:
            assert [await allowed(one, 3, h) for h in hits] == [2] * 8
            assert await allowed(one, 2, seat) == 1
    finally:
        cluster.stop()


async def test_keys_of_one_limit_are_bounded_on_every_node(store):
    async with node(store) as one:
        one._max_keys = 20
        victim = hit(key="victim", quota=2, period_ns=HOUR)
        assert await allowed(one, 3, victim) == 2
        others = sum(
            [await allowed(one, 1, hit(key=f"junk-{n}", quota=1, period_ns=HOUR)) for n in range(60)]
        )
        assert others == 20
        assert await allowed(one, 2, victim) == 0
        assert one.usage()["l"].keys == 20
        assert one.usage()["l"].overflowed >= 40


async def test_reset_forgets_one_key_or_everything(store):
    hits = [hit(limit, key, quota=1, period_ns=HOUR) for limit in "ab" for key in "xy"]
    async with node(store) as one:
        assert [await allowed(one, 2, h) for h in hits] == [1] * 4
        assert await one.reset("a", "x") == 1
        assert [await allowed(one, 1, h) for h in hits] == [1, 0, 0, 0]
        assert await one.reset("a", None) == 2
        assert [await allowed(one, 1, h) for h in hits] == [1, 1, 0, 0]
        assert await one.reset(None, None) == 4


# Four nodes under load

LOAD = """
import asyncio, json, sys, time
from types import SimpleNamespace
from tests.limits.kit import hit, node, take
url, quota, burst = json.loads(sys.argv[1])
async def main():
    async with node(SimpleNamespace(url=url), peers_s=60.0) as limiter:
        print('"ready"', flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            begin, end, (name, rate) = json.loads(line)
            shared = hit(name, scope="fleet", quota=quota, burst=burst)
            await asyncio.sleep(max(0, (begin - time.monotonic_ns()) / 1e9))
            stamps, checks, due, before = [], 0, time.monotonic_ns(), limiter.status(0)["round_trips"]
            while (now := time.monotonic_ns()) < end:
                while due <= now:
                    due += int(1e9 / rate)
                    checks += 1
                    if (await take(limiter, shared)).allowed:
                        stamps.append(time.monotonic_ns())
                await asyncio.sleep(0.002)
            print(json.dumps([stamps, checks, limiter.status(0)["round_trips"] - before]), flush=True)
asyncio.run(main())
"""
QUOTA, BURST = 300, 300


@pytest.fixture(scope="module")
def gateways(server):
    with Peers(LOAD, [[server.url, QUOTA, BURST]] * 4) as peers:
        yield peers


@pytest.mark.parametrize("rates", [(250, 250, 250, 250), (940, 20, 20, 20)], ids=["even", "skewed"])
def test_four_nodes_admit_the_limit_and_not_more_in_any_window(gateways, rates):
    for attempt in range(3):
        answers = gateways.go(2.5, [[f"{rates}-{attempt}", rate] for rate in rates])
        stamps = sorted(stamp for answer in answers for stamp in answer[0])
        checks, trips = (sum(answer[n] for answer in answers) for n in (1, 2))
        ideal = BURST + QUOTA * (stamps[-1] - stamps[0]) / SECOND
        assert len(stamps) <= ideal + 1
        # Between the store's grant and the stamp lies the way back to the node: that much a window may be short.
        late = SECOND // 20
        for first in range(0, len(stamps), 7):
            for last in range(first + BURST, len(stamps), 13):
                window = stamps[last] - stamps[first] + late
                assert last - first + 1 <= BURST + QUOTA * window / SECOND + 1
        if len(stamps) >= 0.97 * ideal:
            break  # a machine that is busy with something else may need another try
    assert len(stamps) >= 0.97 * ideal
    assert checks > ideal * 1.2, "there was more asked for than the limit"
    assert trips < checks * 0.75


# When the store fails


@pytest.mark.parametrize(
    ("mode", "expected"), [("local_share", 5), ("local_full", 20), ("deny", 0), ("allow", 40)]
)
async def test_without_the_store_each_limit_says_what_holds(tmp_path, mode, expected):
    server = StoreServer(tmp_path)
    async with node(server, peers=4) as one:
        server.stop()
        await come(lambda: one.status(0)["state"] == "down")
        assert await allowed(one, 40, hit(quota=20, period_ns=HOUR, on_store_error=mode)) == expected
        seat = hit("s", unit="concurrent_tunnels", quota=8, on_store_error=mode)
        seats = {"local_share": 2, "local_full": 8, "deny": 0, "allow": 10}
        assert await allowed(one, 10, seat) == seats[mode]
        budget = hit("b", unit="bytes", quota=1000, period_ns=HOUR, on_store_error=mode)
        spent = one.spend((budget,), time.monotonic_ns(), 600).allowed
        assert spent is (mode in {"local_full", "allow"})


async def test_node_without_a_store_follows_on_store_error_and_says_so(caplog):
    async with node(None, peers=2) as one:
        assert await allowed(one, 20, hit(quota=10, period_ns=HOUR)) == 5
        assert one.status(0)["state"] == "none"
    assert "[limits] store is not set" in caplog.text


@pytest.mark.parametrize("timeout_s", [0.1], ids=["fault-store-frozen"])
async def test_frozen_store_delays_once_and_is_used_again(store, timeout_s):
    shared = hit(quota=40, period_ns=HOUR)
    async with node(store, timeout_s=timeout_s, peers=2) as one:
        assert await allowed(one, 8, shared) == 8
        store.freeze()
        try:
            started = time.monotonic()
            answers = await asyncio.gather(*[take(one, hit(key="other", quota=4)) for _ in range(20)])
            later = [await take(one, hit(key="third", quota=4)) for _ in range(20)]
            took = time.monotonic() - started
            assert took < 0.25, "one timeout, once"
            assert sum(taken.allowed for taken in answers) == sum(taken.allowed for taken in later) == 2
            assert one.status(0)["state"] == "down"
        finally:
            store.thaw()
        await come(lambda: one.status(0)["state"] == "up")
        assert one.status(0)["failures"] == 1
        assert await allowed(one, 40, shared) <= 32


async def test_neither_end_of_an_outage_is_a_burst(tmp_path):
    server = StoreServer(tmp_path)
    shared = hit(quota=40, period_ns=HOUR)
    try:
        async with node(server, peers=2) as one, node(server, peers=2) as two:
            before = await allowed(one, 10, shared) + await allowed(two, 10, shared)
            server.stop()
            await come(lambda: {n.status(0)["state"] for n in (one, two)} == {"down"})
            during = [await allowed(n, 40, shared) for n in (one, two)]
            # What each knew of the store when it went down is the level at which its share begins.
            assert before == 20
            assert 10 <= during[1] <= 11
            assert sum(during) <= 26
            server.start()
            await come(lambda: {n.status(0)["state"] for n in (one, two)} == {"up"})
            await asyncio.sleep(0.05)
            # The new server knows nothing but what the nodes tell it.
            after = await allowed(one, 40, shared) + await allowed(two, 40, shared)
            assert sum(during) + after <= 41
    finally:
        server.stop()


async def test_scripts_that_the_store_has_lost_are_loaded_again(store):
    shared = hit(quota=6, period_ns=HOUR, exact=True)
    async with node(store) as one:
        assert await allowed(one, 3, shared) == 3
        store.say("SCRIPT", "FLUSH")
        assert await allowed(one, 9, shared) == 3
        assert one.status(0)["failures"] == 0


@pytest.mark.parametrize("days", [-1, 1], ids=["fault-store-clock-behind", "fault-store-clock-ahead"])
async def test_failover_to_a_server_with_another_clock_locks_nobody_out(store, days):
    """What a server whose clock differs would find: stored times that are a day away from its now."""
    shared = hit(quota=10, exact=True)
    async with node(store) as one:
        assert await allowed(one, 10, shared) == 10
        (key,) = [key for key in await one._store.scan("*") if "peers" not in key]
        stored = float(store.say("GET", key).split(b"\r\n")[1])
        store.say("SET", key, f"{stored - days * 86_400e6:.2f}")
        one._keys.clear()
        one._hot.clear()
        started = time.monotonic()
        first = await allowed(one, 20, shared)
        await asyncio.sleep(0.35)
        later = await allowed(one, 3, shared)
        assert later == 3
        assert first + later <= 10 + 10 * (time.monotonic() - started)


async def test_clock_of_the_day_does_not_matter(store, monkeypatch):
    shared = hit(quota=5, period_ns=HOUR)
    async with node(store) as one:
        assert await allowed(one, 3, shared) == 3
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert await allowed(one, 5, shared) == 2


async def test_leases_are_not_used_after_their_end(store):
    """A node that was suspended finds its lease expired."""
    now = [time.monotonic_ns()]
    shared = hit(quota=1000, burst=1000)
    async with node(store, clock=lambda: now[0]) as one:
        for _ in range(200):
            now[0] += SECOND // 1000
            await take(one, shared)
        held = one.status(now[0])["leased_units"]
        assert held > 0
        now[0] += SECOND
        assert one.status(now[0])["leased_units"] == 0


async def test_peers_are_counted(store):
    async with node(store) as one, node(store) as two:
        await come(lambda: {n.peers for n in (one, two)} == {2})
        async with node(store, peers=5) as three:
            assert three.peers == 5
            await come(lambda: one.peers == 3)
        await come(lambda: one.peers == 2)


async def test_other_secrets_count_apart(store):
    shared = hit(quota=1, period_ns=HOUR)
    async with node(store) as one:
        assert await allowed(one, 2, shared) == 1
        other = FleetLimiter(Limits(store=store.url), b"another", "test", 100, time.monotonic_ns)
        other.start()
        await come(lambda: other._store.up)
        assert await allowed(other, 2, shared) == 1
        assert one.status(0)["counters"] != other.status(0)["counters"]
        await other.stop()


def test_client_library_that_is_missing_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StoreMissingError, match=r"edgeguard\[fleet\]"):
        FleetLimiter(Limits(store="valkey://127.0.0.1:1/0"), b"s", "test", 1, time.monotonic_ns)


async def test_password_that_is_wrong_is_an_outage_with_its_reason(tmp_path):
    server = StoreServer(tmp_path)
    try:
        server.say("CONFIG", "SET", "requirepass", "open sesame")
        async with node(server, until_up=False) as one:
            await come(lambda: "uthentication" in one.status(0)["problem"])
        async with node(server, password=SecretStr("open sesame")) as two:
            assert (await take(two, hit())).allowed
    finally:
        server.stop()


@pytest.mark.parametrize("answer", ["nothing", [1], [1, 0, 0, "1.0", 0, -1], [True] * 6, None, {}])
async def test_store_that_answers_something_else_is_an_outage(store, monkeypatch, answer):
    """Nobody waits for ever, and nothing is granted on its word."""
    exact, seat = (
        hit(quota=1, exact=True, on_store_error="deny"),
        hit("s", unit="concurrent_tunnels", quota=1),
    )
    async with node(store, retry_s=60, peers_s=60) as one:
        ask = one._store._execute

        async def odd(calls):
            return [
                answer if call.script in {scripts.TAKE, scripts.SEATS} else (await ask([call]))[0]
                for call in calls
            ]

        monkeypatch.setattr(one._store, "_execute", odd)
        async with asyncio.timeout(5):
            assert [(await take(one, each)).allowed for each in (exact, seat, seat)] == [False, True, False]
        assert one.status(time.monotonic_ns())["state"] == "down"


async def test_wait_that_no_limit_could_ask_for_locks_nobody_out(store, monkeypatch):
    shared = hit(quota=100, period_ns=SECOND)
    async with node(store) as one:
        ask = one._store._execute

        async def slow(calls):
            return [
                [0, 0, 10**15, "1.0", 0, 0] if call.script == scripts.TAKE else (await ask([call]))[0]
                for call in calls
            ]

        with monkeypatch.context() as patched:
            patched.setattr(one._store, "_execute", slow)
            assert (await take(one, shared)).retry_after_ns < 3 * SECOND
        await asyncio.sleep(2.1)
        assert (await take(one, shared)).allowed


def test_scripts_are_small():
    assert all(len(text) < 2000 for text in (scripts.TAKE, scripts.SEATS, scripts.PEERS, scripts.RETURN))
