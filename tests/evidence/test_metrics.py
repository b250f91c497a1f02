"""Metrics: right numbers, conventional names, bounded series."""

import re

from prometheus_client.parser import text_string_to_metric_families

from edgeguard.bundle.snapshot import Ladder
from edgeguard.evidence import metrics as module
from edgeguard.evidence.lines import Written, own_of
from edgeguard.evidence.metrics import Metrics
from edgeguard.evidence.record import Record
from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason


class Log:
    waiting, written, refused, broken = 3, 10, 2, True


class InForce:
    bundle_id, policy_hash, bundle_version, environment = "sha256:a", "sha256:b", 7, "prod"
    stale_at, closed_at, issued_at = 100, 200, 50

    def ladder(self, now):
        return Ladder.FRESH if now < self.stale_at else Ladder.STALE


def samples(metrics):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for s in family.samples
        if not s.name.endswith("_created")
    }


def written(*records):
    return [Written(record, own_of(record)) for record in records]


def test_records_are_counted():
    metrics = Metrics()
    allow = Record("a", 0.0, "connect", verdict="allow", rule="r", lane=Lane.TUNNEL)
    deny = Record(
        "b", 0.0, "request", verdict="deny", reason=Reason.RATE_LIMITED, rule="l", lane=Lane.INSPECT, limit="l",
        would=(("would_deny", "shadow"),), token="invalid",
    )  # fmt: skip
    close = Record("a", 0.0, "close", verdict="allow", sent=10, received=20)
    metrics.observe(written(allow, allow, deny, close, Record("e", 0.0, "event", why="started")))
    found = samples(metrics)
    labels = [("kind", "connect"), ("lane", "tunnel"), ("reason", ""), ("verdict", "allow")]
    assert found["edgeguard_decisions_total", *labels] == 2
    labels = [("kind", "request"), ("lane", "inspect"), ("reason", "rate_limited"), ("verdict", "deny")]
    assert found["edgeguard_decisions_total", *labels] == 1
    assert found["edgeguard_rule_decisions_total", ("rule", "r"), ("verdict", "allow")] == 2
    assert found["edgeguard_shadow_decisions_total", ("rule", "shadow"), ("would", "would_deny")] == 1
    assert found["edgeguard_ratelimit_refusals_total", ("limit", "l")] == 1
    assert found["edgeguard_user_tokens_total", ("result", "invalid")] == 1
    assert found["edgeguard_relayed_bytes_total", ("direction", "received")] == 20
    assert found["edgeguard_closes_total",] == 1


def test_series_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_SERIES", 5)
    metrics = Metrics()
    metrics.observe(written(*[Record("a", 0.0, "connect", verdict="allow", rule=f"r{n}") for n in range(50)]))
    found = samples(metrics)
    rules = [key for key in found if key[0] == "edgeguard_rule_decisions_total"]
    assert len(rules) == 6
    assert found["edgeguard_rule_decisions_total", ("rule", "other"), ("verdict", "allow")] == 45
    assert found["edgeguard_series_overflow_total", ("metric", "edgeguard_rule_decisions")] == 45


def test_sources_are_read_at_scrape_time():
    metrics, now = Metrics(), [0.0]
    metrics.watch_log(Log())
    metrics.watch_limits(lambda: {"l": (5, 1)})
    metrics.watch_policy(InForce, lambda: now[0])
    found = samples(metrics)
    assert found["edgeguard_audit_events_total", ("stage", "refused")] == 2
    assert found["edgeguard_audit_queue_events",] == 3
    assert found["edgeguard_audit_writable",] == 0
    assert found["edgeguard_ratelimit_keys", ("limit", "l")] == 5
    assert found["edgeguard_ratelimit_overflow_total", ("limit", "l")] == 1
    assert found["edgeguard_ladder", ("state", "fresh")] == 1
    assert found["edgeguard_ready",] == 1
    assert found["edgeguard_bundle_not_after_timestamp_seconds",] == 200
    now[0] = 130.0
    assert samples(metrics)["edgeguard_ladder", ("state", "stale")] == 1
    assert samples(metrics)["edgeguard_staleness_seconds",] == 30


def test_no_policy_is_not_ready():
    metrics = Metrics()
    metrics.watch_policy(lambda: None, lambda: 0.0)
    found = samples(metrics)
    assert found["edgeguard_ladder", ("state", "closed")] == 1
    assert found["edgeguard_ready",] == 0
    assert not any("bundle" in key[0] for key in found)


def test_names_follow_the_conventions():
    metrics = Metrics()
    metrics.watch_log(Log())
    metrics.watch_limits(dict)
    metrics.watch_policy(InForce, lambda: 0.0)
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert re.fullmatch(r"edgeguard_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
