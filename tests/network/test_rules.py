"""The rules as text: what stands in them, and which configurations make none. Needs no root."""

import json
import os

import pytest
from typer import Exit
from typer.testing import CliRunner

from edgeguard.cli.app import app
from edgeguard.cli.netfilter import _show
from edgeguard.netfilter.plan import PlanError, plan
from edgeguard.netfilter.ruleset import render
from edgeguard.netfilter.verify import Row
from edgeguard.netfilter.ways import become
from edgeguard.settings import Settings, SettingsError, load_settings


def rules(**sections):
    return render(plan(Settings.model_validate_json(json.dumps({"environment": "prod", **sections}))))


def chain(text, name):
    return text.partition(f"  chain {name} {{\n")[2].partition("  }\n")[0]


def test_one_transaction_replaces_the_whole_table():
    text = rules()
    assert text.startswith("table inet edgeguard\ndelete table inet edgeguard\ntable inet edgeguard {\n")


@pytest.mark.parametrize("shape", ["sidecar", "gateway"])
def test_what_no_rule_names_is_dropped(shape):
    text = rules(netfilter={"shape": shape})
    hooks = [line for line in text.splitlines() if "type filter hook" in line]
    assert len(hooks) == (3 if shape == "sidecar" else 1)
    assert all(line.endswith("policy drop;") for line in hooks)


def test_nothing_passes_for_being_established():
    """It would keep what was open before the rules."""
    for shape in ("sidecar", "gateway"):
        text = rules(netfilter={"shape": shape, "inbound_ports": ["80"]})
        assert "established" not in text.replace(chain(text, "input"), "")


def test_the_proxy_is_known_by_its_user():
    text = rules(listen={"transparent": "127.0.0.1:3130"}, netfilter={"user": 4711})
    assert "meta skuid 4711 counter accept" in chain(text, "output")
    assert chain(text, "redirected").splitlines()[1].strip() == "meta skuid 4711 return"


def test_metadata_is_refused_and_never_redirected():
    to = chain(rules(listen={"transparent": "127.0.0.1:3130"}), "redirected")
    assert to.index("169.254.0.0/16") < to.index("dnat")
    assert to.index("fd00:ec2::254") < to.index("dnat")


@pytest.mark.parametrize(
    ("door", "rule"),
    [
        ("127.0.0.1:3130", "meta nfproto ipv4 tcp dport { 1-65535 } counter dnat ip to 127.0.0.1:3130"),
        ("[::1]:3130", "meta nfproto ipv6 tcp dport { 1-65535 } counter dnat ip6 to [::1]:3130"),
        ("0.0.0.0:3130", "meta nfproto ipv4 tcp dport { 1-65535 } counter redirect to :3130"),
    ],
)
def test_the_door_takes_the_family_it_listens_in(door, rule):
    assert rule in rules(listen={"transparent": door})


def test_without_a_transparent_door_nothing_is_redirected():
    assert "dnat" not in rules()
    assert "redirect" not in rules()


def test_local_services_are_listed():
    workload = chain(rules(netfilter={"local_ports": ["5432", "9000-9010"]}), "workload")
    assert "th dport { 5432, 9000-9010 }" in workload
    assert "tcp dport 3128" in workload
    assert "tcp dport 9901" in workload


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"listen": {"address": "127.0.0.1:0"}}, "[listen] address = '127.0.0.1:0': a rule needs a port"),
        (
            {"listen": {"transparent": "127.0.0.1:3130"}, "netfilter": {"shape": "gateway"}},
            "does not arrive on loopback",
        ),
        ({"netfilter": {"dns": "resolver"}}, "there are none"),
        (
            {
                "netfilter": {"dns": "resolver"},
                "resolver": {"mode": "servers", "servers": ["169.254.169.254:80"]},
            },
            "169.254.169.254:80 is a metadata service",
        ),
    ],
)
def test_a_configuration_without_rules_says_why(sections, said):
    with pytest.raises(PlanError) as caught:
        rules(**sections)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("user = 0", "greater than 0"),
        ('local_ports = ["80-70"]', "'80-70' is no port; write one like"),
        ('local_ports = ["http"]', "'http' is no port"),
        ('local_ports = ["80; accept"]', "is no port"),
        ('inbound_ports = ["80", "70-90"]', "70-90 and 80 overlap; join them"),
        ("redirect_ports = [80]", "must be a string"),
    ],
)
def test_a_key_that_cannot_stand_in_a_rule_is_refused(tmp_path, line, said):
    file = tmp_path / "edgeguard.toml"
    file.write_text(f'environment = "prod"\n[netfilter]\n{line}\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert said in str(caught.value)
    assert caught.value.problems[0].line == 3


def test_the_shipped_files_print_their_rules():
    """`--print` needs no root, and changes nothing."""
    for name, hook in (("sidecar", "output"), ("gateway", "prerouting")):
        done = CliRunner().invoke(app, ["netfilter", "--print", "--config", f"config/{name}.toml"])
        assert done.exit_code == 0
        assert f"type nat hook {hook}" in done.stdout


def test_one_thing_at_a_time():
    done = CliRunner().invoke(app, ["netfilter", "--print", "--apply", "--config", "config/sidecar.toml"])
    assert done.exit_code == 2
    assert "exactly one of" in done.stderr


@pytest.mark.parametrize(
    ("probe", "said"),
    [("nothing=1.2.3.4:5", "is no probe; write NAME=TARGET"), ("ssh=host:22", "not an IP address")],
)
def test_verify_says_what_is_no_probe(probe, said):
    done = CliRunner().invoke(
        app, ["netfilter", "--verify", "--probe", probe, "--config", "config/sidecar.toml"]
    )
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_verify_knows_a_workload_that_runs_as_the_proxy():
    assert become(os.geteuid()).outcome == "open"


def test_verify_prints_addresses_in_brackets_whole(capsys):
    with pytest.raises(Exit) as ended:
        _show([Row("imds6", "metadata", "[fd00:ec2::254]:80", "UNKNOWN", "no answer")], as_json=False)
    assert "[fd00:ec2::254]:80" in capsys.readouterr().out
    assert ended.value.exit_code == 2
