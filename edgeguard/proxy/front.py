"""The HTTP door: reads the first request head of a connection and says what it asks for.

CONNECT names a destination, and the way is opened from here (`opening.py`). A request in absolute
form goes to the mitmproxy lane, where the addon judges it and every one that follows it. Whatever
else comes (origin form, HTTP/2 with prior knowledge, TLS, noise) is refused.
"""

from edgeguard.guard import NOTHING_INSIDE
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT
from edgeguard.proxy.heads import Claim, Head, HeadError, head_end, is_absolute, known_head, parse_head
from edgeguard.proxy.opening import Opening
from edgeguard.proxy.passages import Passage
from edgeguard.verdict import Facts

_new = tuple.__new__  # builds a NamedTuple at half the price of its constructor


class Front(Opening):
    """A connection to the explicit HTTP proxy."""

    __slots__ = ()

    def _read_claim(self, data: bytes) -> None:
        bounds = self._door.bounds
        known = known_head(data, bounds.headers) if len(data) <= bounds.head_bytes else None
        if known is not None and known.claim is not None:
            self._version = known.version
            self._buffer = b""
            self._connect(known, known.claim)
            return
        try:
            end = head_end(data, self._scanned, bounds.head_bytes)
            if end < 0:
                self._scanned = len(data)
                return
            head = parse_head(data[:end] if end < len(data) else data)
            if len(head.fields) > bounds.headers:
                raise HeadError(Reason.REQUEST_TOO_LARGE, f"{len(head.fields)} header fields")
        except HeadError as error:
            self._refuse_unread(error.reason, 431 if error.reason is Reason.REQUEST_TOO_LARGE else None)
            return
        self._version = head.version
        if head.claim is not None:
            self._buffer = data[end:]
            self._connect(head, head.claim)
        else:
            self._forward(head)

    def _connect(self, head: Head, claim: Claim) -> None:
        door = self._door
        if claim.bare and door.bare:
            client = door.guard.identify(self._peer) if self._origin is None else self._identify()
            destination = (self._id, client or UNKNOWN_CLIENT, claim.host, claim.port, "tls", claim.names)
            facts = _new(Facts, destination + NOTHING_INSIDE)
        else:
            client = self._identify(head.values("proxy-authorization"))
            facts = Facts(
                self._id,
                client or UNKNOWN_CLIENT,
                claim.host,
                claim.port,
                names=claim.names,
                tokens=head.values(door.user_header),
                plain=tuple([(name, value) for name in door.plain_headers for value in head.values(name)]),
            )
        refused = self._enter(self._judge(facts), client)
        if refused is not None:
            self._remember_accept(head)
            self._reply(refused)

    def _forward(self, head: Head) -> None:
        """A request that is no CONNECT: the addon judges it, and each that follows on this connection."""
        guard = self._door.guard
        self._remember_accept(head)
        client = self._identify(head.values("proxy-authorization"))
        if not is_absolute(head.target) or client is None:
            hosts = head.values("host")
            facts = Facts(
                self._id, client or UNKNOWN_CLIENT, hosts[0] if hosts else "", 80, "http", method=head.method
            )
            reason = Reason.CLIENT_UNKNOWN if client is None else Reason.MISDIRECTED_REQUEST
            self._reply(guard.refuse(guard.judge(facts), reason))
            return
        key = self._door.take(client)
        if key is None:
            facts = Facts(self._id, client, "", 80, "http", method=head.method)
            self._reply(guard.refuse(guard.judge(facts), Reason.CAPACITY_EXCEEDED))
            return
        self._key = key
        self._hand_over(Passage(self._id, client, origin=self._origin), None, None)

    def _remember_accept(self, head: Head) -> None:
        self._accept = ", ".join(head.values("accept"))
