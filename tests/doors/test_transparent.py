"""The transparent door: names have to fit the address that was dialled, addresses stand for themselves."""

import socket
import time

import pytest

from tests.doors.kit import head, rest
from tests.fakes import client_hello

ALERT = b"\x15\x03\x03\x00\x02\x02\x31"


@pytest.fixture(autouse=True)
def _redirected(world):
    if not world.redirects:
        pytest.skip("needs root and a packet filter: apt-get install nftables")


def denied(world, link, *messages: bytes) -> tuple[bytes, dict[str, object]]:
    node = world.node_of("plain")
    mark = node.mark()
    with link:
        for message in messages:
            link.sendall(message)
        reply = rest(link)
    return reply, node.record(mark, "deny")


@pytest.mark.parametrize("dialled", ["127.0.0.2", "127.0.0.9"])
def test_a_name_on_an_unrelated_address(world, dialled):
    """attack-A18"""
    before = world.upstream.connections
    reply, record = denied(world, world.dial(dialled, world.ports["tls"]), client_hello("tunnel.test"))
    assert reply == ALERT
    assert (record["reason"], record["host"]) == ("misdirected_request", "tunnel.test")
    assert world.upstream.connections == before


def test_a_host_field_on_an_unrelated_address(world):
    """attack-A18"""
    request = f"GET /ok/ HTTP/1.1\r\nHost: plain.test:{world.ports['http']}\r\n\r\n".encode()
    reply, record = denied(world, world.dial("127.0.0.2", world.ports["http"]), request)
    assert reply.startswith(b"HTTP/1.1 421 ")
    assert record["reason"] == "misdirected_request"


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        pytest.param("GET /ok/a HTTP/1.1\r\nHost: plain.test{port}\r\nConnection: close\r\n\r\n", 200, None, id="allowed"),
        pytest.param("GET /ok/a HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n", 200, None, id="the-port-is-the-dialled-one"),
        pytest.param("GET /no HTTP/1.1\r\nHost: plain.test{port}\r\nConnection: close\r\n\r\n", 403, "path_not_allowed", id="path"),
        pytest.param("GET /ok/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 403, "host_not_allowed", id="host"),
        pytest.param("GET /ok/ HTTP/1.1\r\nHost: plain.test:81\r\n\r\n", 421, "misdirected_request", id="another-port"),
        pytest.param("GET http://plain.test/ok/ HTTP/1.1\r\nHost: plain.test\r\n\r\n", 400, "malformed_request", id="absolute-form"),
        pytest.param("CONNECT plain.test:80 HTTP/1.1\r\nHost: plain.test:80\r\n\r\n", 400, "malformed_request", id="connect"),
        pytest.param("GET /ok/ HTTP/1.1\r\n\r\n", 400, "malformed_request", id="no-host"),
        pytest.param("GET /ok/ HTTP/1.1\r\nHost: plain.test\r\nHost: evil.test\r\n\r\n", 400, "malformed_request", id="attack-A11"),
        pytest.param("GET /ok/ HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "malformed_request", id="no-name"),
        pytest.param("GET /ok/ HTTP/1.1\r\nHost : plain.test\r\n\r\n", 400, "malformed_request", id="strict"),
    ],
)  # fmt: skip
def test_plain_http(world, message, status, reason):
    node = world.node_of("plain")
    mark = node.mark()
    with world.dial("127.0.0.1", world.ports["http"]) as link:
        link.sendall(message.format(port=f":{world.ports['http']}").encode())
        assert int(rest(link).split()[1]) == status
    if reason is not None:
        assert node.record(mark, "deny")["reason"] == reason


def test_each_request_of_a_connection_is_judged(world):
    node = world.node_of("plain")
    mark = node.mark()
    with world.dial("127.0.0.1", world.ports["http"]) as link:
        link.sendall(b"GET /ok/1 HTTP/1.1\r\nHost: plain.test\r\n\r\n")
        first = head(link)
        assert first.startswith(b"HTTP/1.1 200 ")
        link.recv(65_536)
        link.sendall(b"GET /ok/2 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert head(link).startswith(b"HTTP/1.1 421 ")
    assert node.record(mark, "deny")["reason"] == "misdirected_request"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "opaque_tunnel", id="h2-prior-knowledge"),
        pytest.param(b"\x05\x01\x00", "opaque_tunnel", id="socks"),
        pytest.param(bytes(200), "opaque_tunnel", id="zeros"),
        pytest.param(b"PROXY TCP4 192.0.2.1 127.0.0.1 1 443\r\n", "opaque_tunnel", id="attack-Y06"),
        pytest.param(b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "malformed_request", id="no-hello"),
    ],
)
def test_what_is_neither_tls_nor_http(world, data, reason):
    reply, record = denied(world, world.dial("127.0.0.1", world.ports["tls"]), data)
    assert reply in {b"", ALERT}
    assert record["reason"] == reason


def test_a_request_line_without_an_end_is_not_gathered(world):
    reply, record = denied(world, world.dial("127.0.0.1", world.ports["tls"]), b"A" * 40_000)
    assert (reply, record["reason"]) == (b"", "opaque_tunnel")


@pytest.mark.parametrize(
    ("said", "reply", "reason"),
    [(b"", b"", "opaque_tunnel"), (client_hello("tunnel.test")[:100], ALERT, "malformed_request")],
    ids=["silence", "stall"],
)
def test_silence_and_stalls_end_on_record(world, said, reply, reason):
    began = time.monotonic()
    last, record = denied(world, world.dial("127.0.0.1", world.ports["tls"]), said)
    assert time.monotonic() - began < 3
    assert (last, record["reason"], record["host"]) == (reply, reason, "127.0.0.1")


def test_a_hello_in_two_pieces_wherever_it_is_cut(world):
    hello = client_hello("tunnel.test")
    for cut in [*range(1, 60), 200, len(hello) - 1]:
        with world.dial("127.0.0.1", world.ports["tls"]) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(hello[:cut])
            time.sleep(0.001)
            link.sendall(hello[cut:])
            assert link.recv(1) == b"\x16", cut


def test_who_dials_the_door_itself_is_refused(world):
    """attack-C06: there is nowhere that such a connection could have been going."""
    node = world.node_of("plain")
    mark = node.mark()
    with socket.create_connection(("127.0.0.1", world.ports["transparent"]), 5) as link:
        link.sendall(client_hello("tunnel.test"))
        assert rest(link) == b""
    assert node.record(mark, "deny")["reason"] == "address_not_allowed"
