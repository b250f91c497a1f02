"""Mixed load on one node for a long time: does anything grow, leak or get lost?

`python -m tests.bench.soak --seconds 600` runs new tunnels, kept tunnels, inspected requests, plain
requests, refusals, slow clients, clients that leave in the middle, and policy changes against one
`edgeguard run` with a real repository and head signer. It samples what the process holds, and ends
with a report. The exit code is not zero when memory is not flat after the warm-up, when decisions
that clients saw and the decision log differ, when the log's chain is broken, when a descriptor
leaks, or when anything is held by an idle node.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeguard.evidence.log import verify_chain
from tests.e2e.kit import LATER, Place, make_keys, wait_until
from tests.ports import free_port

SAMPLE_S = 2.0
SETTLE_S = 20.0
"""What was open has this long to go once the load has stopped."""
WARM_UP = 0.25
"""Share of the run after which memory has to be flat."""
MAX_GROWTH = 0.05
MIN_GROWTH_KB = 12_000
"""Growth after the warm-up that is let pass: the larger of the share and the amount, which some activations set aside."""
FD_SLACK = 2
HELD = ("connections", "seats", "tunnels", "phases", "open", "passages", "engine", "lane")
BODY = b"x" * 2_000


@dataclass
class Soak:
    """One run."""

    place: Place
    window: int
    """Port on which the node tells what it holds."""
    deadline: float
    """`time.monotonic()` at which the load ends."""
    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    """Decisions that clients saw, by kind and verdict."""
    odd: collections.Counter[str] = field(default_factory=collections.Counter)
    """What clients did not expect."""
    samples: list[dict[str, float]] = field(default_factory=list)
    versions: int = 1

    def __post_init__(self) -> None:
        self.trust = ssl.create_default_context(cafile=self.place.folder / "client-authorities.pem")

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    # Steps of a client

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.place.proxy)

    async def tunnel(
        self, host: str, *, drip_s: float = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """CONNECT and TLS. None after a refusal."""
        reader, writer = await self.connect()
        authority = f"{host}:{self.place.tls}"
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        for at in range(0, len(head), 20 if drip_s else len(head)):
            writer.write(head[at : at + (20 if drip_s else len(head))])
            await asyncio.sleep(drip_s)
        answer = await reader.readuntil(b"\r\n\r\n")
        self.saw("connect", answer)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            await reader.read()
            await close(writer)
            return None
        await writer.start_tls(self.trust, server_hostname=host)
        return reader, writer

    async def ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        host: str,
        path: str,
        *,
        judged: bool,
        read_s: float = 0,
    ) -> bytes:
        """One request on an open connection; returns the head of the answer."""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if judged:
            self.saw("request", head)
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        while length:
            part = await reader.read(min(length, 4096 if read_s else 65_536))
            if not part:
                raise asyncio.IncompleteReadError(b"", length)
            length -= len(part)
            await asyncio.sleep(read_s)
        return head

    def saw(self, kind: str, head: bytes) -> None:
        denied = b"edgeguard-reason:" in head.lower()
        self.seen[f"{kind} {'deny' if denied else 'allow'}"] += 1

    # Kinds of load

    async def new_tunnels(self) -> None:
        opened = await self.tunnel("tunnel.example")
        if opened:
            await self.ask(*opened, f"tunnel.example:{self.place.tls}", "/small", judged=False)
            await close(opened[1])

    async def kept_tunnel(self) -> None:
        opened = await self.tunnel("tunnel.example")
        until = time.monotonic() + random.uniform(5, 30)
        while opened and not self.over and time.monotonic() < until:
            await self.ask(*opened, f"tunnel.example:{self.place.tls}", "/small", judged=False)
            await asyncio.sleep(0.2)
        if opened:
            await close(opened[1])

    async def inspected(self) -> None:
        opened = await self.tunnel("site.example")
        host = f"site.example:{self.place.tls}"
        for number in range(random.randrange(1, 8)):
            path = "/secret" if number % 4 == 3 else "/ok/big" if number % 4 == 2 else "/ok/small"
            if opened:
                await self.ask(*opened, host, path, judged=True)
        if opened:
            await close(opened[1])

    async def plain(self) -> None:
        reader, writer = await self.connect()
        host = f"plain.example:{self.place.http}"
        for path in ("/ok/small", "/secret", "/ok/big"):
            await self.ask(reader, writer, host, f"http://{host}{path}", judged=True)
        await close(writer)

    async def refusals(self) -> None:
        for host in ("evil.example", "index.example", "nowhere.example"):
            await self.tunnel(f"x.{host}")

    async def slow(self) -> None:
        opened = await self.tunnel("site.example", drip_s=0.2)
        if opened:
            await self.ask(*opened, f"site.example:{self.place.tls}", "/ok/big", judged=True, read_s=0.05)
            await close(opened[1])

    async def leaves(self) -> None:
        """Goes away in the middle of everything."""
        _, writer = await self.connect()
        writer.write(b"CONNECT tunnel.example")
        await writer.drain()
        await asyncio.sleep(random.uniform(0, 0.2))
        writer.transport.abort()
        opened = await self.tunnel("tunnel.example")
        if opened:
            opened[1].write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            opened[1].transport.abort()

    async def again(self, what: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while not self.over:
            try:
                async with asyncio.timeout(60):
                    await what()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.odd[f"{what.__name__}: {type(error).__name__}"] += 1
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))

    async def change(self, every_s: float) -> None:
        """Publishes another version, again and again."""
        while time.monotonic() + every_s < self.deadline:
            await asyncio.sleep(every_s)
            self.versions += 1
            await asyncio.to_thread(self.publish, self.versions)

    def publish(self, version: int) -> None:
        rule = LATER if version % 2 == 0 else LATER.replace("later.example", "never.example")
        self.place.write("later", rule)
        self.place.publish(self.place.release(version, lifetime_s=3600))
        wait_until(lambda: self.place.version() == version, f"version {version}", within_s=60)

    # What the node holds

    async def census(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.window)
        counts = json.loads(await reader.read())
        await close(writer)
        return {"at": time.monotonic(), **counts}

    async def watch(self) -> None:
        while not self.over:
            self.samples.append(await self.census())
            await asyncio.sleep(SAMPLE_S)

    async def run(self, *, change_s: float) -> dict[str, float]:
        """The load; then what is left when all clients are gone."""
        loads: list[tuple[Callable[[], Awaitable[None]], float, int]] = [
            (self.new_tunnels, 0.02, 4),
            (self.kept_tunnel, 1.0, 20),
            (self.inspected, 0.05, 4),
            (self.plain, 0.05, 2),
            (self.refusals, 0.1, 2),
            (self.slow, 0.5, 4),
            (self.leaves, 0.1, 2),
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch())
            group.create_task(self.change(change_s))
            for what, pause_s, count in loads:
                for _ in range(count):
                    group.create_task(self.again(what, pause_s))
        return await self.settled()

    async def settled(self) -> dict[str, float]:
        end = time.monotonic() + SETTLE_S
        while True:
            last = await self.census()
            if time.monotonic() > end or not (any(last[name] for name in HELD) or last["waiting"]):
                return last
            await asyncio.sleep(0.2)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def upstream(place: Place) -> list[asyncio.Server]:
    """HTTP/1.1 servers, TLS and plain, at the ports that the policy names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.leaf)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = BODY * 50 if b"/big " in head.split(b"\r\n")[0] else BODY
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        writer.close()

    return [
        await asyncio.start_server(serve, "127.0.0.1", place.tls, ssl=context),
        await asyncio.start_server(serve, "127.0.0.1", place.http),
    ]


def findings(soak: Soak, before: dict[str, float], after: dict[str, float], records: list[dict]) -> list[str]:
    """What is wrong, in words; empty when nothing is."""
    wrong = [f"an idle node holds {name}: {after[name]:.0f}" for name in HELD if after[name]]
    if after["fds"] > before["fds"] + FD_SLACK:
        wrong.append(f"descriptors leak: {before['fds']:.0f} before, {after['fds']:.0f} after")
    if after["tasks"] > before["tasks"] + FD_SLACK:
        wrong.append(f"tasks leak: {before['tasks']:.0f} before, {after['tasks']:.0f} after")
    if after["refused"]:
        wrong.append(f"the log refused {after['refused']:.0f} records")
    start, end = soak.samples[0]["at"], soak.samples[-1]["at"]
    warm = [s for s in soak.samples if s["at"] >= start + (end - start) * WARM_UP]
    third = max(1, len(warm) // 3)
    first = statistics.median(s["rss_kb"] for s in warm[:third])
    last = statistics.median(s["rss_kb"] for s in warm[-third:])
    if last - first > max(MIN_GROWTH_KB, first * MAX_GROWTH):
        wrong.append(f"memory is not flat: {first:.0f} kB after the warm-up, {last:.0f} kB at the end")
    logged = collections.Counter(
        f"{r['kind']} {r['verdict']}" for r in records if r["kind"] in {"connect", "request"}
    )
    wrong += [
        f"decisions differ: {kind}: clients saw {soak.seen[kind]}, the log has {logged[kind]}"
        for kind in sorted(soak.seen.keys() | logged.keys())
        if soak.seen[kind] != logged[kind]
    ]
    if soak.odd:
        wrong.append(f"clients were surprised: {dict(soak.odd)}")
    return wrong


def slope_kb_per_minute(samples: list[dict[str, float]]) -> float:
    start, end = samples[0]["at"], samples[-1]["at"]
    warm = [s for s in samples if s["at"] >= start + (end - start) * WARM_UP]
    if len(warm) < 3:
        return 0.0
    line = statistics.linear_regression([s["at"] / 60 for s in warm], [s["rss_kb"] for s in warm])
    return line.slope


def soak(seconds: float, *, change_s: float) -> tuple[dict[str, object], list[str]]:
    """Runs it. Returns the report, and what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys-made"
        keys.mkdir()
        make_keys(keys)
        (folder / "world").mkdir()
        with Place(folder / "world", keys) as place:
            place.upstream.close()
            window = free_port()
            start = place.start

            def with_window(process: str, *arguments: str) -> None:
                if process == "proxy":
                    config = str(folder / "world/edgeguard.toml")
                    place._spawn(
                        "proxy", [sys.executable, "-m", "tests.bench.soak_node", config, str(window)]
                    )
                else:
                    start(process, *arguments)

            place.start = with_window  # type: ignore[method-assign]
            place.start_all(lifetime_s=3600)

            async def main() -> tuple[Soak, dict[str, float], dict[str, float]]:
                servers = await upstream(place)
                run = Soak(place, window, time.monotonic() + seconds)
                # Whatever is made once (threads, caches, imports) is made before the first count.
                for once in (run.new_tunnels, run.inspected, run.plain, run.refusals):
                    await once()
                before = await run.settled()
                after = await run.run(change_s=change_s)
                for server in servers:
                    server.close()
                return run, before, after

            run, before, after = asyncio.run(main())
            place.stop("proxy", signal.SIGTERM)
            lines = place.decisions.read_bytes().splitlines(keepends=True)
            chain = verify_chain(lines)
            records = [json.loads(line) for line in lines]
        wrong = findings(run, before, after, records)
        if not chain.ok:
            wrong.append(f"the chain of the decision log is broken: {chain}")
        start_at = run.samples[0]["at"]
        report: dict[str, object] = {
            "seconds": seconds,
            "decisions": dict(run.seen),
            "records": len(records),
            "policy_versions": run.versions,
            "rss_kb_first": run.samples[0]["rss_kb"],
            "rss_kb_last": run.samples[-1]["rss_kb"],
            "rss_kb_most": max(s["rss_kb"] for s in run.samples),
            "rss_slope_kb_per_minute": round(slope_kb_per_minute(run.samples), 1),
            "fds": [before["fds"], max(s["fds"] for s in run.samples), after["fds"]],
            "tasks": [before["tasks"], max(s["tasks"] for s in run.samples), after["tasks"]],
            "connections_most": max(s["connections"] for s in run.samples),
            "idle": {name: after[name] for name in HELD},
            "samples": [
                {**s, "at": round(s["at"] - start_at, 1)}
                for s in run.samples[:: max(1, len(run.samples) // 20)]
            ],
        }
        return report, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--change", type=float, default=30.0, help="seconds between policy changes")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    options = parser.parse_args()
    report, wrong = soak(options.seconds, change_s=options.change)
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text)
    for line in wrong:
        sys.stderr.write(f"soak: {line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
