"""The reverse door: visitors of one's own sites, who know of no proxy.

The server name of a ClientHello says which site is meant, or the Host of a plain request; it has to be one
of the configured sites, and nothing else is ever served here: another name is refused with the TLS
alert for that (RFC 6066, 3) or with 421 (RFC 9110, 15.5.20). The certificate is the site's own, so whatever
comes is looked into: the mitmproxy lane takes over at once, and each request is judged before anything is
resolved or dialled. A site that the policy closes answers therefore in HTTP.
"""

from typing import Final

from edgeguard.policy.names import HostError, canonical_host, split_authority
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT
from edgeguard.proxy.clienthello import HelloError, NotTLSError, read_hello
from edgeguard.proxy.heads import HeadError, head_end, parse_head
from edgeguard.proxy.opening import Opening
from edgeguard.proxy.origin import Origin
from edgeguard.proxy.passages import Passage
from edgeguard.proxy.transparent import named_hosts, speaks_http
from edgeguard.verdict import Facts

UNRECOGNIZED_NAME: Final = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal alert, unrecognized_name (112), as a whole record."""


class Reverse(Opening):
    """A visitor's connection, until it is known which site it is for."""

    __slots__ = ()

    def _read_claim(self, data: bytes) -> None:
        try:
            hello = read_hello(data, self._door.bounds.hello_bytes)
        except NotTLSError:
            self._read_clear(data)
        except HelloError:
            self._turn_away(Reason.MALFORMED_REQUEST, "")
        else:
            if hello is not None:
                self._serve(hello.sni or "", tls=True)

    def _read_clear(self, data: bytes) -> None:
        """Bytes that are not TLS: a plain request, or nothing that is served here."""
        bounds = self._door.bounds
        http = speaks_http(data, bounds.head_bytes)
        if http is None:
            return
        if not http:
            self._turn_away(Reason.OPAQUE_TUNNEL, "")
            return
        try:
            end = head_end(data, self._scanned, bounds.head_bytes)
            if end < 0:
                self._scanned = len(data)
                return
            head = parse_head(data[:end])
            self._version = head.version
            self._accept = ", ".join(head.values("accept"))
            hosts = named_hosts(head)
            host = split_authority(hosts[0], 80)[0] if hosts else ""
        except HostError:
            self._turn_away(Reason.MALFORMED_REQUEST, "")
        except HeadError as error:
            self._turn_away(error.reason, "", 431 if error.reason is Reason.REQUEST_TOO_LARGE else None)
        else:
            self._serve(host, tls=False)

    def _serve(self, name: str, *, tls: bool) -> None:
        """Hands a connection for a configured site over; whether its port is the right one is judged with each request."""
        door = self._door
        try:
            site = door.sites.get((canonical_host(name), tls))
        except HostError:
            site = None
        if site is None:
            self._turn_away(Reason.MISDIRECTED_REQUEST, name)
            return
        client = self._identify()
        if client is None:
            self._turn_away(Reason.CLIENT_UNKNOWN, name)
            return
        key = door.take(client)
        if key is None:
            self._turn_away(Reason.CAPACITY_EXCEEDED, name)
            return
        self._key = key
        passage = Passage(
            self._id,
            client,
            site.name,
            site.port,
            sni=site.name if tls else None,
            origin=self._origin or Origin(self._peer),
            site=site,
        )
        self._hand_over(passage, None, None)

    # What a visitor is told

    def _turn_away(self, reason: Reason, name: str, status: int | None = None) -> None:
        guard = self._door.guard
        tls = self._buffer[:1] == b"\x16"
        client = self._identify() or UNKNOWN_CLIENT
        facts = Facts(self._id, client, name, 443 if tls else 80, "tls" if tls else "http")
        verdict = guard.refuse(guard.judge(facts), reason)
        if tls:
            self._wind_up(UNRECOGNIZED_NAME)
        elif reason is Reason.OPAQUE_TUNNEL:
            self._wind_up(b"")
        else:
            self._reply(verdict, status)

    def _refuse_unread(self, reason: Reason, status: int | None = None) -> None:
        self._turn_away(reason, "", status)
