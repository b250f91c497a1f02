"""What evidence costs: the offer on the traffic's loop, and shaping, encoding and chaining off it."""

import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.lines import Lines, Own, Sort
from edgeguard.evidence.log import FIRST_PREV, DecisionLog
from edgeguard.policy.request import Client, Request
from edgeguard.verdict import Entry, Facts, Verdict
from tests.bench.policies import NOW, engine, named
from tests.bench.run import Run, percentile, time_batches

OFFERS = 4096
"""Fewer than the queue holds, so that no reading is one of a full queue."""


def measure(run: Run) -> dict[str, float]:
    entries = [Entry(verdict) for verdict in _verdicts(OFFERS)]
    figures = _offer(run, entries)
    lines = Lines()
    records = [lines.sort_of(entry) for entry in entries]

    def shape(items: Sequence[Entry]) -> None:
        for entry in items:
            lines.sort_of(entry)

    def shape_anew(items: Sequence[Entry]) -> None:
        for entry in items:
            Lines().sort_of(entry)

    def write(items: Sequence[tuple[Sort, Own]]) -> None:
        previous = FIRST_PREV
        for number, (sort, own) in enumerate(items):
            previous = sha256(sort.line(own, number, previous)).hexdigest()

    samples = run.pick(1000, 5000)
    found = time_batches(write, records, batch=8, samples=samples)
    figures["evidence.encode_us"] = percentile(found, 0.5)
    figures["evidence.encode.p99_us"] = percentile(found, 0.99)
    figures["evidence.shape_us"] = percentile(time_batches(shape, entries, batch=8, samples=samples), 0.5)
    anew = time_batches(shape_anew, entries, batch=8, samples=samples)
    figures["evidence.shape.new_us"] = percentile(anew, 0.5)
    return figures


def _offer(run: Run, entries: Sequence[Entry]) -> dict[str, float]:
    """Offers in bursts of eight, the writer at work beside them as it is on a node."""
    clock = time.perf_counter_ns
    found: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder:
        log = DecisionLog(Path(folder) / "decisions.jsonl", 65_536)
        try:
            for _ in range(run.pick(2, 10)):
                for at in range(0, len(entries), 8):
                    burst = entries[at : at + 8]
                    start = clock()
                    for entry in burst:
                        log.offer(entry)
                    found.append((clock() - start) / len(burst) / 1000)
                while log.waiting:
                    time.sleep(0.001)
        finally:
            log.close()
        if log.refused:
            raise RuntimeError(f"{log.refused} records were refused, so this would measure refusals")
    return {"evidence.enqueue_us": percentile(found, 0.5), "evidence.enqueue.p99_us": percentile(found, 0.99)}


def _verdicts(count: int) -> list[Verdict]:
    """As a node makes them: destinations of the corpus, one in eight refused."""
    subject = engine(1000)
    granted = named(1000).granted
    snapshot = Snapshot(
        engine=subject,
        issuers=(),
        environment="bench",
        bundle_id="sha256:" + "0" * 64,
        policy_hash="sha256:" + "1" * 64,
        bundle_version=7,
        head_version=7,
        root_version=1,
        signers=("bench",),
        issued_at=int(NOW),
        not_before=int(NOW),
        stale_at=int(NOW) + 3600,
        restricted_at=int(NOW) + 3600,
        closed_at=int(NOW) + 86400,
    )
    verdicts = []
    for number in range(count):
        asked = granted[number % 256]
        client = asked.client if number % 8 else Client("stranger", identified=True)
        request = Request(client, asked.host, asked.port)
        facts = Facts(f"c-{number:x}", client, asked.host, asked.port, names=(f"{asked.host}:{asked.port}",))
        decision = subject.decide(request, NOW)
        addresses = ("192.0.2.7",) if decision.allow else ()
        verdicts.append(
            Verdict(
                f"bench-{number:x}",
                NOW + number / 1000,
                facts,
                request,
                decision,
                snapshot,
                Ladder.FRESH,
                addresses=addresses,
            )
        )
    return verdicts
