"""What the tests of all scopes share: a reference model, drawn sequences, processes, a store."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

from hypothesis import strategies as st

from edgeguard.limits.fleet import FleetLimiter
from edgeguard.policy.decision import LimitHit
from edgeguard.settings import Limits
from tests.ports import free_port

SECOND = 1_000_000_000


def hit(
    limit="l", key="k", unit="requests", quota=10, period_ns=SECOND, burst=None, enforced=True, scope="process",
    exact=False, on_store_error="local_share",
):  # fmt: skip
    return LimitHit(
        limit, key, unit, quota, period_ns, burst or quota, scope, enforced, exact, on_store_error
    )


class Model:
    """The same rules, written as plainly as possible: exact fractions, no bounds, no shortcuts."""

    def __init__(self):
        self.tats = {}
        self.seats = {}

    def take(self, hits, now, amount):
        charges, refused, would = {}, [], []
        for h in dict.fromkeys(hits):
            at = (h.limit, h.key, h.enforced)
            if h.unit == "concurrent_tunnels":
                fits, value = self.seats.get(at, 0) < h.quota, None
            else:
                interval = Fraction(h.period_ns, h.quota)
                units = amount if h.unit == "bytes" else 1
                value = max(self.tats.get(at, Fraction(0)), Fraction(now)) + units * interval
                fits = value - now <= h.burst * interval
            if fits:
                charges[at] = value
            elif h.enforced:
                refused.append(h.limit)
            else:
                would.append(h.limit)
        if refused:
            return False, set(refused), would
        for at, value in charges.items():
            if value is None:
                self.seats[at] = self.seats.get(at, 0) + 1
            else:
                self.tats[at] = value
        return True, set(), would

    def release(self, hits):
        for h in dict.fromkeys(hits):
            at = (h.limit, h.key, h.enforced)
            if h.unit == "concurrent_tunnels" and self.seats.get(at, 0):
                self.seats[at] -= 1


# Quotas that divide a second, so that ticks and fractions agree to the nanosecond.
LIMITS = {
    "a": {"quota": 5, "burst": 5},
    "b": {"quota": 1, "burst": 2},
    "c": {"quota": 1000, "burst": 4000, "unit": "bytes"},
    "d": {"quota": 2, "unit": "concurrent_tunnels"},
    "e": {"quota": 2, "burst": 1, "enforced": False},
    "f": {"quota": 4, "burst": 4, "unit": "tunnels"},
}


def steps(scope="process"):
    """Sequences of (pause in ns, hits, bytes, whether the oldest allow ends)."""
    hits = st.lists(
        st.tuples(st.sampled_from(sorted(LIMITS)), st.sampled_from("xyz")).map(
            lambda p: hit(p[0], p[1], scope=scope, **LIMITS[p[0]])
        ),
        max_size=4,
    )
    step = st.tuples(st.integers(0, SECOND // 2), hits, st.sampled_from([1, 1, 500, 3000]), st.booleans())
    return st.lists(step, max_size=60)


def agrees_with_the_model(limiter, sequence, start=10**15):
    """Every answer of a limiter is the model's."""
    model, now, held = Model(), start, []
    for gap, hits, amount, leave in sequence:
        now += gap
        taken = limiter.take(hits, now, amount)
        allowed, refusing, would = model.take(hits, now, amount)
        assert taken.allowed is allowed
        assert sorted(taken.would) == sorted(would)
        assert taken.limit in refusing if refusing else taken.limit is None
        assert (taken.retry_after_ns > 0) is not allowed
        if allowed:
            held.append(hits)
        if leave and held:
            limiter.release(held[0])
            model.release(held.pop(0))


class Peers:
    """Processes that run `program` with JSON arguments, and answer with JSON lines."""

    def __init__(self, program, arguments):
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(argument)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parent.parent.parent,
            )
            for argument in arguments
        ]
        for process in self.processes:
            assert self.read(process) == "ready"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    @staticmethod
    def read(process):
        line = process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def go(self, seconds, more=()):
        """Starts all at one moment of the monotonic clock, each with what `more` has for it; their answers."""
        begin = time.monotonic_ns() + SECOND // 20
        end = begin + int(seconds * SECOND)
        for number, process in enumerate(self.processes):
            process.stdin.write(json.dumps([begin, end, *more[number : number + 1]]) + "\n")
            process.stdin.flush()
        return [self.read(process) for process in self.processes]


class StoreServer:
    """A server of the store, which can be frozen, killed and started again. On a unix socket; a cluster needs a port."""

    def __init__(self, folder, *, cluster=False):
        self._cluster = cluster
        self._path = Path(folder) / "store.sock"
        self._command = ["redis-server", "--save", "", "--dir", str(folder), "--unixsocket", str(self._path)]
        self.url = f"unix://{self._path}"
        port = 0
        if cluster:
            port = free_port()
            self.url = f"valkey://127.0.0.1:{port}"
            self._command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        self._command += ["--port", str(port)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                assert self.say("PING") == b"+PONG\r\n"
                break
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if self._cluster:
            self.say("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            while b"cluster_state:ok" not in self.say("CLUSTER", "INFO"):
                time.sleep(0.02)

    def say(self, *words):
        """One command and the begin of its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(str(self._path))
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(65_536)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def node(store, *, until_up=True, clock=time.monotonic_ns, **settings):
    """A fleet limiter that talks to the store, and a clean end."""
    settings = {
        "store": store.url if store else "",
        "retry_s": 0.05,
        "peers_s": 0.2,
        "timeout_s": 1.0,
        **settings,
    }
    limiter = FleetLimiter(Limits(**settings), b"secret", "test", 1000, clock)
    limiter.start()
    try:
        if until_up and store:
            await come(lambda: limiter.status(clock())["state"] == "up")
        yield limiter
    finally:
        await limiter.stop()


async def come(true, within_s=5.0):
    """Waits until something is true."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def take(limiter, *hits):
    """What an adapter does: reserve, await, settle."""
    waiting = limiter.reserve(hits, limiter._now())
    ticket = None if waiting is None else await waiting
    prepared = limiter.prepare(hits, limiter._now(), 1, ticket)
    if prepared.taken.allowed:
        limiter.commit(prepared)
    else:
        limiter.undo(prepared)
    return prepared.taken
