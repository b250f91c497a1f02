"""One table for all processes of a host: exact, bounded, and nobody's death or damage opens it."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from edgeguard.limits import table as tables
from edgeguard.limits.host import REST_NS, HostLimiter
from edgeguard.limits.table import SPARE, WAYS, Table, TableError, digest_of
from edgeguard.limits.taken import SEAT_RETRY_NS
from tests.limits.kit import SECOND, Peers, agrees_with_the_model, steps
from tests.limits.kit import hit as any_hit


def hit(*args, **kwargs):
    return any_hit(*args, scope="host", **kwargs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "limits.table"


@pytest.fixture
def opened(path):
    """Makes limiters over one file; closes them at the end."""
    made = []

    def make(slots=1024, wait_s=0.05):
        made.append(HostLimiter(path, slots, wait_s, 100))
        return made[-1]

    yield make
    for limiter in made:
        limiter.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps("host"))
def test_any_sequence_agrees_with_the_model(opened, path, sequence):
    path.unlink(missing_ok=True)
    limiter = opened()
    try:
        agrees_with_the_model(limiter, sequence, limiter.table.base_ns + SECOND)
    finally:
        limiter.close()


def test_two_processes_share_counters_and_nobody_else_can_read_them(opened, path):
    one, two, now = opened(), opened(), time.monotonic_ns()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [limiter.take((hit(quota=2),), now).allowed for limiter in (one, two, one, two)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert one.status(now)["processes"] == 2
    assert one.usage(now)["l"].keys == two.usage(now)["l"].keys == 1
    assert one.usage(now + 60 * SECOND)["l"].keys == 0
    assert b"requests" not in path.read_bytes()


def test_refused_request_drains_no_sibling_and_report_mode_counts_apart(opened):
    limiter, now = opened(), time.monotonic_ns()
    narrow, wide, shadow = (
        hit("narrow", quota=1),
        hit("wide", quota=100),
        hit("narrow", quota=1, enforced=False),
    )
    assert limiter.take((narrow, wide, shadow), now).allowed
    for _ in range(20):
        assert limiter.take((narrow, wide), now).limit == "narrow"
    assert limiter.take((wide, shadow), now).would == ("narrow",)
    assert limiter.take((wide,), now).states[0].remaining == 97


def test_limits_of_one_request_take_different_slots(opened):
    """In a table of one group everything collides: keys of one request must not share the first free slot."""
    limiter, now = opened(slots=WAYS), time.monotonic_ns()
    hits = [hit(f"l{n}", quota=1) for n in range(WAYS)]
    seats = [hit(f"s{n}", unit="concurrent_tunnels", quota=1) for n in range(WAYS)]
    assert limiter.take((*hits, *seats), now).allowed
    assert [limiter.take((one,), now).allowed for one in (*hits, *seats)] == [False] * 2 * WAYS


def test_limits_of_one_request_that_overflow_take_different_buckets(opened):
    limiter, now = opened(slots=WAYS), time.monotonic_ns()
    for n in range(WAYS):
        limiter.take((hit("full", str(n)), hit("seats", str(n), unit="concurrent_tunnels")), now)
    hits = [hit(f"l{n}", quota=1) for n in range(200)]
    seats = [hit(f"s{n}", unit="concurrent_tunnels", quota=1) for n in range(4)]
    assert limiter.take((*hits, *seats), now).allowed
    assert not any(limiter.take((one,), now).allowed for one in (*hits, *seats))


def test_changed_terms_keep_the_counter_and_a_slower_leftover_is_forgotten(opened):
    limiter, now = opened(), time.monotonic_ns()
    assert all(limiter.take((hit(quota=10),), now).allowed for _ in range(10))
    assert not limiter.take((hit(quota=20),), now).allowed
    assert limiter.take((hit(quota=20),), now + SECOND).allowed
    limiter.take((hit("d", quota=1, period_ns=86_400 * SECOND),), now)
    assert not limiter.take((hit("d", quota=100, burst=1),), now).allowed
    assert limiter.take((hit("d", quota=100, burst=1),), now + SECOND).allowed


def test_bytes_are_spent_after_the_fact_up_to_a_debt_of_one_burst(opened):
    limiter, now = opened(), time.monotonic_ns()
    budget = hit(unit="bytes", quota=1000, burst=4000)
    assert limiter.spend((budget, hit("other")), now, 500).allowed
    assert limiter.spend((budget,), now, 100_000).limit == "l"
    assert not limiter.take((budget,), now + 4 * SECOND).allowed
    assert limiter.take((budget,), now + 4 * SECOND + SECOND // 100).allowed
    assert limiter.spend((hit("r", unit="bytes", quota=1, enforced=False),), now, 9).would == ("r",)


COUNTER = """
import json, sys, time
from pathlib import Path
from edgeguard.limits.host import HostLimiter
from tests.limits.kit import hit
path, = json.loads(sys.argv[1])
limiter = HostLimiter(Path(path), 1024, 1.0, 100)
same = (hit(scope="host", quota=500, burst=100),)
print('"ready"', flush=True)
begin, end = json.loads(sys.stdin.readline())
while time.monotonic_ns() < begin:
    pass
allowed, first = 0, time.monotonic_ns()
while (now := time.monotonic_ns()) < end:
    last, allowed = now, allowed + limiter.take(same, now).allowed
print(json.dumps([allowed, limiter.failures, first, last]), flush=True)
sys.stdin.readline()
"""


def test_four_processes_admit_the_ideal_number_within_two(path):
    with Peers(COUNTER, [[str(path)]] * 4) as peers:
        answers = peers.go(1.0)
    allowed, failures, first, last = zip(*answers, strict=True)
    ideal = 100 + 500 * (max(last) - min(first)) // SECOND
    assert abs(sum(allowed) - ideal) <= 2
    assert sum(failures) == 0


HOLDER = """
import json, sys, time
from pathlib import Path
from edgeguard.limits.host import HostLimiter
from tests.limits.kit import hit
path, = json.loads(sys.argv[1])
limiter = HostLimiter(Path(path), 1024, 1.0, 100)
seat = hit("seats", scope="host", unit="concurrent_tunnels", quota=3)
assert all(limiter.take((seat,), time.monotonic_ns()).allowed for _ in range(3))
for lock, _ in limiter.table.locks:
    limiter.table.lock(lock)
print('"ready"', flush=True)
sys.stdin.readline()
"""


def test_kill_of_a_process_that_holds_locks_and_seats_frees_both(opened, path):
    limiter = opened()
    seat = hit("seats", unit="concurrent_tunnels", quota=3)
    with Peers(HOLDER, [[str(path)]]) as peers:
        peers.processes[0].send_signal(signal.SIGKILL)
        peers.processes[0].wait()
        now = time.monotonic_ns()
        assert limiter.take((hit(quota=1),), now).allowed
        assert not limiter.take((hit(quota=1),), now).allowed
        assert [limiter.take((seat,), now).allowed for _ in range(4)] == [True, True, True, False]
    assert limiter.failures == 0


def test_stopped_process_that_holds_a_lock_delays_once_and_then_each_keeps_its_share(opened, path):
    limiter = opened(wait_s=0.05)
    with Peers(HOLDER, [[str(path)]]) as peers:
        peers.processes[0].send_signal(signal.SIGSTOP)
        started = time.monotonic_ns()
        allowed = [limiter.take((hit(quota=10),), time.monotonic_ns()).allowed for _ in range(20)]
        assert time.monotonic_ns() - started < SECOND // 5
        assert sum(allowed) == 5, "two share the limit of ten"
        now = time.monotonic_ns()
        assert limiter.status(now)["state"] == "busy"
        assert limiter.take((hit("d", on_store_error="deny"),), now).limit == "d"
        assert limiter.take((hit("a", quota=1, on_store_error="allow"),) * 2, now).allowed
        full = hit("f", quota=4, on_store_error="local_full")
        assert [limiter.take((full,), now).allowed for _ in range(5)] == [True] * 4 + [False]
        held = hit("s", unit="concurrent_tunnels", quota=2)
        assert limiter.take((held,), now).allowed
        assert not limiter.take((held,), now).allowed
        limiter.release((held,))
        assert limiter.take((held,), now).allowed
        assert not limiter.spend((hit("b", unit="bytes", quota=1),), now, 10).allowed
    limiter.release((held,))
    later = time.monotonic_ns() + REST_NS
    assert limiter.take((hit("fresh"),), later).allowed
    assert limiter.status(later)["state"] == "ok"


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"\x00" * 64, b"\xff" * 8192, b"EGlimits" + b"\x07" * 4096, b"not a table at all",
    ],
    ids=["fault-empty", "fault-zeros", "fault-ones", "fault-magic", "fault-text"],
)  # fmt: skip
def test_damaged_file_is_made_anew_and_counts(opened, path, damage):
    path.write_bytes(damage)
    path.chmod(0o600)
    limiter, now = opened(), time.monotonic_ns()
    assert [limiter.take((hit(quota=1),), now).allowed for _ in range(2)] == [True, False]


def test_damaged_header_of_a_table_is_made_anew_and_others_follow(opened, path):
    one = opened()
    now = time.monotonic_ns()
    one.take((hit(),), now)
    one.table.words[8] ^= 1  # the secret
    two = opened()
    seen = [limiter.take((hit("x", quota=2),), now).allowed for limiter in (two, one, two, one)]
    assert seen == [True, True, False, False]


def test_damaged_slots_lock_nobody_out_for_long(opened):
    limiter, now = opened(), time.monotonic_ns()
    limiter.take((hit(),), now)
    for slot in range(len(limiter.table.values)):
        limiter.table.values[slot] = (1 << 64) - 1
    assert not limiter.take((hit(),), now).allowed
    assert limiter.take((hit(),), now + SECOND).allowed


def test_reboot_and_a_year_reset_the_table(opened, path, monkeypatch):
    one, now = opened(), time.monotonic_ns()
    one.take((hit(quota=1),), now)
    one.close()
    monkeypatch.setattr(tables, "_boot_id", lambda: 1 << 100 | 7)
    two = opened()
    assert two.take((hit(quota=1),), now).allowed
    two.close()
    three = opened()
    assert not three.take((hit(quota=1),), now).allowed
    three.close()
    monkeypatch.setattr(tables, "MAX_AGE_NS", 0)
    assert opened().take((hit(quota=1),), time.monotonic_ns()).allowed


def test_another_time_namespace_is_refused_while_somebody_uses_the_table(opened, monkeypatch):
    one = opened()
    monkeypatch.setattr(tables, "_time_namespace", lambda: 1)
    with pytest.raises(TableError, match="give this one its own"):
        opened()
    one.close()
    assert opened().take((hit(quota=1),), time.monotonic_ns()).allowed


def test_replaced_file_is_followed(opened, path):
    one, now = opened(), time.monotonic_ns()
    one.take((hit(quota=1),), now)
    path.unlink()
    two = opened()
    later = now + 2 * SECOND
    assert two.take((hit("x", quota=1, period_ns=3600 * SECOND),), later).allowed
    assert not one.take((hit("x", quota=1, period_ns=3600 * SECOND),), later).allowed


def test_stopped_process_delays_a_busy_key_once(opened, path):
    limiter = opened(wait_s=0.05)
    busy = hit("busy", quota=1000)
    now = time.monotonic_ns()
    assert all(limiter.take((busy,), now).allowed for _ in range(3))
    with Peers(HOLDER, [[str(path)]]) as peers:
        peers.processes[0].send_signal(signal.SIGSTOP)
        started = time.monotonic_ns()
        for _ in range(20):
            assert limiter.take((busy,), time.monotonic_ns()).allowed
        assert time.monotonic_ns() - started < SECOND // 5


def test_lost_table_follows_on_store_error_and_is_found_again(opened, path, monkeypatch):
    limiter = opened()
    seat = hit("seats", unit="concurrent_tunnels", quota=2, on_store_error="deny")
    known = hit("known", quota=2, on_store_error="deny")
    now = time.monotonic_ns()
    assert [limiter.take((each,), now).allowed for each in (seat, known, known)] == [True] * 3

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tables.os, "posix_fallocate", full)
        path.unlink()
        for step in range(2, 6):
            for each in (known, known, seat, hit("new", on_store_error="deny")):
                assert limiter.take((each,), now + step * SECOND).limit == each.limit
        limiter.release((seat,))
        assert limiter.status(now + 6 * SECOND)["processes"] == 0
        assert limiter.usage(now + 9 * SECOND).keys() == {"seats", "known"}
    later = now + 10 * SECOND
    assert [limiter.take((known,), later).allowed for _ in range(3)] == [True, True, False]
    other = opened()
    assert not other.take((known,), later).allowed, "both count the same key"


def test_file_of_others_is_refused_with_the_way_to_mend_it(opened, path):
    path.touch(0o644)
    path.chmod(0o644)
    with pytest.raises(TableError, match="chmod 600"):
        opened()
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(TableError, match=r"limits\.table"):
        opened()


def test_more_processes_than_numbers_are_refused(path, opened, monkeypatch):
    monkeypatch.setattr(tables, "WORKERS", 2)
    opened()
    opened()
    with pytest.raises(TableError, match="by 2 processes already"):
        opened()


def test_seats_come_back_on_release_and_when_a_process_closes(opened):
    one, two, now = opened(), opened(), time.monotonic_ns()
    seat = hit(unit="concurrent_tunnels", quota=2)
    assert one.take((seat,), now).allowed
    assert two.take((seat,), now).states[0].remaining == 0
    refused = one.take((seat,), now)
    assert (refused.limit, refused.retry_after_ns) == ("l", SEAT_RETRY_NS)
    two.release((seat, hit("requests-are-not-seats")))
    two.release((seat,))  # one too many is harmless
    assert one.take((seat,), now).allowed
    one.close()
    assert [two.take((seat,), now).allowed for _ in range(3)] == [True, True, False]


def flood(limiter, keys, now):
    """How often the victim passed, and how many others, while `keys` strangers came by."""
    victim, period = hit(key="victim", quota=10, period_ns=3600 * SECOND), 3600 * SECOND
    passed = sum(limiter.take((victim,), now).allowed for _ in range(10))
    others = 0
    for n in range(keys):
        others += limiter.take((hit(key=f"junk-{n}", quota=1, period_ns=period),), now).allowed
        if not n % 16:
            passed += limiter.take((victim,), now).allowed
    return passed, others


def test_flood_of_keys_keeps_the_victim_limited(opened, path):
    limiter = opened(slots=512)
    size, now = path.stat().st_size, time.monotonic_ns()
    passed, others = flood(limiter, 5_000, now)
    assert passed == 10
    assert 400 < others <= 512
    assert limiter.usage(now)["l"].overflowed > 4_000
    assert path.stat().st_size == size


@pytest.mark.long
@pytest.mark.timeout(120)
def test_flood_of_a_million_keys(opened, path):
    limiter = opened(slots=65_536)
    size, now = path.stat().st_size, time.monotonic_ns()
    passed, others = flood(limiter, 1_000_000, now)
    assert passed == 10
    assert others <= 65_537
    assert path.stat().st_size == size


def test_seats_in_full_rows_go_through_the_shared_bucket(opened):
    limiter, now = opened(slots=WAYS), time.monotonic_ns()
    seats = [hit(key=str(n), unit="concurrent_tunnels", quota=1) for n in range(20)]
    taken = [seat for seat in seats if limiter.take((seat,), now).allowed]
    assert len(taken) == WAYS + 1
    limiter.release((taken[-1],))
    assert limiter.take((seats[-1],), now).allowed
    limiter.release((seats[-1],))
    for seat in taken[:-1]:
        limiter.release((seat,))
    assert limiter.take((seats[3],), now).allowed


def test_whole_quota_makes_room(opened):
    limiter, now = opened(slots=WAYS), time.monotonic_ns()
    for n in range(WAYS):
        limiter.take((hit(key=f"old-{n}"),), now)
    for n in range(WAYS):
        assert limiter.take((hit(key=f"new-{n}"),), now + 100 * SECOND).states[0].remaining == 9


def test_reset_forgets_a_key_a_limit_or_everything(opened):
    limiter, now = opened(), time.monotonic_ns()
    hits = [(hit(limit, key, quota=1),) for limit in "ab" for key in "xy"]

    def allowed():
        return [limiter.take(h, now).allowed for h in hits]

    assert allowed() == [True] * 4
    assert allowed() == [False] * 4
    assert limiter.reset("a", "x") == 1
    assert allowed() == [True, False, False, False]
    assert limiter.reset("a") == 2
    assert allowed() == [True, True, False, False]
    assert limiter.reset() == 4
    assert allowed() == [True] * 4


def test_shared_buckets_too_many_are_refused_not_opened(path):
    table = Table(path, WAYS, 0.05)
    for slot in range(SPARE):
        table.put(slot, slot + 1, 1, 1)
    with pytest.raises(tables.TableBusyError):
        table.spare(digest_of(b"x", "other"))
    table.close()


def test_a_kill_at_any_moment_leaves_whole_slots(path):
    """A process that writes as fast as it can is killed again and again; what is left always adds up."""
    program = """
import sys, time
from pathlib import Path
from edgeguard.limits.host import HostLimiter
from tests.limits.kit import hit
limiter = HostLimiter(Path(sys.argv[1]), 64, 1.0, 100)
print("ready", flush=True)
n = 0
while True:
    n += 1
    limiter.take((hit(key=str(n % 1000), scope="host", quota=1000, burst=10),), time.monotonic_ns())
"""
    limiter = HostLimiter(path, 64, 1.0, 100)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert process.stdout.readline()
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = limiter._ticks(time.monotonic_ns())
        tag = digest_of(limiter.table.secret, "l")
        for digest, value, of in zip(
            limiter.table.digests, limiter.table.values, limiter.table.tags, strict=True
        ):
            assert not digest or (of == tag and value <= now + (SECOND // 100 << tables.TICK_BITS))
    assert limiter.take((hit("after"),), time.monotonic_ns()).allowed
    limiter.close()
