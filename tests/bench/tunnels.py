"""Compiles and drives `tunnels.c`, the load that is fast enough to fill either proxy's core with new tunnels."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.bench.run import percentile
from tests.bench.world import LOAD_CORE, TUNNEL_NAME, Absent, BenchError
from tests.fakes import client_hello

SOURCE = Path(__file__).with_name("tunnels.c")
WARM_UP_WINDOWS = 3


def compile_load(folder: Path) -> Path:
    """The program, built in `folder`. Raises Absent without a C compiler, BenchError if it does not build."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Absent("needs a C compiler (Debian package gcc), or its path in CC")
    program = folder / "tunnels"
    built = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        raise BenchError(f"{SOURCE.name} does not build: {built.stderr[-1000:]}")
    return program


def _lines(
    program: Path, kind: str, *, proxy: int, upstream: int, pid: int, last: list[str]
) -> list[list[int]]:
    hello = client_hello(TUNNEL_NAME).hex()
    command = ["taskset", "-c", str(LOAD_CORE), str(program), kind, str(proxy), str(upstream), TUNNEL_NAME]
    done = subprocess.run(
        [*command, hello, str(pid), *last], capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode != 0:
        raise BenchError(f"{program.name} {kind}: {done.stderr.strip()[-1000:]}")
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


def new(
    program: Path, *, proxy: int, upstream: int, pid: int, parallel: int, seconds: float
) -> dict[str, float]:
    """New tunnels, `parallel` at a time: what `load.py` says of the same."""
    found = _lines(
        program, "new", proxy=proxy, upstream=upstream, pid=pid, last=[str(parallel), str(seconds + 0.3)]
    )
    windows = [window for window in found[WARM_UP_WINDOWS:] if window[3]]
    count, cpu_ns, wall_ns = (sum(window[i] for window in windows) for i in range(3))
    if not count:
        raise BenchError("no tunnel was opened in time")
    return {
        "rate": count / wall_ns * 1e9,
        "busy": cpu_ns / wall_ns,
        "cpu_us": cpu_ns / count / 1000,
        "operations": sum(window[0] for window in found),
    }


def added(program: Path, *, proxy: int, upstream: int, pid: int, count: int) -> dict[str, float]:
    """What a tunnel adds to a direct connection until the answer to the first bytes, one after the other; microseconds."""
    pairs = _lines(program, "added", proxy=proxy, upstream=upstream, pid=pid, last=[str(count)])
    direct, through = ([pair[i] / 1000 for pair in pairs] for i in (0, 1))
    figures = {
        "tunnel.direct.p50_us": percentile(direct, 0.5),
        "tunnel.direct.p99_us": percentile(direct, 0.99),
    }
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        figures[f"tunnel.added.{name}_us"] = percentile(through, share) - percentile(direct, share)
    return figures
