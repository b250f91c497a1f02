"""TLS between clients and the proxy: certificates, caps during the handshake, closing, real clients."""

import contextlib
import os
import ssl
import subprocess
import time

import pytest

from tests.doors.certificates import SERVER_ONLY
from tests.doors.kit import Refused, Tls, exactly, head, rest, wait_until
from tests.fakes import client_hello


def status_of(world, host: str, certificate=None, *fields: str) -> int:
    """What a CONNECT is answered with."""
    wire = world.wire("tls", certificate)
    try:
        authority = f"{host}:{world.ports['tls']}"
        wire.sendall(
            "\r\n".join([f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", *fields, "", ""]).encode()
        )
        return int(head(wire).split()[1])
    finally:
        wire.close()


def basic(user: str, secret: str) -> str:
    import base64

    return f"Proxy-Authorization: Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"


def test_only_http_1_1_is_spoken(world):
    wire = world.wire("tls")
    assert wire.object.selected_alpn_protocol() == "http/1.1"
    wire.close()


def test_certificates_name_clients(world):
    runner = world.clients.issue("svid", uris=["spiffe://example.org/runner"])
    tester = world.clients.issue("tester", dns=["TESTER.example.org", "*.example.org"])
    assert status_of(world, "runner.test") == 403  # nobody in particular
    assert status_of(world, "runner.test", runner) == 200
    assert status_of(world, "runner.test", tester) == 403
    assert status_of(world, "tunnel.test", tester) == 200


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({}, id="common-name-only"),
        pytest.param({"dns": ["*.example.org"]}, id="wildcard"),
        pytest.param({"uris": ["spiffe://example.org/runner", "spiffe://example.org/x"]}, id="two-uris"),
        pytest.param({"uris": ["spiffe://example.org/runner/"]}, id="not-exactly"),
        pytest.param({"uris": ["spiffe://EXAMPLE.org/runner"]}, id="another-case"),
        pytest.param(
            {"uris": ["spiffe://example.org/runner"], "dns": ["tester.example.org"]}, id="two-clients"
        ),
    ],
)
def test_a_verified_certificate_without_an_entry_is_nobody(world, names):
    """attack-Y01: neither `static` nor the network may name somebody whom nobody knows; a secret may."""
    certificate = world.clients.issue("tester.example.org", **names)
    assert status_of(world, "tunnel.test", certificate) == 407
    assert status_of(world, "runner.test", certificate) == 407
    assert status_of(world, "agent.test", certificate, basic("agent", "secret")) == 200


def test_a_certificate_comes_before_a_secret_and_a_wrong_secret_is_refused_all_the_same(world):
    """attack-Y05"""
    runner = world.clients.issue("both", uris=["spiffe://example.org/runner"])
    assert status_of(world, "runner.test", runner, basic("agent", "secret")) == 200
    assert status_of(world, "agent.test", runner, basic("agent", "secret")) == 403
    assert status_of(world, "runner.test", runner, basic("agent", "wrong")) == 407
    assert status_of(world, "agent.test", None, basic("agent", "secret")) == 200


@pytest.mark.parametrize("kind", ["expired", "foreign", "self-made", "server-only", "attack-Y02-revoked"])
def test_bad_certificates_end_the_handshake(world, kind):
    """Also where certificates are optional: a bad one is not as good as none."""
    uris = ["spiffe://example.org/runner"]
    if kind == "expired":
        certificate = world.clients.issue(kind, uris=uris, days=-1)
    elif kind == "foreign":
        certificate = world.strangers.issue(kind, uris=uris)
    elif kind == "server-only":
        certificate = world.clients.issue(kind, uris=uris, purpose=SERVER_ONLY)
    elif kind == "self-made":
        certificate = world.strangers.issue(kind, uris=["spiffe://example.org/runner"])
    else:
        certificate = world.clients.issue(kind, uris=uris)
        assert status_of(world, "runner.test", certificate) == 200
        world.clients.revoke(world.clients.last_serial)
        time.sleep(1.1)  # until the files are looked at again
    node = world.node_of("tls")
    before = failures(node)
    with pytest.raises((OSError, Refused)):
        status_of(world, "tunnel.test", certificate)
    wait_until(lambda: failures(node) == before + 1, "the failure to be counted")
    assert status_of(world, "tunnel.test") == 200


def failures(node) -> int:
    return sum(node.status()["connections"]["failed"].values())


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"CONNECT tunnel.test:443 HTTP/1.1\r\nHost: tunnel.test:443\r\n\r\n", id="clear-http"),
        pytest.param(b"PROXY TCP4 192.0.2.5 127.0.0.1 1 2\r\n", id="attack-Y06-proxy-header"),
        pytest.param(b"\x05\x01\x00", id="socks"),
        pytest.param(os.urandom(5000), id="noise"),
        pytest.param(client_hello("localhost")[:50] + bytes(300), id="broken-hello"),
    ],
)
def test_what_is_not_tls_is_cut_off(world, first):
    with world.link("tls") as link:
        link.sendall(first)
        assert b"HTTP" not in rest(link)


def test_a_handshake_has_one_deadline_and_holds_a_place(world):
    """Half-open handshakes count; when they are gone, so are their places."""
    node = world.node_of("tls")
    limit = 300
    before = failures(node)
    hello = client_hello("localhost")
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        links = [stack.enter_context(world.link("tls")) for _ in range(limit)]
        for index, link in enumerate(links):
            if index % 3 == 1:
                link.sendall(hello[: index % 200])
        wait_until(lambda: node.status()["connections"]["open"] == limit, "the places to be taken")
        with pytest.raises((OSError, Refused)):
            status_of(world, "tunnel.test")
        turned_away = node.status()["connections"]["turned_away"]
        assert turned_away >= 1
        assert rest(links[0]) == b""
        assert time.monotonic() - began < 3
    wait_until(lambda: node.status()["connections"]["open"] == 0, "the places to be free")
    assert failures(node) == before + limit
    assert status_of(world, "tunnel.test") == 200


def test_a_large_answer_arrives_whole_and_the_end_is_clean(world):
    """TLS to the proxy cannot be closed by halves: what is buffered is delivered first."""
    (world.folder / "files" / "files").mkdir(exist_ok=True)
    (world.folder / "files" / "files" / "large").write_bytes(os.urandom(1 << 20) * 3)
    wire = world.open("tls", "tunnel.test", world.ports["tls"])
    secure = Tls(wire, world.trust("tls"), "tunnel.test")
    secure.sendall(b"GET /files/large HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n")
    assert head(secure).startswith(b"HTTP/1.1 200 ")
    assert len(rest(secure)) == 3 << 20
    assert rest(wire) == b""
    wire.close()
    wait_until(lambda: world.node_of("tls").status()["connections"]["open"] == 0, "everything to be closed")


@pytest.mark.parametrize("host", ["tunnel.test", "site.test"])
def test_a_large_body_arrives_whole(world, host):
    wire = world.open("tls", host, world.ports["tls"])
    secure = Tls(wire, world.trust("tls"), host)
    size = 3 << 20
    secure.sendall(
        f"POST /ok/ HTTP/1.1\r\nHost: {host}:{world.ports['tls']}\r\nContent-Length: {size}\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    for _ in range(48):
        secure.sendall(bytes(size // 48))
    assert f'"body": {size}'.encode() in rest(secure)
    wire.close()


def test_absolute_form_is_judged_by_the_certificate_of_the_connection(world):
    wire = world.wire("tls", world.clients.issue("stranger", dns=["nobody.example.org"]))
    authority = f"plain.test:{world.ports['http']}"
    wire.sendall(f"GET http://{authority}/ok/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    assert head(wire).startswith(b"HTTP/1.1 407 ")
    wire.close()
    wire = world.wire("tls", world.clients.issue("known", dns=["tester.example.org"]))
    for _ in range(2):
        wire.sendall(f"GET http://{authority}/ok/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        answer = head(wire)
        assert answer.startswith(b"HTTP/1.1 200 ")
        length = int(answer.lower().partition(b"content-length: ")[2].split()[0])
        exactly(wire, length)
    wire.close()


def curl(world, door: str, host: str, *options: object) -> "subprocess.CompletedProcess[str]":
    port, path = world.ports["tls"], "/ok/"
    own = world.node_of(door).folder / "state/ca/mitmproxy-ca-cert.pem"
    both = world.folder / f"curl-{door}.pem"
    both.write_bytes(world.authority.read_bytes() + own.read_bytes())
    return subprocess.run(
        [
            "curl",
            "-sS",
            "--noproxy",
            "",
            "--cacert",
            str(both),
            *map(str, options),
            f"https://{host}:{port}{path}",
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("host", ["tunnel.test", "site.test"])
def test_curl(world, needs, host):
    """Both lanes, TLS in TLS among them."""
    needs("curl")
    ports = world.ports
    proxy = [f"https://localhost:{ports['secure']}", "--proxy-cacert", world.proxy_authority]
    certificate = world.clients.issue("curl", uris=["spiffe://example.org/runner"])
    assert '"path": "/ok/"' in curl(world, "tls", host, "--proxy", *proxy).stdout
    done = curl(world, "tls", host, "--proxy", *proxy, "--proxy-cert", certificate)
    assert '"path": "/ok/"' in done.stdout, done.stderr
    assert (
        '"path": "/ok/"'
        in curl(world, "socks", host, "--socks5-hostname", f"127.0.0.1:{ports['socks']}").stdout
    )
    user = ["--proxy-user", "runner:secret"]
    assert (
        '"path"'
        in curl(
            world, "socks", "runner.test", "--socks5-hostname", f"127.0.0.1:{ports['socks']}", *user
        ).stdout
    )


def test_curl_says_what_was_refused(world, needs):
    needs("curl")
    done = curl(world, "socks", "evil.test", "--socks5-hostname", f"127.0.0.1:{world.ports['socks']}")
    assert done.returncode == 97
    assert "(2)" in done.stderr
    done = curl(
        world, "tls", "evil.test",
        "--proxy", f"https://localhost:{world.ports['secure']}", "--proxy-cacert", world.proxy_authority,
    )  # fmt: skip
    assert done.returncode == 56
    assert "403" in done.stderr


def test_sessions_are_not_resumed(world):
    """attack-Y02: a resumed session would not be asked for its certificate again."""
    context = world.context()
    with world.link("tls") as link, context.wrap_socket(link, server_hostname="localhost") as first:
        first.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
        rest(first)
        session = first.session
    assert session is None or not session.has_ticket
    assert context.session_stats()["hits"] == 0


def test_older_tls_is_refused_where_certificates_count(world):
    context = world.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with world.link("tls") as link, pytest.raises(OSError):
        context.wrap_socket(link, server_hostname="localhost")
