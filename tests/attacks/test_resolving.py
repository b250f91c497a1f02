"""Names and what they resolve to: rows D. Nothing is asked or dialled for what is refused."""

import socket

import pytest

from tests.attacks.test_addresses import KIND, hexed


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("7f000001.answers.test", KIND, id="attack-D01-loopback"),
        pytest.param("a9fea9fe.answers.test", KIND, id="attack-D01-metadata"),
        pytest.param("0a010203.private.test", KIND, id="attack-D01-denied-network"),
        pytest.param("0a010203.every.test", KIND, id="attack-D01-denied-though-open"),
        pytest.param("a9fea9fe.private.test", KIND, id="attack-D01-metadata-though-open"),
        pytest.param(f"{hexed('127.0.0.1')}.{hexed('10.0.0.1')}.answers.test", KIND, id="attack-D03-none-left"),
    ],
)  # fmt: skip
def test_an_answer_that_may_not_be_dialled(world, node, host, expected):
    asked, arrived = world.counts(node)
    reply = world.connect(node, f"{host}:{{tls}}")
    assert (reply.status, reply.reason) == expected
    assert world.counts(node) == (asked + 1, arrived)
    assert node.record(reply.decision)["addresses"], "the evidence names what was resolved"


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(f"{hexed('192.168.0.1')}.{hexed('127.0.0.1')}.private.test", id="attack-D03"),
        pytest.param(f"{hexed('169.254.169.254')}.{hexed('127.0.0.1')}.private.test", id="attack-D03-metadata"),
        pytest.param(f"{hexed('::ffff:127.0.0.1')}.{hexed('127.0.0.1')}.private.test", id="attack-D03-mapped"),
    ],
)  # fmt: skip
def test_what_may_not_be_dialled_is_dropped(world, node, host):
    """The rest is dialled."""
    before = world.settle()
    assert world.connect(node, f"{host}:{{tls}}").status == 200
    assert world.settle() == before + (node.name == "edge")  # the addon dials with the first request


@pytest.mark.parametrize(
    "tree", [pytest.param("wild", id="attack-D02"), pytest.param("flipping", id="attack-D02-inspected")]
)
def test_the_address_that_was_checked_is_the_one_that_is_dialled(world, node, tree):
    """A second question would bring another answer, which is closed; there is none."""
    host = f"flip-{node.name}.{tree}.test"
    asked = world.counts(node)[0]
    reply = world.inside(node, f"{host}:{{tls}}", f"GET /ok/1 HTTP/1.1\r\nHost: {host}:{{tls}}\r\n\r\n")
    assert reply.status == 200
    world.settle()
    assert world.counts(node)[0] == asked + 1
    assert (world.connect(node, f"{host}:{{tls}}").status, world.counts(node)[0]) == (403, asked + 2)


DENIED = {
    "host": ("CONNECT evil.test:443", "", 403, "host_not_allowed"),
    "port": ("CONNECT tunnel.test:22", "", 403, "port_not_allowed"),
    "rule": ("CONNECT denied.wild.test:{tls}", "", 403, "denied_by_rule"),
    "plain-host": ("GET http://evil.test/", "", 403, "host_not_allowed"),
    "plain-port": ("GET http://plain.test:81/", "", 403, "port_not_allowed"),
    "plain-path": ("GET http://plain.test:{http}/secret", "", 403, "path_not_allowed"),
    "plain-method": ("TRACE http://plain.test:{http}/ok/", "", 403, "method_not_allowed"),
    "plain-protocol": ("GET http://tunnel.test:{tls}/", "", 403, "protocol_not_allowed"),
    "websocket": (
        "GET http://evil.test/",
        "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        403,
        "host_not_allowed",
    ),
    "malformed": ("CONNECT tunnel..test:443", "", 400, "malformed_request"),
    "header": ("GET http://plain.test:{http}/ok/", "X: a\r\n b\r\n", 400, "malformed_request"),
    "body": ("GET http://plain.test:{http}/ok/", "Content-Length: 5\r\n", 400, "malformed_request"),
    "many-fields": ("GET http://plain.test:{http}/ok/", "X: y\r\n" * 250, 431, "request_too_large"),
    "long-head": ("GET http://plain.test:{http}/ok/", f"X: {'y' * 40_000}\r\n", 431, "request_too_large"),
    "literal": ("CONNECT 10.0.0.1:443", "", 403, "port_not_allowed"),
    "special-literal": ("CONNECT 10.0.0.1:{tls}", "", 403, "address_not_allowed"),
    "metadata-name": ("CONNECT metadata.google.internal:80", "", 403, "address_not_allowed"),
}


@pytest.mark.parametrize(
    ("line", "fields", "status", "reason"),
    [pytest.param(*v, id=f"attack-D07-{k}") for k, v in DENIED.items()],
)
def test_no_question_and_no_connection_for_what_is_refused(world, node, line, fields, status, reason):
    target = line.split(" ")[1].removeprefix("http://").partition("/")[0]
    before = world.counts(node)
    reply = world.ask(node, f"{line} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n")
    assert (reply.status, reply.reason) == (status, reason)
    assert world.counts(node) == before


@pytest.mark.parametrize("row", [pytest.param("", id="attack-D07-misdirected")])
def test_no_question_for_a_host_that_differs(world, node, row):
    before = world.counts(node)
    for data in (
        world.head("tunnel.test:{tls}", host="site.test:{tls}"),
        "GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: site.test\r\n\r\n",
    ):
        reply = world.ask(node, data)
        assert (reply.status, reply.reason) == (421, "misdirected_request")
    assert world.counts(node) == before


@pytest.mark.parametrize("row", [pytest.param("", id="attack-D07-inside")])
def test_no_question_and_no_connection_for_what_is_refused_inside(world, node, row):
    """An open inspected tunnel: its name was asked for once, at CONNECT; a refused request dials nothing."""
    with world.secured(node, "site.test:{tls}") as secure:
        before = world.counts(node)
        secure.sendall(world.fill("GET /secret HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n").encode())
        assert b" 403 " in secure.recv(65536)
        assert world.counts(node) == before


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("notlocalhost", 403, id="attack-D04-prefix"),
        pytest.param("localhost.test", 403, id="attack-D04-suffix"),
        pytest.param("localhost.localdomain", 403, id="attack-D04-domain"),
    ],
)
def test_what_only_looks_like_localhost(world, node, host, status):
    before = world.counts(node)
    reply = world.connect(node, f"{host}:{{tls}}")
    assert (reply.status, reply.reason) == (status, "host_not_allowed")
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("localhost", id="attack-D04"),
        pytest.param("LOCALHOST.", id="attack-D04-dot"),
        pytest.param("app.dev.localhost", id="attack-D04-below"),
    ],
)
def test_localhost_is_loopback_and_nobody_is_asked(world, node, host):
    """RFC 6761, 6.3: a server that answers for it would be an attacker's."""
    before = world.counts(node)[0]
    assert world.connect(node, f"{host}:{{tls}}").status == 200
    world.settle()
    assert world.counts(node)[0] == before


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("a.alias-denied.wild.test", (403, "denied_by_rule"), id="attack-D12"),
        pytest.param("a.alias-denied-target.wild.test", (403, "denied_by_rule"), id="attack-D12-other"),
        pytest.param("a.alias-harmless.wild.test", (200, None), id="attack-D12-allowed"),
    ],
)
def test_an_alias_of_a_denied_name(world, node, host, expected):
    reply = world.connect(node, f"{host}:{{tls}}")
    assert (reply.status, reply.reason) == expected
    world.settle()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/ok/1", (200, None), id="attack-D12-another-path"),
        pytest.param("/ok/secret/1", (403, "denied_by_rule"), id="attack-D12-path"),
    ],
)
def test_an_alias_of_a_name_of_which_a_part_is_denied(world, node, path, expected):
    """Where requests are seen each is judged by the alias, too; where they are not, the part may be meant."""
    host = "alias-secret.flipping.test"
    reply = world.inside(node, f"{host}:{{tls}}", f"GET {path} HTTP/1.1\r\nHost: {host}:{{tls}}\r\n\r\n")
    assert (reply.status, reply.reason) == expected
    closed = world.connect(node, "a.alias-secret.wild.test:{tls}")
    assert (closed.status, closed.reason) == (403, "denied_by_rule")
    world.settle()


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("nobody.answers.nowhere", id="attack-D13-unknown-name"),
    ],
)
def test_a_name_without_an_answer_opens_nothing(world, node, host):
    before = world.counts(node)
    reply = world.connect(node, f"{host}:{{tls}}")
    assert reply.status == 502
    assert reply.reason == "upstream_unreachable"
    assert world.counts(node)[1] == before[1]


@pytest.mark.parametrize(
    "authority",
    [
        pytest.param("1.1.1.1:443", id="attack-D10-doh"),
        pytest.param("1.1.1.1:853", id="attack-D10-dot"),
        pytest.param("dns.test:853", id="attack-D10-dot-by-name"),
        pytest.param("224.0.0.251:5353", id="attack-D10-mdns"),
        pytest.param("[ff02::1:3]:5355", id="attack-D10-llmnr"),
        pytest.param("1.1.1.1:53", id="attack-D09-tcp"),
    ],
)
def test_other_ways_to_ask_for_names_need_a_rule_like_everything(world, node, authority):
    before = world.counts(node)
    reply = world.connect(node, authority)
    assert reply.status == 403
    assert reply.reason in {"host_not_allowed", "port_not_allowed", "address_not_allowed"}
    assert world.counts(node) == before


@pytest.mark.parametrize("row", [pytest.param("", id="attack-D09-udp")])
def test_no_datagram_is_answered(world, node, row):
    """Neither way in is a resolver."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(0.2)
        link.connect(("127.0.0.1", node.port))
        link.send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04evil\x04test\x00\x00\x01\x00\x01")
        with pytest.raises(OSError):
            link.recv(512)
