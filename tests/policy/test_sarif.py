"""SARIF: the shape that code hosts read."""

import re
from pathlib import Path

from edgeguard.policy import analysis
from edgeguard.policy.sarif import RULES, Problem, sarif
from edgeguard.policy.source import PolicyError


def test_shape():
    problems = [
        Problem(
            PolicyError("p/m.yaml", 5, 9, "a.to", "too broad", "name the owner"), "error", "public-suffix"
        ),
        Problem(PolicyError("policy", 0, 0, "", "no files"), "warning", "invalid"),
    ]
    log = sarif(problems, "1.2.3")
    (run,) = log["runs"]
    assert (log["version"], run["tool"]["driver"]["version"]) == ("2.1.0", "1.2.3")
    first, second = run["results"]
    assert first == {
        "ruleId": "public-suffix",
        "ruleIndex": first["ruleIndex"],
        "level": "error",
        "message": {"text": "a.to: too broad (name the owner)"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "p/m.yaml"},
                    "region": {"startLine": 5, "startColumn": 9},
                }
            }
        ],
    }
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == "public-suffix"
    assert "region" not in second["locations"][0]["physicalLocation"]


def test_every_code_of_the_linter_is_described():
    text = Path(analysis.__file__).read_text()
    used = set(re.findall(r'"([a-z]+-[a-z-]+)"', text)) | {
        "conflict",
        "unreachable",
        "shadowed",
        "redundant",
        "invalid",
    }
    assert used == set(RULES)
