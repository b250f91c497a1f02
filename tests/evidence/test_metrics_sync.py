"""What the metrics say of fetching and reconciling."""

from prometheus_client.parser import text_string_to_metric_families

from edgeguard.evidence.metrics import Metrics


class View:
    def __init__(self):
        self.counts = {
            ("refused", "rollback_head"): 2,
            ("failed", "timeout"): 3,
            ("drift", "tables"): 1,
            ("ladder", "stale"): 4,
        }
        self.drifting = {"tables": True, "generation": False}
        self.alerts = {"sent": 5, "failed": 1}
        self.last_success = 1700.0
        self.frozen, self.persisted = True, False


def samples(metrics):
    return {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for s in family.samples
    }


def test_drift_refusals_and_freshness_are_shown():
    metrics = Metrics()
    view = View()
    metrics.watch_sync(view)
    found = samples(metrics)
    assert found["edgeguard_sync_refusals_total", "rollback_head"] == 2
    assert found["edgeguard_sync_failures_total", "timeout"] == 3
    assert found["edgeguard_drifts_total", "tables"] == 1
    assert found["edgeguard_drifts_total", "generation"] == 0
    assert (found["edgeguard_drift_present", "tables"], found["edgeguard_drift_present", "generation"]) == (
        1,
        0,
    )
    assert found["edgeguard_alerts_total", "sent"] == 5
    assert (found["edgeguard_sync_frozen",], found["edgeguard_sync_persisted",]) == (1, 0)
    assert found["edgeguard_sync_last_success_timestamp_seconds",] == 1700
    view.last_success = None
    assert ("edgeguard_sync_last_success_timestamp_seconds",) not in samples(metrics)
