"""`edgeguard dev`: workshop, bundle server and proxy in one process, following a policy folder.

The bundle server runs in a thread of its own, so the way of a policy is the production one: published,
fetched over HTTP, verified, persisted, activated. A mistake in the sources is printed and changes nothing.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import watchfiles

from edgeguard.bundle.snapshot import Ladder
from edgeguard.dev.workshop import ENVIRONMENT, HEAD_LIFETIME_S, Published, Workshop
from edgeguard.evidence.lines import Written
from edgeguard.folder import read_modules
from edgeguard.policy.source import PolicyErrors
from edgeguard.proxy.node import Address, Node, write_authorities
from edgeguard.proxy.preflight import NodeError
from edgeguard.server.app import create_app
from edgeguard.server.run import listen, new_server
from edgeguard.server.tokens import PublishTokens
from edgeguard.settings import Settings

DEBOUNCE_MS: Final = 100
SHARED_SECTIONS: Final = ("user", "resolver", "upstream", "essentials", "bounds")
MAX_SOCKET_PATH: Final = 100
"""Unix socket addresses hold 107 bytes (unix(7)); in a deeper folder there is no admin address."""
FIRST_POLICY_S: Final = 15.0


class Session:
    """One developer's proxy.

    Args:
        policy: Folder with the sources.
        state: Folder for keys, repository, authority and decision log; made if missing.
        address: Where to listen, on loopback.
        client: Name of the client behind every connection.
        base: Settings whose other sections (resolver, upstream, bounds) are used; default: the defaults.
        observe: Called with each slice of decision records.
        published: Called when a policy has been published.
        mistaken: Called when the sources have mistakes; the policy in force stays.
    """

    def __init__(
        self,
        policy: Path,
        state: Path,
        *,
        address: str,
        client: str,
        base: Settings | None,
        observe: Callable[[Sequence[Written]], None],
        published: Callable[[Published], None],
        mistaken: Callable[[PolicyErrors], None],
    ) -> None:
        self._policy = policy
        self._state = state.absolute()
        self._address = address
        self._client = client
        self._base = base
        self._observe = observe
        self._published = published
        self._mistaken = mistaken
        self.authorities = self._state / "authorities.pem"

    async def run(self, ready: Callable[[Address], None]) -> None:
        """Serves until cancelled. Raises PolicyErrors if the first version of the sources has mistakes."""
        workshop = Workshop(self._state)
        await workshop.ensure_root()
        self._published(await workshop.publish(read_modules(self._policy)))
        url, stop_server = _serve(workshop)
        try:
            node = Node(self._settings(workshop, url), observers=[self._observe])
            write_authorities(node, self.authorities)
            async with asyncio.TaskGroup() as tasks:
                chores = [tasks.create_task(self._follow(workshop)), tasks.create_task(_renew(workshop))]
                try:
                    await node.run(lambda at: chores.append(tasks.create_task(_when_fresh(node, at, ready))))
                finally:
                    for chore in chores:
                        chore.cancel()
        finally:
            stop_server()

    async def _follow(self, workshop: Workshop) -> None:
        async for _ in watchfiles.awatch(self._policy, debounce=DEBOUNCE_MS):
            try:
                self._published(await workshop.publish(read_modules(self._policy)))
            except PolicyErrors as errors:
                self._mistaken(errors)

    def _settings(self, workshop: Workshop, url: str) -> Settings:
        """The base with everything that makes it a developer's: environment, loopback, keys, own server."""
        base = {} if self._base is None else {name: getattr(self._base, name) for name in SHARED_SECTIONS}
        state = self._state
        socket = state / "admin.sock"
        return Settings.model_validate(
            {
                **base,
                "environment": ENVIRONMENT,
                "listen": {"address": self._address},
                "trust": {"root": workshop.root_file, "state_dir": state / "state"},
                "sync": {"urls": (url,), "poll_s": 1.0},
                "identity": {"static": self._client},
                "interception": {"ca_dir": state / "ca"},
                "evidence": {"log": str(state / "decisions.jsonl")},
                "admin": {"address": f"unix:{socket}" if len(str(socket)) < MAX_SOCKET_PATH else ""},
            }
        )


async def _when_fresh(node: Node, at: Address, ready: Callable[[Address], None]) -> None:
    """Calls `ready` once the first policy is enforced, so that a command's first request finds it."""
    fresh = asyncio.Event()

    def look() -> None:
        if node.guard.ladder() is Ladder.FRESH:
            fresh.set()

    node.guard.subscribe(look)
    look()
    try:
        async with asyncio.timeout(FIRST_POLICY_S):
            await fresh.wait()
    except TimeoutError:
        raise NodeError(
            f"no policy was enforced within {FIRST_POLICY_S:.0f} s; the state is {node.guard.ladder()}"
        ) from None
    ready(at)


async def _renew(workshop: Workshop) -> None:
    while True:
        await asyncio.sleep(HEAD_LIFETIME_S / 2)
        await workshop.renew_head()


def _serve(workshop: Workshop) -> tuple[str, Callable[[], None]]:
    """The embedded bundle server, on a port that the kernel chooses; it takes nothing over the network.

    Returns its address and what ends it.
    """
    listener = listen("127.0.0.1", 0)
    app = create_app(workshop.repository, PublishTokens.parse(""))
    server = new_server(app)

    def serve() -> None:
        with listener:
            asyncio.run(server.serve(sockets=[listener]))

    def stop() -> None:
        app.state.server.watch.close()  # lets waiting long polls go
        server.should_exit = True

    threading.Thread(target=serve, name="edgeguard-dev-server", daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/", stop
