"""One policy, five doors: the same destination has the same verdict, whichever way it was asked for."""

import pytest

from tests.doors.kit import DOORS, exactly, rest

ROWS = [
    # host, port, what else, allowed, reason, rule, lane
    pytest.param("tunnel.test", "tls", {}, True, None, "tunnel", "tunnel", id="name"),
    pytest.param("TUNNEL.test", "tls", {}, True, None, "tunnel", "tunnel", id="upper-case"),
    pytest.param("a.wild.test", "tls", {}, True, None, "tunnel", "tunnel", id="wildcard"),
    pytest.param("site.test", "tls", {}, True, None, "site", "inspect", id="inspected"),
    pytest.param("site.test", "tls", {"path": "/no"}, False, "path_not_allowed", None, "inspect", id="path"),
    pytest.param("127.0.0.1", "tls", {"sni": None}, True, None, "literal", "tunnel", id="address"),
    pytest.param("evil.test", "tls", {}, False, "host_not_allowed", None, None, id="attack-C15-awf-A1"),
    pytest.param("tunnel.test", "http", {}, False, "port_not_allowed", None, None, id="port"),
    pytest.param("denied.wild.test", "tls", {}, False, "denied_by_rule", "denied", None, id="deny"),
    pytest.param("other.test", "tls", {}, False, "client_not_allowed", None, None, id="client"),
    pytest.param("claim.test", "tls", {}, False, "claim_missing", None, None, id="claim"),
    pytest.param("private.test", "tls", {}, False, "address_not_allowed", None, None, id="private-answer"),
    pytest.param("elsewhere.wild.test", "tls", {"dialled": "127.0.0.7"}, False, "address_not_allowed", None, None, id="answer-outside"),
    pytest.param("127.0.0.9", "tls", {"sni": None, "dialled": "127.0.0.9"}, False, "host_not_allowed", None, None, id="awf-A4"),
    pytest.param("gone.test", "closed", {}, False, "upstream_unreachable", None, None, id="unreachable"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _all(world):
    world.serve("plain", "tls", "unix")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("host", "port", "more", "allowed", "reason", "rule", "lane"), ROWS)
def test_the_verdict_is_the_same_at_every_door(world, door, host, port, more, allowed, reason, rule, lane):
    answer = world.get(door, host, port, **more)
    assert (answer.allowed, answer.reason) == (allowed, reason), answer
    if rule is not None:
        assert answer.rule == rule
    if lane is not None:
        assert answer.lane == lane


@pytest.mark.parametrize("door", ["connect", "socks", "transparent", "tls"])
def test_no_door_leads_back_to_a_door_of_the_same_process(world, door):
    """attack-C06"""
    for port in ("secure",) if door == "tls" else ("connect", "socks"):
        answer = world.get(door, "self.test", port)
        assert (answer.allowed, answer.reason) == (False, "address_not_allowed")


@pytest.mark.parametrize("door", DOORS)
def test_a_name_in_the_tunnel_other_than_the_one_that_was_asked_for(world, door):
    """attack-A01: at the transparent door there is but one name, and it is the one that is judged."""
    answer = world.get(door, "tunnel.test", sni="evil.test")
    assert not answer.allowed
    assert answer.reason == ("host_not_allowed" if door == "transparent" else "misdirected_request")


@pytest.mark.parametrize("door", DOORS)
def test_a_server_that_speaks_first(world, door):
    wire = world.open(door, "127.0.0.1", world.ports["raw"])
    try:
        assert exactly(wire, 11) == b"220 hello\r\n"
        wire.sendall(b"QUIT\r\n")
        assert exactly(wire, 6) == b"QUIT\r\n"
    finally:
        wire.close()


@pytest.mark.parametrize("door", DOORS)
def test_bytes_that_are_not_tls(world, door):
    """awf-A9"""
    node = world.node_of(door)
    mark = node.mark()
    wire = world.open(door, "127.0.0.1", world.ports["tls"])
    try:
        wire.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        assert rest(wire) == b""
    finally:
        wire.close()
    assert node.record(mark, "deny")["reason"] == "opaque_tunnel"


@pytest.mark.parametrize("door", DOORS)
def test_a_quota_is_one_whatever_the_door(world, door):
    """attack-L05: the doors of a process charge the same limit."""
    if door in {"connect", "tls", "unix"}:
        assert world.get(door, "limited.test").allowed
    again = world.get(door, "limited.test")
    assert (again.allowed, again.reason) == (False, "rate_limited")


def test_the_doors_are_told_to_whoever_asks(world):
    ports = world.ports
    assert world.node_of("plain").status()["doors"] == [
        f"http://127.0.0.1:{ports['connect']}",
        f"socks5h://127.0.0.1:{ports['socks']}",
        f"transparent://127.0.0.1:{ports['transparent']}",
    ]
    assert world.node_of("tls").status()["doors"] == [f"https://127.0.0.1:{ports['secure']}"]
    assert world.node_of("unix").status()["doors"] == [f"unix:{world.socket}"]
    said = (world.folder / "plain" / "output.log").read_text()
    assert f"socks5h://127.0.0.1:{ports['socks']}" in said
