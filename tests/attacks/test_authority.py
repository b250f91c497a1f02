"""One authority: CONNECT, SNI, Host and `:authority` agree, or nothing passes. Rows A, and hellos that are read in two ways."""

import contextlib
import struct

import h2.config
import h2.connection
import h2.events
import pytest

from edgeguard.proxy.clienthello import ACCESS_DENIED
from tests.attacks.world import answer, rest
from tests.e2e.kit import wait_until
from tests.fakes import client_hello
from tests.proxy.test_clienthello import extension, message, records, server_name

LANES = {"bytes.test": "tunnel", "inner.test": "inspected"}
"""Names of one length, so that a hello for the one becomes a hello for the other."""
PSK = extension(41, b"\x00\x0a\x00\x04evil\x00\x00\x00\x00\x00\x21\x20" + bytes(32))
"""A session to resume (RFC 8446, 4.2.11): its ticket may belong to another name, but the hello names its own."""


def hello(*extensions, **changes):
    return records(message(*extensions, **changes))


MISDIRECTED = {
    "attack-A01": client_hello("evil.test"),
    "attack-D11": client_hello("tunnel.test"),  # allowed as well, and at the same address
    "attack-A01-below": client_hello("evil.bytes.test"),
    "attack-A01-above": client_hello("test"),
    "attack-A01-prefix": client_hello("xbytes.test"),
    "attack-A01-suffix": client_hello("bytes.test.evil.test"),
    "attack-A01-resumed": hello(server_name(b"evil.test"), PSK),
    "attack-A01-early-data": hello(server_name(b"evil.test"), extension(42, b""), PSK) + b"\x17\x03\x03\x00\x05hello",
    "attack-A01-address": hello(server_name(b"127.0.0.1")),
    "attack-A01-fake-a-label": hello(server_name(b"xn--evil-.test")),
    "attack-A03": client_hello(),
    "attack-A03-no-extensions": records(message()[:-2].replace(b"\x00\x00\x2b", b"\x00\x00\x29", 1)),
    "attack-A03-grease-only": hello(extension(0x1A1A, b""), extension(0xFAFA, b"\x00")),
    "attack-A16": hello(server_name(b"cloudflare-ech.test"), extension(0xFE0D, bytes(60))),
    "attack-A16-only-inner": hello(extension(0xFE0D, bytes(60))),
    "attack-A16-esni": hello(extension(0xFFCE, bytes(60))),
}  # fmt: skip
UNREADABLE = {
    "attack-A02-dot": hello(server_name(b"bytes.test.")),
    "attack-A04-two-names": hello(server_name(b"bytes.test", b"evil.test")),
    "attack-A04-same-twice": hello(server_name(b"bytes.test", b"bytes.test")),
    "attack-A04-two-extensions": hello(server_name(b"bytes.test"), server_name(b"evil.test")),
    "attack-A04-two-equal-extensions": hello(server_name(b"bytes.test"), server_name(b"bytes.test")),
    "attack-A04-name-type": hello(server_name(b"bytes.test", kind=1)),
    "attack-A04-empty-name": hello(server_name(b"")),
    "attack-A04-empty-list": hello(extension(0, b"\x00\x00")),
    "attack-A04-empty-extension": hello(extension(0, b"")),
    "attack-A04-nul": hello(server_name(b"bytes.test\x00.evil.test")),
    "attack-A04-not-ascii": hello(server_name(b"bytes.test\xc3\xa9")),
    "attack-A04-list-too-long": hello(extension(0, struct.pack("!HBH", 99, 0, 6) + b"bytes.test")),
    "attack-A04-inside-another": hello(extension(0x1A1A, server_name(b"bytes.test")), b"\x00"),
    "attack-A04-duplicate": hello(server_name(b"bytes.test"), extension(43, b"\x02\x03\x04"), extension(43, b"\x02\x03\x03")),
    "attack-A04-bytes-behind": hello(server_name(b"bytes.test"), tail=b"\x00\x00"),
    "attack-A04-second-hello-in-record": records(message(server_name(b"bytes.test")) + message(server_name(b"evil.test"))),
    "attack-A04-server-hello": records(b"\x02" + message(server_name(b"bytes.test"))[1:]),
    "attack-A04-long-session": hello(server_name(b"bytes.test"), session=bytes(33)),
    "attack-A05-too-many-records": records(message(server_name(b"bytes.test")), 1),
    "attack-A05-empty-record": b"\x16\x03\x01\x00\x00" + hello(server_name(b"bytes.test")),
    "attack-A05-alert-between": b"\x16\x03\x01\x00\x01\x01\x15\x03\x03\x00\x02\x01\x00",
    "attack-A06": b"\x16\x03\x01\x40\x01" + bytes(200),
    "attack-A06-long-hello": b"\x16\x03\x01\x00\x04\x01\x7f\xff\xff",
    "attack-A06-padded": hello(server_name(b"bytes.test"), extension(21, bytes(17_000))),
    "attack-A04-dtls": b"\x16\xfe\xfd" + bytes(40),
    "attack-A06-version": b"\x16\x02\x00\x00\x04\x01\x00\x00\x00",
}  # fmt: skip
OPAQUE = {
    "attack-A04-sslv2": b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40),
    "attack-C04": b"SSH-2.0-OpenSSH_9.9\r\n",
    "attack-C04-http": b"GET / HTTP/1.1\r\nHost: bytes.test\r\n\r\n",
    "attack-C04-http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "attack-C04-smtp": b"EHLO evil.test\r\n",
    "attack-C21": b"\x00\x01\x02\x03",
    "attack-C21-socks": b"\x05\x01\x00",
    "attack-C21-proxy-protocol": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + client_hello("bytes.test"),
    "attack-C21-proxy-protocol-2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + client_hello("bytes.test"),
    "attack-C05": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
    "attack-C05-same": b"CONNECT bytes.test:443 HTTP/1.1\r\nHost: bytes.test:443\r\n\r\n",
    "attack-C04-empty-record": b"\x17\x03\x03\x00\x00",
}  # fmt: skip
AMBIGUOUS = {MISDIRECTED["attack-A01-fake-a-label"], UNREADABLE["attack-A04-nul"]}
REASONS = {
    "misdirected_request": MISDIRECTED,
    "malformed_request": UNREADABLE,
    "opaque_tunnel": OPAQUE,
}


@pytest.fixture(scope="module", autouse=True)
def all_told(world):
    """What other modules did is in the log by now; each test below waits for its own record."""
    for node in world.nodes.values():
        node.mark(world)


@pytest.mark.parametrize("host", LANES, ids=LANES.values())
@pytest.mark.parametrize(
    ("first", "reason"),
    [pytest.param(data, reason, id=row) for reason, rows in REASONS.items() for row, data in rows.items()],
)
def test_the_first_bytes_of_a_tunnel(world, node, host, first, reason):
    """Not one byte reaches the upstream; the refusal is on record, and the client gets an alert or the end."""
    mark = node.size()
    before = len(world.raw.received)
    with world.tunnel(node, f"{host}:{{raw}}") as link:
        with contextlib.suppress(OSError):
            link.sendall(first.replace(b"bytes.test", host.encode()))
        assert rest(link) in {b"", ACCESS_DENIED}
    refusal = node.refusal(mark)
    assert refusal["host"] == host
    # A name that is none at all is malformed to one reader, and another than the destination's to the other.
    assert refusal["reason"] == reason or first in AMBIGUOUS
    assert len(world.raw.received) == before
    world.settle()


@pytest.mark.parametrize("host", LANES, ids=LANES.values())
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(client_hello("bytes.test"), id="attack-A02-same"),
        pytest.param(client_hello("BYTES.Test"), id="attack-A02"),
        pytest.param(records(message(server_name(b"bytes.test")), 7), id="attack-A05"),
        pytest.param(hello(server_name(b"bytes.test"), PSK), id="attack-A01-resumed-same"),
        pytest.param(hello(server_name(b"bytes.test"), extension(0xFE0D, bytes(60))), id="attack-A16-grease"),
        pytest.param(hello(extension(0x1A1A, b""), server_name(b"bytes.test"), extension(21, bytes(9000))), id="attack-A06-large"),
    ],
)  # fmt: skip
def test_a_hello_that_names_the_destination(world, node, host, first):
    """Whole, or byte by byte; in the tunnel lane it arrives as it was sent."""
    first = first.replace(b"bytes.test", host.encode()).replace(b"BYTES.Test", host.title().encode())
    for pieces in (first,), [first[i : i + 1] for i in range(200)] + [first[200:]]:
        mark = len(world.raw.received)
        with world.tunnel(node, f"{host}:{{raw}}") as link:
            for piece in pieces:
                link.sendall(piece)
            echoed = link.recv(1)
            if LANES[host] == "tunnel":
                assert echoed == b"\x16"
                wait_until(lambda: bytes(world.raw.received[mark:]) == first, "the hello upstream")  # noqa: B023
            else:
                assert echoed in {
                    b"\x16",
                    b"\x15",
                    b"",
                }  # the proxy's own handshake, or what it says of a hello without keys
    world.settle()


REQUESTS = {
    "attack-A07": ("GET /ok/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421),
    "attack-D11-attack-A07": ("GET /ok/ HTTP/1.1\r\nHost: tunnel.test\r\n\r\n", 421),
    "attack-A07-below": ("GET /ok/ HTTP/1.1\r\nHost: a.site.test\r\n\r\n", 421),
    "attack-A07-address": ("GET /ok/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 421),
    "attack-A08": ("GET /ok/ HTTP/1.1\r\nHost: site.test:1\r\n\r\n", 421),
    "attack-A08-443": ("GET /ok/ HTTP/1.1\r\nHost: site.test:443\r\n\r\n", 421),
    "attack-A08-empty": ("GET /ok/ HTTP/1.1\r\nHost: site.test:\r\n\r\n", 400),
    "attack-A08-word": ("GET /ok/ HTTP/1.1\r\nHost: site.test:https\r\n\r\n", 400),
    "attack-A07-userinfo": ("GET /ok/ HTTP/1.1\r\nHost: user@site.test:{tls}\r\n\r\n", 400),
    "attack-A07-list": ("GET /ok/ HTTP/1.1\r\nHost: site.test:{tls}, evil.test\r\n\r\n", 400),
    "attack-A07-space": ("GET /ok/ HTTP/1.1\r\nHost: site.test evil.test\r\n\r\n", 400),
    "attack-A07-path": ("GET /ok/ HTTP/1.1\r\nHost: site.test/evil\r\n\r\n", 400),
    "attack-A07-url": ("GET /ok/ HTTP/1.1\r\nHost: https://site.test\r\n\r\n", 400),
    "attack-A07-two-dots": ("GET /ok/ HTTP/1.1\r\nHost: site.test..\r\n\r\n", 400),
    "attack-A07-latin-1": ("GET /ok/ HTTP/1.1\r\nHost: site.test\xad\r\n\r\n", 400),
    "attack-A07-nul": ("GET /ok/ HTTP/1.1\r\nHost: site.test\x00\r\n\r\n", 400),
    "attack-A07-fold": ("GET /ok/ HTTP/1.1\r\nHost: site.test\r\n .evil.test\r\n\r\n", 400),
    "attack-A07-empty": ("GET /ok/ HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "attack-A10": ("GET https://evil.test/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A10-same": ("GET https://site.test:{tls}/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A10-http": ("GET http://site.test:{tls}/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A10-other-scheme": ("GET ftp://evil.test/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A10-network-path": ("GET //evil.test/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 403),
    "attack-A11": ("GET /ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\nHost: evil.test\r\n\r\n", 400),
    "attack-A11-same": ("GET /ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A11-space": ("GET /ok/ HTTP/1.1\r\nHost : evil.test\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-A12": ("GET /ok/ HTTP/1.1\r\nX: y\r\n\r\n", 400),
    "attack-A12-alias": ("GET /ok/ HTTP/1.1\r\nX-Forwarded-Host: site.test\r\n\r\n", 400),
    "attack-C05": ("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", 400),
    "attack-C05-same": ("CONNECT site.test:{tls} HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-C05-lower-case": ("connect evil.test:443 HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
    "attack-C05-path": ("CONNECT /ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [pytest.param(*v, id=k) for k, v in REQUESTS.items()])
def test_a_request_inside(world, node, data, status):
    """Neither a connection nor a question comes of it; the same in a tunnel of plain HTTP."""
    reason = {421: "misdirected_request", 400: "malformed_request", 403: "path_not_allowed"}[status]
    before = None
    with world.secured(node, "site.test:{tls}") as secure:
        before = world.counts(node)
        secure.sendall(world.fill(data).encode("latin-1"))
        reply = answer(secure)
    assert (reply.status, reply.reason) == (status, reason)
    assert world.counts(node) == before
    with world.tunnel(node, "plain.test:{http}") as link:
        before = world.counts(node)
        link.sendall(
            world.fill(data.replace("site.test", "plain.test").replace("{tls}", "{http}")).encode("latin-1")
        )
        reply = answer(link)
    assert (reply.status, reply.reason) == (status, reason)
    assert world.counts(node) == before


ABSOLUTE = {
    "attack-A09": ("GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421),
    "attack-A09-allowed": ("GET http://evil.test/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 421),
    "attack-A08-absolute": ("GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:1\r\n\r\n", 421),
    "attack-A11-absolute": ("GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\nHost: evil.test\r\n\r\n", 400),
    "attack-A12-absolute": ("GET http://plain.test:{http}/ok/ HTTP/1.1\r\nX: y\r\n\r\n", 400),
    "attack-A12-connect": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\n\r\n", 400),
    "attack-A07-connect": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: evil.test:{tls}\r\n\r\n", 421),
    "attack-A08-connect": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: tunnel.test:444\r\n\r\n", 421),
    "attack-A11-connect": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: tunnel.test:{tls}\r\nHost: evil.test\r\n\r\n", 400),
    "attack-A07-connect-userinfo": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: a@tunnel.test:{tls}\r\n\r\n", 400),
    "attack-A07-connect-list": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: tunnel.test:{tls},evil.test\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [pytest.param(*v, id=k) for k, v in ABSOLUTE.items()])
def test_a_target_and_its_host(world, node, data, status):
    before = world.counts(node)
    reply = world.ask(node, data)
    assert (reply.status, reply.reason) == (
        status,
        "misdirected_request" if status == 421 else "malformed_request",
    )
    assert world.counts(node) == before


AUTHORITIES = {
    "attack-A13": [(":authority", "evil.test")],
    "attack-A14": [(":authority", "tunnel.test:{tls}")],
    "attack-A13-port": [(":authority", "site.test:1")],
    "attack-A13-host-differs": [(":authority", "site.test:{tls}"), ("host", "evil.test")],
    "attack-A13-host-instead": [("host", "evil.test")],
}


@pytest.mark.parametrize("fields", [pytest.param(fields, id=row) for row, fields in AUTHORITIES.items()])
def test_an_authority_over_http2(world, node, fields):
    """A stream of its own for each; one that is refused leaves the next alone."""
    with world.secured(node, "site.test:{tls}", alpn="h2") as secure:
        assert secure.selected_alpn_protocol() == "h2"
        client = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        client.initiate_connection()
        before = world.counts(node)
        first = [(":method", "GET"), (":scheme", "https"), (":path", "/ok/x"), *fields]
        client.send_headers(1, [(k, world.fill(v)) for k, v in first], end_stream=True)
        secure.sendall(client.data_to_send())
        refused = stream_answer(secure, client, 1)
        assert refused in ({":status": "421", "edgeguard-reason": "misdirected_request"}, None)
        assert world.counts(node) == before
        if refused is not None:
            good = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/ok/x"),
                (":authority", world.fill("site.test:{tls}")),
            ]
            client.send_headers(3, good, end_stream=True)
            secure.sendall(client.data_to_send())
            assert stream_answer(secure, client, 3)[":status"] == "200"
    world.settle()


def stream_answer(secure, client, stream):
    """Status and reason of one stream; None if it was reset."""
    while data := secure.recv(65536):
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                told = {k.decode(): v.decode() for k, v in event.headers}
                return {k: told[k] for k in (":status", "edgeguard-reason") if k in told}
            if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                return None
        secure.sendall(client.data_to_send())
    return None
