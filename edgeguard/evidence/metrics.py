"""Prometheus metrics with bounded labels, fed from the decision log's writer thread.

Names follow the Prometheus conventions: one prefix, base units, `_total` for counters. Label values
come from closed sets, or from ids of the signed policy up to a cap; what is over the cap is counted
as `other` and shows in `edgeguard_series_overflow_total`. Nothing here runs on the traffic's loop.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeguard import __version__
from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.lines import Written
from edgeguard.evidence.record import Record

MAX_SERIES: Final = 2_000
"""Children of one metric whose labels come from the policy."""
OTHER: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class LogView(Protocol):
    """What the metrics say of the decision log (`evidence.log.DecisionLog`)."""

    @property
    def waiting(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def broken(self) -> bool: ...


class SyncView(Protocol):
    """What the metrics say of fetching and reconciling (`sync.agent.SyncAgent`). All label values are closed sets."""

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Events by kind and code."""
        ...

    @property
    def drifting(self) -> Mapping[str, bool]:
        """Each class of drift, and whether it is there now."""
        ...

    @property
    def alerts(self) -> Mapping[str, int]:
        """Alerts by what became of them."""
        ...

    @property
    def last_success(self) -> float | None:
        """Unix seconds."""
        ...

    @property
    def frozen(self) -> bool: ...
    @property
    def persisted(self) -> bool: ...


class Metrics:
    """All metrics of one process, in a registry of their own.

    `observe` is an observer of the decision log. The sources (`watch_*`) are read at scrape time.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        Info("edgeguard_build", "Version of edgeguard.", registry=self.registry).info(
            {"version": __version__}
        )
        self._decisions = Counter(
            "edgeguard_decisions",
            "Decisions by verdict, reason, kind and lane.",
            ["verdict", "reason", "kind", "lane"],
            registry=self.registry,
        )
        self._rules = Counter(
            "edgeguard_rule_decisions",
            "Decisions by the rule that made them.",
            ["rule", "verdict"],
            registry=self.registry,
        )
        self._shadow = Counter(
            "edgeguard_shadow_decisions",
            "What rules in report mode would have done.",
            ["rule", "would"],
            registry=self.registry,
        )
        self._limited = Counter(
            "edgeguard_ratelimit_refusals",
            "Requests that a rate limit refused.",
            ["limit"],
            registry=self.registry,
        )
        self._near = Counter(
            "edgeguard_ratelimit_near",
            "Requests that a rate limit let pass when four fifths or more of it were used.",
            ["limit"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "edgeguard_user_tokens",
            "Requests with a user token, by result.",
            ["result"],
            registry=self.registry,
        )
        self._bytes = Counter(
            "edgeguard_relayed_bytes",
            "Bytes of ended tunnels and requests.",
            ["direction"],
            registry=self.registry,
        )
        self._closed = Counter("edgeguard_closes", "Tunnels and requests that ended.", registry=self.registry)
        self._overflow = Counter(
            "edgeguard_series_overflow",
            "Observations counted as `other`, to bound the series.",
            ["metric"],
            registry=self.registry,
        )
        self._sent = self._bytes.labels("sent")
        self._received = self._bytes.labels("received")
        self._children: dict[tuple[str, ...], Counter] = {}
        self._used: dict[str, int] = {}
        self._cheap: list[Collector] = [
            *(self._decisions, self._rules, self._shadow, self._limited, self._near, self._tokens),
            *(self._bytes, self._closed, self._overflow),
        ]

    def counted(self) -> Iterable[Metric]:
        """What this object has counted, and the state of the log: without the sources that take time to ask."""
        for collector in self._cheap:
            yield from collector.collect()

    def observe(self, written: Sequence[Written]) -> None:
        """Counts a slice of records. Called from one thread only."""
        # Neighbours are mostly of one sort, and a counter takes a lock each time.
        records: dict[int, Record] = {}
        counts: dict[int, int] = {}
        closed = sent = received = 0
        for record, own in written:
            if record.kind == "close":
                closed += 1
                sent += own.sent or 0
                received += own.received or 0
            else:
                key = id(record)
                records[key] = record
                counts[key] = counts.get(key, 0) + 1
        if closed:
            self._closed.inc(closed)
            self._sent.inc(sent)
            self._received.inc(received)
        for key, number in counts.items():
            self._decided(records[key], number)

    def _decided(self, r: Record, number: int) -> None:
        """Counts decisions of one sort."""
        if r.verdict is None:
            return
        self._count(self._decisions, number, r.verdict, r.reason or "", r.kind, r.lane or "")
        if r.rule is not None:
            self._count(self._rules, number, r.rule, r.verdict)
        if r.limit is not None:
            self._count(self._limited, number, r.limit)
        if r.token is not None:
            self._count(self._tokens, number, r.token)
        for would, shadow in r.would:
            self._count(self._shadow, number, shadow, would)
        for near in r.near_limits:
            self._count(self._near, number, near)

    def _count(self, counter: Counter, number: int, *labels: str) -> None:
        """Counts on the pre-bound child, or on the one for `other` when the metric has enough."""
        name: str = counter._name
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            if self._used.get(name, 0) >= MAX_SERIES:
                self._overflow.labels(name).inc(number)
                counter.labels(OTHER, *labels[1:]).inc(number)
                return
            self._used[name] = self._used.get(name, 0) + 1
            child = self._children[key] = counter.labels(*labels)
        child.inc(number)

    def watch_log(self, log: LogView) -> None:
        """Shows the state of the decision log."""

        def collect() -> Iterable[Metric]:
            events = CounterMetricFamily(
                "edgeguard_audit_events",
                "Records of the decision log by what became of them.",
                labels=["stage"],
            )
            events.add_metric(["written"], log.written)
            events.add_metric(["refused"], log.refused)
            yield events
            yield GaugeMetricFamily(
                "edgeguard_audit_queue_events", "Records that wait for the writer.", log.waiting
            )
            yield GaugeMetricFamily(
                "edgeguard_audit_writable", "1 while the decision log can be written.", 0 if log.broken else 1
            )

        source = _Source(collect)
        self.registry.register(source)
        self._cheap.append(source)

    def watch_limits(self, usage: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Shows the fill of the rate-limit tables: keys, and requests sent to the overflow bucket, by limit."""

        def collect() -> Iterable[Metric]:
            keys = GaugeMetricFamily(
                "edgeguard_ratelimit_keys", "Keys in the table of a limit.", labels=["limit"]
            )
            overflow = CounterMetricFamily(
                "edgeguard_ratelimit_overflow",
                "Requests sent to the overflow bucket of a limit.",
                labels=["limit"],
            )
            for limit, use in sorted(usage().items())[:MAX_SERIES]:
                keys.add_metric([limit], use[0])
                overflow.add_metric([limit], use[1])
            yield keys
            yield overflow

        self.registry.register(_Source(collect))

    def watch_store(self, fleet: Callable[[], Mapping[str, Any]]) -> None:
        """Shows whether the store of limits that a fleet shares answers. Nothing where none is configured."""

        def collect() -> Iterable[Metric]:
            state = fleet()
            if state["state"] == "none":
                return
            yield GaugeMetricFamily(
                "edgeguard_ratelimit_store_up",
                "1 while the store of shared limits answers; 0: they follow on_store_error.",
                state["state"] == "up",
            )
            for name, about in (
                ("failures", "How often the store went down."),
                ("round_trips", "Round trips to the store."),
                ("checks", "Checks of limits that a fleet shares."),
            ):
                yield CounterMetricFamily(f"edgeguard_ratelimit_store_{name}", about, state[name])

        self.registry.register(_Source(collect))

    def watch_policy(
        self,
        snapshot: Callable[[], Snapshot | None],
        clock: Callable[[], float],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Shows what is in force and until when. `ready`: whether somebody enforces it."""

        def collect() -> Iterable[Metric]:
            current = snapshot()
            now = clock()
            ladder = Ladder.CLOSED if current is None else current.ladder(now)
            states = GaugeMetricFamily(
                "edgeguard_ladder", "1 for the state that the policy is in.", labels=["state"]
            )
            for state in Ladder:
                states.add_metric([state], 1 if state is ladder else 0)
            yield states
            open_ = ladder not in {Ladder.CLOSED, Ladder.QUARANTINED} and ready()
            yield GaugeMetricFamily(
                "edgeguard_ready", "1 while a verified policy is enforced.", 1 if open_ else 0
            )
            if current is None:
                return
            info = GaugeMetricFamily(
                "edgeguard_bundle_info",
                "The bundle in force.",
                labels=["bundle", "policy_hash", "version", "environment"],
            )
            info.add_metric(
                [current.bundle_id, current.policy_hash, str(current.bundle_version), current.environment], 1
            )
            yield info
            for name, about, value in (
                (
                    "edgeguard_bundle_not_after_timestamp_seconds",
                    "When the bundle expires.",
                    current.closed_at,
                ),
                ("edgeguard_head_not_after_timestamp_seconds", "When the head expires.", current.stale_at),
                (
                    "edgeguard_bundle_issued_timestamp_seconds",
                    "When the bundle was issued.",
                    current.issued_at,
                ),
            ):
                yield GaugeMetricFamily(name, about, value)
            yield GaugeMetricFamily(
                "edgeguard_staleness_seconds",
                "Seconds since the head expired.",
                max(0.0, now - current.stale_at),
            )

        self.registry.register(_Source(collect))

    def watch_sync(self, sync: SyncView) -> None:
        """Shows what was refused, what differs from what was verified, and when a server was last in order."""

        def collect() -> Iterable[Metric]:
            events = {
                "refused": ("edgeguard_sync_refusals", "Signed material that was refused, by reason code."),
                "failed": ("edgeguard_sync_failures", "Fetches that failed, by reason code."),
                "drift": ("edgeguard_drifts", "Differences that were found, by class."),
                "clock": ("edgeguard_clock_jumps", "Jumps of the wall clock."),
            }
            families = {kind: CounterMetricFamily(*text, labels=["code"]) for kind, text in events.items()}
            drifting = sync.drifting
            counts = {("drift", code): 0 for code in drifting} | dict(sync.counts)
            for (kind, code), count in sorted(counts.items()):
                if kind in families:
                    families[kind].add_metric([code], count)
            yield from families.values()
            present = GaugeMetricFamily(
                "edgeguard_drift_present",
                "1 while the last comparison found this difference.",
                labels=["code"],
            )
            for code, there in sorted(drifting.items()):
                present.add_metric([code], 1 if there else 0)
            yield present
            alerts = CounterMetricFamily(
                "edgeguard_alerts", "Alerts by what became of them.", labels=["result"]
            )
            for result, count in sorted(sync.alerts.items()):
                alerts.add_metric([result], count)
            yield alerts
            yield GaugeMetricFamily(
                "edgeguard_sync_frozen", "1 while no new bundle is taken, because of drift.", int(sync.frozen)
            )
            yield GaugeMetricFamily(
                "edgeguard_sync_persisted", "1 while what is in force is on the disk.", int(sync.persisted)
            )
            if sync.last_success is not None:
                yield GaugeMetricFamily(
                    "edgeguard_sync_last_success_timestamp_seconds",
                    "When a server last showed a current head whose bundle is in force.",
                    sync.last_success,
                )

        self.registry.register(_Source(collect))

    def render(self) -> bytes:
        """The text exposition format 0.0.4."""
        return generate_latest(self.registry)


class _Source(Collector):
    """Reads its numbers when it is asked."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return ()
