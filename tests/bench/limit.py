"""What one rate-limit check costs the traffic."""

import time
from collections.abc import Sequence

from edgeguard.limits.process import ProcessLimiter
from edgeguard.policy.decision import LimitHit
from tests.bench.run import Run, percentile, time_batches


def measure(run: Run) -> dict[str, float]:
    limiter = ProcessLimiter(65_536)
    hits = [_hit(number, quota=1000, burst=1_000_000) for number in range(128)]
    cold = [_hit(number, quota=1_000_000, burst=1_000_000, limit="idle") for number in range(2048)]
    clock = time.monotonic_ns

    def one_by_one(items: Sequence[tuple[LimitHit]]) -> None:
        take, now = limiter.take, clock()
        for hit in items:
            take(hit, now)

    found = time_batches(one_by_one, hits, batch=8, samples=run.pick(2000, 20_000))
    idle = time_batches(one_by_one, cold, batch=8, samples=run.pick(2000, 20_000))
    if not limiter.take(hits[0], clock()).allowed:
        raise RuntimeError("the limit was reached, so this would measure refusals")
    run.absent("limit.host_us", "limits of scope host do not exist yet")
    run.absent(
        ("limit.fleet.roundtrips_per_check", "limit.fleet.overshoot"),
        "limits of scope fleet do not exist yet",
    )
    return {
        "limit.process_us": percentile(found, 0.5),
        "limit.process.p99_us": percentile(found, 0.99),
        "limit.process.idle_us": percentile(idle, 0.5),
    }


def _hit(number: int, *, quota: int, burst: int, limit: str = "busy") -> tuple[LimitHit]:
    return (LimitHit(limit, f"name:client-{number}", "requests", quota, 10**9, burst, "process", True),)
