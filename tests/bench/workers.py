"""One worker and two on the same doors: requests and tunnels a second, load and proxy on the same two cores.

Where load and upstream take half of the machine, a second worker finds no core of its own; the processor
time of each operation says what more cores would give.
"""

import contextlib
import json
import os
import statistics
import tempfile
from pathlib import Path

from edgeguard.evidence.log import verify_chain
from tests.bench.run import Run
from tests.bench.world import TUNNEL_NAME, Absent, BenchError, Node, Peers, node_policy, run_load, two_cores

COUNTS = (1, 2)
KINDS = {"https_keep": "rps", "new": "tunnels_s"}
CORES = "0,1"
PARALLEL = 32


def measure(run: Run) -> dict[str, float]:
    try:
        two_cores()
    except Absent as absent:
        run.absent([f"workers.{count}.{key}" for count in COUNTS for key in KINDS.values()], str(absent))
        return {}
    readings: dict[tuple[int, str], list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        nodes = {count: _node(stack, count) for count in COUNTS}
        for number in range(run.pick(1, 5)):
            for kind in KINDS:
                for count in COUNTS[:: 1 if number % 2 == 0 else -1]:
                    readings.setdefault((count, kind), []).append(_read(run, kind, *nodes[count]))
        lost = {}
        for count, (peers, node) in nodes.items():
            node.stop()
            tunnels = sum(int(one["operations"]) for one in readings[count, "new"])
            tunnels += len(readings[count, "https_keep"]) * PARALLEL
            lost[count] = _lost(peers, tunnels)
    figures = _figures(run, readings)
    figures |= {f"workers.{count}.lost": amount for count, amount in lost.items()}
    cores = len(os.sched_getaffinity(0))
    if cores < 4:
        run.note(f"workers: load, upstream and workers share {CORES.count(',') + 1} of {cores} cores")
    return figures


def _node(stack: contextlib.ExitStack, count: int) -> tuple[Peers, Node]:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeguard-bench-"))
    peers = stack.enter_context(Peers(Path(folder)))
    peers.repository.publish(node_policy(peers.tunnel_port, peers.https_port))
    return peers, peers.edgeguard(workers=count, cores=CORES)


def _read(run: Run, kind: str, peers: Peers, node: Node) -> dict[str, float]:
    return run_load(
        kind,
        core=CORES,
        proxy=node.port,
        upstream=peers.tunnel_port if kind == "new" else peers.https_port,
        name=TUNNEL_NAME,
        pids=node.pids(),
        authority=str(node.authority),
        leaf=str(peers.upstream_leaf),
        parallel=PARALLEL,
        seconds=run.pick(1.0, 3.0),
    )


def _figures(run: Run, readings: dict[tuple[int, str], list[dict[str, float]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (count, kind), found in readings.items():
        key = f"workers.{count}.{KINDS[kind]}"
        for what in ("rate", "busy", "cpu_us"):
            run.raw[f"raw.{key}.{what}"] = [one[what] for one in found]
        figures[key] = statistics.median(one["rate"] for one in found)
        figures[f"{key}.cpu_us"] = statistics.median(one["cpu_us"] for one in found)
    for kind, key in KINDS.items():
        pairs = zip(readings[2, kind], readings[1, kind], strict=True)
        figures[f"workers.{key}.2_vs_1"] = statistics.median(two["rate"] / one["rate"] for two, one in pairs)
    return figures


def _lost(peers: Peers, opened: int) -> float:
    """Connections of the load that no log has, once every chain has been verified."""
    kept = 0
    for path in peers.folder.glob("decisions*.jsonl"):
        lines = path.read_bytes().splitlines()
        report = verify_chain(lines)
        if not report.ok:
            raise BenchError(f"{path.name} does not hold: {report.problems[0]}")
        records = [json.loads(line) for line in lines]
        kept += sum(1 for one in records if one["kind"] == "connect" and one.get("verdict") == "allow")
    return float(abs(opened - kept))
