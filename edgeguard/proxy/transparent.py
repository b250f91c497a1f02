"""The transparent door: connections that a packet filter redirects here, from clients that know of no proxy.

Nothing is claimed but what is said inside. The server name of a ClientHello decides, or the Host of a
plain request; where there is none, the address that was dialled is judged as an address. A name has to
fit that address: it must be among the answers that our own resolver gives for it, or gave a while ago,
since clients keep old answers and answers rotate. Whatever the client dialled, only our own
resolution is dialled; of the original destination just the port is taken.

A refusal is what the client's protocol has for it: a TLS alert, an HTTP answer, or the end.
"""

import asyncio
import re
from typing import Final

from edgeguard.policy.names import HostError, split_authority
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT, Client
from edgeguard.proxy.client import HEAD
from edgeguard.proxy.clienthello import ACCESS_DENIED, HelloError, NotTLSError, read_hello
from edgeguard.proxy.heads import Head, HeadError, head_end, parse_head
from edgeguard.proxy.opening import HTTP2_PREFACE, Opening
from edgeguard.verdict import Facts, Verdict

_REQUEST_LINE: Final = re.compile(rb"[!-~]++ [!-~]++ HTTP/1\.[01]\r\n")
_PART_OF_A_LINE: Final = re.compile(rb"[A-Za-z][ -~]*+\r?")


def speaks_http(data: bytes, limit: int) -> bool | None:
    """Whether a client's first bytes are an HTTP/1 request; None while they could become one of at most `limit` bytes."""
    if data.startswith(HTTP2_PREFACE):
        return False
    if b"\n" in data:
        return _REQUEST_LINE.match(data) is not None
    return None if len(data) <= limit and _PART_OF_A_LINE.fullmatch(data) else False


def named_hosts(head: Head) -> tuple[str, ...]:
    """The Host of a request to a server: one, or none in HTTP/1.0. Raises HeadError."""
    hosts = head.values("host")
    if len(hosts) != 1 and (hosts or head.version == "1.1"):
        raise HeadError(Reason.MALFORMED_REQUEST, "exactly one Host field is expected")
    if head.target[:1] != "/" and head.target != "*":
        raise HeadError(Reason.MALFORMED_REQUEST, "a server is asked in origin form")
    return hosts


class Transparent(Opening):
    """A redirected connection."""

    __slots__ = ("_http", "_owner", "_target", "_waited")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._http = False
        self._owner: Client | None = None
        self._target = ("", 0)
        self._waited = False
        """The time in which the client could have spoken first is over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        door = self._door
        if self not in door.phases:
            return  # turned away
        self._owner = self._identify()
        target = None if self._origin is None else self._origin.destination
        if target is None:
            self._refuse_unread(Reason.MALFORMED_REQUEST)
            return
        self._target = target
        if door.dialer.is_own(*target):
            # Dialled directly, or redirected back to us: there is nowhere that it could have been going.
            self._refuse_unread(Reason.ADDRESS_NOT_ALLOWED)
        else:
            self.deadline = door.now + min(door.head_s, door.server_first_s)

    # What is claimed

    def _read_claim(self, data: bytes) -> None:
        if not self._waited:
            self._waited = True
            self.deadline = self._door.now + self._door.head_s
        try:
            hello = read_hello(data, self._door.bounds.hello_bytes)
        except NotTLSError:
            self._read_clear(data)
        except HelloError:
            self._by_address(Reason.MALFORMED_REQUEST)
        else:
            if hello is not None:
                self._ask(self._facts(hello.sni or self._target[0]))

    def _read_clear(self, data: bytes) -> None:
        """Bytes that are not TLS: a plain request, or anything else."""
        bounds = self._door.bounds
        http = speaks_http(data, bounds.head_bytes)
        if http is None:
            return
        if not http:
            self._by_address(Reason.OPAQUE_TUNNEL)
            return
        self._http = True
        try:
            end = head_end(data, self._scanned, bounds.head_bytes)
            if end < 0:
                self._scanned = len(data)
                return
            head = parse_head(data[:end])
            if len(head.fields) > bounds.headers:
                raise HeadError(Reason.REQUEST_TOO_LARGE, f"{len(head.fields)} header fields")
            facts = self._of_head(head)
        except HostError:
            self._refuse_unread(Reason.MALFORMED_REQUEST)
        except HeadError as error:
            self._refuse_unread(error.reason, 431 if error.reason is Reason.REQUEST_TOO_LARGE else None)
        else:
            self._version = head.version
            self._accept = ", ".join(head.values("accept"))
            self._ask(facts)

    def _of_head(self, head: Head) -> Facts:
        """What a plain request claims by its Host. Raises HeadError, HostError."""
        hosts = named_hosts(head)
        address, port = self._target
        host = split_authority(hosts[0], port)[0] if hosts else address
        return self._facts(host)._replace(protocol="http", names=hosts)

    def _facts(self, host: str) -> Facts:
        return Facts(self._id, self._owner or UNKNOWN_CLIENT, host, self._target[1])

    def _ask(self, facts: Facts) -> None:
        refused = self._enter(self._judge(facts), self._owner)
        if refused is not None:
            self._reply(refused)

    def _by_address(self, reason: Reason) -> None:
        """Bytes that name nobody: passed on unread where a rule says so of the address, refused elsewhere."""
        verdict = self._door.guard.judge(self._facts(self._target[0])._replace(protocol="tcp"))
        if verdict.reason in {Reason.PROTOCOL_NOT_ALLOWED, Reason.OPAQUE_TUNNEL}:
            self._reply(self._door.guard.refuse(verdict, reason))
            return
        refused = self._enter(verdict, self._owner)
        if refused is not None:
            self._reply(refused)

    def _fits(self, verdict: Verdict) -> bool:
        """Whether the client dialled an address of the name that it claims."""
        return self._door.resolver.gave(verdict.host, self._target[0])

    # Time

    def expire(self) -> None:
        if self._phase != HEAD:
            super().expire()
        elif not self._waited:
            self._waited = True
            self.deadline = self._door.now + self._door.head_s
            verdict = self._door.guard.judge(self._facts(self._target[0])._replace(protocol="tcp"))
            if verdict.allow:  # otherwise it has the time of everybody else
                refused = self._enter(verdict, self._owner)
                if refused is not None:
                    self._reply(refused)
        elif not self._http:
            self._by_address(Reason.MALFORMED_REQUEST if self._buffer else Reason.OPAQUE_TUNNEL)
        else:
            super().expire()

    # What the client is told

    def _grant(self) -> None:
        """A client that knows of no proxy is told nothing."""

    def _refuse_unread(self, reason: Reason, status: int | None = None) -> None:
        guard = self._door.guard
        self._reply(guard.refuse(guard.judge(self._facts(self._target[0])), reason), status)

    def _reply(self, verdict: Verdict, status: int | None = None) -> None:
        if self._http:
            # Not 407: the client did not ask a proxy.
            super()._reply(verdict, 403 if verdict.reason is Reason.CLIENT_UNKNOWN else status)
        else:
            self._wind_up(ACCESS_DENIED if self._buffer[:1] == b"\x16" else b"")
