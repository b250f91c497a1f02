"""High-risk drift freezes the node and pages, once, through a webhook that may be down for a while."""

import asyncio
import json

import pytest
import pytest_asyncio

from edgeguard.sync.agent import SyncAgent
from edgeguard.sync.alerts import AlertConfig, Pager
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import FetchLimits
from edgeguard.sync.report import EventKind, SyncEvent


class Hook:
    """A webhook that answers what it is told, in turn, the last of them for ever."""

    def __init__(self):
        self.answers = [204]
        self.bodies = []
        self.heads = []

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                self.heads.append(head)
                status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if status is None:
                    return
                writer.write(
                    f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n".encode()
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@pytest_asyncio.fixture
async def hook():
    hook = Hook()
    listening = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/page?team=platform"
    yield hook
    listening.close()
    listening.close_clients()
    await listening.wait_closed()


def event(code="rollback_head", alarm=True):
    return SyncEvent(EventKind.REFUSED, code, "why", 17.0, alarm)


class Bench:
    def __init__(self, hook, **changes):
        self.now = 0.0
        options = {"webhook": hook.url, "token": "t0ken", "backoff_base_s": 0.01, "backoff_max_s": 0.02}
        self.pager = Pager(
            AlertConfig(**(options | changes)), lambda: {"ladder": "fresh"}, monotonic=lambda: self.now
        )

    async def __aenter__(self):
        self.task = asyncio.get_running_loop().create_task(self.pager.run())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - counters of another thread
                await asyncio.sleep(0.005)


async def test_an_alarm_is_sent_once_in_its_cooldown(hook):
    async with Bench(hook) as bench:
        bench.pager.offer(event(alarm=False))
        for _ in range(4):
            bench.pager.offer(event())
        bench.pager.offer(event("equivocation"))
        await bench.until(lambda: bench.pager.counts["sent"] == 2)
        assert [body["code"] for body in hook.bodies] == ["rollback_head", "equivocation"]
        first = hook.bodies[0]
        assert (first["schema"], first["detail"], first["at"]) == ("edgeguard.alert/1", "why", 17.0)
        assert (first["ladder"], first["suppressed"]) == ("fresh", 0)
        assert "authorization: bearer t0ken" in hook.heads[0]
        assert hook.heads[0].startswith("post /page?team=platform ")
        bench.now = 301.0
        bench.pager.offer(event())
        await bench.until(lambda: bench.pager.counts["sent"] == 3)
        assert hook.bodies[2]["suppressed"] == 3
        assert bench.pager.counts == {"sent": 3, "failed": 0, "suppressed": 3, "dropped": 0}


async def test_a_webhook_that_fails_is_tried_again(hook):
    hook.answers = [503, None, 429, 200]
    async with Bench(hook) as bench:
        bench.pager.offer(event())
        await bench.until(lambda: bench.pager.counts["sent"] == 1)
        assert len(hook.bodies) == 4


@pytest.mark.parametrize("answer", [500, 404, 302])
async def test_a_webhook_that_never_works_holds_nothing_up(hook, answer):
    hook.answers = [answer]
    async with Bench(hook, attempts=3) as bench:
        bench.pager.offer(event())
        await bench.until(lambda: bench.pager.counts["failed"] == 1)
        assert len(hook.bodies) == (3 if answer == 500 else 1)  # a redirect is never followed
        hook.answers = [200]
        bench.pager.offer(event())  # no cooldown after a failure
        await bench.until(lambda: bench.pager.counts["sent"] == 1)


async def test_the_queue_is_bounded(hook):
    bench = Bench(hook, queue=2)
    for number in range(5):
        bench.pager.offer(event(str(number)))
    assert bench.pager.counts["dropped"] == 3


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-E14-freeze-and-page")])
async def test_high_risk_drift_freezes_and_pages(hook, served, start, authority, tmp_path, case):
    """Somebody raises the stored marks, so that every true bundle would look like a rollback."""
    from dataclasses import replace

    from edgeguard.bundle.marks import Marks
    from tests.sync.test_agent import release

    running = start(served)
    config = SyncConfig(
        authority.env,
        tmp_path / "state",
        (running.url,),
        long_poll_s=0,
        poll_s=0.1,
        pause_s=0.05,
        fetch=FetchLimits(deadline_s=2),
        alerts=AlertConfig(webhook=hook.url),
    )
    snapshots = []
    agent = SyncAgent(config, authority.root(), snapshots.append)
    await asyncio.to_thread(agent.start)
    bench = Bench(hook)
    try:
        await bench.until(lambda: agent.status()["cycles"] > 1)
        (path,) = sorted((tmp_path / "state").glob("marks.*"))[-1:]
        marks = replace(Marks.decode(path.read_bytes()), bundle_version=77).encode()
        import hashlib

        forged = path.with_name(f"marks.9.{hashlib.sha256(marks).hexdigest()}")
        forged.touch(mode=0o600)
        forged.write_bytes(marks)
        await bench.until(lambda: any(body["code"] == "marks_ahead" for body in hook.bodies))
        assert (agent.frozen, agent.status()["drift"]) == (True, ["marks_ahead"])
        body = hook.bodies[-1]
        assert (body["kind"], body["environment"], body["bundle_version"]) == ("drift", "test", 1)
        release(served, authority, 2)
        await bench.until(lambda: agent.counts["failed", "frozen"] > 0)
        assert snapshots[-1].bundle_version == 1
        assert len([b for b in hook.bodies if b["code"] == "marks_ahead"]) == 1
        forged.unlink()  # somebody has looked
        await bench.until(lambda: snapshots[-1].bundle_version == 2)
        assert not agent.frozen
    finally:
        await asyncio.to_thread(agent.stop)


async def test_an_address_that_cannot_be_used_stops_the_start(tmp_path, authority):
    for changes, message in (
        ({"webhook": "http://alerts.example/"}, "loopback"),
        ({"webhook": "https://alerts.example/", "ca_file": str(tmp_path / "none")}, "no certificates"),
    ):
        config = SyncConfig(authority.env, tmp_path / "state", alerts=AlertConfig(**changes))
        with pytest.raises(ValueError, match=message):
            SyncAgent(config, authority.root(), lambda _: None).start()
