"""Time: a lid that was shut, a clock that was set, and how soon a real node refuses after expiry."""

import asyncio
import os
import socket
import subprocess
import sys
import time

import pytest

from edgeguard.bundle.snapshot import Ladder
from edgeguard.policy.reasons import Reason
from edgeguard.sync.clock import TrustedClock
from tests.ports import free_port
from tests.sync.signing import DAY, Authority, lay_out
from tests.test_guard import NOW, Bench, facts


def row(*names):
    return pytest.mark.parametrize("case", [pytest.param(None, id=name) for name in names])


class Hands:
    """Three clocks that can be moved apart: the wall, since boot, and the one that timers run on."""

    def __init__(self):
        self.wall, self.boot = NOW, 1000.0
        self.clock = TrustedClock(wall=lambda: self.wall, boot=lambda: self.boot)
        self.bench = Bench()
        self.bench.guard._clock = self.clock.now

    def sleep(self, seconds, *, wall=True):
        """Suspend: the boot clock goes on; the wall clock too, unless it waits for the network."""
        self.boot += seconds
        if wall:
            self.wall += seconds


@row("fault-B21-resumed")
def test_a_resumed_laptop_is_closed_before_its_first_request(case):
    """No timer ran, no poll was made: the comparison at the request is enough."""
    hands = Hands()
    hands.bench.activate()
    assert hands.bench.guard.judge(facts()).allow
    hands.sleep(DAY)
    verdict = hands.bench.guard.judge(facts())
    assert (verdict.allow, verdict.reason) == (False, Reason.POLICY_EXPIRED)
    assert hands.clock.look() is None  # both clocks agree: that was no jump


@row("fault-B18-resumed")
def test_a_wall_clock_that_stood_still_in_suspend_opens_nothing(case):
    """A machine whose wall clock comes back with the time of before: the boot clock counts from the signed time."""
    hands = Hands()
    hands.clock.anchor(NOW)
    hands.bench.activate()
    hands.sleep(DAY, wall=False)
    assert hands.bench.guard.judge(facts()).reason is Reason.POLICY_EXPIRED
    assert hands.clock.status()["wall_behind_s"] == DAY


@row("fault-B19-recover")
def test_a_clock_set_forward_closes_and_back_recovers(case):
    hands = Hands()
    hands.clock.anchor(NOW)
    hands.bench.activate()
    hands.wall += 10 * 365 * DAY
    assert hands.bench.guard.judge(facts()).reason is Reason.POLICY_EXPIRED
    assert hands.clock.look().by_s == pytest.approx(10 * 365 * DAY)
    hands.wall -= 10 * 365 * DAY
    assert hands.bench.guard.judge(facts()).allow
    assert hands.clock.look().by_s < 0


@row("fault-B18-set-back")
def test_a_clock_set_back_does_not_un_expire(case):
    hands = Hands()
    hands.clock.anchor(NOW)
    hands.bench.activate()
    hands.sleep(301)
    assert hands.bench.guard.ladder() is Ladder.CLOSED
    hands.wall -= DAY
    assert hands.bench.guard.ladder() is Ladder.CLOSED


@row("fault-B21-timer")
async def test_deadlines_wake_open_work_although_timers_stood_still(case):
    """The timer of the traffic's loop stops in suspend; it never sleeps longer than a second."""
    hands = Hands()
    hands.bench.activate()
    woken = asyncio.Event()
    hands.bench.guard.subscribe(woken.set)
    hands.bench.guard.start()
    try:
        hands.sleep(DAY)
        async with asyncio.timeout(1.5):
            await woken.wait()
        assert hands.bench.guard.ladder() is Ladder.CLOSED
    finally:
        hands.bench.guard.stop()


# On a real node

CONFIG = """
environment = "test"
[listen]
address = "127.0.0.1:{proxy}"
[trust]
root = "root.msgpack"
state_dir = "state"
[sync]
urls = ["http://127.0.0.1:{server}/"]
long_poll_s = 20
[identity]
static = "app"
[interception]
ca_dir = "ca"
[evidence]
log = "decisions.jsonl"
[admin]
address = ""
[resolver]
mode = "static"
[resolver.static]
"one.example" = ["127.0.0.1"]
"""

POLICY = b"""
edgeguard: 1
module: m
owner: o
rules:
  - id: r
    effect: allow
    to: ["one.example:%d"]
    protocol: tcp
    resolves_to: ["127.0.0.0/8"]
"""


def connect(port, upstream):
    """The status of one CONNECT."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(
            b"CONNECT one.example:%d HTTP/1.1\r\nHost: one.example:%d\r\n\r\n" % (upstream, upstream)
        )
        return int(client.recv(4096).split(b" ")[1])


@row("fault-B11-node")
def test_expiry_to_the_first_refusal_on_a_real_node(tmp_path, start, case):
    """A bundle expires under a steady stream of CONNECTs: the first one after it is refused within 50 ms."""
    from edgeguard.bundle.build import encode_section
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.source import load_sources

    upstreams = socket.create_server(("127.0.0.1", 0), backlog=4096)  # the kernel answers; nobody need accept
    upstream = upstreams.getsockname()[1]
    policy = encode_section(compile_policy(load_sources({"m.yaml": POLICY % upstream})))
    authority = Authority(now=int(time.time()), policy=policy)
    served = tmp_path / "served"
    served.mkdir()
    bundle = authority.bundle(1)
    lay_out(served, "test", roots=[authority.root()], head=authority.head(1, bundle), blobs=[bundle])
    server = start(served)
    proxy = free_port()
    (tmp_path / "root.msgpack").write_bytes(authority.root())
    (tmp_path / "edgeguard.toml").write_text(CONFIG.format(proxy=proxy, server=server.port))
    command = [sys.executable, "-m", "edgeguard", "run", "--config", "edgeguard.toml"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ.copy()
    ) as node:
        try:
            status = 0
            while status != 200:
                assert node.poll() is None, node.stdout.read()
                try:
                    status = connect(proxy, upstream)
                except OSError:
                    status = 0
                time.sleep(0.05)
            expires = int(time.time()) + 3
            bundle = authority.bundle(2, expires_at=expires)
            lay_out(served, "test", head=authority.head(2, bundle, 2), blobs=[bundle])
            last_allowed = 0.0
            while True:
                asked = time.time()
                status = connect(proxy, upstream)
                answered = time.time()
                if status != 200:
                    break
                last_allowed = asked
                time.sleep(0.002)
            assert status == 503
            assert last_allowed < expires  # nothing that was asked later was allowed
            assert answered - expires < 0.05, answered - expires
        finally:
            upstreams.close()
            node.terminate()
            node.communicate(timeout=15)
