"""The soak run, short; and that it would find what it looks for."""

import time

import pytest

from tests.bench.soak import HELD, Soak, findings, soak


@pytest.mark.long
def test_half_a_minute_of_mixed_load():
    report, wrong = soak(25, change_s=6)
    assert wrong == [], report
    assert report["policy_versions"] > 2
    assert min(report["decisions"].values()) > 10


def _run(**changes):
    """A run in which nothing is wrong, but for `changes`."""
    now = time.monotonic()
    run = Soak.__new__(Soak)
    run.seen, run.odd = changes.get("seen", {"connect allow": 2}), {}
    growth = changes.get("growth_kb", 0)
    run.samples = [{"at": now + i, "rss_kb": 100_000 + growth * i / 40} for i in range(40)]
    idle = {"fds": 20, "tasks": 9, "refused": 0, **dict.fromkeys(HELD, 0)}
    records = [{"kind": "connect", "verdict": "allow"}] * changes.get("records", 2)
    return findings(run, idle, {**idle, **changes.get("after", {})}, records)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"growth_kb": 30_000}, "memory is not flat", id="memory"),
        pytest.param({"growth_kb": 3_000}, None, id="noise"),
        pytest.param({"records": 1}, "clients saw 2, the log has 1", id="lost"),
        pytest.param({"after": {"fds": 30}}, "descriptors leak", id="descriptors"),
        pytest.param({"after": {"seats": 1}}, "holds seats: 1", id="seats"),
        pytest.param({"after": {"passages": 3}}, "holds passages: 3", id="passages"),
        pytest.param({"after": {"tasks": 50}}, "tasks leak", id="tasks"),
    ],
)
def test_what_it_finds(changes, says):
    found = _run(**changes)
    assert len(found) == (says is not None)
    assert says is None or says in found[0]
