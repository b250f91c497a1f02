"""The SOCKS5 door: what is refused before it is judged, with which code, and within which time."""

import socket
import time

import pytest

from tests.doors.kit import Tls, exactly, rest, socks_request

OPEN = b"\x05\x01\x00"


def said(world, *messages: bytes, whole: bool = False) -> bytes:
    """What the door answers to these bytes, up to its end; `whole` leaves the sending side open."""
    with world.link("socks") as link:
        for message in messages:
            link.sendall(message)
        if not whole:
            link.shutdown(socket.SHUT_WR)
        return rest(link)


def refused(world, message: bytes) -> tuple[bytes, str]:
    """The reply to a request, and the reason on record."""
    node = world.node_of("plain")
    mark = node.mark()
    with world.link("socks") as link:
        link.sendall(OPEN)
        assert exactly(link, 2) == b"\x05\x00"
        link.sendall(message)
        reply = rest(link)
    return reply, node.record(mark, "deny")["reason"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"evil.test\x00.wild.test", id="attack-H17"),
        pytest.param(b"a.wild.test\x00", id="attack-H17-at-the-end"),
        pytest.param(b"\x00a.wild.test", id="attack-H17-at-the-start"),
        pytest.param(b"evil.test\r\n.wild.test", id="attack-H18"),
        pytest.param(b"a.wild.test\n", id="attack-H18-lf"),
        pytest.param(b"a.wild.test\r", id="attack-H18-cr"),
        pytest.param("ä.wild.test".encode(), id="utf-8"),
        pytest.param(b"\xffa.wild.test", id="latin-1"),
        pytest.param(b"", id="empty"),
        pytest.param(b"a" * 200 + b"." + b"b" * 54, id="255"),
        pytest.param(b"a.wild.test:443", id="with-a-port"),
        pytest.param(b"user@a.wild.test", id="attack-H23"),
        pytest.param(b"a.wild.test/x", id="with-a-path"),
        pytest.param(b"a%2ewild.test", id="attack-H12-escape"),
        pytest.param(b"a..wild.test", id="attack-H12-dots"),
        pytest.param(b" a.wild.test", id="blank"),
    ],
)
def test_names_that_are_no_names(world, name):
    before = world.upstream.connections
    reply, reason = refused(world, socks_request(name, world.ports["tls"], kind=3))
    assert reply == b"\x05\x01\x00\x01" + bytes(6)
    assert reason == "malformed_request"
    assert world.upstream.connections == before


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        pytest.param(socks_request("tunnel.test", 443, command=2), 7, "protocol_not_allowed", id="bind"),
        pytest.param(socks_request("0.0.0.0", 0, command=3), 7, "protocol_not_allowed", id="awf-A10-udp"),
        pytest.param(socks_request("tunnel.test", 443, command=3), 7, "protocol_not_allowed", id="attack-X01-udp"),
        pytest.param(socks_request("tunnel.test", 443, command=9), 7, "malformed_request", id="unknown-command"),
        pytest.param(b"\x05\x01\x00\x02\x00\x00\x00", 8, "malformed_request", id="unknown-address-type"),
        pytest.param(b"\x05\x01\x01" + socks_request("tunnel.test", 443)[3:], 1, "malformed_request", id="reserved"),
        pytest.param(b"\x04" + socks_request("tunnel.test", 443)[1:], 1, "malformed_request", id="version"),
        pytest.param(socks_request("tunnel.test", 0), 1, "malformed_request", id="port-0"),
        pytest.param(socks_request("169.254.169.254", 80), 2, "host_not_allowed", id="awf-A7"),
        pytest.param(socks_request("10.0.0.1", 443), 2, "host_not_allowed", id="awf-A8"),
        pytest.param(socks_request("::ffff:10.0.0.1", 443), 2, "host_not_allowed", id="mapped"),
        pytest.param(socks_request("evil.test", 443), 2, "host_not_allowed", id="awf-A1"),
    ],
)  # fmt: skip
def test_refusals_have_a_code_and_a_record(world, message, code, reason):
    assert refused(world, message) == (bytes((5, code, 0, 1)) + bytes(6), reason)


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        pytest.param(b"\x04\x01\x01\xbb\x7f\x00\x00\x01\x00", b"\x00\x5b" + bytes(6), id="socks4"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: tunnel.test\r\n\r\n", b"\x05\xff", id="http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", b"\x05\xff", id="tls"),
        pytest.param(b"\x05\x01\x01", b"\x05\xff", id="gssapi-only"),
        pytest.param(b"\x05\x00", b"\x05\xff", id="no-method"),
    ],
)
def test_greetings_that_are_refused(world, first, answer):
    node = world.node_of("plain")
    mark = node.mark()
    assert said(world, first, whole=True) == answer
    assert node.record(mark, "deny")["reason"] in {
        "malformed_request",
        "protocol_not_allowed",
        "client_unknown",
    }


def login(user: bytes, password: bytes) -> bytes:
    return b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password


def test_user_and_password_are_those_of_basic(world):
    with world.link("socks") as link:
        link.sendall(b"\x05\x02\x00\x02")
        assert exactly(link, 2) == b"\x05\x02"
        link.sendall(login(b"runner", b"secret"))
        assert exactly(link, 2) == b"\x01\x00"
        link.sendall(socks_request("runner.test", world.ports["tls"]))
        assert exactly(link, 2) == b"\x05\x00"


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"runner", b"wrong"),
        (b"somebody", b"secret"),
        (b"", b"secret"),
        (b"runner", b""),
        (b"run:ner", b"secret"),
        (b"runner\xff", b"secret"),
    ],
)
def test_wrong_credentials_never_fall_through(world, user, password):
    """attack-Y05: `static` would let this client in, were nothing presented."""
    node = world.node_of("plain")
    mark = node.mark()
    with world.link("socks") as link:
        link.sendall(
            b"\x05\x02\x00\x02" + login(user, password) + socks_request("tunnel.test", world.ports["tls"])
        )
        assert rest(link) == b"\x05\x02\x01\x01"
    assert node.record(mark, "deny")["reason"] in {"client_unknown", "malformed_request"}


def test_the_messages_may_come_in_any_pieces(world):
    hello = OPEN + socks_request("tunnel.test", world.ports["tls"])
    for cut in range(1, len(hello)):
        with world.link("socks") as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(hello[:cut])
            time.sleep(0.002)
            link.sendall(hello[cut:])
            assert exactly(link, 12) == b"\x05\x00\x05\x00\x00\x01" + bytes(6), cut
    with world.link("socks") as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hello:
            link.sendall(bytes((byte,)))
        assert exactly(link, 12) == b"\x05\x00\x05\x00\x00\x01" + bytes(6)
        secure = Tls(link, world.trust("socks"), "tunnel.test")
        secure.sendall(b"GET /x HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n")
        assert rest(secure).startswith(b"HTTP/1.1 200 ")


def test_a_slow_client_has_the_time_of_one_head(world):
    began = time.monotonic()
    with world.link("socks") as link:
        link.sendall(b"\x05")
        time.sleep(0.3)
        link.sendall(b"\x01\x00")
        assert exactly(link, 2) == b"\x05\x00"
        time.sleep(0.4)
        link.sendall(b"\x05\x01")
        assert rest(link) == b"\x05\x01\x00\x01" + bytes(6)
    assert time.monotonic() - began < 2.5
