"""The folder that the server serves works as well behind nginx, which knows nothing of long polling."""

import socket
import subprocess
import time
from dataclasses import replace

import pytest

from tests.ports import free_port
from tests.sync.signing import lay_out, place, policy_for
from tests.sync.test_agent import begin, release, watcher

__all__ = ["begin", "watcher"]

CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log combined;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; default_type application/octet-stream; }}
}}
"""


class Nginx:
    def __init__(self, program, folder, root):
        import os

        self.port = free_port()
        self.folder = folder
        folder.mkdir()
        config = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(CONFIG.format(folder=folder, root=root, port=self.port, user=user))
        self.process = subprocess.Popen(
            [program, "-e", str(folder / "error.log"), "-c", str(config)], stderr=subprocess.PIPE
        )
        self.url = f"http://127.0.0.1:{self.port}/"
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def answers(self, path):
        lines = (self.folder / "access.log").read_text().splitlines()
        return [int(line.split('"')[2].split()[0]) for line in lines if line.split()[6] == path]

    def stop(self):
        self.process.terminate()
        self.process.communicate(timeout=10)


@pytest.fixture
def nginx(needs, tmp_path, served):
    server = Nginx(needs("nginx"), tmp_path / "nginx", served)
    yield server
    server.stop()


def test_nginx_serves_as_well_as_the_server(nginx, served, begin, watcher, authority):
    agent = begin(nginx.url, long_poll_s=20.0, poll_s=0.3)
    watcher.until(lambda: watcher.version == 1)
    # An answer within two seconds of the change is not trusted to have a validator of its own.
    watcher.until(lambda: 304 in nginx.answers("/test/head"))
    assert agent.status()["servers"] == [{"url": nginx.url, "last": "ok"}]
    before = len(nginx.answers("/test/head"))
    began = time.monotonic()
    time.sleep(1.5)
    polls = len(nginx.answers("/test/head")) - before
    assert 1 <= polls <= (time.monotonic() - began) / (0.3 * 0.8) + 2  # it polls, and does not spin
    release(served, authority, 2)
    watcher.until(lambda: watcher.version == 2)
    assert (200 in nginx.answers("/test/head"), agent.status()["ladder"]) == (True, "fresh")
    rotated = replace(authority, head_keys=("head-b",))
    place(served / "root" / "2.root", rotated.root(2))
    bundle = replace(authority, policy=policy_for("v3.example")).bundle(3)
    lay_out(served, authority.env, blobs=[bundle])
    place(served / "test" / "head", rotated.head(3, bundle, 3))
    watcher.until(lambda: watcher.version == 3)
    assert agent.status()["root"]["version"] == 2


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-C16-nginx")])
def test_two_heads_of_one_length_in_one_second(nginx, served, begin, watcher, authority, case):
    """nginx makes its validator of the second and the length, so both heads have the same one."""
    import os

    begin(nginx.url, poll_s=0.1)
    watcher.until(lambda: watcher.version == 1)
    head = served / "test" / "head"
    second = time.time()
    for version in (2, 3, 4):
        before = len(nginx.answers("/test/head"))
        release(served, authority, version)
        os.utime(head, (second, second))
        watcher.until(lambda before=before: len(nginx.answers("/test/head")) > before, timeout=5)
    watcher.until(lambda: watcher.version == 4, timeout=5)


def test_commands_work_against_nginx(nginx, authority, tmp_path):
    import asyncio

    from edgeguard.sync.profile import Profile, run_refresh

    asyncio.run(Profile(authority.env).keep(tmp_path / "cli", authority.root()))
    for _ in range(2):
        ok, report = asyncio.run(run_refresh(tmp_path / "cli", [nginx.url]))
        assert (ok, report["ladder"]) == (True, "fresh")
