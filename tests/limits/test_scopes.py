"""All scopes together: checked everywhere before they are charged anywhere; what is nearly used up; resets on record."""

import asyncio
import json
import os
import socket
import time

import pytest
from typer.testing import CliRunner

from edgeguard.cli.app import app
from edgeguard.limits.limiter import ScopedLimiter
from edgeguard.limits.taken import LimitsError, Taken
from edgeguard.proxy.control import FOLDER, Control, ControlError, command
from edgeguard.settings import Limits
from tests.limits.kit import SECOND, StoreServer, come, hit

HOUR = 3600 * SECOND


@pytest.fixture(scope="module")
def server(tmp_path_factory, redis):
    server = StoreServer(tmp_path_factory.mktemp("store"))
    yield server
    server.stop()


@pytest.fixture
async def limiter(tmp_path, server):
    settings = Limits(host_table=tmp_path / "limits.table", store=server.url, timeout_s=1.0)
    limiter = ScopedLimiter.from_settings(settings, "test", 1000, str(tmp_path).encode(), time.monotonic_ns)
    limiter.start()
    await come(lambda: limiter.fleet(0)["state"] == "up")
    yield limiter
    await limiter.stop()


async def take(limiter, *hits):
    waiting = limiter.reserve(hits, time.monotonic_ns())
    ticket = None if waiting is None else await waiting
    return limiter.take(hits, time.monotonic_ns(), 1, ticket)


@pytest.mark.parametrize("narrow", ["process", "host", "fleet"])
async def test_a_limit_of_one_scope_that_refuses_drains_no_other(limiter, narrow):
    hits = [
        hit(scope, scope=scope, quota=1 if scope == narrow else 10, period_ns=HOUR, exact=scope == "fleet")
        for scope in ("process", "host", "fleet")
    ]
    assert (await take(limiter, *hits)).allowed
    for _ in range(5):
        refused = await take(limiter, *hits)
        assert (refused.allowed, refused.limit) == (False, narrow)
    await asyncio.sleep(0.02)
    left = [h for h in hits if h.scope != narrow]
    states = (await take(limiter, *left)).states
    assert {state.limit: state.remaining for state in states} == {h.limit: 8 for h in left}


async def test_seats_and_bytes_of_all_scopes(limiter):
    seats = [hit(f"s-{s}", scope=s, unit="concurrent_tunnels", quota=1) for s in ("process", "host", "fleet")]
    budgets = [
        hit(f"b-{s}", scope=s, unit="bytes", quota=100, period_ns=HOUR) for s in ("process", "host", "fleet")
    ]
    assert (await take(limiter, *seats)).allowed
    for seat in seats:
        assert (await take(limiter, seat)).limit == seat.limit
    limiter.release(seats)
    await asyncio.sleep(0.02)
    assert (await take(limiter, *seats)).allowed
    assert limiter.spend(budgets, time.monotonic_ns(), 50).allowed
    assert limiter.spend(budgets, time.monotonic_ns(), 500).limit in {b.limit for b in budgets}
    assert limiter.spend((), time.monotonic_ns(), 5).allowed


async def test_usage_and_status_name_every_scope(limiter):
    await take(limiter, *[hit(s, scope=s) for s in ("process", "host", "fleet")])
    status = limiter.status(time.monotonic_ns())
    assert {name: use["keys"] for name, use in status["limits"].items()} == {
        "fleet": 1,
        "host": 1,
        "process": 1,
    }
    assert status["host"]["state"] == "ok"
    assert status["fleet"]["state"] == "up"
    json.dumps(status)
    limiter.retain({"host"})
    assert "process" not in limiter.usage(time.monotonic_ns())


def test_near_is_four_fifths_of_the_burst():
    rate, seat = hit(quota=10), hit(unit="concurrent_tunnels", quota=10, period_ns=0)
    tick = SECOND << 16

    def near(h, value, allowed=True):
        return Taken(allowed, levels=((h, value, 0),)).near

    assert near(rate, tick * 79 // 100) == ()
    assert near(rate, tick * 80 // 100) == ("l",)
    assert near(rate, tick * 80 // 100, allowed=False) == ()
    assert [near(seat, n) for n in (7, 8)] == [(), ("l",)]


# Forgetting, on record


class Log:
    def __init__(self):
        self.records, self.full = [], False

    def offer(self, record):
        self.records.append(record)
        return not self.full


async def ask(state, **document):
    return await asyncio.to_thread(
        command, state, {"do": "limits.reset", "limit": None, "key": None, **document}
    )


async def test_reset_forgets_in_all_scopes_and_stands_in_the_log(limiter, tmp_path):
    hits = [hit("shared", scope=s, quota=1, period_ns=HOUR) for s in ("process", "host", "fleet")]
    for one in hits:
        assert (await take(limiter, one)).allowed
        assert not (await take(limiter, one)).allowed
    log = Log()
    async with Control(tmp_path, log, limiter.reset).listening():
        (answer,) = (await ask(tmp_path, limit="shared", why="  load test  ")).values()
        assert answer == {"reset": {"process": 1, "host": 1, "fleet": 1}}
        (record,) = log.records
        assert (record.kind, record.client, record.limit) == ("event", f"uid:{os.geteuid()}", "shared")
        assert record.why == "limits_reset: load test"
        for one in hits:
            assert (await take(limiter, one)).allowed
        (answer,) = (await ask(tmp_path, limit="shared", key="k", why="again")).values()
        assert sum(answer["reset"].values()) == 3
        assert "of k" in log.records[-1].why
    assert not list((tmp_path / FOLDER).glob("*.sock"))


async def test_what_cannot_be_recorded_is_not_done(tmp_path):
    log, done = Log(), []

    async def reset(limit, key):
        done.append((limit, key))
        raise LimitsError("the store is away")

    async with Control(tmp_path, log, reset).listening():
        path = next((tmp_path / FOLDER).glob("*.sock"))
        assert path.stat().st_mode & 0o777 == 0o600
        log.full = True
        (answer,) = (await ask(tmp_path, why="x")).values()
        assert "nothing is changed" in answer["error"]
        assert not done
        log.full = False
        for wrong, message in (
            ({"why": " "}, "a reason is needed"),
            ({"why": "x", "key": "k"}, "name the limit"),
            ({"why": 5}, "not understood"),
            ({"why": "x", "do": "policy.allow"}, "not understood"),
        ):
            (answer,) = (await ask(tmp_path, **wrong)).values()
            assert message in answer["error"]
        (answer,) = (await ask(tmp_path, why="x")).values()
        assert answer["error"] == "the store is away"


async def test_nobody_else_commands(tmp_path, monkeypatch):
    log = Log()

    async def reset(limit, key):
        raise AssertionError("must not be reached")

    monkeypatch.setattr(
        "edgeguard.proxy.control._PEER", type("P", (), {"size": 12, "unpack": lambda _: (1, 4711, 1)})
    )
    async with Control(tmp_path, log, reset).listening():
        (answer,) = (await ask(tmp_path, why="x")).values()
    assert "only root" in answer["error"]
    assert not log.records


async def test_a_folder_with_a_long_name_has_a_socket_too(tmp_path):
    state = tmp_path / ("x" * 120)

    async def reset(limit, key):
        return {"process": 0}

    async with Control(state, Log(), reset).listening():
        assert await ask(state, why="x") == {f"{os.getpid()}.sock": {"reset": {"process": 0}}}


def test_without_a_proxy_there_is_one_clear_message(tmp_path):
    with pytest.raises(ControlError, match="is `edgeguard run` up"):
        command(tmp_path, {})
    folder = tmp_path / FOLDER
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(folder / "1.sock"))
    with pytest.raises(ControlError):
        command(tmp_path, {})


def run(*words):
    return CliRunner().invoke(app, ["limits", *words])


async def test_command_line_resets_through_the_socket(tmp_path):
    seen = []

    async def reset(limit, key):
        seen.append((limit, key))
        return {"process": 2, "host": 1, "fleet": 0}

    async with Control(tmp_path, Log(), reset).listening():
        words = (
            "reset",
            "--state",
            str(tmp_path),
            "--limit",
            "calls",
            "--key",
            "name:checkout",
            "--why",
            "x",
        )
        done = await asyncio.to_thread(run, *words)
    assert (done.exit_code, seen) == (0, [("calls", "name:checkout")])
    assert "process 2, host 1, fleet 0" in done.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("reset", "--why", "x"), 2),
        (("reset", "--why", "x", "--all", "--limit", "a"), 2),
        (("reset", "--why", "x", "--all"), 2),
        (("reset", "--all", "--state", "/nowhere"), 2),
        (("reset", "--why", "x", "--all", "--state", "/nowhere"), 1),
        (("status", "--admin", "unix:/nowhere/admin.sock"), 1),
    ],
)
def test_command_line_says_what_is_missing(words, code):
    assert run(*words).exit_code == code


async def test_command_line_shows_the_status(limiter, monkeypatch):
    await take(limiter, hit("calls", scope="host"))
    document = {"limits": [limiter.status(time.monotonic_ns())] * 2}
    monkeypatch.setattr("edgeguard.cli.limits.fetch_status", lambda *_: document)
    shown = run("status")
    assert shown.exit_code == 0
    assert "calls" in shown.output
    assert "process 2" in shown.output
    assert json.loads(run("status", "--json").output) == document["limits"]
    document["limits"][0]["fleet"]["state"] = "down"
    assert run("status").exit_code == 1
