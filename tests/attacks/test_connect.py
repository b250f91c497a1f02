"""What is asked for at the door: the shape of a request, ports, tunnels, and the proxy itself. Rows C."""

import contextlib
import socket
import ssl

import pytest

from tests.attacks.world import answer, rest
from tests.e2e.kit import wait_until
from tests.fakes import client_hello

HOST = "Host: tunnel.test:{tls}\r\n"
HEADS = {
    "attack-C01": ("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", 403, "host_not_allowed"),
    "attack-C02": ("CONNECT tunnel.test:22 HTTP/1.1\r\nHost: tunnel.test:22\r\n\r\n", 403, "port_not_allowed"),
    "attack-C03": ("CONNECT tunnel.test:5432 HTTP/1.1\r\nHost: tunnel.test:5432\r\n\r\n", 403, "port_not_allowed"),
    "attack-C03-smtp": ("CONNECT tunnel.test:25 HTTP/1.1\r\nHost: tunnel.test:25\r\n\r\n", 403, "port_not_allowed"),
    "attack-C03-plain": ("GET http://plain.test:25/ok/ HTTP/1.1\r\nHost: plain.test:25\r\n\r\n", 403, "port_not_allowed"),
    "attack-C07": ("GET /ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C07-own-name": ("GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", None, None),
    "attack-C07-asterisk": ("OPTIONS * HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C07-network-path": ("GET //plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C09": ("GET http://plain.test:{http}/secret HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 403, "path_not_allowed"),
    "attack-C09-method": ("DELETE http://site.test:{tls}/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 403, "protocol_not_allowed"),
    "attack-C10": ("GET https://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 403, "protocol_not_allowed"),
    "attack-C10-site": ("GET https://site.test:{tls}/ok/ HTTP/1.1\r\nHost: site.test:{tls}\r\n\r\n", 403, "protocol_not_allowed"),
    "attack-C10-ftp": ("GET ftp://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C10-ws": ("GET ws://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C10-file": ("GET file:///etc/passwd HTTP/1.1\r\nHost: plain.test\r\n\r\n", None, None),
    "attack-C04-body": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "Content-Length: 4\r\n\r\nabcd", 400, None),
    "attack-C04-chunked": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, None),
    "attack-C04-path": ("CONNECT tunnel.test:{tls}/ok HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-url": ("CONNECT https://tunnel.test:{tls}/ HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-userinfo": ("CONNECT user@tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-fragment": ("CONNECT tunnel.test:{tls}#x HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-asterisk": ("CONNECT * HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-origin": ("CONNECT / HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-tab": ("CONNECT\ttunnel.test:{tls}\tHTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-two-spaces": ("CONNECT  tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-trailing-space": ("CONNECT tunnel.test:{tls} HTTP/1.1 \r\n" + HOST + "\r\n", 400, None),
    "attack-C04-leading-space": (" CONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-vertical-tab": ("CONNECT\x0btunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-two-targets": ("CONNECT tunnel.test:{tls} evil.test:443 HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-lf-only": ("CONNECT tunnel.test:{tls} HTTP/1.1\nHost: tunnel.test:{tls}\n\r\n\r\n", 400, None),
    "attack-C04-cr-only": ("CONNECT tunnel.test:{tls} HTTP/1.1\rHost: tunnel.test:{tls}\r\r\n\r\n", 400, None),
    "attack-C04-http-0.9": ("GET http://plain.test:{http}/ok/\r\n\r\n", 400, None),
    "attack-C04-connect-0.9": ("CONNECT tunnel.test:{tls}\r\n\r\n", 400, None),
    "attack-C04-http-1.2": ("CONNECT tunnel.test:{tls} HTTP/1.2\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-http-2.0": ("CONNECT tunnel.test:{tls} HTTP/2.0\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-http-11": ("CONNECT tunnel.test:{tls} HTTP/11\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-lower-version": ("CONNECT tunnel.test:{tls} http/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C04-lower-case": ("connect tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", None, None),
    "attack-C04-mixed-case": ("Connect tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", None, None),
    "attack-C04-fold": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "X: a\r\n b\r\n\r\n", 400, None),
    "attack-C04-space-colon": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost : tunnel.test:{tls}\r\n\r\n", 400, None),
    "attack-C04-nul": ("CONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "X: a\x00b\r\n\r\n", 400, None),
    "attack-C04-preface": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, None),
    "attack-C04-proxy-protocol": ("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nCONNECT tunnel.test:{tls} HTTP/1.1\r\n" + HOST + "\r\n", 400, None),
    "attack-C10-userinfo": ("GET http://plain.test@evil.test/ok/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400, None),
    "attack-C10-userinfo-allowed": ("GET http://evil.test@plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-fragment": ("GET http://plain.test:{http}/ok/#x HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-fragment-host": ("GET http://plain.test:{http}#@evil.test/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-empty-port": ("GET http://plain.test:/ok/ HTTP/1.1\r\nHost: plain.test\r\n\r\n", 400, None),
    "attack-C10-no-host": ("GET http:///ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-backslash": ("GET http://evil.test\\@plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-backslashes": ("GET http:\\\\plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C10-one-slash": ("GET http:/plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C10-three-slashes": ("GET http:///plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-tab": ("GET http://plain.test:{http}\t/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-twice": ("GET http://http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", 400, None),
    "attack-C10-query-only": ("GET http://plain.test:{http}?/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", None, None),
    "attack-C13-connect": ("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\nX-Upstream-Https-Proxy: http://tunnel.test:{tls}\r\n\r\n", 403, "host_not_allowed"),
}  # fmt: skip
PLAUSIBLE = {400, 403, 421, 501}


@pytest.mark.parametrize(("data", "status", "reason"), [pytest.param(*v, id=k) for k, v in HEADS.items()])
def test_a_first_request(world, node, data, status, reason):
    """Where no status is given the ways in may differ in the word, never in the outcome."""
    before = world.counts(node)
    reply = world.ask(node, data)
    if status is None:
        assert reply.status in PLAUSIBLE
        assert reply.reason is not None
    else:
        assert (reply.status, reply.reason) == (status, reason or "malformed_request")
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(client_hello("tunnel.test"), id="attack-C07-tls-to-the-proxy"),
        pytest.param(b"\x05\x01\x00", id="attack-C04-socks5"),
        pytest.param(b"\x04\x01\x01\xbb\x00\x00\x00\x01x\x00tunnel.test\x00", id="attack-C04-socks4a"),
        pytest.param(b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), id="attack-C04-proxy-protocol-2"),
        pytest.param(b"\x80\x2e\x01\x00\x02", id="attack-C04-sslv2"),
        pytest.param(b"\x00" * 64, id="attack-C04-zeros"),
    ],
)
def test_bytes_that_are_no_request(world, node, first):
    before = world.counts(node)
    with node.connect() as link, contextlib.suppress(OSError):
        link.sendall(first)
        link.shutdown(socket.SHUT_WR)
        assert b" 200 " not in rest(link)
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "port", [pytest.param("{edge}", id="attack-C06"), pytest.param("{admin}", id="attack-C06-admin")]
)
@pytest.mark.parametrize("host", ["self.test", "127.0.0.1", "localhost", "2130706433", "127.0.0.2"])
def test_the_proxy_dials_nobody_in_its_own_process(world, host, port):
    """Not even where a rule says so: that would be somebody else's request, judged as the proxy's."""
    node = world.nodes["edge"]
    for reply in (
        world.connect(node, f"{host}:{port}"),
        world.ask(node, f"GET http://{host}:{port}/status HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"),
    ):
        assert reply.status == 403
        if host == "self.test":
            assert reply.reason == "address_not_allowed"


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C06-addon")])
def test_the_addon_dials_nobody_in_its_own_process(world, row):
    node = world.nodes["addon"]
    target = "self.test:{addon}"
    reply = world.ask(node, f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n")
    assert (reply.status, reply.reason) == (403, "address_not_allowed")


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C13")])
def test_a_client_chooses_no_parent_proxy(world, node, row):
    """The field is one like any other: it neither widens nor redirects."""
    before = len(world.raw.received)
    fields = [
        f"X-Upstream-Https-Proxy: http://127.0.0.1:{world.raw.port}",
        "X-Https-Upstream-Proxy: raw.test",
    ]
    assert world.connect(node, "tunnel.test:{tls}", *fields).status == 200
    world.settle()
    assert len(world.raw.received) == before


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n", id="attack-C17"),
        pytest.param("CONNECT tunnel.test:{tls} HTTP/1.1\r\nHost: tunnel.test:{tls}\r\n\r\n", id="attack-C17-connect"),
    ],
)  # fmt: skip
def test_the_admin_address_relays_nothing(world, data):
    before = world.settle()
    with socket.create_connection(("127.0.0.1", world.ports["admin"]), 5) as link:
        link.sendall(world.fill(data).encode())
        assert answer(link).status in {400, 404, 405, 421, 501, None}
    assert world.settle() == before


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="attack-C04-tcp-rule"),
        pytest.param(b"hello", id="attack-C21-tcp-rule"),
        pytest.param(b"\x00\x01", id="attack-C21-tcp-rule-binary"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="attack-C04-tcp-rule-http"),
    ],
)
def test_a_rule_for_tcp_lets_any_bytes_through(world, node, first):
    with world.tunnel(node, "raw.test:{raw}") as link:
        link.sendall(first)
        assert link.recv(100) == first
    world.settle()


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C05-inside-tls")])
def test_a_tunnel_inside_a_tunnel_is_the_upstreams_business(world, node, row):
    """In the tunnel lane nobody reads on; where that matters, the rule has to inspect."""
    reply = world.inside(
        node, "tunnel.test:{tls}", "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    )
    assert reply.status == 501  # the upstream's own answer
    world.settle()


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C05-after-a-request")])
def test_a_connect_on_a_kept_connection_is_judged_like_the_first(world, node, row):
    first = "GET http://plain.test:{http}/ok/ HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n"
    with node.connect() as link:
        link.sendall(world.fill(first).encode())
        assert answer(link).status == 200
        before = world.counts(node)
        link.sendall(world.head("evil.test:443"))
        reply = answer(link, "CONNECT")
        assert reply.status in {400, 403}
        assert world.counts(node) == before


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C07-loop")])
def test_a_way_in_that_is_another_proxys_upstream_sees_an_ordinary_client(world, row):
    """One node behind the other: each judges; what the second refuses the first hands back."""
    edge, addon = world.nodes["edge"], world.nodes["addon"]
    with world.tunnel(edge, "self.test:{addon}") as link:
        link.sendall(world.head("evil.test:443"))
        assert answer(link, "CONNECT").status == 403
    assert edge.asked[-1] == "self.test"
    assert "evil.test" not in addon.asked
    world.settle()


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C04-tls-behind-http")])
def test_tls_where_only_plain_http_is_allowed(world, node, row):
    with pytest.raises((ssl.SSLError, OSError)), world.secured(node, "plain.test:{http}"):
        pass
    world.settle()


@pytest.mark.parametrize("row", [pytest.param("", id="attack-C12-lives")])
def test_after_all_this_both_serve(world, node, row):
    def serves():
        return world.get(node, "plain.test", "/ok/").status == 200

    wait_until(serves, "an allowed request")
    world.settle()
