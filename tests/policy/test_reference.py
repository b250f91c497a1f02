"""Every example of the policy reference is loaded, and every question in it is asked."""

import re
from pathlib import Path

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.model import Module
from edgeguard.policy.reasons import Reason
from edgeguard.policy.schema import policy_schema
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables
from edgeguard.policy.testing import load_cases, run_case

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "policy-reference.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
PAIRS = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))


def cases():
    for policy, questions in PAIRS:
        name = re.search(r"module: (\S+)", policy).group(1)
        for case in load_cases({"reference": questions.encode()}):
            yield pytest.param(policy, case, id=f"{name}-{case.name}")


@pytest.mark.parametrize(("policy", "case"), list(cases()))
def test_example(policy, case):
    engine = Engine(Tables.load(compile_policy(load_sources({"reference.yaml": policy.encode()}))))
    result = run_case(engine, case, 1_780_000_000)
    assert result.passed, result.problems


def test_the_ladder_is_listed_in_order():
    listed = re.findall(
        r"`([a-z_]+)`", TEXT.split("the first of this list that applies:")[1].split("`near`")[0]
    )
    assert listed == [reason.value for reason in Reason]


def test_the_published_schema_is_current():
    assert (DOCS / "policy.schema.json").read_text() == policy_schema()


def test_every_section_of_a_module_is_mentioned():
    for name in Module.model_fields:
        if name not in {"edgeguard", "module", "owner", "description", "salt", "mode"}:
            assert f"{name}:" in TEXT or f"`{name}`" in TEXT, name
