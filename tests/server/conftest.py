import asyncio
import contextlib
import threading
import time

import aiohttp
import pytest
import pytest_asyncio

from edgeguard.server.app import ServerLimits, create_app
from edgeguard.server.repository import Repository
from edgeguard.server.run import listen, new_server
from edgeguard.server.tokens import PublishTokens
from tests.sync.signing import Authority, lay_out

TOKEN = "t" * 40


class Running:
    """A real uvicorn in its own thread."""

    def __init__(self, directory, limits=None, tokens=TOKEN, port=0):
        self.directory = directory
        self.app = create_app(Repository(directory), PublishTokens.parse(tokens), limits=limits)
        self.sock = listen("127.0.0.1", port)
        self.port = self.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.server = new_server(self.app)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.sock])))

    def start(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def stop(self):
        self.app.state.server.watch.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.sock.close()
        assert not self.thread.is_alive()


@pytest.fixture
def authority():
    return Authority(now=int(time.time()))


@pytest.fixture
def served(tmp_path, authority):
    directory = tmp_path / "served"
    directory.mkdir()
    bundle = authority.bundle(1)
    lay_out(
        directory, authority.env, roots=[authority.root()], head=authority.head(1, bundle), blobs=[bundle]
    )
    return directory


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for tests that only read."""
    authority = Authority(now=int(time.time()))
    directory = tmp_path_factory.mktemp("shared") / "served"
    directory.mkdir()
    bundle = authority.bundle(1)
    lay_out(
        directory, authority.env, roots=[authority.root()], head=authority.head(1, bundle), blobs=[bundle]
    )
    running = Running(directory).start()
    yield running
    running.stop()


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def begin(directory, **options):
            running = Running(directory, **options).start()
            stack.callback(running.stop)
            return running

        yield begin


@pytest.fixture
def running(served, start):
    return start(served, limits=ServerLimits(wait_s=5.0, publish_bytes=100_000, publish_s=1.0))


@pytest_asyncio.fixture
async def http():
    async with aiohttp.ClientSession(trust_env=False, auto_decompress=False) as session:
        yield session
