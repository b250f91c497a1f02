"""A node that dies and comes back: what it enforced, how old that was, and what it wrote stay true."""

import signal
import time

import pytest

from edgeguard.evidence.log import verify_chain
from tests.e2e.kit import LATER, Place, wait_until


@pytest.fixture
def place(tmp_path, keys):
    with Place(tmp_path, keys) as running:
        yield running


def chain(place):
    return verify_chain(place.decisions.read_bytes().splitlines(keepends=True))


def restart(place, how=signal.SIGTERM):
    """Ends the proxy and starts it again, without waiting for anything but its port."""
    place.stop("proxy", how)
    place.start("proxy", "run", "--config", "edgeguard.toml")
    place.wait_for_port(place.proxy, "proxy")


def tunnel(place, host="tunnel.example"):
    return place.client.https(host, place.tls, "/any")


def test_a_kill_and_a_restart_without_a_server_keep_the_newest_policy(place):
    """Never an older policy, and one unbroken log, though the process had no chance to say goodbye."""
    place.client = place.start_all()
    assert tunnel(place, "later.example").reason == "host_not_allowed"
    old_head = (place.repository / "demo/head").read_bytes()
    place.write("later", LATER)
    place.publish(place.release(2, lifetime_s=600))
    wait_until(lambda: place.version() == 2, "version 2")
    assert tunnel(place, "later.example").status == 200
    place.stop("head")
    (place.repository / "demo/head").write_bytes(old_head)  # whoever holds the server offers the older one
    before = place.status()
    restart(place, signal.SIGKILL)
    assert tunnel(place, "later.example").status == 200
    after = place.status()
    same = ("bundle", "bundle_version", "policy_hash", "stale_at", "restricted_at", "closed_at")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert place.refusal("rollback_head") == "rollback_head"
    place.stop("server")
    restart(place, signal.SIGKILL)
    assert tunnel(place, "later.example").status == 200
    assert place.version() == 2
    place.stop("proxy")
    report = chain(place)
    assert report.ok, report
    assert report.lines == len(place.records())
    assert sum(record.get("why") == "started" for record in place.records()) == 3


def test_grace_goes_on_through_restarts(place):
    """A restart in the grace gives no new one: the ladder falls when it would have fallen."""
    place.head_lifetime_s, place.grace_s = 4, 4
    place.client = place.start_all()
    place.stop("server", signal.SIGKILL)
    place.stop("head", signal.SIGKILL)
    wait_until(lambda: place.status().get("ladder") == "stale", "stale")
    restricted_at = place.status()["restricted_at"]
    restart(place)
    back = time.time()
    assert place.status()["restricted_at"] == restricted_at
    wait_until(lambda: place.status().get("ladder") == "restricted", "restricted")
    assert time.time() < max(restricted_at, back) + 1.5
    assert tunnel(place).status == 200  # survive_offline
    assert place.client.https("site.example", place.tls, "/ok/page").reason == "policy_restricted"
    restart(place)
    assert place.status()["ladder"] == "restricted"
    assert place.client.https("site.example", place.tls, "/ok/page").reason == "policy_restricted"
