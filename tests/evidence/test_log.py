"""Nothing is lost silently: chain, restarts, torn tails, full queues, broken disks."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from hashlib import sha256

import pytest

from edgeguard.evidence import log as module
from edgeguard.evidence.lines import own_of
from edgeguard.evidence.log import FIRST_PREV, DecisionLog, LogError, verify_chain
from edgeguard.evidence.record import Record


def record(n=0, **fields):
    return Record(f"id-{n}", 1_800_000_000.0 + n, "connect", verdict="allow", host="example.com", **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "decisions.jsonl"


def lines(path):
    return path.read_bytes().splitlines()


def until(condition, timeout=5.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_lines_are_numbered_and_chained(path):
    log = DecisionLog(path, 1000)
    for n in range(500):
        assert log.offer(record(n))
    log.close()
    entries = [json.loads(line) for line in lines(path)]
    assert [e["seq"] for e in entries] == list(range(1, 502))
    assert [e["prev"] for e in entries] == [FIRST_PREV] + [
        sha256(line).hexdigest() for line in lines(path)[:-1]
    ]
    assert (entries[0]["kind"], entries[0]["why"]) == ("event", "started")
    assert [e["id"] for e in entries[1:]] == [f"id-{n}" for n in range(500)]
    report = verify_chain(lines(path))
    assert report.ok
    assert (report.lines, report.last_seq) == (501, 501)
    assert report.last_hash == sha256(lines(path)[-1]).hexdigest()
    assert (log.written, log.refused, log.waiting) == (501, 0, 0)


class Shape:
    """An entry that is shaped by `make`."""

    def __init__(self, make):
        self._make = make

    def __call__(self):
        return self._make()

    def parts(self):
        return object(), own_of(self._make())


def test_callables_are_shaped_by_the_writer(path):
    log = DecisionLog(path, 10)
    where = set()

    def shape():
        where.add(threading.current_thread().name)
        return record(7)

    assert log.offer(Shape(shape))
    log.close()
    assert where == {"edgeguard-log"}
    assert json.loads(lines(path)[-1])["id"] == "id-7"


def test_restart_goes_on_with_the_chain(path):
    for n in range(3):
        log = DecisionLog(path, 10)
        log.offer(record(n))
        log.close()
    assert verify_chain(lines(path)).ok
    assert json.loads(lines(path)[-1])["seq"] == 6


@pytest.mark.parametrize("tail", [b'{"schema":"edgeguard.dec', b"\x00\xff", b'{"seq":99}'])
def test_torn_tail_is_kept_and_named(path, tail):
    log = DecisionLog(path, 10)
    log.offer(record())
    log.close()
    with path.open("ab") as file:
        file.write(tail)
    DecisionLog(path, 10).close()
    written = lines(path)
    assert written[2] == tail
    assert json.loads(written[3])["why"] == "torn"
    assert verify_chain(written).ok


def test_torn_first_line(path):
    path.parent.mkdir()
    path.write_bytes(b'{"sch')
    DecisionLog(path, 10).close()
    assert verify_chain(lines(path)).ok


def test_torn_again_while_it_was_being_said(path):
    DecisionLog(path, 10).close()
    for _ in range(2):
        with path.open("ab") as file:
            file.write(b'{"half')
        DecisionLog(path, 10).close()
    assert verify_chain(lines(path)).ok
    assert json.loads(lines(path)[-1])["seq"] == len(lines(path))


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda rows: rows[:3] + rows[4:], "number 5 instead of 4"),
        (
            lambda rows: [*rows[:2], rows[2].replace(b"example.com", b"evil.example"), *rows[3:]],
            "does not follow",
        ),
        (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], "number 3 instead of 2"),
        (lambda rows: rows[1:], "number 2 instead of 1"),
        (lambda rows: [*rows[:2], b"garbage", *rows[2:]], "not a record"),
        (lambda rows: [*rows, b'{"half'], "not a record"),
        (lambda rows: [*rows, b"x", b"y"], "not a record"),
        (lambda rows: [rows[0].replace(b"decision/1", b"decision/9"), *rows[1:]], "schema"),
    ],
)
def test_tampering_shows(path, tamper, words):
    log = DecisionLog(path, 10)
    for n in range(5):
        log.offer(record(n))
    log.close()
    report = verify_chain(tamper(lines(path)))
    assert not report.ok
    assert words in " ".join(report.problems)


def test_rotated_file_is_followed_and_the_chain_goes_on(path):
    log = DecisionLog(path, 10, sync_s=0.01)
    assert log.offer(record(1))
    until(lambda: log.written == 2)
    old = path.rename(path.with_suffix(".1"))
    log.offer(record(2))
    until(path.exists)
    log.offer(record(3))
    log.close()
    first = verify_chain(lines(old))
    assert first.ok
    assert verify_chain(lines(path), seq=first.last_seq, prev=first.last_hash).ok
    assert [json.loads(line)["id"] for line in lines(old)[1:] + lines(path)] == ["id-1", "id-2", "id-3"]


def test_full_queue_refuses_and_the_loss_is_recorded(path):
    gate = threading.Event()
    log = DecisionLog(path, 3, observers=[lambda _: gate.wait(5)])
    until(lambda: log.written == 1)
    assert [log.offer(record(n)) for n in range(6)] == [True] * 3 + [False] * 3
    assert log.waiting == 3
    gate.set()
    until(lambda: log.waiting == 0)
    log.close()
    assert [json.loads(line).get("lost") for line in lines(path)] == [None] * 4 + [3]
    assert verify_chain(lines(path)).ok
    assert log.refused == 3


def test_closed_log_refuses(path):
    log = DecisionLog(path, 3)
    log.close()
    assert not log.offer(record())


class Disk:
    """Stands before os.write and fails on demand, after `partial` bytes."""

    def __init__(self, monkeypatch):
        self.write, self.broken, self.partial = os.write, False, 0
        monkeypatch.setattr(module.os, "write", self)

    def __call__(self, fd, data):
        if not self.broken:
            return self.write(fd, data)
        if self.partial:
            done, self.partial = self.write(fd, bytes(data)[: self.partial]), 0
            return done
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("partial", [0, 20], ids=["whole", "partial"])
def test_broken_disk_refuses_new_work_and_recovers(path, monkeypatch, partial, caplog):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    disk = Disk(monkeypatch)
    log = DecisionLog(path, 100)
    until(lambda: log.written == 1)
    disk.partial, disk.broken = partial, True
    assert log.offer(record(1))
    until(lambda: log.broken)
    assert not log.offer(record(2))
    assert caplog.text.count("No space left on device") == 1
    disk.broken = False
    until(lambda: not log.broken)
    assert log.offer(record(3))
    log.close()
    assert verify_chain(lines(path)).ok
    entries = [json.loads(line) for line in lines(path)]
    assert [e["id"] for e in entries if e["kind"] == "connect"] == ["id-1", "id-3"]
    assert sum(e.get("lost", 0) for e in entries) == 1


def test_failed_sync_refuses_new_work_until_one_succeeds(path, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    real, broken = os.fdatasync, [True]

    def fdatasync(fd):
        if broken[0]:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(module.os, "fdatasync", fdatasync)
    log = DecisionLog(path, 100, sync_s=0.01)
    until(lambda: log.broken)
    assert not log.offer(record())
    broken[0] = False
    until(lambda: not log.broken)
    assert log.offer(record())
    log.close()
    assert verify_chain(lines(path)).ok


def test_close_gives_up_on_a_disk_that_stays_broken(path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    disk = Disk(monkeypatch)
    log = DecisionLog(path, 100)
    until(lambda: log.written == 1)
    disk.broken = True
    log.offer(record())
    log.close(2.0)
    assert not log._thread.is_alive()
    assert log.broken


def test_defects_cost_one_record_not_the_log(path, caplog):
    def fail():
        raise RuntimeError("shape")

    def observer(_):
        raise RuntimeError("observer")

    log = DecisionLog(path, 10, observers=[observer])
    log.offer(Shape(fail))
    log.offer(record(1, rule=object()))
    log.offer(record(2))
    log.close()
    entries = [json.loads(line) for line in lines(path)]
    assert [(e["id"], e.get("why"), e.get("lost")) for e in entries if e["kind"] != "event"] == [
        ("id-1", "unencodable", None),
        ("id-2", None, None),
    ]
    assert sum(e.get("lost", 0) for e in entries) == 1
    assert verify_chain(lines(path)).ok
    assert "could not be recorded" in caplog.text
    assert "observer" in caplog.text


def test_two_processes_cannot_write_one_log(path):
    log = DecisionLog(path, 10)
    with pytest.raises(LogError, match="another process is writing this decision log"):
        DecisionLog(path, 10)
    log.close()
    DecisionLog(path, 10).close()


def test_file_that_cannot_be_opened_is_one_clear_error(tmp_path):
    with pytest.raises(LogError, match="cannot open the decision log: Is a directory"):
        DecisionLog(tmp_path, 10)


def test_paths_can_be_left_out(path):
    log = DecisionLog(path, 10, paths=False)
    log.offer(record(path="/secret"))
    log.close()
    assert b"secret" not in path.read_bytes()


def test_many_threads(path):
    log = DecisionLog(path, 100_000)
    threads = [
        threading.Thread(target=lambda: [log.offer(record(n)) for n in range(500)], name=f"t{t}")
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert log.written == 2001
    assert verify_chain(lines(path)).ok


def test_standard_output():
    program = (
        "from edgeguard.evidence.log import DecisionLog\n"
        "from edgeguard.evidence.record import Record\n"
        "log = DecisionLog('-', 10)\n"
        "log.offer(Record('a', 0.0, 'connect'))\n"
        "log.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)
    assert verify_chain(done.stdout.splitlines()).lines == 2
    assert verify_chain(done.stdout.splitlines()).ok


def test_offer_wakes_the_writer(path, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 60)
    log = DecisionLog(path, 10)
    until(lambda: log.written == 1)
    time.sleep(0.05)
    log.offer(record())
    until(lambda: log.written == 2, timeout=1.0)
    log.close()
