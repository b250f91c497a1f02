"""The addon under stock mitmdump, in every mode it covers: the verdicts of the front door, and closed on failure."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
from importlib.util import find_spec

import pytest

from tests.e2e.kit import Place, plain_environment, wait_until
from tests.e2e.modes import MITMDUMP, Raw, mode, wait_for
from tests.ports import free_port

PLAIN = find_spec("edgeguard.proxy.plain").origin
MODES = ("regular", "reverse", "socks5", "transparent")

RULES = """\
edgeguard: 1
module: modes
owner: tests
rules:
  - id: raw
    effect: allow
    to: ["raw.example:{raw}"]
    protocol: tcp
    resolves_to: ["127.0.0.0/8"]
    rationale: Bytes that nobody reads, by name.
  - id: raw-address
    effect: allow
    to: ["127.0.0.1:{raw}"]
    protocol: tcp
    resolves_to: ["127.0.0.0/8"]
    rationale: The same, by address.
  - id: twin
    effect: allow
    to: ["twin.example:{{tls}}", "twin.example:{{http}}"]
    protocol: [tls, http]
    resolves_to: ["127.0.0.0/8"]
    rationale: Two addresses, of which the first does not answer.
"""


CASES = [
    pytest.param("https", "site.example", "tls", "/ok/page", "GET", None, id="path-allowed"),
    pytest.param("https", "tunnel.example", "tls", "/any", "GET", None, id="tunnel-allowed"),
    pytest.param("http", "plain.example", "http", "/ok/page", "GET", None, id="plain-allowed"),
    pytest.param("https", "site.example", "tls", "/secret", "GET", "path_not_allowed", id="path"),
    pytest.param("https", "site.example", "tls", "/ok/x", "DELETE", "method_not_allowed", id="method"),
    pytest.param("https", "evil.example", "tls", "/", "GET", "host_not_allowed", id="host"),
    pytest.param("https", "tunnel.example", "http", "/", "GET", "port_not_allowed", id="port"),
    pytest.param("http", "evil.example", "http", "/", "GET", "host_not_allowed", id="plain-host"),
    pytest.param("http", "plain.example", "http", "/secret", "GET", "path_not_allowed", id="plain-path"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, keys, needs):
    """The front door, and one mitmdump for each mode, all under the same policy."""
    needs("nft"), needs("ip")
    raw = Raw()
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        place = stack.enter_context(Place(tmp_path_factory.mktemp("place"), keys))
        place.write("modes", RULES.format(raw=raw.port))
        place.client = place.start_all()
        origins = {
            (scheme, host, getattr(place, port)) for scheme, host, port, *_ in (case.values for case in CASES)
        }
        running = [
            stack.enter_context(mode(name, place, raw, tmp_path_factory.mktemp(name), origins))
            for name in MODES
        ]
        for one in running:
            wait_for(one)
        yield place, {one.name: one for one in running}
        for one in running:
            assert "has crashed" not in one.log


@pytest.fixture
def place(world):
    return world[0]


@pytest.fixture(params=MODES)
def through(request, world):
    return world[1][request.param]


@pytest.fixture(params=("socks5", "transparent", "regular"))
def outward(request, world):
    """The modes in which the client names the destination."""
    return world[1][request.param]


def decided(decisions, since):
    """(verdict, reason, rule) of what was asked after the first `since` lines of a log: a denial if there is one."""

    def made():
        records = [json.loads(line) for line in lines(decisions)[since:]]
        asked = [record for record in records if record["kind"] != "close"]
        denied = next((record for record in asked if record["verdict"] == "deny"), None)
        connections = {record["connection"] for record in asked}
        ended = [r for r in records if r["kind"] == "close" and r["connection"] in connections]
        return denied or (asked[-1] if ended else None)

    wait_until(made, "a decision")
    last = made()
    return last["verdict"], last.get("reason"), last.get("rule")


def lines(decisions):
    return decisions.read_bytes().splitlines() if decisions.exists() else []


@pytest.mark.parametrize(("scheme", "host", "port", "path", "method", "reason"), CASES)
def test_a_mode_and_the_front_door_agree(place, through, scheme, host, port, path, method, reason):
    at = getattr(place, port)
    since = len(lines(place.decisions))
    getattr(place.client, scheme)(host, at, path, method=method)
    expected = decided(place.decisions, since)
    assert expected[1] == reason
    since, before = len(lines(through.decisions)), through.upstream.connections
    seen = getattr(through, scheme)(host, at, path, method=method)
    assert decided(through.decisions, since) == expected
    if reason is None:
        assert seen.status == 200
    elif seen.status is not None:
        assert (seen.status, seen.reason) == (403, reason)
    else:
        # Where there is no HTTP yet to refuse in, the connection ends with an alert or a SOCKS reply.
        assert through.name in {"socks5", "transparent"}
        assert "access denied" in seen.error.lower().replace("_", " ") or "SOCKS 02" in seen.error
    if reason in {"host_not_allowed", "port_not_allowed"}:
        assert through.upstream.connections == before


@pytest.mark.parametrize(
    ("scheme", "host"), [("https", "site.example"), ("https", "tunnel.example"), ("http", "plain.example")]
)
@pytest.mark.parametrize("_id", [pytest.param(None, id="attack-A18")])
def test_a_claimed_name_does_not_lead_to_an_unrelated_address(world, scheme, host, _id):
    place, modes = world
    through = modes["transparent"]
    before, since = through.upstream.connections, len(lines(through.decisions))
    port = place.tls if scheme == "https" else place.http
    seen = getattr(through, scheme)(host, port, "/ok/page", address="127.0.0.9")
    assert seen.status in {None, 421}
    assert decided(through.decisions, since)[:2] == ("deny", "misdirected_request")
    assert through.upstream.connections == before


def test_of_two_addresses_the_one_that_answers_is_dialled(place, outward):
    for _ in range(2):
        assert outward.https("twin.example", place.tls).status == 200
        assert outward.http("twin.example", place.http).status == 200


def test_bytes_pass_unread_where_a_rule_says_so(outward):
    """The server speaks first, so that nothing may wait for the client."""
    host = "127.0.0.1" if outward.name == "transparent" else "raw.example"
    with outward.connect("tcp", host, outward.raw.port) as connection:
        assert connection.recv(6) == b"hello\n"
        connection.sendall(b"\x00\x01\x02")
        assert connection.recv(3) == b"\x00\x01\x02"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03" * 8,
        b"EHLO example\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_bytes_that_name_nobody_reach_nobody(place, through, data):
    before = through.upstream.connections, len(through.upstream.requests)
    with through.connect("https", "tunnel.example", place.tls) as connection:
        connection.sendall(data)
        connection.settimeout(5)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(4096):
                answer += piece
    assert b"200" not in answer
    assert (through.upstream.connections, len(through.upstream.requests)) == before


def test_datagrams_are_not_answered(world):
    """mitmproxy opens a UDP port beside reverse:https."""
    place, modes = world
    through = modes["reverse"]
    port = through.ports["https", "site.example", place.tls]
    before = through.upstream.connections
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)
        client.connect(("127.0.0.1", port))
        client.send(b"\xc3\x00\x00\x00\x01\x08" + b"\x11" * 1200)
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            client.recv(2048)
    assert through.upstream.connections == before
    assert through.https("site.example", place.tls, "/ok/page").status == 200


EARLY = ("client_connected", "next_layer", "tls_clienthello", "requestheaders", "request", "server_connect")
LATE = ("tls_start_server", "server_connected", "responseheaders", "response")
OWN = {"regular": ("http_connect",), "socks5": ("edge_destination",), "transparent": ("edge_destination",)}


def test_every_hook_that_raises_refuses_and_the_listener_lives(place, through):
    for hook in (*EARLY, *OWN.get(through.name, ()), *LATE):
        before = through.upstream.connections, len(through.upstream.requests)
        through.flag.write_text(hook)
        seen = through.https("site.example", place.tls, "/ok/chaos")
        assert seen.status != 200, hook
        assert b"chaos" not in seen.body, hook
        if hook not in LATE:
            assert through.upstream.connections == before[0], hook
        if hook in LATE[:2]:
            assert len(through.upstream.requests) == before[1], hook
        through.flag.unlink()
        assert through.https("site.example", place.tls, "/ok/page").status == 200, hook
        assert f"{hook} failed; refused" in through.log


def test_a_raw_layer_of_another_addon_gets_no_byte_through(place, outward):
    before = len(outward.upstream.requests)
    outward.flag.write_text("rogue")
    assert outward.https("tunnel.example", place.tls, "/any").status is None
    assert outward.http("plain.example", place.http, "/ok/page").status is None
    outward.flag.unlink()
    assert len(outward.upstream.requests) == before
    assert outward.https("tunnel.example", place.tls, "/any").status == 200


def test_the_proxy_is_not_a_way_to_itself(world):
    """A connection that nobody redirected has the transparent door itself as its destination."""
    through = world[1]["transparent"]
    since = len(lines(through.decisions))
    context = ssl.create_default_context(cafile=through.folder / "both.pem")

    def straight():
        return socket.create_connection(("127.0.0.1", through.ports[None]), timeout=5)

    with through.namespace.inside(straight) as plain, pytest.raises(OSError):
        context.wrap_socket(plain, server_hostname="site.example")
    assert decided(through.decisions, since)[0] == "deny"


def test_without_settings_mitmdump_does_not_serve(tmp_path):
    done = subprocess.run(
        [MITMDUMP, "-s", PLAIN, "--listen-host", "127.0.0.1", "--listen-port", str(free_port())],
        cwd=tmp_path,
        env={**plain_environment(), "HOME": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert "edgeguard has no settings" in done.stdout + done.stderr
