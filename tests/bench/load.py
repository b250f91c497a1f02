"""The load generator and its upstream, in one process on one core: `python -m tests.bench.load KIND JSON`.

Tunnels are driven with bare sockets and epoll, because the proxies under test are about as fast as anything that
could be written with asyncio; intercepted TLS with uvloop's streams. Every answer is checked, byte for byte; one
wrong or missing answer ends the run with an error. Prints one JSON object.
"""

import asyncio
import contextlib
import json
import select
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.fakes import client_hello

PONG = b"the upstream has seen the whole hello"
ESTABLISHED = b" 200 "
MESSAGE = bytes(range(64))
CHUNK = bytes(range(256)) * 1024
WARM_UP_S = 0.3
READ, WRITE = select.EPOLLIN, select.EPOLLOUT
BODY = b'{"answer":"' + b"x" * 500 + b'"}'


class WrongAnswer(Exception):
    """The proxy or the upstream did not answer as it must."""


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and its threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Window:
    """Counts operations and the proxy's processor time between the warm-up and the end."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._pids = plan.get("pids") or [plan["pid"]]
        self.done = 0
        self.all = 0
        now = time.perf_counter()
        self.begin, self.end = now + WARM_UP_S, now + WARM_UP_S + plan["seconds"]
        self._started = False
        self._cpu = self._at = 0.0

    def count(self, amount: int = 1) -> bool:
        """Counts; False once the time is over."""
        now = time.perf_counter()
        self.all += amount
        if not self._started:
            if now >= self.begin:
                self._started = True
                self._cpu, self._at = sum(map(cpu_s, self._pids)), time.perf_counter()
            return True
        self.done += amount
        return now < self.end

    def result(self) -> dict[str, float]:
        wall = time.perf_counter() - self._at
        cpu = sum(map(cpu_s, self._pids)) - self._cpu
        if not self.done:
            raise WrongAnswer("nothing was done in time")
        return {
            "rate": self.done / wall,
            "busy": cpu / wall,
            "cpu_us": cpu / self.done * 1e6,
            "operations": self.all,
        }


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(4096)
    listener.setblocking(False)
    return listener


class Tunnels:
    """What the tunnel loads share: an upstream that answers a hello, and clients that open tunnels to it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        authority = f"{plan['name']}:{plan['upstream']}"
        self.hello = client_hello(plan["name"])
        self.connect = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        self.listener = _listener(plan["upstream"])
        self.poll = select.epoll()
        self.poll.register(self.listener.fileno(), READ)
        self.upstream: dict[int, socket.socket] = {}
        self.greeted: set[int] = set()
        self.clients: dict[int, tuple[socket.socket, int]] = {}
        """By descriptor: the socket, and its state: 0 awaits the 200, 1 the pong, 2 is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for one in (*(client for client, _ in self.clients.values()), *self.upstream.values(), self.listener):
            one.close()
        self.poll.close()

    def open(self) -> int:
        client = socket.socket()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if "buffer" in self.plan:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.plan["buffer"])
        client.connect(("127.0.0.1", self.plan["proxy"]))
        client.setblocking(False)
        client.send(self.connect)
        number = client.fileno()
        self.clients[number] = (client, 0)
        self.poll.register(number, READ)
        return number

    def close(self, number: int) -> None:
        client, _ = self.clients.pop(number)
        client.close()  # epoll forgets a descriptor that is closed

    def advance(self, number: int) -> bool:
        """Takes a client's tunnel one step further; True when it is open and has carried bytes both ways."""
        client, state = self.clients[number]
        data = client.recv(4096)
        if state == 0:
            if ESTABLISHED not in data[:16] or not data.endswith(b"\r\n\r\n"):
                raise WrongAnswer(f"CONNECT was answered with {data[:200]!r}")
            client.send(self.hello)
            self.clients[number] = (client, 1)
            return False
        if data != PONG:
            raise WrongAnswer(f"the tunnel brought {data[:100]!r} instead of the upstream's answer")
        self.clients[number] = (client, 2)
        return True

    def accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except BlockingIOError:
                return
            peer.setblocking(False)
            self.upstream[peer.fileno()] = peer
            self.poll.register(peer.fileno(), READ)

    def serve(self, number: int) -> bytes | None:
        """The upstream's side: answers the hello; returns what comes after it, None if there is nothing to do."""
        peer = self.upstream[number]
        try:
            data = peer.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            del self.upstream[number]
            self.greeted.discard(number)
            peer.close()
            return None
        if number in self.greeted:
            return data
        if data != self.hello:
            raise WrongAnswer(f"the upstream was sent {data[:100]!r} instead of the hello")
        self.greeted.add(number)
        peer.send(PONG)
        return None

    def establish(self, count: int, parallel: int = 16) -> list[int]:
        """Opens `count` tunnels and keeps them."""
        found: list[int] = []
        started = 0
        while len(found) < count:
            while started < count and started - len(found) < parallel:
                self.open()
                started += 1
            for number, _ in self.events():
                if number == self.listener.fileno():
                    self.accept()
                elif number in self.upstream:
                    self.serve(number)
                elif self.advance(number):
                    found.append(number)
        return found

    def events(self) -> list[tuple[int, int]]:
        found = self.poll.poll(10)
        if not found:
            raise WrongAnswer("nothing moved for ten seconds")
        return found


def new(plan: dict[str, Any]) -> dict[str, float]:
    """New tunnels: connect, CONNECT, 200, hello, the upstream's answer, close; one operation."""
    with Tunnels(plan) as tunnels:
        window = Window(plan)
        listener = tunnels.listener.fileno()
        for _ in range(plan["parallel"]):
            tunnels.open()
        going = True
        while tunnels.clients:
            for number, _ in tunnels.events():
                if number == listener:
                    tunnels.accept()
                elif number in tunnels.upstream:
                    tunnels.serve(number)
                elif tunnels.advance(number):
                    tunnels.close(number)
                    if going:
                        going = window.count()
                        if going:
                            tunnels.open()
                        else:
                            result = window.result()
                    else:
                        window.all += 1
        result["operations"] = window.all
        return result


def roundtrip(plan: dict[str, Any]) -> dict[str, float]:
    """Round trips of 64 bytes in tunnels that stay open."""
    with Tunnels(plan) as tunnels:
        ready = tunnels.establish(plan["parallel"])
        window = Window(plan)
        upstream, clients = tunnels.upstream, tunnels.clients
        for number in ready:
            clients[number][0].send(MESSAGE)
        while True:
            for number, _ in tunnels.events():
                peer = upstream.get(number)
                if peer is not None:
                    peer.send(peer.recv(4096))
                    continue
                client = clients[number][0]
                if client.recv(4096) != MESSAGE:
                    raise WrongAnswer("a round trip came back changed")
                if not window.count():
                    return window.result()
                client.send(MESSAGE)


def bulk(plan: dict[str, Any]) -> dict[str, float]:
    """One tunnel, upstream to client, as fast as it goes. Operations are bytes; all that was sent must arrive."""
    with Tunnels(plan) as tunnels:
        (number,) = tunnels.establish(1)
        client = tunnels.clients[number][0]
        ((source, peer),) = tunnels.upstream.items()
        tunnels.poll.modify(source, WRITE)
        window = Window(plan)
        buffer = bytearray(1 << 20)
        view = memoryview(CHUNK)
        sent = received = offset = 0
        result: dict[str, float] = {}
        while True:
            for at, _ in tunnels.events():
                if at == source:
                    if result:
                        continue  # the time is over
                    done = peer.send(view[offset:])
                    sent += done
                    offset = (offset + done) % len(CHUNK)
                    continue
                size = client.recv_into(buffer)
                if size == 0:
                    if received != sent:
                        raise WrongAnswer(f"{sent} bytes were sent and {received} arrived")
                    return result
                if buffer[0] != received % 256 or buffer[size - 1] != (received + size - 1) % 256:
                    raise WrongAnswer("bytes arrived changed")
                received += size
                if not result and not window.count(size):
                    result = window.result()
                    tunnels.poll.unregister(source)
                    peer.shutdown(socket.SHUT_WR)


def idle(plan: dict[str, Any]) -> dict[str, float]:
    """Opens tunnels, says so, and keeps them until a line comes on standard input."""
    with Tunnels(plan) as tunnels:
        tunnels.establish(plan["parallel"])
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return {"operations": plan["parallel"]}


STALL_S = 0.5
SMALL_BUFFER = 65_536


def stalled(plan: dict[str, Any]) -> dict[str, float]:
    """Opens tunnels whose clients read nothing, sends into them until nothing moves, says so, and waits for a line."""
    # The kernel's own buffers are not the proxy's memory; small ones here leave room for many tunnels.
    with Tunnels({**plan, "buffer": SMALL_BUFFER}) as tunnels:
        tunnels.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        tunnels.establish(plan["parallel"])
        sent, moved = 0, time.perf_counter()
        while time.perf_counter() - moved < STALL_S:
            before = sent
            for peer in tunnels.upstream.values():
                with contextlib.suppress(BlockingIOError):
                    sent += peer.send(CHUNK)
            if sent != before:
                moved = time.perf_counter()
            else:
                time.sleep(0.01)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return {"operations": plan["parallel"], "sent": sent}


# Intercepted TLS


class Answering(asyncio.Protocol):
    """The HTTPS upstream: one fixed answer to every request that asks for the right thing."""

    _ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(BODY),
        BODY,
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            if head.startswith(b"GET /bench/"):
                self._transport.write(self._ANSWER)
            else:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def _https(plan: dict[str, Any], *, keep: bool) -> dict[str, float]:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(plan["leaf"])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", plan["upstream"], ssl=served, backlog=1024)
    # Only the proxy's own authority is trusted: a connection that was not intercepted fails.
    trust = ssl.create_default_context(cafile=plan["authority"])
    authority = f"localhost:{plan['upstream']}"
    connect = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
    request = f"GET /bench/items/42 HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"

    async def enter() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", plan["proxy"])
        writer.write(connect)
        head = await reader.readuntil(b"\r\n\r\n")
        if ESTABLISHED not in head[:16]:
            raise WrongAnswer(f"CONNECT was answered with {head[:200]!r}")
        await writer.start_tls(trust, server_hostname="localhost")
        return reader, writer

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise WrongAnswer(f"the request was answered with {head[:300]!r}")
        if await reader.readexactly(len(BODY)) != BODY:
            raise WrongAnswer("the body came back changed")

    window = Window(plan)
    finished: dict[str, float] = {}

    def count() -> bool:
        if finished:
            window.all += 1
            return False
        if window.count():
            return True
        finished.update(window.result())
        return False

    async def client() -> None:
        going = True
        while going:
            reader, writer = await enter()
            while going:
                await ask(reader, writer)
                going = count()
                if not keep:
                    break
            writer.transport.abort() if keep else writer.close()

    async with asyncio.timeout(plan["seconds"] + 20), asyncio.TaskGroup() as group:
        for _ in range(plan["parallel"]):
            group.create_task(client())
    server.close()
    finished["operations"] = window.all
    return finished


def https_keep(plan: dict[str, Any]) -> dict[str, float]:
    """Keep-alive requests inside intercepted TLS."""
    import uvloop

    return uvloop.run(_https(plan, keep=True))


def https_new(plan: dict[str, Any]) -> dict[str, float]:
    """A new intercepted connection for each request."""
    import uvloop

    return uvloop.run(_https(plan, keep=False))


KINDS = {
    "new": new,
    "roundtrip": roundtrip,
    "bulk": bulk,
    "idle": idle,
    "stalled": stalled,
    "https_keep": https_keep,
    "https_new": https_new,
}


def main() -> None:
    kind, plan = sys.argv[1], json.loads(sys.argv[2])
    sys.stdout.write(json.dumps(KINDS[kind](plan)) + "\n")


if __name__ == "__main__":
    main()
