"""Resident memory: of a node with its policy in force, and of each tunnel that it keeps."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.run import Run
from tests.bench.world import (
    LOAD_CORE,
    PLAIN_RULES,
    TUNNEL_NAME,
    Absent,
    BenchError,
    Node,
    Peers,
    node_policy,
    run_load,
    two_cores,
)


def measure(run: Run) -> dict[str, float]:
    try:
        two_cores()
    except Absent as absent:
        run.absent(("memory.sidecar_mb", "memory.idle_tunnel_kb", "memory.stalled_tunnel_kb"), str(absent))
        return {}
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        peers.repository.publish(node_policy(peers.tunnel_port, peers.https_port))
        node = peers.edgeguard()
        plan = {"proxy": node.port, "upstream": peers.tunnel_port, "name": TUNNEL_NAME, "pid": node.pid}
        run_load("new", **plan, parallel=16, seconds=0.5)
        time.sleep(0.5)
        before = node.rss_kb()
        idle, stalled = run.pick(500, 4000), run.pick(100, 300)
        idle_kb = _grown(node, "idle", plan, idle) / idle
        stalled_kb = _grown(node, "stalled", plan, stalled) / stalled
    run.note(
        f"memory: {PLAIN_RULES} rules in force, {idle} idle and {stalled} stalled tunnels, resident set size"
    )
    return {
        "memory.sidecar_mb": before / 1024,
        "memory.idle_tunnel_kb": idle_kb,
        "memory.stalled_tunnel_kb": stalled_kb,
    }


def _grown(node: Node, kind: str, plan: dict[str, object], count: int) -> int:
    """How much the node grows, in kB, while the load keeps `count` tunnels."""
    command = [sys.executable, "-m", "tests.bench.load", kind, json.dumps({**plan, "parallel": count})]
    before = node.rss_kb()
    with subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        if load.stdout.readline() != b"open\n":
            raise BenchError(f"the {kind} tunnels could not be opened")
        time.sleep(1.0)
        after = node.rss_kb()
        load.communicate(b"\n")
    if load.returncode != 0:
        raise BenchError(f"the {kind} tunnels did not end in order")
    time.sleep(0.5)
    return after - before
