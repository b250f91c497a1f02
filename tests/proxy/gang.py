"""A node of several processes for the tests: a supervisor, its workers, and load on it."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from edgeguard.evidence.log import verify_chain
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.model import Module, Policy
from tests.bench.world import ENVIRONMENT, Repository
from tests.e2e.kit import plain_environment, wait_until
from tests.fakes import client_hello
from tests.ports import free_port

PONG = b"the upstream has seen the whole hello"


class Gang:
    """A node with `workers` processes, a repository, and an upstream that echoes what comes after the hello.

    Args:
        folder: Empty.
        stream: The decision log goes to standard output, which is the file `proxy.out`.
    """

    def __init__(self, folder: Path, *, workers: int = 2, drain_s: float = 3, stream: bool = False):
        self.folder, self.count = folder, workers
        self.echo = Echo()
        self.repository = Repository(folder)
        self.proxy, self.admin = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log, self.out = folder / "proxy.log", folder / "proxy.out"
        self.config = folder / "edgeguard.toml"
        self.config.write_text(f"""\
environment = "{ENVIRONMENT}"
workers = {workers}
[listen]
address = "127.0.0.1:{self.proxy}"
[trust]
root = "{self.repository.root}"
state_dir = "state"
[sync]
urls = ["{self.repository.url}"]
poll_s = 0.5
long_poll_s = 0
[identity]
static = "tests"
[evidence]
log = "{"-" if stream else "decisions.jsonl"}"
[admin]
address = "127.0.0.1:{self.admin}"
[resolver]
mode = "static"
[resolver.static]
"tunnel.example" = ["127.0.0.1"]
"later.example" = ["127.0.0.1"]
[bounds]
drain_s = {drain_s}
""")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()
        self.repository.close()
        self.echo.close()

    def publish(self, *hosts):
        """The next version of a policy that allows these hosts."""
        rules = [
            {"id": host.split(".")[0], "effect": "allow", "to": [f"{host}:{self.echo.port}"]}
            | {"resolves_to": ["127.0.0.0/8"], "rationale": "For the tests."}
            for host in hosts
        ]
        module = {"edgeguard": 1, "module": "tests", "owner": "tests", "rules": rules}
        self.repository.publish(compile_policy(Policy(modules=(Module.model_validate(module),))))

    def start(self, *hosts):
        """Publishes the first version and waits until every worker enforces it."""
        self.publish(*(hosts or ("tunnel.example",)))
        self.launch()
        self.settled()
        return self

    def launch(self):
        """Starts the node, and waits for nothing."""
        with self.log.open("ab") as log, self.out.open("ab") as out:
            command = [sys.executable, "-m", "edgeguard", "run", "--config", str(self.config)]
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=log, env=plain_environment()
            )

    def stop(self, how=signal.SIGTERM):
        """Ends the node; its exit code."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        pids = [one["pid"] for one in self.status().get("workers", [])] if process.poll() is None else []
        if process.poll() is None:
            process.send_signal(how)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            for pid in pids:
                wait_until(lambda pid=pid: not alive(pid), "the end of the workers", 20)

    def status(self):
        """What the admin address says; empty while nobody answers."""
        try:
            return json.loads(self.get("/status")[1])
        except (OSError, http.client.HTTPException, ValueError):
            return {}

    def workers(self, state="serving"):
        """Reports of the workers in a state."""
        return [one for one in self.status().get("workers", []) if one["state"] == state]

    def settled(self, count=None):
        """Waits until every worker serves and enforces; their process ids."""
        count = self.count if count is None else count

        end = time.monotonic() + 45
        while time.monotonic() < end:
            status = self.status()
            pids = [one["pid"] for one in status.get("workers", []) if one["state"] == "serving"]
            if status and status["supervision"]["enforcing"] == len(pids) == count:
                return pids
            time.sleep(0.1)
        raise AssertionError(f"no {count} workers that enforce")

    @property
    def supervisor(self):
        return self.process.pid

    def get(self, page):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name):
        """The sum over all labels; 0 if there is none."""
        found = re.findall(rf"(?m)^{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1])
        return sum(map(float, found))

    def logs(self):
        """The decision logs of all workers."""
        return sorted(self.folder.glob("decisions.*.jsonl"))

    def chains(self):
        """Every record of every chain, once its numbers and hashes have been checked."""
        records = []
        for path in self.logs():
            lines = path.read_bytes().splitlines()
            report = verify_chain(lines)
            assert report.ok, (path, report.problems)
            records += [record for line in lines if (record := _read(line)) is not None]
        return records

    def tunnel(self, host="tunnel.example", timeout=10):
        """An open tunnel that has carried bytes both ways."""
        return open_tunnel(self.proxy, host, self.echo.port, timeout)

    @contextlib.contextmanager
    def holding(self, count):
        """So many open tunnels, for the time of a `with` block."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.tunnel()) for _ in range(count)]


def _read(line):
    try:
        return json.loads(line)
    except ValueError:
        return None  # torn by a kill; `verify_chain` has judged it


def open_tunnel(proxy, host, port, timeout=10):
    """Raises OSError when the connection is lost, `Refused` when the proxy says no."""
    client = socket.create_connection(("127.0.0.1", proxy), timeout=timeout)
    try:
        client.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        answer = _until(client, b"\r\n\r\n")
        if b" 200 " not in answer[:16]:
            raise Refused(answer.split(b"\r\n")[0].decode())
        client.sendall(client_hello(host))
        _until(client, PONG)
    except BaseException:
        client.close()
        raise
    return client


def ping(client, text=b"x" * 16):
    """One round trip; False when the tunnel is gone."""
    try:
        client.sendall(text)
        return client.recv(len(text), socket.MSG_WAITALL) == text
    except OSError:
        return False


def answering(clients, within_s=0.5):
    """Which of these tunnels carry bytes both ways."""
    for client in clients:
        with contextlib.suppress(OSError):
            client.sendall(b"x")
    time.sleep(within_s)
    readable = select.select(clients, (), (), 0)[0]
    found = []
    for client in readable:
        with contextlib.suppress(OSError):
            if client.recv(1) == b"x":
                found.append(client)
    return found


class Refused(Exception):
    """The proxy answered with something else than 200."""


def _until(client, end):
    data = b""
    while end not in data:
        more = client.recv(4096)
        if not more:
            raise ConnectionResetError("closed")
        data += more
    return data


class Echo:
    """An upstream that greets the hello and echoes the rest."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self._hello = {client_hello(name) for name in ("tunnel.example", "later.example")}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        with peer, contextlib.suppress(OSError):
            peer.recv(65536)
            peer.sendall(PONG)
            while data := peer.recv(65536):
                peer.sendall(data)

    def close(self):
        self._listener.close()


class Load:
    """Threads that open tunnels, carry bytes and close them, over and over.

    Attributes:
        done: Tunnels that went well, from connect to close.
        lost: What happened to the others.
    """

    def __init__(self, gang, threads=4, host="tunnel.example"):
        self.done = 0
        self.lost = []
        self._gang, self._host = gang, host
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def _work(self):
        while not self._stop.is_set():
            try:
                with open_tunnel(self._gang.proxy, self._host, self._gang.echo.port) as client:
                    if not ping(client):
                        raise ConnectionResetError("in the tunnel")
            except (OSError, Refused) as error:
                with self._lock:
                    self.lost.append(error)
                if isinstance(error, ConnectionRefusedError):
                    time.sleep(0.01)
            else:
                with self._lock:
                    self.done += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def more(self, count=20, within_s=30):
        """Waits for so many more tunnels."""
        goal = self.done + count
        wait_until(lambda: self.done >= goal, f"{count} more tunnels", within_s)


def alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid, how=signal.SIGKILL):
    os.kill(pid, how)
