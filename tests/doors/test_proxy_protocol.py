"""PROXY headers: believed of the listed balancer, required from it, refused from everybody else."""

import ipaddress
import socket
import time

import pytest

from edgeguard.proxy.preface import SIGNATURE
from tests.doors.kit import Tls, exactly, head, rest, socks_request, wait_until

BALANCER = "127.0.0.77"
V1 = b"PROXY TCP4 192.0.2.5 198.51.100.1 51234 3128\r\n"


def v2(source: str = "192.0.2.5", command: int = 0x21, more: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source)
    body = address.packed + address.packed + b"\xc8\x22\x0c\x38" + more
    return SIGNATURE + bytes((command, 0x11 if address.version == 4 else 0x21)) + len(body).to_bytes(2) + body


def request(world, host: str = "other.test") -> bytes:
    authority = f"{host}:{world.ports['tls']}"
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def status(world, data: bytes, source: str = BALANCER) -> int | None:
    with world.link("connect", source=source) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR) if not data.endswith(b"\r\n\r\n") else None
        reply = link.recv(65_536)
        return int(reply.split()[1]) if reply else None


@pytest.mark.parametrize(
    ("header", "host", "expected"),
    [
        pytest.param(V1, "other.test", 200, id="v1"),
        pytest.param(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", "other.test", 200, id="v1-ipv6"),
        pytest.param(
            b"PROXY TCP4 203.0.113.9 198.51.100.1 1 2\r\n", "other.test", 403, id="v1-another-source"
        ),
        pytest.param(b"PROXY UNKNOWN\r\n", "other.test", 403, id="v1-unknown-keeps-the-peer"),
        pytest.param(b"PROXY UNKNOWN ff::1 ff::2 1 2\r\n", "tunnel.test", 200, id="v1-unknown"),
        pytest.param(v2(), "other.test", 200, id="v2"),
        pytest.param(v2("2001:db8::1"), "other.test", 200, id="v2-ipv6"),
        pytest.param(v2(more=b"\x01\x00\x02h2" + bytes(500)), "other.test", 200, id="v2-with-more"),
        pytest.param(v2(command=0x20), "other.test", 403, id="v2-local-keeps-the-peer"),
        pytest.param(SIGNATURE + b"\x20\x00\x00\x00", "tunnel.test", 200, id="v2-local-empty"),
    ],
)
def test_the_address_in_the_header_is_who_asks(world, header, host, expected):
    assert status(world, header + request(world, host)) == expected


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"PROXY TCP4 192.0.2.5 198.51.100.1 51234\r\n", id="v1-short"),
        pytest.param(b"PROXY TCP4 192.0.2.5 2001:db8::1 1 2\r\n", id="v1-families"),
        pytest.param(b"PROXY TCP4 192.0.2.05 198.51.100.1 1 2\r\n", id="v1-leading-zero"),
        pytest.param(b"PROXY TCP4 192.0.2.5 198.51.100.1 1 65536\r\n", id="v1-port"),
        pytest.param(b"PROXY  TCP4 192.0.2.5 198.51.100.1 1 2\r\n", id="v1-blanks"),
        pytest.param(b"PROXY TCP4 192.0.2.5 198.51.100.1 1 2\n", id="v1-lf"),
        pytest.param(b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n", id="v1-long"),
        pytest.param(b"PROXY TCP4 fe80::1%1 fe80::2%1 1 2\r\n", id="v1-zone"),
        pytest.param(SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12), id="v2-version"),
        pytest.param(SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12), id="v2-command"),
        pytest.param(SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12), id="v2-udp"),
        pytest.param(SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), id="v2-unix"),
        pytest.param(SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11), id="v2-short"),
        pytest.param(SIGNATURE + b"\x21\x11\xff\xff" + bytes(3000), id="v2-long"),
        pytest.param(SIGNATURE[:-1] + b"X\x21\x11\x00\x0c" + bytes(12), id="v2-signature"),
        pytest.param(V1 + V1, id="twice"),
    ],
)
def test_headers_that_are_refused(world, header):
    node = world.node_of("plain")
    before = node.status()["connections"]["failed"].get("preface", 0)
    with world.link("connect", source=BALANCER) as link:
        link.sendall(header + request(world))
        reply = rest(link)
    if header == V1 + V1:
        assert reply.startswith(b"HTTP/1.1 400 ")
        return
    assert reply == b""
    wait_until(lambda: node.status()["connections"]["failed"]["preface"] == before + 1, "the count")


@pytest.mark.parametrize("header", [V1, v2(), b"PROXY UNKNOWN\r\n"])
def test_nobody_else_is_believed(world, header):
    """attack-Y06"""
    node = world.node_of("plain")
    mark = node.mark()
    with world.link("connect") as link:
        link.sendall(header + request(world))
        assert rest(link).startswith(b"HTTP/1.1 400 ")
    assert node.record(mark, "deny")["reason"] == "malformed_request"


def test_the_header_may_be_cut_anywhere(world):
    for header in (V1, v2()):
        data = header + request(world)
        for cut in range(1, len(header) + 3):
            with world.link("connect", source=BALANCER) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.sendall(data[:cut])
                time.sleep(0.001)
                link.sendall(data[cut:])
                assert head(link).startswith(b"HTTP/1.1 200 "), (header, cut)


def test_the_header_and_the_hello_may_share_a_segment(world):
    for header in (V1, v2(), V1[:20]):
        with world.link("tls", source=BALANCER) as link:
            joined = _Joined(link, header)
            if header == V1[:20]:
                with pytest.raises(OSError):
                    Tls(joined, world.context(), "localhost")
                continue
            wire = Tls(joined, world.context(), "localhost")
            wire.sendall(request(world, "tunnel.test"))
            assert head(wire).startswith(b"HTTP/1.1 200 ")


class _Joined:
    """Puts some bytes before the first that are sent, in one segment."""

    def __init__(self, link: socket.socket, first: bytes) -> None:
        self._link, self._first = link, first

    def sendall(self, data: bytes) -> None:
        self._link.sendall(self._first + data)
        self._first = b""

    def recv(self, size: int) -> bytes:
        return self._link.recv(size)

    def close(self) -> None:
        self._link.close()


def test_socks_behind_a_balancer(world):
    with world.link("socks", source=BALANCER) as link:
        link.sendall(v2() + b"\x05\x01\x00" + socks_request("other.test", world.ports["tls"]))
        assert exactly(link, 4) == b"\x05\x00\x05\x00"


@pytest.mark.parametrize("sent", [b"", V1[:-1], V1[:-2], v2()[:-1]])
def test_a_slow_header_has_a_deadline(world, sent):
    began = time.monotonic()
    with world.link("connect", source=BALANCER) as link:
        if sent:
            link.sendall(sent)
        assert rest(link) == b""
    assert 0.5 < time.monotonic() - began < 3


def test_waiting_for_a_header_costs_nothing(world):
    """A header that is begun and not finished must not keep the event loop turning."""
    node = world.node_of("plain")
    links = [world.link("connect", source=BALANCER) for _ in range(20)]
    for link in links:
        link.sendall(V1[:-2])
    before = _cpu(node)
    time.sleep(0.5)
    spent = _cpu(node) - before
    for link in links:
        link.close()
    assert spent < 0.3


def _cpu(node) -> float:
    import os
    from pathlib import Path

    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
