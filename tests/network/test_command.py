"""`edgeguard netfilter` itself: setting, removing, verifying."""

import json
import subprocess

import pytest

from edgeguard.netfilter.plan import plan
from edgeguard.netfilter.ruleset import render
from edgeguard.settings import load_settings
from tests.network.kit import BUNDLES, WORKLOAD

pytestmark = [pytest.mark.network, pytest.mark.timeout(180)]

PROBES = {
    "https": "93.184.216.2:443",
    "address": "93.184.216.4:443",
    "http": "93.184.216.4:80",
    "dns-udp": "9.9.9.9:53",
    "dns-tcp": "9.9.9.9:53",
    "dot": "93.184.216.13:853",
    "private": "10.1.2.3:443",
    "ssh": "93.184.216.9:22",
    "port": "93.184.216.16:8443",
    "quic": "93.184.216.10:443",
    "icmp": "93.184.216.11",
    "icmp6": "2606:4700::13",
    "ipv6": "[2606:4700::12]:443",
}


@pytest.fixture(scope="module")
def file(world):
    """A door that answers no CONNECT, since no node runs here, and none to redirect to."""
    listen = f'address = "127.0.0.1:{BUNDLES}"\ntransparent = "127.0.0.1:3130"'
    return world.configure("node", listen=listen, identity='static = "agent"')


@pytest.fixture
def bare(world):
    world.middle.run("nft", "flush", "ruleset")


def listed(world):
    return world.middle.run("nft", "--stateless", "list", "ruleset").stdout


def verified(world, file, *words, probes=PROBES):
    """Exit code and rows of `--verify`."""
    given = [word for name, target in probes.items() for word in ("--probe", f"{name}={target}")]
    command = ("netfilter", "--verify", "--json", "--timeout", "0.7", "--config", str(file))
    done = world.edgeguard(*command, *given, *words, check=False)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert document["gets_out"] == any(row["verdict"] == "ALLOWED" for row in document["rows"])
    return done.returncode, {row["way"]: row for row in document["rows"]}, done.stdout


def verdicts(rows):
    return {name: row["verdict"] for name, row in rows.items()}


def test_applying_twice_is_applying_once_and_removing_leaves_nothing(world, file, bare):
    world.middle.run("nft", "add", "table", "inet", "somebody_else")
    for _ in range(2):
        done = world.edgeguard("netfilter", "--apply", "--config", str(file))
        assert "in force: sidecar" in done.stderr
    once = listed(world)
    assert once.count("hook output priority filter") == 1
    world.edgeguard("netfilter", "--remove", "--config", str(file))
    assert listed(world).split() == ["table", "inet", "somebody_else", "{", "}"]


def test_attack_K10_without_the_capability_it_ends_with_an_error(world, file, bare):
    """It never goes on without the rules, and never takes older ones away."""
    world.middle.run("nft", "add", "table", "inet", "edgeguard")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = ("-m", "edgeguard", "netfilter", "--apply", "--config", str(file))
    process = world.middle.start(*words, user=WORKLOAD, **pipes)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "takes CAP_NET_ADMIN in this network namespace: nothing was changed" in said
    assert listed(world).split() == ["table", "inet", "edgeguard", "{", "}"]


def test_verify_finds_every_way_and_then_none(world, file, bare):
    code, rows, text = verified(world, file, "--user", str(WORKLOAD))
    own = {"connect": "BLOCKED", "packet-socket": "BLOCKED", "net-admin": "BLOCKED", "proxy-user": "BLOCKED"}
    assert code == 1
    assert verdicts(rows) == dict.fromkeys(rows, "ALLOWED") | own
    (file.parent / "before.json").write_text(text)
    world.middle.run("nft", "-f", "-", text=render(plan(load_settings(file, {}))))
    # A target that never answers is no success, and neither is one that was not given.
    silent = PROBES | {"https": "93.184.216.250:443"}
    del silent["ssh"]
    code, rows, _ = verified(world, file, "--user", str(WORKLOAD), probes=silent)
    assert verdicts(rows) == dict.fromkeys(rows, "BLOCKED") | {"https": "UNKNOWN", "ssh": "UNKNOWN"}
    assert code == 2
    # Root can become the proxy, open packet sockets, and take the rules away.
    code, rows, _ = verified(world, file)
    assert {n for n, v in verdicts(rows).items() if v == "ALLOWED"} == {
        "packet-socket",
        "net-admin",
        "proxy-user",
    }
    assert code == 1
    # Who cannot be the proxy knows from before that the targets answer.
    given = [word for name, target in PROBES.items() for word in ("--probe", f"{name}={target}")]
    more = ("--before", str(file.parent / "before.json"))
    words = ("-m", "edgeguard", "netfilter", "--verify", "--json", "--timeout", "0.7", "--config", str(file))
    process = world.middle.start(*words, *given, *more, user=WORKLOAD, stdout=subprocess.PIPE)
    rows = json.loads(process.communicate(timeout=60)[0])["rows"]
    assert {row["verdict"] for row in rows} == {"BLOCKED"}
    assert process.returncode == 0
