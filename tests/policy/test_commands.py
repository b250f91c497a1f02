"""`edgeguard policy`, and the pytest plugin as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeguard.cli.policy import app

BUNDLES = Path(__file__).parents[2] / "bundles"
SAMPLES = sorted(p.name for p in BUNDLES.iterdir() if (p / "tests").is_dir())


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_pass_every_check(name):
    result = run("check", BUNDLES / name, "--strict")
    assert result.exit_code == 0, result.output
    assert run("test", BUNDLES / name).exit_code == 0


def test_check_says_where(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "edgeguard: 1\nmodule: m\nowner: o\nrules:\n  - {id: a, effect: allow, to: ['*.co.uk']}\n"
    )
    result = run("check", tmp_path, "--json")
    assert result.exit_code == 1
    assert "m.yaml:5:" in json.loads(result.stdout)["errors"][0]


def test_a_failing_case(tmp_path):
    (tmp_path / "m.yaml").write_text("edgeguard: 1\nmodule: m\nowner: o\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.yaml").write_text(
        "edgeguard_tests: 1\ncases:\n  - name: x\n    request: {host: a.example}\n    expect: {allow: true}\n"
    )
    result = run("test", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["cases"][0]["problems"] == ["allow: expected True, got False"]


def write(folder, text, tests=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.yaml").write_text(f"edgeguard: 1\nmodule: m\nowner: o\n{text}")
    if tests is not None:
        (folder / "tests").mkdir()
        (folder / "tests" / "t.yaml").write_text(f"edgeguard_tests: 1\ncases:\n{tests}")
    return folder


def test_check_tells_everything_in_every_format(tmp_path):
    write(
        tmp_path,
        "rules:\n  - {id: a, effect: allow, to: ['*.co.uk'], colour: red}\n  - {id: b, effect: perhaps, to: [x.example]}\n",
    )
    as_text = run("check", tmp_path)
    assert (as_text.exit_code, as_text.output.count("m.yaml:")) == (1, 2)
    found = json.loads(run("check", tmp_path, "--format", "json").stdout)["findings"]
    assert [(f["line"], f["field"], f["code"]) for f in found] == [
        (5, "rules[0].colour", "invalid"),
        (6, "rules[1].effect", "invalid"),
    ]
    assert found[0]["hint"].startswith("known here:")
    as_sarif = json.loads(run("check", tmp_path, "--format", "sarif").stdout)
    (first, _) = as_sarif["runs"][0]["results"]
    assert first["locations"][0]["physicalLocation"]["region"]["startLine"] == 5


def test_coverage_has_a_threshold(tmp_path):
    rules = (
        "rules:\n  - {id: a, effect: allow, to: [a.example]}\n  - {id: b, effect: allow, to: [b.example]}\n"
    )
    write(tmp_path, rules, "  - {name: x, request: {host: a.example}, expect: {allow: true}}\n")
    assert run("test", tmp_path, "--min-coverage", "50").exit_code == 0
    short = run("test", tmp_path, "--min-coverage", "51")
    assert short.exit_code == 1
    assert "m.yaml:6: b" in short.stdout
    data = json.loads(run("test", tmp_path, "--json").stdout)
    assert (data["coverage_percent"], data["uncovered"][0]["rule"]) == (50, "b")


def test_mutants_are_named(tmp_path):
    write(
        tmp_path,
        "rules:\n  - {id: a, effect: allow, to: [a.example], paths: [/x]}\n",
        "  - {name: x, request: {host: a.example, path: /x}, expect: {allow: true}}\n",
    )
    result = run("test", tmp_path, "--mutate")
    assert result.exit_code == 1
    assert "m.yaml:5: a: path /x widened to /x/**" in result.stdout.replace("\n", "")
    data = json.loads(run("test", tmp_path, "--mutate", "--json").stdout)
    assert (data["mutants"], [s["what"] for s in data["survivors"]]) == (3, ["path /x widened to /x/**"])


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_notice_every_mutant(name):
    result = run("test", BUNDLES / name, "--mutate", "--min-coverage", "100")
    assert result.exit_code == 0, result.stdout


@pytest.fixture
def pair(tmp_path):
    old = write(tmp_path / "old", "rules:\n  - {id: a, effect: allow, to: [a.example]}\n")
    new = write(tmp_path / "new", "rules:\n  - {id: a, effect: allow, to: [a.example, b.example]}\n")
    return old, new


@pytest.mark.parametrize(
    ("swap", "fail_on", "code"),
    [(False, "widening", 1), (True, "widening", 0), (True, "change", 1), (False, "never", 0)],
)
def test_diff_ends_as_it_is_told(pair, swap, fail_on, code):
    old, new = pair[::-1] if swap else pair
    result = run("diff", old, new, "--fail-on", fail_on)
    assert result.exit_code == code
    word = "denied" if swap else "allowed"
    assert f"egress   {word}: edgeguard-any → GET https://b.example/" in result.stdout


def test_diff_as_json(pair):
    data = json.loads(run("diff", *pair, "--json").stdout)
    assert (data["verdict"], data["domains"]["egress"], data["domains"]["age"]) == (
        "widening",
        "widening",
        "equal",
    )
    assert data["changes"][0]["example"]["host"] == "b.example"
    assert run("diff", pair[0], pair[0], "--fail-on", "change").exit_code == 0


def test_diff_reads_bundles(pair, tmp_path):
    from edgeguard.bundle.build import build_bundle
    from edgeguard.bundle.documents import Kind, media_type
    from edgeguard.bundle.envelope import seal
    from edgeguard.bundle.keys import SigningKey
    from edgeguard.review import read_sections

    payload = build_bundle(
        read_sections(pair[1]), environment="prod", version=1, issued_at=1, not_before=1, expires_at=100
    )
    bundle = tmp_path / "new.bundle"
    bundle.write_bytes(
        seal(media_type(Kind.BUNDLE, "prod"), payload, [SigningKey.generate(lambda size: bytes(range(size)))])
    )
    assert run("diff", pair[1], bundle, "--fail-on", "change").exit_code == 0
    assert run("diff", pair[0], bundle).exit_code == 1
    bundle.write_bytes(b"nothing")
    assert run("diff", pair[0], bundle).exit_code == 2
    assert run("diff", pair[0], pair[1] / "m.yaml").exit_code == 2
    assert run("diff", pair[0], pair[1] / "nothing").exit_code == 2
    (pair[1] / "m.yaml").write_text("edgeguard: 2\n")
    assert run("diff", pair[0], pair[1]).exit_code == 2


@pytest.fixture
def log(tmp_path):
    from msgspec import structs

    from edgeguard.evidence.lines import encode
    from edgeguard.evidence.record import Record
    from edgeguard.policy.decision import Lane

    common = Record(
        "d-1", 1_780_000_000.0, "request",
        verdict="allow", rule="a", lane=Lane.INSPECT, client="web", identified=True, host="b.example", port=443, protocol="tls",
        method="GET", path="/x",
    )  # fmt: skip
    other = structs.replace(common, id="d-2", path=None)
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(encode(common, 1, "0" * 64) + b"\n" + encode(other, 2, "0" * 64) + b"\n{\n")
    return path


def test_replay(pair, log):
    result = run("replay", log, "--policy", pair[0])
    assert result.exit_code == 1
    assert "line 1, d-1: web → GET https://b.example/x would be refused" in result.stdout
    assert "2 decisions: 0 newly allowed, 2 newly refused, 0 undecided" in result.stdout
    assert run("replay", log, "--policy", pair[1]).exit_code == 0
    data = json.loads(run("replay", log, "--policy", pair[0], "--json").stdout)
    assert (data["newly_refused"], data["unreadable"]) == (2, ["line 3: not JSON"])
    assert run("replay", log.with_suffix(".no"), "--policy", pair[0]).exit_code == 2


def test_explain_takes_a_decision_from_the_log(pair, log):
    result = run("explain", pair[0], "--log", log, "--id", "d-1", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["reason"], data["recorded"]) == (
        1,
        "host_not_allowed",
        "allowed by a at 2026-05-28T20:26:40Z",
    )
    without_path = run("explain", pair[1], "--log", log, "--id", "d-2")
    assert without_path.exit_code == 0
    assert "not in the log: the path" in without_path.stdout
    assert run("explain", pair[1], "--log", log, "--id", "d-9").exit_code == 2
    assert run("explain", pair[1], "--log", log).exit_code == 2
    assert run("explain", pair[1]).exit_code == 2


def test_explain():
    folder = BUNDLES / "payments-sidecar"
    result = run(
        "explain", folder, "https://api.stripe.com/v1/customers", "--client", "payments-api", "--json"
    )
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["reason"], answer["near"]) == (1, "path_not_allowed", "stripe-charges")
    assert "a deny looks inside" in answer["lane_because"]
    assert run("explain", folder, "ledger.internal.example:8443", "--client", "payments-api").exit_code == 0
    assert run("explain", folder, "ftp://x/").exit_code == 2


def test_the_plugin_takes_a_folder(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_it(policy_engine):\n"
        "    q = {'region': 'EU', 'user': {'age_verified': False}, 'resource': 'restricted_content', 'action': 'view'}\n"
        "    assert policy_engine.evaluate(q)['reason'] == 'age_verification_required'\n"
        "def test_cases(policy_engine, policy_case):\n"
        "    assert policy_engine.run(policy_case).passed\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--edgeguard-policy", BUNDLES / "media-age-gate", tmp_path],
        capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_measures_coverage(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_it(policy_engine):\n    policy_engine.evaluate({'host': 'packages.python.example', 'client': 'sandbox', 'path': '/'})\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--edgeguard-policy",
        BUNDLES / "coding-agent",
    ]

    def ask(*options):
        return subprocess.run(
            [*command, *options, tmp_path],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            cwd=tmp_path,
        )

    shown = ask("--edgeguard-coverage")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "1 of 10 statements exercised (10 %)" in shown.stdout
    assert "not exercised: clone, clone-pack" in shown.stdout
    assert ask("--edgeguard-min-coverage", "11").returncode == 1
    assert ask("--edgeguard-min-coverage", "10").returncode == 0
