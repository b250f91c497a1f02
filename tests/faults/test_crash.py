"""Killed at every system call of the persist sequence: never an older policy, never a torn one, never open."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeguard.sync.profile import Profile, run_refresh, run_status
from tests.sync.signing import lay_out, place, policy_for

KILLER = Path(__file__).with_name("killer.py")


def new_version(authority, served):
    bundle = replace(authority, policy=policy_for("two.example")).bundle(2)
    lay_out(served, authority.env, blobs=[bundle])
    place(served / "test" / "head", authority.head(2, bundle, 2))
    return {("fresh", 1, 1), ("fresh", 2, 1)}, ("fresh", 2, 1)


def revoked_key(authority, served):
    """Root 2 retires the key that signed bundle 1; bundle 2 is signed by the new one."""
    rotated = replace(authority, release_keys=("release-b",))
    bundle = rotated.bundle(2)
    lay_out(served, authority.env, roots=[authority.root(), rotated.root(2)], blobs=[bundle])
    place(served / "test" / "head", rotated.head(2, bundle, 2))
    return {("fresh", 1, 1), ("closed", None, 2), ("fresh", 2, 2)}, ("fresh", 2, 2)


def quarantine(authority, served):
    place(served / "test" / "head", authority.head(2, authority.bundle(1), 1, quarantine=1))
    return {("fresh", 1, 1), ("quarantined", 1, 1)}, ("quarantined", 1, 1)


HISTORIES = {"update": new_version, "revocation": revoked_key, "quarantine": quarantine}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.suffix == ".tmp"]


def _of(status):
    bundle = status["bundle"]
    return status["ladder"], bundle["version"] if bundle else None, status["root"]["version"]


async def killed_everywhere(tmp_path, served, running, authority, history, step):
    base = tmp_path / "base"
    await Profile(authority.env).keep(base, authority.root())
    assert (await run_refresh(base, [running.url]))[0]
    states, end = HISTORIES[history](authority, served)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", str(KILLER), str(base), running.url, str(step)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = []
    for line in done.stdout.splitlines():
        name, activated, killed, at = json.loads(line)
        status = await run_status(Path(name))
        assert _of(status) in states, (at, killed, status)
        # What was in force with its marks stored is what a restart finds, or something newer.
        last = activated[-1] if activated else None
        if history == "update" and last:
            assert status["bundle"]["version"] >= last[0], (at, killed)
            assert status["bundle"]["version"] >= status["marks"]["bundle_version"], (at, killed)
        assert (await run_refresh(Path(name), [running.url]))[0] == (end[0] != "closed"), (at, killed)
        after = await run_status(Path(name))
        assert _of(after) == end
        if history != "revocation":  # there the load itself refuses the bundle of the retired key
            assert after["last_refusal"] is None, (at, killed, after)
        assert leftovers(Path(name)) == []
        seen.append((_of(status), killed))
    assert seen[-1] == (end, None)
    assert {state for state, _ in seen} == states
    return len(seen) - 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "history",
    [
        pytest.param("update", id="fault-E1-E3-E4-update"),
        pytest.param("revocation", id="fault-E1-A20-revocation", marks=pytest.mark.long),
        pytest.param("quarantine", id="fault-E1-F20-quarantine", marks=pytest.mark.long),
    ],
)
async def test_killed_at_a_sample_of_the_system_calls(tmp_path, served, start, authority, history):
    assert await killed_everywhere(tmp_path, served, start(served), authority, history, 31) >= 8


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("history", [pytest.param(name, id=f"fault-E1-every-{name}") for name in HISTORIES])
async def test_killed_at_every_system_call(tmp_path, served, start, authority, history):
    assert await killed_everywhere(tmp_path, served, start(served), authority, history, 1) > 200
