"""A DNS server that writes down every question; most names say their own answer.

`<hex>.<hex>.answers.test` has the addresses of its labels; `flip-N...` is at 127.0.0.1 once and at 10.9.9.9 ever after;
`<label>.alias-<other>...` is an alias of `<other>.wild.test`; every other name below `.test`, or the
zone that is given, is at 127.0.0.1. Nothing else exists. Answers live for no time, so that each use of a name is a question.
"""

import contextlib
import ipaddress
import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

HEX = frozenset("0123456789abcdef")


class NameServer:
    """Answers over UDP on a port of its own, in a thread."""

    def __init__(self, zone: str = "test") -> None:
        self._zone = zone
        self.asked: list[str] = []
        self._flipped: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self._socket.recvfrom(4096)
                if not data:
                    return
                self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        (question,) = query.question
        owner = question.name.to_text()
        name = owner.removesuffix(".").lower()
        if question.rdtype == dns.rdatatype.A:
            self.asked.append(name)  # each lookup asks for both families
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        found = self._addresses(name, question.rdtype)
        if found is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply
        alias = next((label for label in name.split(".") if label.startswith("alias-")), None)
        if alias is not None:
            target = f"{alias.removeprefix('alias-')}.wild.test."
            reply.answer.append(dns.rrset.from_text(owner, 0, "IN", "CNAME", target))
            owner = target
        version = 4 if question.rdtype == dns.rdatatype.A else 6
        told = [address for address in found if ipaddress.ip_address(address).version == version]
        if told:
            reply.answer.append(dns.rrset.from_text(owner, 0, "IN", question.rdtype, *told))
        return reply

    def _addresses(self, name: str, kind: dns.rdatatype.RdataType) -> list[str] | None:
        labels = name.split(".")
        if labels[-1] != self._zone:
            return None
        if name.startswith("flip-"):
            if kind == dns.rdatatype.A and name not in self._flipped:
                self._flipped.add(name)
                return ["127.0.0.1"]
            return ["10.9.9.9"]
        told = [label for label in labels if len(label) in {8, 32} and set(label) <= HEX]
        return [str(ipaddress.ip_address(bytes.fromhex(label))) for label in told] or ["127.0.0.1"]
