"""The tunnel lane over squid, pair by pair, with policy, limits and the decision log on."""

import json
import statistics
import tempfile
from pathlib import Path

from edgeguard.evidence.log import verify_chain
from tests.bench import tunnels
from tests.bench.run import Run, by_rate, capacity
from tests.bench.world import TUNNEL_NAME, Absent, BenchError, Peers, node_policy, run_load, two_cores

KEYS = ("tunnel.new.vs_squid", "tunnel.roundtrip.vs_squid", "tunnel.bulk.vs_squid")
ADDED = ("tunnel.added.p50_us", "tunnel.added.p99_us")
PARALLEL = {"new": 16, "roundtrip": 16, "bulk": 1}
SATURATED = 0.9


def measure(run: Run) -> dict[str, float]:
    try:
        two_cores()
    except Absent as absent:
        run.absent((*KEYS, "tunnel.new.cpu_us", "evidence.lost"), str(absent))
        return {}
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        peers.repository.publish(node_policy(peers.tunnel_port, peers.https_port))
        node = peers.edgeguard()
        proxies = {"edgeguard": (node.pid, node.port)}
        try:
            proxies["squid"] = peers.squid(logs=True)
            proxies["squid_unlogged"] = peers.squid(logs=False)
        except Absent as absent:
            run.absent(KEYS, str(absent))
        program: Path | None = None
        try:
            program = tunnels.compile_load(Path(folder))
        except Absent as absent:
            run.absent(ADDED, str(absent))
            run.note(f"tunnel.new: the load is the slower one in Python: {absent}")
        readings = _all_readings(run, peers, proxies, program)
        figures = _figures(run, readings)
        pairs = run.pick(300, 3000)
        if program is not None:
            figures |= tunnels.added(
                program, proxy=node.port, upstream=peers.tunnel_port, pid=node.pid, count=pairs
            )
        node.stop()
        opened = 0 if program is None else pairs
        opened += sum(int(one["operations"]) for one in readings["new", "edgeguard"])
        opened += len(readings["roundtrip", "edgeguard"]) * PARALLEL["roundtrip"]
        opened += len(readings["bulk", "edgeguard"])
        figures["evidence.lost"] = _lost(node.decisions, opened)
        run.raw["evidence.tunnels"] = opened
    return figures


type Readings = dict[tuple[str, str], list[dict[str, float]]]


def _all_readings(
    run: Run, peers: Peers, proxies: dict[str, tuple[int, int]], program: Path | None
) -> Readings:
    readings: Readings = {(kind, name): [] for kind in PARALLEL for name in proxies}
    for number in range(run.pick(1, 5)):
        for kind, parallel in PARALLEL.items():
            # The order turns round from pair to pair, so that a drift of the machine favours nobody.
            for name, (pid, port) in list(proxies.items())[:: 1 if number % 2 == 0 else -1]:
                if name == "squid_unlogged" and kind != "new":
                    continue
                seconds = run.pick(0.5, 2.0)
                if kind == "new" and program is not None:
                    result = tunnels.new(
                        program,
                        proxy=port,
                        upstream=peers.tunnel_port,
                        pid=pid,
                        parallel=parallel,
                        seconds=seconds,
                    )
                else:
                    result = run_load(
                        kind,
                        proxy=port,
                        upstream=peers.tunnel_port,
                        name=TUNNEL_NAME,
                        pid=pid,
                        parallel=parallel,
                        seconds=seconds,
                    )
                readings[kind, name].append(result)
    return readings


def _figures(run: Run, readings: Readings) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (kind, name), found in readings.items():
        for what in ("rate", "busy", "cpu_us"):
            run.raw[f"raw.tunnel.{kind}.{name}.{what}"] = [one[what] for one in found]
        if found and (busy := statistics.median(one["busy"] for one in found)) < SATURATED:
            run.note(
                f"tunnel.{kind}: {name} used {busy:.0%} of its core, so the rate is the load's;"
                " the ratio counts the proxy's own time"
            )
    for kind in PARALLEL:
        ours, theirs = readings[kind, "edgeguard"], readings.get((kind, "squid"))
        rate = statistics.median(one["rate"] for one in ours)
        figures[f"tunnel.{kind}.bytes_s" if kind == "bulk" else f"tunnel.{kind}.per_s"] = rate
        if kind == "new":
            figures["tunnel.new.cpu_us"] = statistics.median(one["cpu_us"] for one in ours)
        if theirs:
            figures[f"tunnel.{kind}.vs_squid"] = capacity(ours, theirs)
            figures[f"tunnel.{kind}.rate.vs_squid"] = by_rate(ours, theirs)
    bare = readings.get(("new", "squid_unlogged"))
    if bare:
        figures["tunnel.new.vs_squid_unlogged"] = capacity(readings["new", "edgeguard"], bare)
    return figures


def _lost(decisions: Path, opened: int) -> float:
    """Tunnels that the load opened and the log does not have, once its chain has been verified."""
    lines = decisions.read_bytes().splitlines()
    report = verify_chain(lines)
    if not report.ok:
        raise BenchError(f"the decision log does not hold: {report.problems[0]}")
    records = [json.loads(line) for line in lines]
    kept = sum(1 for one in records if one["kind"] == "connect" and one.get("verdict") == "allow")
    ends = sum(1 for one in records if one["kind"] == "close")
    return float(abs(opened - kept) + abs(opened - ends) + sum(one.get("lost", 0) for one in records))
