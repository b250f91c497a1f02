"""The walk-through of docs/age-gates.md: every command is run, in one shell, and prints what stands there."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.kit import plain_environment
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "age-gates.md"
PORTS = ("8470", "8080", "8443", "9443", "9901", "9902")
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(text):
    """(file or None, text) of every block: files are written, consoles are run."""
    for kind, name, body in BLOCK.findall(text):
        if name:
            yield name, body
        elif kind == "console":
            yield None, body


def commands(text):
    """(command, what it prints) of every console, with a file's writing as a command without a word."""
    for name, body in steps(text):
        if name:
            yield f"cat > {name} <<'END OF FILE'\n{body}END OF FILE", ""
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


@pytest.mark.long
@pytest.mark.timeout(240)
def test_every_command_of_the_page_does_what_it_says(tmp_path, needs):
    needs("openssl"), needs("curl")
    text = PAGE.read_text()
    for port in PORTS:
        text = text.replace(port, str(free_port()))
    listed = list(commands(text))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/edgeguard").write_text(f'#!/bin/sh\nexec {sys.executable} -m edgeguard "$@"\n')
    (tmp_path / "bin/edgeguard").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    script = "".join(f"echo '@@{i}'\n{command}\n" for i, (command, _) in enumerate(listed)) + "echo '@@end'\n"
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**plain_environment(), "PATH": path, "EDGEGUARD": str(ROOT), "PYTHONWARNINGS": "ignore"}
    (tmp_path / "script").write_text(script)
    with (tmp_path / "output").open("wb") as log, (tmp_path / "script").open("rb") as read:
        shell = subprocess.Popen(
            ["bash", "-s"], cwd=work, env=environ, stdin=read, stdout=log, stderr=log, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            shell.wait(200)
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    output = (tmp_path / "output").read_text()
    printed = re.split(r"^@@(?:\d+|end)\n", output, flags=re.MULTILINE)[1:]
    for (command, expected), got in zip(listed, printed, strict=False):
        said = "\n".join(line.rstrip() for line in got.splitlines())
        assert said == expected.strip(), f"$ {command}\n{said}"
    assert len(printed) == len(listed) + 1, f"it did not end: $ {listed[len(printed) - 1][0]}"
