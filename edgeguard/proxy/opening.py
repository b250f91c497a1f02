"""From an allow to a lane: resolve, check, settle, dial; answer 200; bind the name; take the lane.

Resolving and dialling come before the answer, so that every refusal up to there is an honest
status. After the 200 the ClientHello must name the very destination that was allowed. However the
claim was read (CONNECT, one day SOCKS5), the way from here is the same.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Final

from edgeguard.policy.decision import Lane
from edgeguard.policy.names import is_address
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Protocol
from edgeguard.proxy.client import HELLO, OPENING, REFUSED, ClientSide
from edgeguard.proxy.clienthello import Hello, HelloError, NotTLSError, read_hello
from edgeguard.proxy.handover import Handed, Handover
from edgeguard.proxy.passages import Passage
from edgeguard.proxy.relay import Tunnel
from edgeguard.proxy.resolver import ResolveError
from edgeguard.proxy.retry import HelloWatch, first_hello
from edgeguard.proxy.upstream import Upstream
from edgeguard.verdict import Facts, Verdict

logger = logging.getLogger(__name__)

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
HTTP2_PREFACE: Final = b"PRI "
BESIDES_TLS: Final[tuple[Protocol, ...]] = ("http", "tcp")


class Opening(ClientSide):
    """A client connection whose destination is known."""

    __slots__ = ()

    # Making the way

    def _judge(self, facts: Facts) -> Verdict:
        """TLS is what a tunnel means, unless only another protocol is allowed there."""
        judge = self._door.guard.judge
        verdict = judge(facts)
        if not verdict.decision.allow and verdict.decision.reason is Reason.PROTOCOL_NOT_ALLOWED:
            for protocol in BESIDES_TLS:
                other = judge(facts._replace(protocol=protocol))
                if other.allow:
                    return other
        return verdict

    def _enter(self, verdict: Verdict, client: Client | None) -> Verdict | None:
        """Begins what a verdict allows, in a tunnel's place; otherwise the refusal, which is on record.

        `client` is None where credentials were wrong.
        """
        guard = self._door.guard
        if client is None:
            return guard.refuse(verdict, Reason.CLIENT_UNKNOWN)
        if not verdict.decision.allow:
            return guard.settle(verdict)
        key = self._door.take(client)
        if key is None:
            return guard.refuse(verdict, Reason.CAPACITY_EXCEEDED)
        self._key = key
        self._begin(verdict)
        return None

    def _begin(self, verdict: Verdict) -> None:
        door = self._door
        self.verdict = verdict
        self.until = verdict.decision.until
        self._phase = OPENING
        self._generation = door.generation
        self.deadline = door.now + door.dial_s
        try:
            addresses = door.resolver.known(verdict.host)
            if addresses is not None:
                self._resolved(verdict, addresses)
                return
            task = asyncio.Task(self._resolve(verdict), loop=door.loop, eager_start=True)
            if not task.done():
                self._way = task
        except Exception:
            # Fail closed: a way that could not be opened in order is not opened.
            logger.exception("opening the way failed")
            self._broken()

    async def _resolve(self, verdict: Verdict) -> None:
        """Asks for the addresses. Cancelled by the deadline, or when the client leaves."""
        door = self._door
        try:
            addresses = await door.resolver.resolve(verdict.host)
            self._way = None
            if self._generation != door.generation:
                verdict = self._judge(verdict.facts)
            self._resolved(verdict, addresses)
        except ResolveError:
            self._way = None
            self._fail(Reason.UPSTREAM_UNREACHABLE)
        except Exception:
            # Fail closed, as above.
            logger.exception("opening the way failed")
            self._way = None
            self._broken()

    def _broken(self) -> None:
        """Refuses; where even that is impossible, ends the connection."""
        self._fail(Reason.INTERNAL_ERROR)
        if self._phase != REFUSED:
            self.here.abort()

    def _resolved(self, verdict: Verdict, addresses: Sequence[str]) -> None:
        """Checks the addresses, settles, dials; or refuses."""
        verdict = self._door.guard.admit(verdict, addresses)
        if verdict.decision.limits:
            waiting = self._door.guard.reserve(verdict)
            if waiting is not None:
                task = asyncio.Task(self._reserve(waiting), loop=self._door.loop, eager_start=True)
                if not task.done():
                    self._way = task
                return
        self._admitted(verdict)

    async def _reserve(self, waiting: Awaitable[Verdict]) -> None:
        """Waits for limits that are counted elsewhere. Cancelled by the deadline, or when the client leaves."""
        try:
            verdict = await waiting
            self._way = None
            self._admitted(verdict)
        except Exception:
            # Fail closed, as above.
            logger.exception("opening the way failed")
            self._way = None
            self._broken()

    def _admitted(self, verdict: Verdict) -> None:
        """Settles and dials, or refuses."""
        door = self._door
        guard = door.guard
        addresses: Sequence[str] = ()
        port = verdict.facts.port
        if verdict.decision.allow:
            if not self._fits(verdict):
                self._reply(guard.refuse(verdict, Reason.MISDIRECTED_REQUEST))
                return
            addresses = door.dialer.permitted(verdict.addresses, port)
            if not addresses:
                self._reply(guard.refuse(verdict, Reason.ADDRESS_NOT_ALLOWED))
                return
        verdict = guard.settle(verdict)
        decision = verdict.decision
        if not decision.allow:
            self._reply(verdict)
            return
        self.verdict = verdict
        self.until = decision.until
        self._settled = True
        door.opened(self)
        dialer = door.dialer.towards(verdict.host)
        if _inspected(verdict):
            self._way = dialer.prefer(addresses, port, self._pinned)
        else:
            self._way = dialer.connect(Upstream, addresses, port, self._dialled)

    def _pinned(self, address: str | None) -> None:
        """The address for a lane that dials itself is known; None: nobody answers."""
        self._way = None
        if self._phase != OPENING:
            return
        if address is None:
            self._fail(Reason.UPSTREAM_UNREACHABLE)
        else:
            self._open_at(address)

    def _dialled(self, back: Upstream | None, address: str) -> None:
        """The upstream is connected; None: nobody answers."""
        self._way = None
        if self._phase != OPENING:
            if back is not None:
                back.abandon()
        elif back is None or back.gone:
            self._fail(Reason.UPSTREAM_UNREACHABLE)
        else:
            back.watcher = self
            self._back = back
            self._open_at(address)

    def _open_at(self, address: str) -> None:
        verdict = self.verdict
        assert verdict is not None  # noqa: S101 - for the type checker
        self._address = address
        if verdict.addresses != (address,):
            # What stays open is judged again on the address that it really has.
            self.verdict = verdict._replace(addresses=(address,))
        try:
            self._established()
        except Exception:
            # Fail closed, as above.
            logger.exception("answering failed")
            self._broken()

    def _fits(self, verdict: Verdict) -> bool:
        """Whether the door has nothing against these addresses."""
        return True

    def _grant(self) -> None:
        """Tells the client that the way is open."""
        self.here.write(ESTABLISHED)

    def _established(self) -> None:
        back, verdict = self._back, self.verdict
        assert verdict is not None  # noqa: S101 - for the type checker
        self._phase = HELLO
        self.deadline = self._door.now + self._door.hello_s
        self._grant()
        self.here.resume_reading()
        if verdict.facts.protocol == "tcp":
            self._relay()
        elif back is not None and back.early:
            self.upstream_spoke()
        elif self._buffer:
            self._read_hello()

    # After the 200

    def _read_hello(self) -> None:
        verdict = self.verdict
        assert verdict is not None  # noqa: S101 - for the type checker
        try:
            hello = read_hello(self._buffer, self._door.bounds.hello_bytes)
        except NotTLSError:
            self._not_tls(verdict)
            return
        except HelloError:
            self._opaque(verdict, Reason.MALFORMED_REQUEST)
            return
        if hello is None:
            return
        if verdict.facts.protocol != "tls":
            self._fail(Reason.PROTOCOL_NOT_ALLOWED)
        elif hello.sni == verdict.host or self._names_agree(verdict, hello):
            if _inspected(verdict):
                self._inspect(verdict, hello.sni)
            else:
                self._relay(hello)

    def _names_agree(self, verdict: Verdict, hello: Hello) -> bool:
        """Whether the hello names the destination that was allowed; refuses if not."""
        if hello.sni is None:
            # RFC 6066, 3: an address is never sent as a server name, so its absence is the expected form.
            if is_address(verdict.host):
                return True
            self._opaque(verdict, Reason.MISDIRECTED_REQUEST)
            return False
        if hello.sni.lower() == verdict.host:
            return True
        again = self._door.guard.judge(verdict.facts._replace(names=(*verdict.facts.names, hello.sni)))
        if not again.allow:
            self._fail(again.reason or Reason.MISDIRECTED_REQUEST)
        return again.allow

    def upstream_spoke(self) -> None:
        """The server spoke first, which TLS never does."""
        if self._phase == HELLO and self.verdict is not None:
            self._opaque(self.verdict, Reason.OPAQUE_TUNNEL)

    def upstream_left(self) -> None:
        """The upstream ended before the client said anything."""
        if self._phase == HELLO:
            self._finish("upstream_lost")

    def _not_tls(self, verdict: Verdict) -> None:
        """Bytes that are not TLS: plain HTTP or anything else, each only where a rule allows it."""
        buffer = self._buffer
        if HTTP2_PREFACE.startswith(buffer):
            return  # too few bytes to tell POST from the preface of HTTP/2
        if not buffer[:1].isalpha() or buffer.startswith(HTTP2_PREFACE):
            self._opaque(verdict, Reason.OPAQUE_TUNNEL)
        elif verdict.facts.protocol == "http":
            self._inspect(verdict, None)
        elif self._as_tcp(verdict):
            return
        elif self._phase == HELLO and (other := self._switch(verdict, "http")) is not None:
            self._inspect(other, None)
        elif self._phase == HELLO:
            self._fail(Reason.OPAQUE_TUNNEL)

    def _opaque(self, verdict: Verdict, reason: Reason) -> None:
        """Bytes that name nobody: relayed where a rule says `protocol: tcp`, refused with `reason` elsewhere."""
        if not self._as_tcp(verdict) and self._phase == HELLO:
            self._fail(reason)

    def _as_tcp(self, verdict: Verdict) -> bool:
        """Relays the bytes as they are, where a rule says `protocol: tcp`; False where none does."""
        other = self._switch(verdict, "tcp")
        if other is None:
            return False
        address = self._address
        if self._back is not None or address is None:
            self._relay()
        else:  # another lane was to dial
            door = self._door
            self.deadline = door.now + door.dial_s
            dialer = door.dialer.towards(other.host)
            self._way = dialer.connect(Upstream, (address,), other.facts.port, self._dialled_late)
        return True

    def _dialled_late(self, back: Upstream | None, _: str) -> None:
        """The upstream of a tunnel that was answered already is connected; None: nobody answers."""
        self._way = None
        if self._phase != HELLO:
            if back is not None:
                back.abandon()
        elif back is None or back.gone:
            self._fail(Reason.UPSTREAM_UNREACHABLE)
        else:
            self._back = back
            self.here.resume_reading()
            self._relay()

    def _switch(self, verdict: Verdict, protocol: Protocol) -> Verdict | None:
        """The settled allow for another protocol than the one assumed; None if there is none."""
        guard = self._door.guard
        again = guard.judge(verdict.facts._replace(protocol=protocol))
        if not again.allow or (protocol == "tcp" and _inspected(again)) or self._address is None:
            return None
        again = guard.admit(again._replace(aliases=verdict.aliases), (self._address,))
        if not again.allow:
            return None
        guard.finish(verdict, sent=0, received=0, why="protocol_changed")
        self._settled = False
        again = guard.settle(again, before=verdict)
        self.verdict = again
        self.until = again.until
        if not again.allow:
            self._close_refused(again)
            return None
        self._settled = True
        return again

    def _relay(self, hello: Hello | None = None) -> None:
        """The tunnel lane takes over; with a hello, once the handshake can name nobody else."""
        door, back, verdict, key = self._door, self._back, self.verdict, self._key
        assert back is not None and verdict is not None and key is not None  # noqa: PT018, S101 - for the type checker
        data, early = self._buffer, back.early
        back.watcher = None
        self._back = self._key = None
        self._leave()
        tunnel = Tunnel(verdict, key, self, back, door.now, door.tunnel_done)
        door.tunnels.add(tunnel)
        door.opened(tunnel)
        if verdict.decision.limits:
            door.meter(tunnel, verdict)
        if hello is None:
            tunnel.start(data, early, door.bounds.relay_bytes)
            return
        watch = HelloWatch(hello.sni, door.bounds.hello_bytes)
        if 5 + (data[3] << 8 | data[4]) == len(data):  # one record, and nothing after it
            tunnel.start(data, early, door.bounds.relay_bytes, watch)
            return
        end = first_hello(data)
        tunnel.start(data[:end], early, door.bounds.relay_bytes, watch)
        if end < len(data):
            self.data_received(data[end:])

    def _inspect(self, verdict: Verdict, sni: str | None) -> None:
        """The mitmproxy lane takes over."""
        address = self._address
        assert address is not None  # noqa: S101 - for the type checker
        facts = verdict.facts
        passage = Passage(
            self._id,
            facts.client,
            verdict.host,
            verdict.port,
            verdict.aliases,
            sni=sni.lower() if sni else None,
        )
        self._hand_over(passage, verdict, (address, verdict.port))

    def _hand_over(
        self, passage: Passage, verdict: Verdict | None, destination: tuple[str, int] | None
    ) -> None:
        door, data, key = self._door, self._buffer, self._key
        assert key is not None  # noqa: S101 - for the type checker
        self._key = None
        self._leave()
        Handover(door, self._instance, self.here, data, Handed(passage, verdict, destination, key))


def _inspected(verdict: Verdict) -> bool:
    """Plain HTTP is always inspected: inside it a Host field could name somebody else."""
    return verdict.decision.lane is Lane.INSPECT or verdict.facts.protocol == "http"
