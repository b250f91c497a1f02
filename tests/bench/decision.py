"""What one decision costs: the engine alone, in pure Python, building the request included."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from edgeguard.policy.engine import Engine
from edgeguard.policy.inside import MAX_RECENT
from edgeguard.policy.paths import readings
from edgeguard.policy.request import Assurance, Client, Request, User
from tests.bench import rego
from tests.bench.corpus import corpus
from tests.bench.policies import NOW, engine, named
from tests.bench.run import Run, percentile, time_batches

SIZES = (100, 1000, 10_000, 100_000)
QUICK_SIZES = (100, 1000)
BATCH = 8
DIRTY = "/v1//a%20b//.."
GATED = {
    "edgeguard": 1,
    "module": "bench",
    "owner": "bench",
    "rules": [
        {
            "id": "bench-films",
            "effect": "allow",
            "to": ["films.bench.example"],
            "methods": ["GET", "HEAD"],
            "paths": ["/films/**"],
        },
        {"id": "bench-api", "effect": "allow", "to": ["api.bench.example"], "paths": ["/**"]},
        {"id": "bench-no-admin", "effect": "deny", "to": ["api.bench.example"], "paths": ["/admin/**"]},
    ],
    "age_gates": [
        {
            "id": "bench-adults",
            "match": {"to": ["films.bench.example"], "paths": ["/films/**"]},
            "regions": ["EU"],
            "require": {"age": 18, "assurance": "estimated"},
            "rationale": "Films for adults.",
            "legal_ref": "Example Act",
        }
    ],
}
ADULT = User(age_at_least=18, assurance=Assurance.VERIFIED, region="DE")


def measure(run: Run) -> dict[str, float]:
    figures: dict[str, float] = {}
    samples = run.pick(2000, 20_000)
    # The same connections at every size: the corpus of a size begins with the smaller ones.
    probes = [_destination(request) for request in named(100).granted]
    probes += [(client, f"not-{host}", port) for client, host, port in probes[:20]]
    for size in run.pick(QUICK_SIZES, SIZES):
        subject = engine(size)
        found = time_batches(partial(_hosts, subject), _shuffled(probes, 1024), batch=BATCH, samples=samples)
        figures[f"decision.host.p50_us.{size}"] = percentile(found, 0.5)
        figures[f"decision.host.p99_us.{size}"] = percentile(found, 0.99)
        every = [_destination(request) for request in named(size).granted]
        found = _each_fresh(partial(_hosts, subject), every, min(samples, 20_000))
        figures[f"decision.host.uniform.p50_us.{size}"] = percentile(found, 0.5)
        figures[f"decision.host.uniform.p99_us.{size}"] = percentile(found, 0.99)
        full, dirty = _inspected(size)
        found = time_batches(partial(_requests, full[0]), full[1], batch=BATCH, samples=samples)
        figures[f"decision.full.p50_us.{size}"] = percentile(found, 0.5)
        figures[f"decision.full.p99_us.{size}"] = percentile(found, 0.99)
        if size == 1000:
            for key, target in (("full", "/films/{}/watch?quality=high"), ("dirty", "/v{}//a%20b//..")):
                host = "films.bench.example" if key == "full" else "api.bench.example"
                fresh = [(full[1][n % 1024][0], host, "GET", target.format(n)) for n in range(4 * MAX_RECENT)]
                found = time_batches(partial(_requests, full[0]), fresh, batch=BATCH, samples=samples)
                figures[f"decision.{key}.fresh.p50_us"] = percentile(found, 0.5)
            found = time_batches(partial(_requests, full[0]), dirty, batch=BATCH, samples=samples)
            figures["decision.dirty.p50_us"] = percentile(found, 0.5)
            figures["decision.dirty.p99_us"] = percentile(found, 0.99)
    sizes = run.pick(QUICK_SIZES, SIZES)
    p50 = [figures[f"decision.host.p50_us.{size}"] for size in sizes]
    figures["decision.host.p50_spread"] = max(p50) / min(p50)
    figures |= rego.measure(run)
    figures["diff.ms.1000"] = _difference(run.pick(1, 5))
    return figures


def _difference(times: int) -> float:
    """Milliseconds of the semantic diff of two unrelated policies of the corpus, the median of some runs."""
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.diff import compare

    old, new = (compile_policy(corpus(1000, seed=seed).policy()) for seed in (20261, 7))
    found = []
    for _ in range(times):
        start = time.perf_counter()
        difference = compare(old, new, NOW)
        found.append((time.perf_counter() - start) * 1000)
        if len(difference.changes) < 1500 or difference.undecided:
            raise AssertionError("the difference of unrelated policies is not complete")
    return statistics.median(found)


def _destination(request: Request) -> tuple[Client, str, int]:
    return request.client, request.host, request.port


def _shuffled[T](items: Sequence[T], count: int) -> list[T]:
    rng = random.Random(7)
    return [rng.choice(items) for _ in range(count)]


def _each_fresh(
    loop: Callable[[Sequence[object]], None], items: Sequence[object], samples: int
) -> list[float]:
    """Requests drawn evenly over all rules, a new draw for every batch."""
    count = max(2048, min(samples * BATCH // 2, 80_000))
    return time_batches(loop, _shuffled(items, count), batch=BATCH, samples=samples)


def _hosts(subject: Engine, items: Sequence[tuple[Client, str, int]]) -> None:
    decide = subject.decide
    for client, host, port in items:
        decide(Request(client, host, port), NOW)


def _requests(subject: Engine, items: Sequence[tuple[Client, str, str, str]]) -> None:
    decide = subject.decide
    for client, host, method, target in items:
        decide(Request(client, host, 443, "tls", method, target, ADULT), NOW)


def _inspected(size: int) -> tuple[tuple[Engine, list], list]:
    """The corpus with a gated destination, and what is asked of it; every answer is checked once."""
    from edgeguard.bundle.build import decode_section, encode_section
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.model import Module, Policy
    from edgeguard.policy.tables import Tables

    modules = (*named(size).policy().modules, Module.model_validate(GATED))
    policy = Policy(modules=tuple(sorted(modules, key=lambda module: module.module)))
    subject = Engine(Tables.load(decode_section(encode_section(compile_policy(policy)))))
    clients = [Client(f"viewer-{number}", identified=True) for number in range(16)]
    asked = [
        (client, "films.bench.example", "GET", f"/films/{number}/watch")
        for client in clients
        for number in range(64)
    ]
    dirty = [(client, "api.bench.example", "GET", DIRTY) for client in clients for _ in range(64)]
    if len(readings(DIRTY)) != 5:
        raise RuntimeError(f"{DIRTY} has {len(readings(DIRTY))} readings, not 5")
    for client, host, method, target in (*asked, *dirty):
        decision = subject.decide(Request(client, host, 443, "tls", method, target, ADULT), NOW)
        if not decision.allow:
            raise RuntimeError(f"{method} {host}{target}: {decision.reason}, so it would measure a refusal")
    return (subject, asked), dirty
