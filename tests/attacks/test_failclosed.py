"""Whatever raises, nothing forbidden gets through, and the listener lives: row K04, in both modes and every lane.

The functions are found, not listed: one that somebody adds tomorrow is broken here, too.
"""

import asyncio
import contextlib
import importlib
import inspect
import logging
import pkgutil
import ssl
import sys

import pytest

import edgeguard.guard
import edgeguard.policy
import edgeguard.proxy
import edgeguard.verdict
from tests.fakes import client_hello

RULES = """\
rules:
  - {{id: a, effect: allow, to: ["a.test:{plain}"], resolves_to: [127.0.0.0/8]}}
  - {{id: b, effect: allow, to: ["b.test:{tls}"], paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
  - {{id: c, effect: allow, to: ["c.test:{plain}"], protocol: http, paths: ["/ok/**"], resolves_to: [127.0.0.0/8]}}
"""
PATIENCE_S = 0.06
DECIDING = ("guard",)
"""Modules of the short run; the long one takes them all."""
ELSEWHERE = frozenset(
    {"admin", "authority", "jwks", "listeners", "master", "node", "plain", "preface", "standing", "workers"}
)
"""Modules of `proxy/` that start and stop a node, or serve something else: no request passes through them."""  # fmt: skip


GENERATED = frozenset({"_asdict", "_make", "_replace"})
"""Methods of every named tuple."""


class ToldToRaise(RuntimeError):
    pass


def modules():
    yield edgeguard.guard
    yield edgeguard.verdict
    for package in (edgeguard.policy, edgeguard.proxy):
        for found in pkgutil.iter_modules(package.__path__):
            if package is edgeguard.proxy and found.name not in ELSEWHERE:
                yield importlib.import_module(f"{package.__name__}.{found.name}")
    for name in ("engine", "names", "addresses", "admit", "connect", "inside", "paths", "matching"):
        yield importlib.import_module(f"edgeguard.policy.{name}")


def functions(short):
    """(name, owner, attribute) of every function and method that is written down in those modules."""
    for module in modules():
        name = module.__name__.removeprefix("edgeguard.")
        if short and name not in DECIDING:
            continue
        for attribute, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                yield f"{name}.{attribute}", module, attribute
            elif inspect.isclass(value) and value.__module__ == module.__name__:
                for method, code in list(vars(value).items()):
                    if inspect.isfunction(code) and not method.startswith("__") and method not in GENERATED:
                        yield f"{name}.{attribute}.{method}", value, method


@contextlib.contextmanager
def raising(owner, attribute):
    """The function raises wherever it is known by that name."""

    def raises(*arguments, **named):
        raise ToldToRaise(attribute)

    original = vars(owner)[attribute]
    known = [(owner, attribute)]
    if inspect.ismodule(owner):
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("edgeguard"):
                known += [(module, name) for name, value in list(vars(module).items()) if value is original]
    try:
        for place, name in known:
            setattr(place, name, raises)
        yield
    finally:
        for place, name in known:
            setattr(place, name, original)


class Forbidden:
    """Five requests that no policy of this test allows, one for each lane and each way of being wrong."""

    def __init__(self, rig, plain, tls):
        self.rig, self.plain, self.tls = rig, plain, tls
        self.context = rig.trust()
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    async def try_all(self):
        p, t = self.plain.port, self.tls.port
        await asyncio.gather(
            self._tunnel(f"evil.test:{p}", client_hello("evil.test") + b"\r\n\r\n"),
            self._tunnel(f"a.test:{p}", client_hello("evil.test") + b"\r\n\r\n"),
            self._tunnel(f"a.test:{p}", b"SSH-2.0-x\r\n\r\n"),
            self._send(f"GET http://c.test:{p}/secret HTTP/1.1\r\nHost: c.test:{p}\r\n\r\n".encode()),
            self._inside(f"b.test:{t}", f"GET /secret HTTP/1.1\r\nHost: b.test:{t}\r\n\r\n".encode()),
        )

    async def _open(self):
        return await asyncio.open_connection("127.0.0.1", self.rig.port)

    async def _send(self, data):
        reader, writer = await self._open()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            writer.write(data)
            await asyncio.wait_for(reader.read(65536), PATIENCE_S)
        writer.transport.abort()

    async def _connected(self, reader, writer, authority):
        writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        return b" 200 " in head

    async def _tunnel(self, authority, data):
        reader, writer = await self._open()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            if await self._connected(reader, writer, authority):
                writer.write(data)
                await asyncio.wait_for(reader.read(65536), PATIENCE_S)
        writer.transport.abort()

    async def _inside(self, authority, data):
        reader, writer = await self._open()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError):
            if await self._connected(reader, writer, authority):
                await writer.start_tls(
                    self.context, server_hostname="b.test", ssl_handshake_timeout=PATIENCE_S
                )
                writer.write(data)
                await asyncio.wait_for(reader.read(65536), PATIENCE_S)
        writer.transport.abort()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", ["edge", "regular"])
@pytest.mark.parametrize(
    "short",
    [
        pytest.param(True, id="attack-K04-deciding-functions"),
        pytest.param(False, id="attack-K04-every-function", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)  # fmt: skip
async def test_no_function_that_raises_opens_anything(rig, short, caplog):
    caplog.set_level(logging.CRITICAL)
    await rig.start()
    plain, tls = await rig.upstream(), await rig.upstream("b.test")
    rig.enforce(RULES.format(plain=plain.port, tls=tls.port))
    forbidden = Forbidden(rig, plain, tls)
    alive = f"GET http://c.test:{plain.port}/ok/x HTTP/1.1\r\nHost: c.test:{plain.port}\r\nConnection: close\r\n\r\n"
    broken = 0
    for name, owner, attribute in functions(short):
        with raising(owner, attribute):
            await forbidden.try_all()
        assert b"SSH" not in plain.received, name
        assert b"evil.test" not in plain.received, name
        assert b"/secret" not in plain.received + tls.received, name
        assert b"200 OK" in await asyncio.wait_for(rig.exchange(alive.encode()), 5), name
        broken += 1
    assert broken > (15 if short else 300)
