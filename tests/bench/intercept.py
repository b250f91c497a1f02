"""The mitmproxy lane over stock mitmdump, pair by pair, with policy, limits and the decision log on."""

import statistics
import tempfile
from pathlib import Path

from tests.bench.run import Run, by_rate, capacity
from tests.bench.world import Absent, Peers, node_policy, run_load, two_cores

KEYS = {"https_keep": "mitmproxy.rps", "https_new": "mitmproxy.new"}


def measure(run: Run) -> dict[str, float]:
    keys = [f"{key}.vs_mitmdump" for key in KEYS.values()]
    run.absent(
        ("http.rps.vs_squid_bump", "http.new.vs_squid_bump", "http.plain.vs_squid"),
        "the HTTP lane does not exist yet",
    )
    try:
        two_cores()
    except Absent as absent:
        run.absent(keys, str(absent))
        return {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        peers.repository.publish(node_policy(peers.tunnel_port, peers.https_port))
        node = peers.edgeguard()
        proxies = {"edgeguard": (node.pid, node.port, node.authority), "mitmdump": peers.mitmdump()}
        readings: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number in range(run.pick(1, 5)):
            for kind in KEYS:
                for name, (pid, port, authority) in list(proxies.items())[:: 1 if number % 2 == 0 else -1]:
                    result = run_load(
                        kind,
                        proxy=port,
                        upstream=peers.https_port,
                        pid=pid,
                        authority=str(authority),
                        leaf=str(peers.upstream_leaf),
                        parallel=16,
                        seconds=run.pick(1.0, 3.0),
                    )
                    readings.setdefault((kind, name), []).append(result)
    for kind, key in KEYS.items():
        ours, theirs = readings[kind, "edgeguard"], readings[kind, "mitmdump"]
        for name, found in (("edgeguard", ours), ("mitmdump", theirs)):
            for what in ("rate", "busy", "cpu_us"):
                run.raw[f"raw.{key}.{name}.{what}"] = [one[what] for one in found]
        figures[f"{key}.per_s"] = statistics.median(one["rate"] for one in ours)
        figures[f"{key}.vs_mitmdump"] = capacity(ours, theirs)
        figures[f"{key}.rate.vs_mitmdump"] = by_rate(ours, theirs)
    return figures
