"""What every subject of the benchmark shares: how long to measure, what to keep, and how to say what is missing.

A subject is a module with `measure(run) -> dict[str, float]`. The keys are those of docs/benchmarks.md. What
cannot be measured here is left out and named with its reason by `run.absent`; it is never guessed.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Run:
    """One run of the benchmark."""

    quick: bool = False
    """Seconds instead of minutes: shows that everything works, not how fast it is."""
    raw: dict[str, object] = field(default_factory=dict)
    """Every single reading behind a figure, by its key."""
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    say: Callable[[str], None] = print

    def absent(self, keys: str | Iterable[str], why: str) -> None:
        """Names figures that this run does not have, and why."""
        for key in [keys] if isinstance(keys, str) else keys:
            self.missing[key] = why

    def note(self, text: str) -> None:
        """Something that a reader of the figures has to know."""
        self.notes.append(text)

    def pick[T](self, quick: T, full: T) -> T:
        return quick if self.quick else full


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def time_batches(
    loop: Callable[[Sequence[object]], None], items: Sequence[object], *, batch: int, samples: int
) -> list[float]:
    """Microseconds for one item, a reading for each batch of `batch` items.

    A batch is a few calls only, so that a slow call is not averaged away and the 99th percentile means something;
    the cost of reading the clock twice is subtracted.
    """
    overhead = _clock_overhead(loop)
    rounds = [items[i : i + batch] for i in range(0, len(items) - batch + 1, batch)]
    clock = time.perf_counter_ns
    readings: list[float] = []
    gc.collect()
    gc.freeze()
    try:
        for part in rounds:  # once unmeasured: caches that a running proxy has filled are full
            loop(part)
        while len(readings) < samples:
            for part in rounds:
                start = clock()
                loop(part)
                readings.append((clock() - start - overhead) / batch / 1000)
    finally:
        gc.unfreeze()
    return readings


def _clock_overhead(loop: Callable[[Sequence[object]], None]) -> float:
    clock = time.perf_counter_ns
    found = []
    for _ in range(2000):
        start = clock()
        loop(())
        found.append(clock() - start)
    return statistics.median(found)


def capacity(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> float:
    """How much more of the same work we do in a second of processor time; median of interleaved pairs.

    That is the ratio of the rates wherever both proxies have their core filled. It stays true where the load is the
    narrower side, and where something else took a part of the core.
    """
    return statistics.median(t["cpu_us"] / o["cpu_us"] for o, t in zip(ours, theirs, strict=True))


def by_rate(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> float:
    """The same by the clock on the wall."""
    return statistics.median(o["rate"] / t["rate"] for o, t in zip(ours, theirs, strict=True))
