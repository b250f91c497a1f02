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
