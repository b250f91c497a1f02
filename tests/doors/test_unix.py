"""The unix door: who may connect, who that is, and whose file it is."""

import os
import stat
import subprocess
import sys

import pytest

ASK = """\
import os, socket, sys
os.setgid({gid}); os.setuid({uid})
with socket.socket(socket.AF_UNIX) as link:
    link.connect(sys.argv[1])
    link.sendall(f"CONNECT {{sys.argv[2]}} HTTP/1.1\\r\\nHost: {{sys.argv[2]}}\\r\\n\\r\\n".encode())
    print(link.recv(65536).split()[1].decode())
"""


def asked_by(world, uid: int, host: str) -> str:
    """What another user's process is answered."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            ASK.format(uid=uid, gid=uid),
            str(world.socket),
            f"{host}:{world.ports['tls']}",
        ],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout.strip()


@pytest.fixture(autouse=True)
def _running(world):
    world.serve("unix")


def test_the_file_has_the_configured_mode(world):
    status = world.socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_users_are_clients(world):
    """attack-Y03: what the kernel says of a process, and nothing that the process says."""
    folders = [world.socket, *world.socket.parents]
    modes = {
        path: path.stat().st_mode
        for path in folders
        if path.stat().st_uid == os.geteuid() and path != path.parent
    }
    try:
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode) | (0o666 if path == world.socket else 0o011))
        assert asked_by(world, 4321, "agent.test") == "200"
        assert asked_by(world, 4321, "tunnel.test") == "200"
        assert asked_by(world, 1234, "agent.test") == "403"
        assert asked_by(world, 1234, "tunnel.test") == "200"
    finally:
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode))
