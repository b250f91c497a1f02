"""One node: everything that `edgeguard run` starts, in the order in which it may fail.

What can be wrong (root, state folder, authority, log, a port in use) is found out before the first
client is accepted. The order of the end is the reverse: stop accepting, let open work finish, write
the last records.
"""

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeguard import __version__
from edgeguard.bundle.state import TrustState
from edgeguard.bundle.testkeys import loopback_only
from edgeguard.evidence.lines import Written
from edgeguard.evidence.log import DecisionLog
from edgeguard.evidence.metrics import Metrics
from edgeguard.evidence.turnstile import Turnstile
from edgeguard.guard import Guard
from edgeguard.identity.clients import ClientDirectory
from edgeguard.identity.jwks import KeyRing
from edgeguard.identity.plain import PlainReader
from edgeguard.identity.tokens import TokenReader
from edgeguard.limits.limiter import ScopedLimiter
from edgeguard.limits.store import StoreMissingError
from edgeguard.policy.names import canonical_host, split_authority
from edgeguard.policy.request import User
from edgeguard.proxy.addon import EdgeguardAddon
from edgeguard.proxy.admin import AdminServer
from edgeguard.proxy.authority import Authority
from edgeguard.proxy.control import Control
from edgeguard.proxy.dial import Dialer
from edgeguard.proxy.door import Services
from edgeguard.proxy.frontdoor import EdgeServers
from edgeguard.proxy.jwks import KeyFetcher
from edgeguard.proxy.listeners import Listener, bind, release
from edgeguard.proxy.master import EdgeMaster, serve
from edgeguard.proxy.parent import ParentDialer, ParentError
from edgeguard.proxy.passages import Passages
from edgeguard.proxy.preflight import NodeError, preflight, remember_authority
from edgeguard.proxy.report import READY_STATES, policy_report
from edgeguard.proxy.resolver import Resolver
from edgeguard.settings import Settings
from edgeguard.settings.values import split_address
from edgeguard.sync.agent import SyncAgent
from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.follow import AHEAD_S, Followed, Follower
from edgeguard.sync.gentle import set_aside
from edgeguard.sync.report import SyncEvent
from edgeguard.sync.standing import Standing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens."""

    host: str
    """An IP address, or `unix:` and a path."""
    port: int
    """0 of a unix socket."""
    url: str
    """As it is written in a proxy setting."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker is given by its supervisor, which fetches policy, answers `/status` and owns the doors."""

    root: bytes
    """Of the configured root."""
    standing: Standing | None
    """What is in force at the start."""
    floor: float
    """Of trusted time (`TrustedClock.floor`)."""
    chain: str
    """Name of the chain of this process's decision log."""
    turnstile: Turnstile | None
    admin: str
    """The supervisor's admin address, which must not be dialled."""
    on_followed: Callable[[Followed], None]
    """Called in the follower's thread whenever the state folder was compared with what is in force."""
    on_event: Callable[[SyncEvent], None]
    """Called in the follower's thread."""


class Node:
    """A proxy process, from its settings to its end.

    Args:
        settings: The node's configuration.
        observers: Called with each slice of decision records, in the log's thread.
        listeners: The doors of these settings, bound by somebody else (`listeners.adopt`); None: `run` binds them.
        part: Set in a worker: what its supervisor does for it.

    Raises:
        OSError: root or log cannot be opened. NodeError, AuthorityError: as their messages say.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observers: Sequence[Callable[[Sequence[Written]], None]] = (),
        listeners: Sequence[Listener] | None = None,
        part: Part | None = None,
    ) -> None:
        self.settings = settings
        self._listeners = listeners
        self.clock = TrustedClock()
        self._part = part
        grounds = preflight(settings, part.root if part is not None else None)
        self.authority: Authority = grounds.authority
        self.local_only = loopback_only(grounds.trust.root, settings.environment)
        """Why this node may listen on loopback only; None if it may listen anywhere."""
        self.metrics = Metrics()
        self._limiter = _limiter(settings, grounds.root)
        self.log = DecisionLog(
            settings.evidence.log,
            settings.evidence.queue_records,
            observers=(self.metrics.observe, *observers),
            sync_s=settings.evidence.sync_s,
            paths=settings.evidence.paths == "keep",
            chain=part.chain if part is not None else None,
            turnstile=part.turnstile if part is not None else None,
        )
        self._resolver = Resolver.from_settings(
            settings.resolver, max_addresses=settings.bounds.dial_addresses
        )
        parent = settings.upstream.proxy
        self._dialer = ParentDialer(parent, self._resolver.resolve) if parent.address else Dialer()
        self._ring = KeyRing()
        bounds = settings.bounds
        self.guard = Guard(
            clients=ClientDirectory(settings.identity),
            limiter=self._limiter,
            log=self.log,
            clock=self.clock.now,
            essentials=_essentials(settings, grounds.trust),
            tokens=lambda snapshot: TokenReader(
                snapshot.issuers,
                ring=self._ring,
                max_chars=bounds.token_bytes,
                cache=bounds.token_cache,
                region=settings.user.region,
            ),
            plain=PlainReader(settings.user.plain, settings.user.region)
            if settings.user.plain.clients
            else None,
            nobody=User(region=settings.user.region) if settings.user.region else None,
            own=self._dialer.is_own,
            nat64=[ipaddress.IPv6Network(prefix) for prefix in settings.resolver.nat64_prefixes],
        )
        self.metrics.watch_log(self.log)
        self.metrics.watch_limits(lambda: self._limiter.usage(time.monotonic_ns()))
        self.metrics.watch_store(lambda: self._limiter.fleet(time.monotonic_ns()))
        self.sync: SyncAgent | Follower
        if part is None:
            agent = self.sync = SyncAgent(
                settings,
                grounds.root,
                self.guard.activate,
                clock=self.clock,
                enforced=lambda: self.guard.snapshot,
            )
            self.metrics.watch_policy(lambda: self.guard.snapshot, self.clock.now)
            self.metrics.watch_sync(agent)
        else:
            self.clock.share(part.floor)
            self.sync = Follower(
                SyncConfig.from_settings(settings),
                grounds.root,
                self.guard.activate,
                expected=part.standing,
                clock=self.clock,
                on_event=part.on_event,
                on_followed=part.on_followed,
            )
        self.started = time.time()
        self.doors: tuple[str, ...] = ()
        """Where this node listens, as it is written in a proxy setting; empty before `run`."""
        self._master: EdgeMaster | None = None
        self._servers: EdgeServers | None = None
        self._stopping = False

    @contextlib.asynccontextmanager
    async def enforcing(self) -> AsyncIterator[Resolver]:
        """Everything beside the doors: sync, deadlines, keys of issuers, the admin address. Yields the resolver.

        Raises:
            NodeError, StoreError, Refusal: root, state folder or supervisor. AdminError: the address is in use.
        """
        settings = self.settings
        try:
            await asyncio.to_thread(self.sync.start)
            if isinstance(self.sync, Follower) and not await asyncio.to_thread(self.sync.wait, AHEAD_S):
                raise NodeError(self.sync.last.problem)
            await asyncio.to_thread(remember_authority, settings)
            self.guard.start()
            self._limiter.start()
            resolver = self._resolver
            keys = KeyFetcher(self.guard, self._ring, resolver, settings.user, settings.upstream.ca_file)
            keys.start()
            admin = AdminServer(settings.admin, self.status, self.ready, self.metrics)
            control = Control(settings.trust.state_dir, self.log, self._limiter.reset)
            try:
                await admin.start()
                address = admin.address if self._part is None else self._part.admin
                if address and not address.startswith("unix:"):
                    self.forbid(*split_address(address))
                async with control.listening():
                    yield resolver
            finally:
                await admin.stop()
                await keys.stop()
        finally:
            self.guard.stop()
            await self._limiter.stop()
            await asyncio.to_thread(self.sync.stop)
            await asyncio.to_thread(self.log.close)

    def forbid(self, host: str, port: int) -> None:
        """Notes an address that this process listens on: no client is ever sent there."""
        self._dialer.forbid(host, port)

    async def run(self, ready: Callable[[Address], None] | None = None) -> None:
        """Serves until `stop`, or until cancelled, which does not wait for open work.

        Raises:
            ListenError: a door cannot be opened. StoreError, Refusal: the state folder or the root cannot be used.
        """
        settings = self.settings
        async with self.enforcing() as resolver:
            if isinstance(self._dialer, ParentDialer):
                try:
                    await self._dialer.check()
                except ParentError as error:
                    raise NodeError(str(error)) from None
            passages = Passages()
            listeners = bind(settings) if self._listeners is None else self._listeners
            try:
                self.doors = tuple(map(str, listeners))
                servers = EdgeServers(
                    Services(self.guard, resolver, self._dialer, passages, settings, self.clock.now),
                    listeners,
                )
                self._master = EdgeMaster(
                    EdgeguardAddon(self.guard, resolver, passages, settings, self._dialer),
                    settings,
                    self.authority,
                    ["edge"],
                    servers,
                )
                self._servers = servers
                set_aside()
                try:
                    await serve(self._master, ready=_first(ready, listeners))
                    await _drained(servers, settings.bounds.drain_s)
                finally:
                    servers.close_all()
            finally:
                if self._listeners is None:
                    release(listeners)

    def stop(self) -> None:
        """Ends `run` once open work is done, or after `bounds.drain_s`. Callable from any thread."""
        self._stopping = True
        if self._master is not None:
            self._master.shutdown()

    def follow(self, standing: Standing | None, floor: float) -> None:
        """In a worker: what is in force now, and the floor of trusted time."""
        self.clock.share(floor)
        if isinstance(self.sync, Follower):
            self.sync.expect(standing)

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return 0 if self._servers is None else self._servers.working

    def limits(self) -> dict[str, object]:
        """How full this process's rate limits are, and whether it reaches the counters that others share."""
        return self._limiter.status(time.monotonic_ns())

    def ready(self) -> tuple[bool, str]:
        """Whether a verified policy is enforced, and the state or what is wrong."""
        if self.log.broken:
            return False, "the decision log cannot be written"
        ladder = self.guard.ladder()
        return ladder in READY_STATES, str(ladder)

    def status(self) -> dict[str, object]:
        """Which policy runs, who signed it, how old it is, and what became of it. Times are Unix seconds."""
        now = self.clock.now()
        snapshot = self.guard.snapshot
        ready, why = self.ready()
        return {
            "ready": ready,
            "why": why,
            "ladder": str(self.guard.ladder()),
            "environment": self.settings.environment,
            "doors": list(self.doors),
            "connections": None if self._servers is None else self._servers.census(),
            **policy_report(snapshot, now),
            "decisions": {
                "written": self.log.written,
                "waiting": self.log.waiting,
                "refused": self.log.refused,
                "log": self.settings.evidence.log,
            },
            "sync": self.sync.status(),
            "limits": [self.limits()],
            "interception": {"fingerprint": self.authority.fingerprint},
            "process": {
                "edgeguard": __version__,
                "mitmproxy": importlib.metadata.version("mitmproxy"),
                "started_at": self.started,
                "now": now,
            },
        }


def _limiter(settings: Settings, root: bytes) -> ScopedLimiter:
    """Raises TableError, NodeError."""
    try:
        return ScopedLimiter.from_settings(
            settings.limits, settings.environment, settings.bounds.limit_keys, root, time.monotonic_ns
        )
    except StoreMissingError as error:
        raise NodeError(str(error)) from None


def _essentials(settings: Settings, trust: TrustState) -> set[tuple[str, int]]:
    """What the configuration asks to keep reachable, as far as root lists it too."""
    listed = {_pair(text) for text in trust.root.environments[settings.environment].caps.essentials}
    wanted = {_pair(text) for text in settings.essentials.hosts}
    for host, port in sorted(wanted - listed):
        logger.warning("essentials: %s:%d is not on the root's list and stays closed", host, port)
    return wanted & listed


def _pair(text: str) -> tuple[str, int]:
    host, port = split_authority(text, None)
    return canonical_host(host), port


async def _drained(servers: EdgeServers, within_s: float) -> None:
    """Waits for tunnels that are still open."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while servers.working and loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)


def _first(
    ready: Callable[[Address], None] | None, listeners: Sequence[Listener]
) -> Callable[[list[tuple[str, int]]], None] | None:
    if ready is None:
        return None
    first = listeners[0]
    host, port = first.at or (str(first), 0)
    return lambda _: ready(Address(host, port, str(first)))


def write_authorities(node: Node, target: Path) -> None:
    """What clients of this node should trust: the configured upstream authorities and its own."""
    import certifi

    upstream = node.settings.upstream.ca_file or Path(certifi.where())
    target.write_bytes(upstream.read_bytes().rstrip() + b"\n" + node.authority.certificate_pem)
