"""When the supervisor dies: workers end too, and nobody takes their place before they have."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from edgeguard.evidence.log import verify_chain
from tests.e2e.kit import plain_environment, wait_until
from tests.proxy.gang import Gang, Load, alive, answering, kill

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def gang(tmp_path_factory):
    with Gang(tmp_path_factory.mktemp("gang"), drain_s=1.5, stream=True) as running:
        yield running.start()


def edgeguard(gang):
    return subprocess.Popen(
        [sys.executable, "-m", "edgeguard", "run", "--config", str(gang.config)],
        cwd=gang.folder,
        env=plain_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_do_not_outlive_their_supervisor(gang, request):
    """kill -9: nothing new is accepted, open tunnels end by the deadline, and only then the next node serves."""
    pids = gang.settled()
    with Load(gang) as load:
        load.more(30)
    with gang.holding(8) as held:
        stopped, drains = [one["pid"] for one in sorted(gang.workers(), key=lambda one: one["connections"])]
        request.addfinalizer(lambda: alive(stopped) and kill(stopped))
        kill(stopped, signal.SIGSTOP)  # one of them cannot even notice
        gang.process.kill()
        gang.process.wait()
        killed = time.monotonic()
        assert answering(held), "open work may finish"
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", gang.proxy))  # what stands still keeps the port to itself
        waiting = edgeguard(gang)
        wait_until(lambda: not alive(drains), "the drain's deadline", 15)
        assert waiting.poll() is None, "it waits for the workers of before"
        assert alive(stopped)
        kill(stopped, signal.SIGCONT)
        wait_until(lambda: not any(map(alive, pids)), "the end of the workers", 10)
        assert time.monotonic() - killed < 40
    gang.process = waiting
    gang.settled()
    gang.tunnel().close()
    with waiting.stderr:
        gang.stop()


def test_one_stream_holds_whole_lines_of_every_chain(gang):
    """After the test above: killed, restarted, several writers, one file."""
    chains = defaultdict(list)
    for line in gang.out.read_bytes().splitlines():
        chains[json.loads(line)["chain"]].append(line)
    assert len(chains) == 2
    for lines in chains.values():
        report = verify_chain(lines)
        assert report.ok, report
    records = [json.loads(line) for lines in chains.values() for line in lines]
    allowed = [record["id"] for record in records if record["kind"] == "connect"]
    assert len(allowed) == len({*allowed}) >= 34
