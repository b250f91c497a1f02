"""A client told to get out by any means: the adversarial battery, beside a sidecar and behind a gateway.

Each way is tried without the rules first, where it must lead out: otherwise its row would prove nothing.
With the rules, two witnesses must agree: nothing came back inside, and no packet of it arrived outside.
"""

import json
import re
import subprocess
from typing import NamedTuple

import pytest

from edgeguard.netfilter.plan import plan
from edgeguard.netfilter.ruleset import render
from edgeguard.settings import load_settings
from tests.e2e.kit import wait_until
from tests.network.kit import HERE, NAMES, RESOLVER, WORKLOAD

pytestmark = [pytest.mark.network, pytest.mark.timeout(180)]  # most of it are the fixtures, once

APPROVED, BYPASS, EVIL = (NAMES[f"{name}.test"] for name in ("approved", "bypass", "evil"))
DNS, V6 = "9.9.9.9", "2606:4700::12"
SILENT = "shout", "raw", "forged", "fragments", "options", "extended", "neighbour"
"""Ways that only go out; nothing answers."""

OUT = {
    "awf-A2-attack-C16": ("tls", EVIL, 443, "evil.test"),
    "awf-A4": ("tls", "93.184.216.4", 443),
    "awf-A6-udp-attack-D09": ("ask", DNS),
    "awf-A6-tcp-attack-D09": ("ask_tcp", DNS),
    "awf-A6-ipv6-attack-D09": ("ask", "2606:4700::53"),
    "awf-A7": ("http", "169.254.169.254", 80),
    "awf-A7-ipv6": ("http", "fd00:ec2::254", 80),
    "awf-A8-10": ("tls", "10.1.2.3", 443),
    "awf-A8-172": ("tls", "172.16.5.5", 443),
    "awf-A8-192": ("tls", "192.168.7.7", 443),
    "awf-A9-server-first": ("banner", "93.184.216.9", 22),
    "awf-A9-client-first": ("speak", "93.184.216.8", 22),
    "awf-A10-attack-X06": ("udp", "93.184.216.10", 443),
    "awf-A11-attack-X09": ("ping", "93.184.216.11"),
    "awf-A11-ipv6-attack-X09": ("ping", "2606:4700::13"),
    "awf-A12-attack-X10": ("tls", V6, 443),
    "awf-A12-udp-attack-X10": ("udp", "2606:4700::14", 443),
    "attack-D10-doh": ("tls", "93.184.216.14", 443, "dns.test"),
    "attack-D10-dot": ("tls", "93.184.216.13", 853),
    "attack-D10-doq": ("udp", "93.184.216.12", 853),
    "attack-D10-mdns": ("shout", "224.0.0.251", 5353),
    "attack-D10-llmnr": ("shout", "224.0.0.252", 5355),
    "attack-X07": ("udp", "93.184.216.15", 443, 4000),
    "port-smtp": ("banner", "93.184.216.16", 25),
    "port-http": ("http", "93.184.216.16", 8443),
    "port-imaps": ("tls", "93.184.216.16", 993),
}
RAW = {
    "gre": ("raw", "93.184.216.17", 47),
    "sctp": ("raw", "93.184.216.18", 132),
    "experimental": ("raw", "93.184.216.19", 253),
    "forged": ("forged", "93.184.216.20", 443, "10.8.0.1"),
    "spoofed": ("forged", "93.184.216.21", 443, "10.8.0.77"),
    "attack-X07-handmade": ("fragments", "93.184.216.22", 443, "10.8.0.1"),
    "marked": ("marked", "93.184.216.23", 443, 0x65646765),
    "ipv6-options": ("extended", "2606:4700::15", 443, "destination"),
    "ipv6-hops": ("extended", "2606:4700::53", 443, "hops"),
    "solicitation": ("neighbour", "2606:4700::13"),
}
"""What takes CAP_NET_RAW, as Docker gives it unasked."""
ROUTED = {"source-route": ("options", "93.184.216.24", 53, RESOLVER)}


class Report(NamedTuple):
    """What came back inside, and what arrived outside."""

    answers: dict[str, str]
    packets: list[tuple[str, int, int, bool, int]]

    def arrived(self, address: str) -> list[tuple[str, int, int, bool, int]]:
        return [packet for packet in self.packets if packet[0] == address]

    @property
    def strays(self) -> list[tuple[str, int, int, bool, int]]:
        """Packets for which there is no good reason: neither to an approved place, nor between neighbours."""
        return [
            packet
            for packet in self.packets
            if packet[0] not in {APPROVED, BYPASS}
            and not (packet[1] == 58 and packet[0].startswith(("ff02:", "fd08:", "fe80:")))
        ]


def report(world, space, rows, **options):
    with world.watched() as packets:
        answers = space.attempts(rows, **options)
    return Report(answers, packets)


def legitimate(world, door):
    """Through the explicit door, and by clients that know of none."""
    authority = str(world.authority)
    return {
        "explicit": ("connect", *door, "approved.test:443", authority),
        "https": ("https", APPROVED, 443, "approved.test", authority),
        "bypass": ("https", BYPASS, 443, "bypass.test", authority),
        "http": ("http", APPROVED, 80, "approved.test"),
        "refused": ("connect", *door, "evil.test:443"),
        "port": ("connect", *door, "approved.test:22"),
    }


# The proxies


@pytest.fixture(scope="module")
def sidecar(world):
    """The configuration of a sidecar that runs."""
    listen = 'address = "127.0.0.1:3128"\ntransparent = "127.0.0.1:3130"'
    file = world.configure("sidecar", listen=listen, identity='static = "agent"', admin="127.0.0.1:9901")
    world.serve(file, world.middle, ("127.0.0.1", 3128))
    return file


@pytest.fixture(scope="module")
def gateway(world):
    """The configuration of a gateway that runs."""
    listen = 'address = "10.9.0.1:3129"\ntransparent = "0.0.0.0:3131"'
    identity = '[[identity.cidr]]\ncidr = "10.9.0.0/24"\nclient = "agent"'
    file = world.configure("gateway", listen=listen, identity=identity)
    with file.open("a") as more:
        more.write('[netfilter]\nshape = "gateway"\ndns = "resolver"\n')
    world.serve(file, world.client, ("10.9.0.1", 3129))
    return file


def variant(file, name, old, new):
    """The same node with other rules."""
    other = file.with_name(f"{name}.toml")
    text = file.read_text()
    assert old in text
    other.write_text(text.replace(old, new))
    return other


def set_rules(world, file):
    world.middle.run("nft", "-f", "-", text=render(plan(load_settings(file, {}))))


# Without and with the rules. Each fixture sets its rules, tries everything, and keeps what it saw.

LOCAL = {"local": ("http", "127.0.0.1", 8181)}


@pytest.fixture(scope="module")
def unruled(world):
    world.middle.run("nft", "flush", "ruleset")
    return {
        "workload": report(world, world.middle, OUT | LOCAL),
        "raw": report(world, world.middle, RAW | ROUTED, capabilities="net_raw"),
        "client": report(world, world.client, OUT),
    }


@pytest.fixture(scope="module")
def redirected(world, sidecar, unruled):
    set_rules(world, sidecar)
    world.middle.attempts({"port": ("udp", "93.184.216.25", 443, 9, 40_000)}, user=65_532)
    rows = OUT | LOCAL | {"port": ("udp", "93.184.216.25", 443, 9, 40_000)}
    return {
        "workload": report(world, world.middle, rows),
        "raw": report(world, world.middle, RAW, capabilities="net_raw"),
        "use": report(world, world.middle, legitimate(world, ("127.0.0.1", 3128))),
        "neighbour": report(world, world.client, OUT | relays(world), patience_s=1.0),
        "root": report(world, world.middle, OUT, user=0),
    }


@pytest.fixture(scope="module")
def closed(world, sidecar, unruled):
    set_rules(world, variant(sidecar, "closed", 'transparent = "127.0.0.1:3130"\n', ""))
    explicit = {"explicit": legitimate(world, ("127.0.0.1", 3128))["explicit"]}
    served = [world.middle.attempts(explicit)["explicit"] for _ in range(3)]
    refused = world.middle.run("nft", "list", "chain", "inet", "edgeguard", "refused").stdout
    return {
        "served": (served, re.findall(r"packets (\d+)", refused)),
        "workload": report(world, world.middle, OUT | LOCAL),
        "use": report(world, world.middle, legitimate(world, ("127.0.0.1", 3128))),
    }


@pytest.fixture(scope="module")
def routed(world, gateway, unruled):
    set_rules(world, gateway)
    asked = {"resolver": ("ask", RESOLVER), "resolver-tcp": ("ask_tcp", RESOLVER)}
    return {
        "workload": report(world, world.client, OUT),
        "use": report(world, world.client, legitimate(world, ("10.9.0.1", 3129))),
        "asked": report(world, world.client, asked),
    }


# What must not get out


@pytest.mark.parametrize("shape", ["redirected", "closed", "routed"])
@pytest.mark.parametrize("row", OUT)
def test_a_way_out_is_shut(request, unruled, shape, row):
    """Sidecar with a transparent door, sidecar with the explicit one only, gateway."""
    kind, target, *_ = OUT[row]
    free = unruled["client" if shape == "routed" else "workload"]
    if kind not in SILENT:
        assert free.answers[row], "without the rules it must lead out"
    if not target.startswith("224.") or shape != "routed":  # no router passes these on
        assert free.arrived(target), "without the rules it must lead out"
    ruled = request.getfixturevalue(shape)["workload"]
    assert ruled.answers[row] in {"", "403", "alert 49"}  # of the door, which came instead
    assert ruled.arrived(target) == []


@pytest.mark.parametrize("shape", ["redirected", "closed", "routed"])
def test_nothing_else_was_seen_outside(request, shape):
    """Whatever the battery has no row for."""
    for what in ("workload", "use"):
        assert request.getfixturevalue(shape)[what].strays == []


@pytest.mark.parametrize("row", RAW)
def test_raw_sockets_pass_no_rule(unruled, redirected, row):
    assert unruled["raw"].arrived(RAW[row][1]), "without the rules it must lead out"
    assert redirected["raw"].arrived(RAW[row][1]) == []
    assert redirected["raw"].strays == []


def test_root_without_being_the_proxy_is_nobody(redirected):
    """Root passes because of capabilities, not of its id."""
    assert redirected["root"].strays == []


def test_other_local_services_are_closed(unruled, redirected, closed):
    """A resolver or relay that listens on loopback is a way out."""
    assert unruled["workload"].answers["local"]
    assert redirected["workload"].answers["local"] == closed["workload"].answers["local"] == ""


def test_a_source_port_that_the_proxy_used_inherits_nothing(redirected):
    """The kernel still knows the proxy's connection; its mark is not for those who take over its port."""
    assert redirected["workload"].answers["port"] == ""
    assert redirected["workload"].arrived("93.184.216.25") == []


def test_redirected_ways_are_on_record(sidecar, redirected):
    """A packet filter only counts; the door says who tried what."""
    lines = (sidecar.parent / "decisions.jsonl").read_text().splitlines()
    denied = {
        (r["host"], r["port"], r["reason"]) for r in map(json.loads, lines) if r.get("verdict") == "deny"
    }
    assert ("evil.test", 443, "host_not_allowed") in denied
    assert {("93.184.216.8", 22), ("93.184.216.16", 993)} <= {(host, port) for host, port, _ in denied}


# What edgeguard settles alone


@pytest.mark.parametrize("shape", ["redirected", "closed", "routed"])
@pytest.mark.parametrize(
    ("row", "asked"), [("awf-A1", "refused"), ("awf-A5", "port")], ids=["awf-A1", "awf-A5"]
)
def test_the_proxy_refuses(request, shape, row, asked):
    """CONNECT to what is not approved, and to an approved host's other port."""
    use = request.getfixturevalue(shape)["use"]
    assert use.answers[asked] == "403"
    assert use.arrived(EVIL) == []
    assert [packet for packet in use.arrived(APPROVED) if packet[2] == 22] == []


# What must work


@pytest.mark.parametrize("shape", ["redirected", "closed", "routed"])
def test_awf_M1_the_explicit_door_works(request, shape):
    assert request.getfixturevalue(shape)["use"].answers["explicit"] == "200 outside"


@pytest.mark.parametrize("shape", ["redirected", "routed"])
@pytest.mark.parametrize("asked", ["https", "http"])
def test_awf_M4_clients_that_know_of_no_proxy_work(request, shape, asked):
    assert request.getfixturevalue(shape)["use"].answers[asked] == "200 outside"


@pytest.mark.parametrize("shape", ["redirected", "closed", "routed"])
def test_awf_A3_an_approved_host_is_not_reached_beside_the_proxy(request, sidecar, gateway, shape):
    """Redirected, it is judged like the rest and on record; otherwise it is refused."""
    use = request.getfixturevalue(shape)["use"]
    if shape == "closed":
        assert use.answers["bypass"] == ""
        assert use.arrived(BYPASS) == []
        return
    assert use.answers["bypass"] == "200 outside"
    file = gateway if shape == "routed" else sidecar
    lines = (file.parent / "decisions.jsonl").read_text().splitlines()
    allowed = [
        r for r in map(json.loads, lines) if r.get("verdict") == "allow" and r["host"] == "bypass.test"
    ]
    assert allowed


def test_no_last_packet_of_the_proxy_is_refused(closed):
    """The kernel sends it when the socket is closed, and belongs to no user any more."""
    assert closed["served"] == (["200 outside"] * 3, ["0", "0"])


# Nobody relays through a sidecar that others trust


def relays(world):
    """What a neighbour of the sidecar can try."""
    door = ("10.9.0.1", 3128)
    return {
        "door": ("connect", *door, "approved.test:443", str(world.authority)),
        "redirect": ("tls", "10.9.0.1", 3130, "approved.test"),
        "admin": ("http", "10.9.0.1", 9901, "localhost"),
        "route": ("https", APPROVED, 443, "approved.test", str(world.authority)),
    }


@pytest.mark.parametrize("row", ["awf-M2-door", "awf-M2-redirect", "awf-M2-admin", "awf-M3-route"])
def test_a_neighbour_gets_nothing(redirected, row):
    """By its doors, by its admin address, or with the sidecar as a router."""
    assert redirected["neighbour"].answers[row.rpartition("-")[2]] == ""
    assert redirected["neighbour"].packets == []


@pytest.mark.parametrize(("row", "exposed"), [("awf-M2", True)], ids=["awf-M2-exposed"])
def test_a_door_on_every_address_is_for_the_workload_only(world, sidecar, gateway, row, exposed):
    """A sidecar whose door was opened to the network by mistake."""
    rows = {"door": ("connect", "10.9.0.1", 3129, "approved.test:443", str(world.authority))}
    world.middle.run("nft", "flush", "ruleset")
    assert world.client.attempts(rows)["door"] == "200 outside"
    set_rules(world, sidecar)
    assert world.client.attempts(rows, patience_s=1.0)["door"] == ""


@pytest.mark.parametrize("target", ["127.0.0.1:3128", "127.0.0.1:9901", "10.8.0.1:3128", "localhost:3128"])
def test_awf_M5_the_door_relays_to_no_door(world, sidecar, redirected, target):
    """The workload asks the proxy for the proxy."""
    assert world.middle.attempts({"loop": ("connect", "127.0.0.1", 3128, target)})["loop"] == "403"


def test_awf_M6_attack_C17_the_admin_address_informs_and_relays_nothing(world, sidecar, redirected):
    answers = world.middle.attempts(
        {
            "status": ("http", "127.0.0.1", 9901, "localhost"),
            "relay": ("connect", "127.0.0.1", 9901, "approved.test:443", str(world.authority)),
        }
    )
    assert "outside" not in answers["status"] + answers["relay"]
    assert answers["relay"] != "200"


# DNS, where it is let through


@pytest.fixture(scope="module")
def asking(world, sidecar, unruled):
    file = sidecar.with_name("asking.toml")
    file.write_text(sidecar.read_text() + '[netfilter]\ndns = "resolver"\n')
    set_rules(world, file)
    rows = {
        "udp": ("ask", RESOLVER),
        "tcp": ("ask_tcp", RESOLVER),
        "other": ("ask", DNS),
        "port": ("udp", RESOLVER, 443),
    }
    return report(world, world.middle, rows | ROUTED, capabilities="net_raw")


def test_the_listed_resolver_answers_and_no_other(asking, routed):
    """Over TCP, too. This is a way for data, and the documents say so."""
    assert (asking.answers["udp"], asking.answers["tcp"]) == ("dns", "dns")
    assert (asking.answers["other"], asking.answers["port"]) == ("", "")
    assert asking.arrived(DNS) == []
    assert {packet[2] for packet in asking.arrived(RESOLVER)} == {53}
    assert list(routed["asked"].answers.values()) == ["dns", "dns"]


def test_a_source_route_through_the_resolver_is_refused(unruled, asking):
    """The destination that counts would stand in an option."""
    assert any(options for _, _, _, options, _ in unruled["raw"].arrived(RESOLVER))
    assert not any(options for _, _, _, options, _ in asking.arrived(RESOLVER))


# What is listed


def test_a_listed_port_lets_in_and_not_out(world, sidecar, unruled):
    """The workload's own service and a service beside it; neither is a way out."""
    for port in (8080, 8082):
        files = ("-m", "http.server", str(port), "--directory", str(world.folder))
        world.middle.start(*files, user=WORKLOAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    coming = {str(port): ("http", "10.9.0.1", port) for port in (8080, 8082)}
    world.middle.run("nft", "flush", "ruleset")
    wait_until(lambda: set(world.client.attempts(coming).values()) == {"200"}, "both services")
    going = {"out": ("from_port", "93.184.216.4", 443, 8443)} | LOCAL
    assert world.middle.attempts(going) == {"out": "tls", "local": "200"}
    file = sidecar.with_name("listed.toml")
    listed = '[netfilter]\ninbound_ports = ["8080", "8443"]\nlocal_ports = ["8181"]\n'
    file.write_text(sidecar.read_text().replace('transparent = "127.0.0.1:3130"\n', "") + listed)
    set_rules(world, file)
    assert world.client.attempts(coming, patience_s=1.0) == {"8080": "200", "8082": ""}
    with world.watched() as packets:
        assert world.middle.attempts(going) == {"out": "", "local": "200"}
    assert packets == []


# Connections from before


@pytest.mark.parametrize("tracked", [False, True], ids=["never-seen", "known-to-the-kernel"])
@pytest.mark.parametrize("shape", ["sidecar", "gateway", "none"])
def test_connections_from_before_the_rules_end(request, world, shape, tracked):
    """Even if the server's next packet looks to the kernel like the beginning of something."""
    space = world.client if shape == "gateway" else world.middle
    world.middle.run("nft", "flush", "ruleset")
    if tracked:
        world.middle.run(
            "nft",
            "-f",
            "-",
            text="table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }",
        )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = space.start(str(HERE / "inside.py"), user=WORKLOAD, **pipes)
    rows = {
        "tcp": ("hold", "tcp", "93.184.216.30", 7777),
        "udp": ("hold", "udp", "93.184.216.31", 7778),
    }
    process.stdin.write(json.dumps(rows) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == "held"
    if shape != "none":
        set_rules(world, request.getfixturevalue(shape))
    with world.watched() as packets:
        process.stdin.write("\n")
        process.stdin.flush()
        answers = json.loads(process.stdout.readline())
    payload = [p for p in packets if p[0] in {"93.184.216.30", "93.184.216.31"} and p[4] > 0]
    assert (payload == []) == (shape != "none")
    assert (answers["udp"] == "") == (shape != "none")
