"""Several processes on one port: one policy, one status, and what happens when one of them dies."""

import signal
import subprocess
import sys

import pytest

from tests.e2e.kit import plain_environment, wait_until
from tests.proxy.gang import Gang, Load, Refused, alive, answering, kill, open_tunnel


@pytest.fixture(scope="module")
def gang(tmp_path_factory):
    with Gang(tmp_path_factory.mktemp("gang"), drain_s=8) as running:
        yield running.start()


def test_all_enforce_one_policy_and_the_node_says_so(gang):
    gang.settled()
    status = gang.status()
    assert {one["policy_hash"] for one in status["workers"]} == {status["policy_hash"]}
    assert len({one["pid"] for one in status["workers"]} | {gang.supervisor}) == 3
    assert gang.get("/readyz") == (200, "ready: fresh, 2 of 2 workers\n")
    shown = subprocess.run(
        [sys.executable, "-m", "edgeguard", "status", "--admin", f"127.0.0.1:{gang.admin}"],
        env=plain_environment() | {"COLUMNS": "200"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert "workers.2" in shown
    assert f"pid {status['workers'][1]['pid']}" in shown


def test_a_second_supervisor_is_refused(gang):
    done = subprocess.run(
        [sys.executable, "-m", "edgeguard", "run", "--config", "edgeguard.toml"],
        cwd=gang.folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert f"another edgeguard (process {gang.supervisor}) serves with this state folder" in done.stderr
    assert gang.get("/readyz")[0] == 200


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGKILL, id="threat-worker")])
def test_a_worker_killed_under_load_takes_only_its_own_connections_along(gang, sent):
    pids = gang.settled()
    counted = gang.metric("edgeguard_decisions_total")
    with gang.holding(24) as held:
        before = {one["pid"]: one["connections"] for one in gang.workers()}
        assert sum(before.values()) >= 24
        victim = max(before, key=before.get)
        with Load(gang) as load:
            load.more(20)
            kill(victim, sent)
            load.more(40)
            kept = answering(held)
            seen = [gang.metric("edgeguard_decisions_total") for _ in range(5)]
    assert len(held) - len(kept) <= before[victim]
    assert len(kept) >= before[next(pid for pid in pids if pid != victim)]
    assert len(load.lost) <= 4, "no more than one connection for each thread of the load"
    assert not any(isinstance(error, ConnectionRefusedError | Refused) for error in load.lost)
    after = gang.settled()
    assert victim not in after
    assert seen == sorted(seen)
    assert seen[0] >= counted, "counters never go backwards"
    assert gang.status()["supervision"]["restarts"] >= 1
    assert gang.metric("edgeguard_worker_restarts_total") >= 1


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_worker_that_stands_still_is_replaced_and_the_others_serve(gang):
    pids = gang.settled()
    kill(pids[0], signal.SIGSTOP)
    try:
        with Load(gang, threads=2) as load:
            load.more(40)
            wait_until(lambda: not alive(pids[0]), "the end of a worker that stands still", 12)
        assert not any(isinstance(error, Refused) for error in load.lost)
    finally:
        if alive(pids[0]):
            kill(pids[0], signal.SIGCONT)
    assert pids[0] not in gang.settled()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_worker_that_does_not_stay_up_fails_readiness(gang):
    for _ in range(3):
        gang.settled()
        kill(gang.workers()[0]["pid"])
        wait_until(lambda: len(gang.workers()) == 1, "the end of a worker")
    gang.settled()
    assert gang.get("/readyz") == (
        503,
        "not ready: workers do not stay up; 2 of 2 workers enforce the policy\n",
    )
    assert gang.metric("edgeguard_workers_crash_looping") == 1
    assert gang.metric("edgeguard_ready") == 0
    gang.tunnel().close()
    wait_until(lambda: gang.get("/readyz")[0] == 200, "a worker that has lasted", 40)


def test_workers_are_replaced_one_by_one_and_a_policy_comes_in_between(gang):
    """Each connection is judged under one policy, or under a newer one later: never under an older one again."""
    pids = gang.settled()
    with pytest.raises(Refused):
        open_tunnel(gang.proxy, "later.example", gang.echo.port)
    with Load(gang, threads=2) as load:
        load.more(20)
        kill(gang.supervisor, signal.SIGHUP)
        gang.publish("tunnel.example", "later.example")
        wait_until(
            lambda: gang.status().get("supervision", {}).get("replacements") == 1, "the replacement", 30
        )
        load.more(20)
    assert load.lost == []
    fresh = gang.settled()
    assert not {*pids} & {*fresh}
    assert gang.status()["bundle_version"] == 2
    assert {one["bundle_version"] for one in gang.workers()} == {2}
    gang.tunnel("later.example").close()
    versions = {}
    for record in gang.chains():
        if "connection" in record and "bundle_version" in record:
            versions.setdefault(record["connection"], []).append(record["bundle_version"])
    assert all(seen == sorted(seen) for seen in versions.values())
    assert {version for seen in versions.values() for version in seen} == {1, 2}


def test_a_configuration_with_a_mistake_changes_nothing(gang):
    pids = gang.settled()
    file = gang.config
    wait_until(lambda: len(gang.status()["workers"]) == 2, "the end of a replacement", 45)
    text = file.read_text()
    for change, says in (
        (text.replace("drain_s", "drain_x"), "unknown key"),
        (text.replace("workers = 2", "workers = 3"), "a change of workers takes a restart"),
    ):
        file.write_text(change)
        kill(gang.supervisor, signal.SIGHUP)
        wait_until(lambda says=says: says in gang.log.read_text(), says)
    file.write_text(text)
    assert gang.settled() == pids


def test_the_end_under_load_loses_nothing_that_was_accepted(gang):
    """Last of this module: what was accepted is finished, and every record is there, once."""
    gang.settled()
    pids = [one["pid"] for one in gang.workers()]
    with Load(gang) as load:
        load.more(50)
        with gang.holding(6) as held:
            kill(gang.supervisor, signal.SIGTERM)
            assert answering(held) == held, "open tunnels go on while the node drains"
        wait_until(lambda: not any(map(alive, pids)), "the end of the workers", 10)
    # What was in the queue of the kernel, or came later, was never accepted.
    assert all(str(error) != "in the tunnel" for error in load.lost), load.lost
    assert gang.process.wait(10) == 0
    records = gang.chains()
    assert 2 <= len(gang.logs()) <= 3, "old and new workers overlap by one"
    keys = [(record["chain"], record["seq"]) for record in records]
    assert len(keys) == len({*keys})
    ids = [record["id"] for record in records if record["kind"] == "connect"]
    assert len(ids) == len({*ids})
