"""A node of several processes for the tests: a supervisor, its workers, and load on it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

from edgeguard.evidence.log import verify_chain
from tests.e2e.kit import Place, wait_until
from tests.fakes import client_hello

PONG = b"the upstream has seen the whole hello"


class Gang(Place):
    """A world whose proxy has `workers` processes. Its upstream for tunnels echoes what comes after the hello."""

    def __init__(
        self, folder: Path, keys: Path, *, workers: int = 2, drain_s: float = 2, stream: bool = False
    ):
        super().__init__(folder, keys)
        self.count, self.drain_s, self.stream = workers, drain_s, stream
        self.echo = Echo()
        self.tls_upstream, self.tls = self.tls, self.echo.port

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.echo.close()

    def _config(self):
        text = f"workers = {self.count}\n" + super()._config() + f"[bounds]\ndrain_s = {self.drain_s}\n"
        return text.replace(f'log = "{self.decisions}"', 'log = "-"') if self.stream else text

    def workers(self, state="serving"):
        """Reports of the workers in a state."""
        return [one for one in self.status().get("workers", []) if one["state"] == state]

    def settled(self, count=None):
        """Waits until every worker serves and enforces; their process ids."""
        count = self.count if count is None else count

        def all_there():
            supervision = self.status().get("supervision", {})
            return supervision.get("enforcing") == count and len(self.workers()) == count

        wait_until(all_there, f"{count} workers that enforce", 20)
        return [one["pid"] for one in self.workers()]

    @property
    def supervisor(self):
        return self._processes["proxy"].pid

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
        return open_tunnel(self.proxy, host, self.tls, timeout)


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


class Refused(Exception):
    """The proxy answered with something else than 200."""


def _until(client, end):
    data = b""
    while not data.endswith(end):
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
                with open_tunnel(self._gang.proxy, self._host, self._gang.tls) as client:
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

    def more(self, count=20, within_s=10):
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
