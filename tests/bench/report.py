"""Budgets, the table, and build/bench.json."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.bench.run import Run


class Budget(NamedTuple):
    """What a figure has to keep."""

    limit: float
    most: bool
    """True: the figure may be at most `limit`. False: it has to be at least that."""

    def kept(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.limit:g}"


def at_most(limit: float) -> Budget:
    return Budget(limit, most=True)


def at_least(limit: float) -> Budget:
    return Budget(limit, most=False)


BUDGETS = {
    "decision.host.p50_us": at_most(1.5),
    "decision.host.p99_us": at_most(4),
    "decision.host.p50_spread": at_most(1.15),
    "decision.host.uniform.p50_us": at_most(3.5),
    "decision.full.p50_us": at_most(4),
    "decision.dirty.p50_us": at_most(15),
    "decision.vs_rego": at_least(5),
    "diff.ms.1000": at_most(1000),
    "tunnel.new.vs_squid": at_least(1.0),
    "tunnel.roundtrip.vs_squid": at_least(1.0),
    "tunnel.bulk.vs_squid": at_least(1.2),
    "mitmproxy.rps.vs_mitmdump": at_least(1.6),
    "mitmproxy.new.vs_mitmdump": at_least(1.3),
    "http.rps.vs_squid_bump": at_least(1.0),
    "http.new.vs_squid_bump": at_least(1.0),
    "http.plain.vs_squid": at_least(0.8),
    "activate.ms.10000": at_most(80),
    "activate.stall_ms.10000": at_most(5),
    "bundle.wire_bytes.10000": at_most(250_000),
    "bundle.head_bytes": at_most(450),
    "expiry.to_closed_ms": at_most(50),
    "limit.process_us": at_most(0.5),
    "limit.host_us": at_most(5),
    "limit.fleet.roundtrips_per_check": at_most(0.1),
    "limit.fleet.overshoot": at_most(0),
    "evidence.enqueue_us": at_most(0.5),
    "evidence.encode_us": at_most(3),
    "evidence.lost": at_most(0),
    "memory.sidecar_mb": at_most(110),
    "memory.idle_tunnel_kb": at_most(6),
    "memory.stalled_tunnel_kb": at_most(130),
}


def budget_of(key: str) -> Budget | None:
    """A budget holds for the key itself, or for every size at its end."""
    found = BUDGETS.get(key)
    if found is None:
        stem, _, size = key.rpartition(".")
        found = BUDGETS.get(stem) if size.isdecimal() else None
    return found


def show(figures: Mapping[str, float], run: Run, console: Console) -> None:
    """The table, and in plain words what is missing and what has to be known."""
    table = Table(title="edgeguard, measured here and now")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("budget", justify="right")
    table.add_column("")
    group = ""
    for key in figures:
        if group and key.partition(".")[0] != group:
            table.add_section()
        group = key.partition(".")[0]
        budget = budget_of(key)
        if budget is None:
            table.add_row(f"[dim]{key}[/]", f"[dim]{number(figures[key])}[/]", "", "")
        else:
            word = "[green]kept[/]" if budget.kept(figures[key]) else "[red]missed[/]"
            table.add_row(key, number(figures[key]), str(budget), word)
    console.print(table)
    if run.missing:
        console.print("Not measured:")
        for key, why in run.missing.items():
            console.print(f"  {key}: {why}", highlight=False)
    for note in dict.fromkeys(run.notes):
        console.print(f"Note: {note}", highlight=False)


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write(
    figures: Mapping[str, float], run: Run, path: Path, *, seconds: float, load: tuple[float, float]
) -> None:
    """One flat object: the figures, the readings behind them, versions and machine."""
    document: dict[str, object] = {key: round(value, 4) for key, value in figures.items()}
    document |= {key: run.raw[key] for key in sorted(run.raw)}
    document |= {f"version.{name}": version for name, version in versions().items()}
    document |= machine()
    document["run.at"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    document["run.quick"] = run.quick
    document["run.seconds"] = round(seconds, 1)
    document["run.load_before"], document["run.load_after"] = load
    document["run.not_measured"] = [f"{key}: {why}" for key, why in run.missing.items()]
    document["run.notes"] = list(dict.fromkeys(run.notes))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of everything that a figure depends on and that is installed."""
    found = {"python": platform.python_version()}
    for package in ("edgeguard", "mitmproxy", "uvloop", "msgpack", "pynacl", "zstandard", "cryptography"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        text = subprocess.run(["/usr/sbin/squid", "-v"], capture_output=True, text=True, check=True).stdout
        found["squid"] = text.splitlines()[0].rpartition(" ")[2]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
    return found


def machine() -> dict[str, object]:
    """The processor, how many of them, the kernel and the memory."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "machine.cpu": model or platform.machine(),
        "machine.cores": len(os.sched_getaffinity(0)),
        "machine.kernel": platform.release(),
        "machine.system": platform.system(),
        "machine.memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "machine.gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    }
