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
    Peers,
    node_policy,
    run_load,
    two_cores,
)


def measure(run: Run) -> dict[str, float]:
    run.absent("memory.stalled_tunnel_kb", "readers that stall are not measured yet")
    try:
        two_cores()
    except Absent as absent:
        run.absent(("memory.sidecar_mb", "memory.idle_tunnel_kb"), str(absent))
        return {}
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        peers.repository.publish(node_policy(peers.tunnel_port, peers.https_port))
        node = peers.edgeguard()
        plan = {"proxy": node.port, "upstream": peers.tunnel_port, "name": TUNNEL_NAME, "pid": node.pid}
        run_load("new", **plan, parallel=16, seconds=0.5)
        time.sleep(0.5)
        before = node.rss_kb()
        count = run.pick(500, 4000)
        with subprocess.Popen(
            [
                "taskset",
                "-c",
                str(LOAD_CORE),
                sys.executable,
                "-m",
                "tests.bench.load",
                "idle",
                json.dumps({**plan, "parallel": count}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as load:
            assert load.stdin is not None
            assert load.stdout is not None
            if load.stdout.readline() != b"open\n":
                raise BenchError("the idle tunnels could not be opened")
            time.sleep(1.0)
            after = node.rss_kb()
            load.communicate(b"\n")
        if load.returncode != 0:
            raise BenchError("the idle tunnels did not end in order")
    run.note(f"memory: {PLAIN_RULES} rules in force, {count} idle tunnels, resident set size")
    return {"memory.sidecar_mb": before / 1024, "memory.idle_tunnel_kb": (after - before) / count}
