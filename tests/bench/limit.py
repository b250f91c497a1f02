"""What one rate-limit check costs, in each scope and beside the package `limits`, and what a proxy makes of it."""

import asyncio
import contextlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeguard.limits.fleet import FleetLimiter
from edgeguard.limits.host import HostLimiter
from edgeguard.limits.limiter import ScopedLimiter
from edgeguard.limits.process import ProcessLimiter
from edgeguard.limits.taken import Taken
from edgeguard.policy.decision import LimitHit
from edgeguard.settings import Limits
from tests.bench.run import Run, percentile, time_batches
from tests.bench.world import TUNNEL_NAME, Absent, Peers, node_policy, run_load, two_cores

NODES, QUOTA = 4, 4000
"""Nodes that share a limit of so many requests a second, each offered half of it."""
type Hits = tuple[LimitHit]


def measure(run: Run) -> dict[str, float]:
    figures = process(run) | _host(run) | _library(run)
    if shutil.which("redis-server") is None:
        run.absent(
            ("limit.fleet.roundtrips_per_check", "limit.fleet.overshoot", "limit.fleet_us"),
            "needs redis-server (Debian package redis-server)",
        )
        return figures
    with _store() as url:
        figures |= asyncio.run(_fleet(run, url)) | _library_store(run, url)
        figures |= _proxy(run, url)
    return figures


def process(run: Run) -> dict[str, float]:
    """The scope that most limits have."""
    with tempfile.TemporaryDirectory() as folder:
        whole = ScopedLimiter.from_settings(
            Limits(host_table=Path(folder) / "limits.table"), "bench", 65_536, b"", time.monotonic_ns
        )
        found = _timed(run, whole.take, "process")
    limiter = ProcessLimiter(65_536)
    cold = [_hit(n, quota=1_000_000, limit="idle") for n in range(2048)]
    idle = time_batches(_one_by_one(limiter.take), cold, batch=8, samples=run.pick(2000, 20_000))
    return {
        "limit.process_us": percentile(found, 0.5),
        "limit.process.p99_us": percentile(found, 0.99),
        "limit.process.idle_us": percentile(idle, 0.5),
    }


def _host(run: Run) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        limiter = HostLimiter(Path(folder) / "limits.table", 65_536, 0.05, 1024)
        found = _timed(run, limiter.take, "host")
        limiter.close()
    return {"limit.host_us": percentile(found, 0.5), "limit.host.p99_us": percentile(found, 0.99)}


def _library(run: Run) -> dict[str, float]:
    """The package with its strategy that is nearest to ours in what it promises, and with its cheapest."""
    from limits import RateLimitItemPerSecond
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

    item = RateLimitItemPerSecond(10_000_000)
    keys = [f"name:client-{n}" for n in range(128)]
    figures = {}
    for name, strategy in (("fixed", FixedWindowRateLimiter), ("sliding", SlidingWindowCounterRateLimiter)):
        limiter = strategy(MemoryStorage())

        def loop(items: Sequence[str], limiter: FixedWindowRateLimiter = limiter) -> None:
            for key in items:
                limiter.hit(item, key)

        found = time_batches(loop, keys, batch=8, samples=run.pick(500, 5000))
        figures[f"limit.library.{name}_us"] = percentile(found, 0.5)
    return figures


def _library_store(run: Run, url: str) -> dict[str, float]:
    """One round trip of the package for each check, from one task."""
    from limits import RateLimitItemPerSecond
    from limits.storage import storage_from_string
    from limits.strategies import SlidingWindowCounterRateLimiter

    with contextlib.suppress(Exception):
        limiter = SlidingWindowCounterRateLimiter(
            storage_from_string(url.replace("unix://", "valkey+unix://"))
        )
        item = RateLimitItemPerSecond(10_000_000)
        readings = []
        for _ in range(run.pick(200, 2000)):
            begun = time.perf_counter_ns()
            limiter.hit(item, "name:client")
            readings.append((time.perf_counter_ns() - begun) / 1000)
        return {"limit.library.store_us": percentile(readings, 0.5)}
    run.absent("limit.library.store_us", "the package does not take this store's address")
    return {}


async def _fleet(run: Run, url: str) -> dict[str, float]:
    settings = Limits(store=url, peers_s=60.0, timeout_s=1.0)
    nodes = [FleetLimiter(settings, b"bench", "bench", 65_536, time.monotonic_ns) for _ in range(NODES)]
    for node in nodes:
        node.start()
    while any(node.status(0)["state"] != "up" for node in nodes):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    hit = (LimitHit("shared", "all", "requests", QUOTA, 10**9, QUOTA, "fleet", True),)
    before = sum(int(str(node.status(0)["round_trips"])) for node in nodes)
    stamps: list[int] = []
    checks = 0

    async def offer(node: FleetLimiter, seconds: float) -> None:
        nonlocal checks
        pause, due = 2 * 10**9 // QUOTA, time.monotonic_ns()
        end = due + int(seconds * 1e9)
        while (now := time.monotonic_ns()) < end:
            while due <= now:
                due += pause
                checks += 1
                if (await _take(node, hit)).allowed:
                    stamps.append(time.monotonic_ns())
            await asyncio.sleep(0.001)

    await asyncio.gather(*[offer(node, run.pick(1.0, 10.0)) for node in nodes])
    trips = sum(int(str(node.status(0)["round_trips"])) for node in nodes) - before
    ideal = QUOTA + QUOTA * (stamps[-1] - stamps[0]) / 1e9
    one = nodes[0]
    free = (LimitHit("free", "one", "requests", 10**6, 10**9, 10**6, "fleet", True),)
    readings = []
    for _ in range(run.pick(2000, 50_000)):
        begun = time.perf_counter_ns()
        await _take(one, free)
        readings.append((time.perf_counter_ns() - begun) / 1000)
    for node in nodes:
        await node.stop()
    return {
        "limit.fleet.roundtrips_per_check": trips / checks,
        "limit.fleet.overshoot": max(0.0, len(stamps) - ideal) / ideal,
        "limit.fleet.admitted": len(stamps) / ideal,
        "limit.fleet_us": percentile(readings, 0.5),
        "limit.fleet.p99_us": percentile(readings, 0.99),
    }


async def _take(node: FleetLimiter, hits: Hits) -> Taken:
    waiting = node.reserve(hits, time.monotonic_ns())
    prepared = node.prepare(hits, time.monotonic_ns(), 1, None if waiting is None else await waiting)
    if prepared.taken.allowed:
        node.commit(prepared)
    return prepared.taken


def _proxy(run: Run, url: str) -> dict[str, float]:
    """New tunnels and inspected requests per second with a limit of each scope, over those without any."""
    scopes = ("off", "process", "host", "fleet")
    kinds = {"new": "tunnels", "https_keep": "requests"}
    try:
        two_cores()
    except Absent as absent:
        run.absent(
            [f"limit.proxy.{kind}.{scope}" for kind in kinds.values() for scope in scopes], str(absent)
        )
        return {}
    readings: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        policies = {
            scope: node_policy(peers.tunnel_port, peers.https_port, None if scope == "off" else scope)
            for scope in scopes
        }
        peers.repository.publish(policies["off"])
        node = peers.edgeguard(store=url)
        for number in range(run.pick(1, 3)):
            for scope in scopes[:: 1 if number % 2 == 0 else -1]:
                peers.repository.publish(policies[scope])
                node.wait_for_version(peers.repository.version)
                for kind in kinds:
                    more = {"name": TUNNEL_NAME} if kind == "new" else {
                        "authority": str(node.authority), "leaf": str(peers.upstream_leaf),
                    }  # fmt: skip
                    result = run_load(
                        kind,
                        proxy=node.port,
                        upstream=peers.tunnel_port if kind == "new" else peers.https_port,
                        pid=node.pid,
                        parallel=16,
                        seconds=run.pick(0.5, 2.0),
                        **more,
                    )
                    readings.setdefault((kind, scope), []).append(result["rate"])
    return {
        f"limit.proxy.{kinds[kind]}.{scope}.per_s": statistics.median(found)
        for (kind, scope), found in readings.items()
    }


@contextlib.contextmanager
def _store() -> Iterator[str]:
    """A server of its own on a unix socket; its address."""
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder:
        path = Path(folder) / "store.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            server.kill()
            server.wait()


def _timed(run: Run, take: Callable[[Hits, int], Taken], scope: str) -> list[float]:
    hits = [_hit(number, quota=1000, scope=scope) for number in range(128)]
    found = time_batches(_one_by_one(take), hits, batch=8, samples=run.pick(2000, 20_000))
    if not take(hits[0], time.monotonic_ns()).allowed:
        raise RuntimeError("the limit was reached, so this would measure refusals")
    return found


def _one_by_one(take: Callable[[Hits, int], Taken]) -> Callable[[Sequence[Hits]], None]:
    clock = time.monotonic_ns

    def loop(items: Sequence[Hits]) -> None:
        now = clock()
        for hit in items:
            take(hit, now)

    return loop


def _hit(number: int, *, quota: int, limit: str = "busy", scope: str = "process") -> Hits:
    return (LimitHit(limit, f"name:client-{number}", "requests", quota, 10**9, 1_000_000, scope, True),)
