"""The metrics of several processes as those of one node.

Each process sends what it has counted since it started. The sums stay when a process ends: what it
had counted when it was last heard is kept, so a counter never goes backwards, however it ended. Gauges
count while their process lives.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CUMULATIVE: Final = frozenset({"counter", "histogram", "summary"})
LEAST: Final = frozenset({"edgeguard_audit_writable"})
"""Gauges that are as good as the worst process."""
GREATEST: Final = ("_info", "_timestamp_seconds", "_ratelimit_keys")
"""Ends of the names of gauges that are no amounts, or that each process says of all."""

type Key = tuple[str, tuple[tuple[str, str], ...]]


class Family(NamedTuple):
    """One metric of one process, as it travels: plain data."""

    name: str
    kind: str
    about: str
    samples: Sequence[tuple[str, Sequence[Sequence[str]], float]]
    """Name, labels as pairs, value."""


def of_metric(metric: Metric) -> Family:
    """One metric as it travels."""
    return Family(
        metric.name,
        metric.type,
        metric.documentation,
        [
            (sample.name, sorted(sample.labels.items()), sample.value)
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ],
    )


def families(metrics: Iterable[Metric]) -> list[Family]:
    """What a process shows now (`registry.collect()`)."""
    return [of_metric(metric) for metric in metrics]


class Totals(Collector):
    """Sums over processes. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, Family] = {}
        """By name; of the samples only the last process's."""
        self._live: dict[str, dict[str, dict[Key, float]]] = {}
        """By process and family."""
        self._ended: dict[str, dict[Key, float]] = {}
        """By family: what ended processes had counted."""

    def update(self, source: str, found: Iterable[Family]) -> None:
        """Takes what a live process has counted so far; what it leaves out stays as it was said before."""
        values = self._live.setdefault(source, {})
        for family in found:
            self._known[family.name] = family
            values[family.name] = {
                (name, tuple((label, value) for label, value in labels)): amount
                for name, labels, amount in family.samples
            }

    def retire(self, source: str) -> None:
        """The process has ended: its counters stay, its gauges go."""
        for name, values in self._live.pop(source, {}).items():
            if self._known[name].kind in CUMULATIVE:
                kept = self._ended.setdefault(name, {})
                for key, amount in values.items():
                    kept[key] = kept.get(key, 0.0) + amount

    def collect(self) -> Iterable[Metric]:
        for name, family in self._known.items():
            metric = Metric(name, family.about, family.kind)
            sums = dict(self._ended.get(name, {}))
            for values in self._live.values():
                for key, amount in values.get(name, {}).items():
                    sums[key] = _joined(family, sums[key], amount) if key in sums else amount
            for (sample, labels), amount in sums.items():
                metric.add_sample(sample, dict(labels), amount)
            if metric.samples:
                yield metric

    def describe(self) -> Iterable[Metric]:
        return ()

    def render(self) -> bytes:
        """The text exposition format 0.0.4."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


def _joined(family: Family, one: float, other: float) -> float:
    if family.kind in CUMULATIVE:
        return one + other
    if family.name in LEAST:
        return min(one, other)
    return max(one, other) if family.name.endswith(GREATEST) or family.kind == "info" else one + other
