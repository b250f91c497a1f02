import asyncio
import contextlib
import time

import pytest
import pytest_asyncio

from edgeguard.bundle.snapshot import Ladder
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import Fetcher, FetchLimits
from edgeguard.sync.store import Store
from edgeguard.sync.update import Mirror, Updater
from tests.server.conftest import Running
from tests.sync.signing import Authority, lay_out, policy_for

FAST = FetchLimits(deadline_s=2.0)


class Web:
    """A server of static files that does what it is told, and remembers what was asked."""

    def __init__(self):
        self.files = {}
        self.requests = []
        self.twist = None
        """Called with (path, headers); an answer instead of the file's: (status, headers, body)."""

    def publish(self, authority, *, roots=(), head=None, bundle=None):
        import hashlib

        for number, root in enumerate(roots, 1):
            self.files[f"root/{number}.root"] = root
        if bundle is not None:
            self.files[f"blobs/{hashlib.sha256(bundle).hexdigest()}"] = bundle
        if head is not None:
            self.files[f"{authority.env}/head"] = head

    async def serve(self, reader, writer):
        try:
            while True:
                raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = raw[0].split(" ")[1].removeprefix("/")
                headers = dict(line.lower().split(": ", 1) for line in raw[1:] if ": " in line)
                self.requests.append((path, headers))
                status, fields, body = self.answer(path, headers)
                head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
                length = "" if status == 304 else f"Content-Length: {len(body)}\r\n"
                writer.write(f"{head}{length}\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def answer(self, path, headers):
        twisted = self.twist(path, headers) if self.twist else None
        if twisted is not None:
            return twisted
        body = self.files.get(path)
        if body is None:
            return 404, {}, b"no"
        etag = f'"{hash(body)}"'
        if headers.get("if-none-match") == etag:
            return 304, {"ETag": etag}, b""
        return 200, {"ETag": etag}, body

    def asked(self, path):
        return [headers for found, headers in self.requests if found == path]


@pytest_asyncio.fixture
async def web():
    server = Web()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    yield server
    listening.close()
    listening.close_clients()
    await listening.wait_closed()


@pytest.fixture
def authority():
    return Authority(now=int(time.time()), policy=policy_for("one.example"))


class Node:
    """An updater over a state folder, with hands on its clock."""

    def __init__(self, config, root, url=None):
        self.config = config
        self.root = root
        self.url = url
        self.snapshots = []
        self.events = []
        self.now = time.time()
        self.open()

    def open(self):
        self.clock = TrustedClock(wall=lambda: self.now, boot=lambda: 0.0)
        self.store = Store.open(self.config.state_dir)
        self.updater = Updater(
            self.config,
            self.root,
            self.store,
            self.clock,
            on_snapshot=self.snapshots.append,
            on_event=self.events.append,
        )
        self.mirror = None

    async def load(self):
        await self.updater.load()
        return self

    async def refresh(self, url=None, **options):
        if self.mirror is None:
            self.mirror = Mirror(Fetcher(url or self.url, FAST))
        return await self.updater.refresh(self.mirror, **options)

    async def close(self):
        self.store.close()
        if self.mirror is not None:
            await self.mirror.fetcher.close()

    async def restart(self):
        await self.close()
        self.snapshots.clear()
        self.events.clear()
        self.open()
        return await self.load()

    @property
    def snapshot(self):
        return self.snapshots[-1] if self.snapshots else None

    @property
    def version(self):
        return self.snapshot.bundle_version if self.snapshot else None

    @property
    def ladder(self):
        return self.snapshot.ladder(self.clock.now()) if self.snapshot else Ladder.CLOSED

    def codes(self, *, alarm=None):
        return [event.code for event in self.events if alarm is None or event.alarm is alarm]


@pytest_asyncio.fixture
async def new_node(tmp_path, authority):
    nodes = []

    async def make(url, **changes):
        config = SyncConfig(authority.env, tmp_path / "state", (url,), fetch=FAST, **changes)
        node = Node(config, authority.root(), url)
        nodes.append(node)
        return await node.load()

    yield make
    for node in nodes:
        with contextlib.suppress(OSError):
            await node.close()


@pytest_asyncio.fixture
async def node(new_node, web, authority):
    """A node that has taken bundle 1 under head 1."""
    bundle = authority.bundle(1)
    web.publish(authority, roots=[authority.root()], head=authority.head(1, bundle), bundle=bundle)
    node = await new_node(web.url)
    assert (await node.refresh()).ok
    node.events.clear()
    web.requests.clear()
    return node


@pytest.fixture
def served(tmp_path, authority):
    directory = tmp_path / "served"
    directory.mkdir()
    bundle = authority.bundle(1)
    lay_out(
        directory, authority.env, roots=[authority.root()], head=authority.head(1, bundle), blobs=[bundle]
    )
    return directory


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def begin(directory, **options):
            running = Running(directory, **options).start()
            stack.callback(running.stop)
            return running

        yield begin
