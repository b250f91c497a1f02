"""`python -m tests.bench [SUBJECT ...] [--quick]`: measure, print a table, write build/bench.json."""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.bench import report
from tests.bench.run import Run

SUBJECTS = {
    "decision": "decision",
    "age": "age",
    "limit": "limit",
    "evidence": "evidence",
    "bundle": "bundle",
    "activate": "activate",
    "expiry": "expiry",
    "tunnel": "tunnel",
    "mitmproxy": "intercept",
    "workers": "workers",
    "memory": "memory",
}
"""Subject to module; each has `measure(run) -> dict[str, float]`."""
QUIET_LOAD = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"default: all of {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="show that it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.subjects if name not in SUBJECTS]:
        parser.error(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    run = Run(quick=arguments.quick, say=lambda text: console.print(text, highlight=False))
    before = os.getloadavg()[0]
    if before > QUIET_LOAD:
        run.note(
            f"the machine was not quiet: load average {before:.2f} at the start; ratios suffer less than times"
        )
    if run.quick:
        run.note("a quick run: the figures show that everything works, and little else")
    figures: dict[str, float] = {}
    failed = []
    start = time.monotonic()
    for name in arguments.subjects or SUBJECTS:
        began = time.monotonic()
        try:
            figures |= importlib.import_module(f"tests.bench.{SUBJECTS[name]}").measure(run)
        except Exception as error:  # noqa: BLE001 - one subject that fails leaves the others their figures
            failed.append(name)
            run.absent(name, f"failed: {type(error).__name__}: {error}")
        run.say(f"  {name}: {time.monotonic() - began:.0f} s")
    report.show(figures, run, console)
    report.write(
        figures, run, arguments.out, seconds=time.monotonic() - start, load=(before, os.getloadavg()[0])
    )
    run.say(f"{len(figures)} figures in {arguments.out}, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
