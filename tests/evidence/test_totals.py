"""Sums over processes never go backwards, however a process ends."""

import json

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edgeguard.evidence.totals import Family, Totals, families


class Process:
    def __init__(self, name):
        self.name = name
        self.registry = CollectorRegistry()
        self.decisions = Counter("edgeguard_decisions", "D.", ["verdict"], registry=self.registry)
        self.queue = Gauge("edgeguard_audit_queue_events", "Q.", registry=self.registry)
        self.writable = Gauge("edgeguard_audit_writable", "W.", registry=self.registry)
        self.until = Gauge("edgeguard_head_not_after_timestamp_seconds", "U.", registry=self.registry)
        self.times = Histogram("edgeguard_times", "T.", buckets=(1, 2), registry=self.registry)

    def report(self, totals):
        """As it travels over the channel."""
        totals.update(
            self.name, [Family(*one) for one in json.loads(json.dumps(families(self.registry.collect())))]
        )


def shown(totals):
    lines = [line for line in totals.render().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_counters_add_up_and_outlive_their_process():
    totals, one, two = Totals(), Process("one"), Process("two")
    one.decisions.labels("allow").inc(3)
    two.decisions.labels("allow").inc(4)
    two.decisions.labels("deny").inc(1)
    two.times.observe(1.5)
    for process in (one, two):
        process.report(totals)
    assert shown(totals)['edgeguard_decisions_total{verdict="allow"}'] == 7
    two.decisions.labels("allow").inc(5)  # nobody hears of these: it is killed
    totals.retire("two")
    after = shown(totals)
    assert after['edgeguard_decisions_total{verdict="allow"}'] == 7
    assert after['edgeguard_decisions_total{verdict="deny"}'] == 1
    assert after['edgeguard_times_bucket{le="2.0"}'] == 1
    three = Process("three")
    three.decisions.labels("allow").inc()
    three.report(totals)
    assert shown(totals)['edgeguard_decisions_total{verdict="allow"}'] == 8
    totals.retire("nobody")


def test_gauges_are_of_the_living():
    totals, one, two = Totals(), Process("one"), Process("two")
    for process, queue, writable, until in ((one, 5, 1, 100), (two, 2, 0, 90)):
        process.queue.set(queue)
        process.writable.set(writable)
        process.until.set(until)
        process.report(totals)
    found = shown(totals)
    assert found["edgeguard_audit_queue_events"] == 7
    assert found["edgeguard_audit_writable"] == 0, "as good as the worst"
    assert found["edgeguard_head_not_after_timestamp_seconds"] == 100
    totals.retire("two")
    assert shown(totals)["edgeguard_audit_writable"] == 1
    assert not any(name.endswith("_created") for name in found)
