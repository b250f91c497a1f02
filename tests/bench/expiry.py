"""From the moment that a bundle's signers wrote down to the first refusal, on a real node, with the server at hand."""

import contextlib
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.load import ESTABLISHED
from tests.bench.run import Run
from tests.bench.world import TUNNEL_NAME, Absent, BenchError, Node, Peers, node_policy, two_cores
from tests.fakes import client_hello

LIFETIME_S = 4


def measure(run: Run) -> dict[str, float]:
    try:
        two_cores()
    except Absent as absent:
        run.absent("expiry.to_closed_ms", str(absent))
        return {}
    refused, cut = [], []
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-") as folder, Peers(Path(folder)) as peers:
        sections = node_policy(peers.tunnel_port, peers.https_port)
        peers.repository.publish(sections)
        node = peers.edgeguard()
        with socket.create_server(("127.0.0.1", peers.tunnel_port), backlog=1024) as upstream:
            threading.Thread(target=_accept, args=(upstream,), daemon=True).start()
            for _ in range(run.pick(1, 3)):
                expires = peers.repository.publish(sections, lifetime_s=LIFETIME_S)
                node.wait_for_version(peers.repository.version)
                one, other = _watch(node, peers.tunnel_port, expires)
                refused.append(one)
                cut.append(other)
    run.raw["raw.expiry.to_closed_ms"], run.raw["raw.expiry.to_cut_ms"] = refused, cut
    return {"expiry.to_closed_ms": statistics.median(refused), "expiry.to_cut_ms": statistics.median(cut)}


def _accept(upstream: socket.socket) -> None:
    kept = []
    while True:
        try:
            kept.append(upstream.accept())
        except OSError:
            return


def _watch(node: Node, upstream_port: int, expires: int) -> tuple[float, float]:
    """Milliseconds after `expires` at which a new tunnel is refused, and an open one ends."""
    authority = f"{TUNNEL_NAME}:{upstream_port}"
    connect = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()

    def ask() -> tuple[socket.socket, bytes]:
        client = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        client.sendall(connect)
        return client, client.recv(4096)

    tunnel, answer = ask()
    if ESTABLISHED not in answer[:16]:
        raise BenchError(f"a fresh policy refused the tunnel: {answer[:200]!r}")
    tunnel.sendall(client_hello(TUNNEL_NAME))
    ended: list[float] = []

    def follow() -> None:
        with contextlib.suppress(OSError):
            tunnel.recv(1)
        ended.append(time.time())

    follower = threading.Thread(target=follow)
    follower.start()
    time.sleep(max(0.0, expires - time.time() - 0.2))
    while True:
        asked = time.time()
        client, answer = ask()
        answered = time.time()
        client.close()
        if b" 503 " in answer[:16]:
            break
        if asked > expires + 5:
            raise BenchError("five seconds after its expiry the policy is still enforced")
        time.sleep(0.001)
    follower.join(timeout=5)
    tunnel.close()
    if not ended:
        raise BenchError("an open tunnel outlived the policy by five seconds")
    if answered < expires:
        raise BenchError("the policy was refused before its expiry")
    return (answered - expires) * 1000, (ended[0] - expires) * 1000
