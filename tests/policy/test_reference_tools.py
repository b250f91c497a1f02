"""Every command of the policy reference is run on the policy that stands beside it; what it prints is what stands there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeguard.cli.policy import app

TEXT = (Path(__file__).parents[2] / "docs" / "policy-reference.md").read_text()
TOOLS = TEXT[TEXT.index("## The tools") :]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", TOOLS, re.DOTALL)


COMMANDS = [block.partition("\n")[::2] for block in blocks("console")]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy, cases = blocks("yaml")
    (patch,) = blocks("diff")
    changed = policy
    for old, new in re.findall(r"^-(.*)\n\+(.*)$", patch, re.MULTILINE):
        assert old in changed
        changed = changed.replace(old, new)
    broken = policy.replace('paths: ["/v1/charges"]', 'path: ["/v1/charges"]')
    for name, text in (("shop", policy), ("changed", changed), ("broken", broken)):
        Path(name, "tests").mkdir(parents=True)
        Path(name, "shop.yaml").write_text(text)
        Path(name, "tests", "cases.yaml").write_text(cases)
    Path("decisions.jsonl").write_text(blocks("json")[0])


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("command", "printed"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_command(command, printed):
    result = CliRunner().invoke(app, shlex.split(command.removeprefix("$ edgeguard policy ")))
    said = "\n".join(line.rstrip() for line in result.output.splitlines())
    assert said == printed.rstrip("\n")
