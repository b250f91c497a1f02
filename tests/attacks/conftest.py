"""The whole data path in this process (`rig`), or as running processes (`world`); attackers and upstreams are raw sockets."""

import asyncio
import time
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from edgeguard.bundle.snapshot import Snapshot
from edgeguard.evidence.record import Record
from edgeguard.guard import Guard
from edgeguard.identity.clients import ClientDirectory
from edgeguard.limits.process import ProcessLimiter
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine as PolicyEngine
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables
from edgeguard.settings import Identity
from edgeguard.verdict import Entry, record_of
from tests.attacks.world import WAYS, World

with warnings.catch_warnings():
    # mitmproxy calls pyparsing by names that pyparsing has renamed.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tests.proxy.lane.conftest import Engine, read_response


def pytest_asyncio_loop_factories(config, item):
    """The loop of production: transports of asyncio and uvloop differ in what counts here."""
    return {"uvloop": uvloop.new_event_loop}


class MemoryLog:
    """The decision log's `offer`, kept in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.full = False

    def offer(self, entry: Entry) -> bool:
        if self.full:
            return False
        self.entries.append(entry)
        return True


class Rig(Engine):
    """A listening engine with the real guard over the policy in `enforce`."""

    def __init__(self, directory: Path, door: str) -> None:
        super().__init__(directory)
        self.modes = ["edge" if door == "edge" else f"{door}@127.0.0.1:0"]
        self.log = MemoryLog()
        self.ahead_s = 0.0
        self.version = 0
        self.guard = self._guard(Identity(static="tester"))

    def _guard(self, identity: Identity) -> Guard:
        return Guard(
            clients=ClientDirectory(identity),
            limiter=ProcessLimiter(1000),
            log=self.log,
            clock=lambda: time.time() + self.ahead_s,
        )

    def identify(self, **identity: object) -> None:
        """Another `[identity]`, before `start`."""
        self.guard = self._guard(Identity.model_validate(identity))

    async def start(self) -> "Rig":
        await super().start()
        self.guard.start()
        self.stack.callback(self.guard.stop)
        return self

    def enforce(self, rules: str, **changes: object) -> None:
        """Puts a policy in force; `changes` are fields of the snapshot."""
        source = f"edgeguard: 1\nmodule: m\nowner: o\n{rules}"
        engine = PolicyEngine(Tables.load(compile_policy(load_sources({"m.yaml": source.encode()}))))
        self.version += 1
        now = int(time.time())
        values: dict[str, object] = {
            "engine": engine,
            "issuers": (),
            "environment": "test",
            "bundle_id": "sha256:" + "a" * 64,
            "policy_hash": "sha256:" + "b" * 64,
            "bundle_version": self.version,
            "head_version": self.version,
            "root_version": 1,
            "signers": ("k1",),
            "issued_at": now,
            "not_before": 0,
            "stale_at": now + 3600,
            "restricted_at": now + 3600,
            "closed_at": now + 3600,
        }
        self.guard.activate(Snapshot(**{**values, **changes}))

    @property
    def records(self) -> list[Record]:
        return [record_of(entry) for entry in self.log.entries]

    def stories(self) -> dict[str, list[str]]:
        """By id: what was written, in order."""
        told: dict[str, list[str]] = defaultdict(list)
        for record in self.records:
            told[record.id].append("close" if record.kind == "close" else record.verdict)
        return dict(told)

    def whole(self) -> None:
        """Every allow has exactly one end; nothing else has one."""
        for ident, story in self.stories().items():
            assert story in (["deny"], ["allow", "close"], ["allow", "deny"]), (ident, story)

    async def idle(self) -> None:
        """Waits until nothing is open, then checks that nothing was kept and everything is told."""
        door = getattr(self.master.proxyserver, "door", None)
        for _ in range(300):
            if not len(self.passages) and (door is None or not door.connections):
                break
            await asyncio.sleep(0.01)
        assert len(self.passages) == 0
        if door is not None:
            assert (door.connections, door.held) == (0, 0)
            assert not door.open
            assert not door.tunnels
            assert not door.phases
        self.whole()


@pytest.fixture
def door() -> str:
    """Which mode listens."""
    return "edge"


@pytest.fixture
async def rig(tmp_path: Path, door: str) -> AsyncIterator[Rig]:
    """Not started: the test may set it up first."""
    rig = Rig(tmp_path, door)
    try:
        yield rig
    finally:
        await rig.stop()


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as running:
        yield running
        assert running.trouble() == ""


@pytest.fixture(scope="module")
def world(running):
    """Both ways in, running. No connection arrives after the test that would have counted it."""
    yield running
    before = running.counts(running.nodes["edge"])[1]
    assert running.settle() == before


@pytest.fixture(params=WAYS)
def node(request, world):
    """The front door's process, and the plain addon's."""
    return world.nodes[request.param]


__all__ = ["Rig", "read_response"]
