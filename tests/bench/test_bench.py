"""The benchmark itself: what it counts is what was answered rightly, and its figures are judged by the right budget."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import threading

import pytest
from rich.console import Console

from tests.bench import limit, load, report, tunnels
from tests.bench.__main__ import SUBJECTS
from tests.bench.run import Run, capacity, percentile
from tests.bench.world import Absent
from tests.ports import free_ports


def test_every_subject_is_a_module_that_measures():
    for module in SUBJECTS.values():
        assert callable(importlib.import_module(f"tests.bench.{module}").measure)


def test_a_budget_holds_for_every_size():
    assert report.budget_of("decision.host.p50_us.100000") == report.BUDGETS["decision.host.p50_us"]
    assert report.budget_of("activate.ms.10000") == report.BUDGETS["activate.ms.10000"]
    assert report.budget_of("activate.ms.1000") is None
    assert report.budget_of("evidence.shape_us") is None


def test_budgets_know_their_direction():
    assert report.BUDGETS["tunnel.new.vs_squid"].kept(1.0)
    assert not report.BUDGETS["tunnel.new.vs_squid"].kept(0.99)
    assert report.BUDGETS["evidence.lost"].kept(0)
    assert not report.BUDGETS["evidence.lost"].kept(1)


def test_percentile_is_a_value_that_was_read():
    values = list(range(1, 101))
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7.0], 0.99) == 7.0


def test_capacity_is_the_median_of_pairs():
    ours = [{"cpu_us": 50.0}, {"cpu_us": 100.0}, {"cpu_us": 50.0}]
    theirs = [{"cpu_us": 100.0}, {"cpu_us": 100.0}, {"cpu_us": 150.0}]
    assert capacity(ours, theirs) == 2.0


def test_the_report_is_one_flat_object(tmp_path):
    run = Run(quick=True)
    run.absent("limit.host_us", "does not exist yet")
    run.raw["raw.limit"] = [1.0, 2.0]
    path = tmp_path / "build" / "bench.json"
    report.write({"limit.process_us": 0.4}, run, path, seconds=1.0, load=(0.1, 0.2))
    written = json.loads(path.read_text())
    assert written["limit.process_us"] == 0.4
    assert "limit.host_us" not in written
    assert written["run.not_measured"] == ["limit.host_us: does not exist yet"]
    assert not any(isinstance(value, dict) for value in written.values())
    console = Console(width=120, record=True, file=(tmp_path / "table").open("w"))
    report.show({"limit.process_us": 0.4, "limit.process.p99_us": 0.9}, run, console)
    assert "kept" in console.export_text()
    console.file.close()


def test_a_subject_measures():
    figures = limit.process(Run(quick=True))
    assert figures["limit.process_us"] > 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 Connection established\r\n",
        b"",
    ],
)
def test_the_load_counts_no_wrong_answer(answer):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=_answer_all, args=(proxy, answer), daemon=True).start()
        (upstream,) = free_ports(1)
        plan = {
            "proxy": proxy.getsockname()[1],
            "upstream": upstream,
            "name": "tunnel.bench.example",
            "pid": os.getpid(),
            "parallel": 1,
            "seconds": 0.1,
        }
        with pytest.raises(load.WrongAnswer):
            load.new(plan)


def test_the_compiled_load_counts_no_wrong_answer(tmp_path):
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        with pytest.raises(Absent, match="C compiler"):
            tunnels.compile_load(tmp_path)
        return
    program = tunnels.compile_load(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        threading.Thread(target=_answer_all, args=(proxy, answer), daemon=True).start()
        ports = [str(proxy.getsockname()[1]), str(free_ports(1)[0])]
        for kind, last in (("new", ["1", "0.1"]), ("added", ["1"])):
            command = [str(program), kind, *ports, "tunnel.bench.example", "1603", str(os.getpid()), *last]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            assert done.returncode == 1
            assert "CONNECT was answered with: HTTP/1.1 403" in done.stderr


def _answer_all(proxy: socket.socket, answer: bytes) -> None:
    while True:
        try:
            client, _ = proxy.accept()
        except OSError:
            return
        client.recv(4096)
        client.sendall(answer)
        client.close()
