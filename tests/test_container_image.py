"""The image's install steps, run without a container engine.

Each RUN of the Dockerfile is an exec-form argument list, so it can be carried out here with its folders
moved into a temporary one. What this cannot show is the engine's part: layers, users, a read-only root.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    return re.findall(rf"^\s*(?:HEALTHCHECK .* )?{name} (.+)$", DOCKERFILE, re.MULTILINE)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_install_steps_give_a_working_command(tmp_path: Path) -> None:
    source, prefix = tmp_path / "src", tmp_path / "opt"
    prefix.mkdir()
    source.mkdir()
    # COPY, by way of the same list that .dockerignore lets through.
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            origin = ROOT / line[1:]
            if origin.is_dir():
                shutil.copytree(origin, source / line[1:], ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(origin, source / line[1:])
    steps = [json.loads(step) for step in instructions("RUN")]
    assert len(steps) >= 6
    for step in steps:
        if step[0] in {"install", "apt-get"}:
            continue  # owned by 65532, which only root may give away; and packages of the system: by their text
        command = [word.replace("/opt/", f"{prefix}/").replace("/src", str(source)) for word in step]
        if command[0] == "python":
            command[0] = sys.executable
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{step}: {done.stdout}\n{done.stderr}"
    binary = prefix / "edgeguard/bin/edgeguard"
    version = subprocess.run(
        [binary, "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin"},
    )
    assert version.stdout.startswith("edgeguard ")
    # The runtime environment has what the server needs and none of the tools that test it.
    listed = subprocess.run(
        [prefix / "edgeguard/bin/python", "-c", "import starlette, uvicorn, mitmproxy; import pytest"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'pytest'" in listed.stderr


def test_final_stage_is_unprivileged_and_shell_free() -> None:
    final = DOCKERFILE.rpartition("FROM ")[2]
    assert "RUN" not in final, "the final stage only copies"
    assert re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["edgeguard"]
    assert re.search(r"^HEALTHCHECK .* CMD \[", final, re.MULTILINE)
    for step in instructions("RUN") + instructions("CMD"):
        assert step.startswith("["), f"not in exec form: {step}"


def test_the_stage_of_the_packet_filter_has_nft() -> None:
    stage = DOCKERFILE.partition(" AS netfilter\n")[2].partition("\nFROM ")[0]
    assert '"nftables"]' in stage
    assert "USER" not in stage, "setting rules takes root and CAP_NET_ADMIN"


def test_state_belongs_to_the_user_that_runs() -> None:
    user = re.search(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert f"--chown={user[1]} /opt/state /var/lib/edgeguard" in DOCKERFILE
