"""Names to addresses: once, in time, and remembered for a moment."""

import asyncio
import socket

import pytest

from edgeguard.proxy import resolver as module
from edgeguard.proxy.resolver import ResolveError, Resolver, system_lookup
from edgeguard.settings import Resolver as ResolverSettings


class Lookup:
    def __init__(self, *answers: str, delay_s: float = 0.0, error: Exception | None = None) -> None:
        self.answers, self.delay_s, self.error = answers, delay_s, error
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return list(self.answers)


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_is_its_own_answer(literal):
    lookup = Lookup("10.0.0.1")
    assert await Resolver(lookup).resolve(literal) == (literal,)
    assert lookup.asked == []


async def test_the_static_table_comes_first_and_knows_exact_names():
    lookup = Lookup("10.0.0.1")
    resolver = Resolver(lookup, static={"Api.Test.": ["192.0.2.1", "192.0.2.1", "2001:DB8::1"]})
    assert await resolver.resolve("api.test") == ("192.0.2.1", "2001:db8::1")
    assert await resolver.resolve("other.test") == ("10.0.0.1",)
    assert lookup.asked == ["other.test"]


async def test_without_a_source_an_unknown_name_is_unreachable():
    with pytest.raises(ResolveError, match="static table"):
        await Resolver(None, static={"api.test": ["192.0.2.1"]}).resolve("www.api.test")


async def test_answers_are_canonical_each_once_and_bounded():
    lookup = Lookup(
        "2001:DB8:0::1", "192.0.2.1", "192.0.2.1", "fe80::1%eth0", "not an address", "192.0.2.2", "192.0.2.3"
    )
    resolver = Resolver(lookup, max_addresses=3)
    assert await resolver.resolve("api.test") == ("2001:db8::1", "192.0.2.1", "192.0.2.2")


async def test_one_lookup_serves_all_who_wait_and_the_next_ones():
    lookup = Lookup("192.0.2.1", delay_s=0.02)
    resolver = Resolver(lookup)
    answers = await asyncio.gather(*(resolver.resolve("api.test") for _ in range(10)))
    assert set(answers) == {("192.0.2.1",)}
    await resolver.resolve("api.test")
    assert lookup.asked == ["api.test"]


async def test_who_stops_waiting_does_not_take_the_lookup_along():
    lookup = Lookup("192.0.2.1", delay_s=0.05)
    resolver = Resolver(lookup)
    impatient = asyncio.ensure_future(resolver.resolve("api.test"))
    patient = asyncio.ensure_future(resolver.resolve("api.test"))
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert await patient == ("192.0.2.1",)
    assert lookup.asked == ["api.test"]


async def test_an_answer_is_forgotten():
    lookup = Lookup("192.0.2.1")
    resolver = Resolver(lookup, cache_s=0.02)
    await resolver.resolve("api.test")
    await asyncio.sleep(0.03)
    await resolver.resolve("api.test")
    assert len(lookup.asked) == 2


async def test_the_cache_is_bounded():
    lookup = Lookup("192.0.2.1")
    resolver = Resolver(lookup, cache_names=2)
    for name in ("a.test", "b.test", "c.test", "a.test"):
        await resolver.resolve(name)
    assert lookup.asked == ["a.test", "b.test", "c.test", "a.test"]


@pytest.mark.parametrize(
    "lookup",
    [
        pytest.param(Lookup(), id="no-answer"),
        pytest.param(Lookup(error=socket.gaierror(-2, "unknown")), id="attack-D13"),
        pytest.param(Lookup("192.0.2.1", delay_s=30), id="deadline"),
        pytest.param(Lookup("fe80::1%eth0"), id="only-zones"),
    ],
)
async def test_failures_are_one_error_and_remembered(lookup):
    resolver = Resolver(lookup, timeout_s=0.05)
    for _ in range(2):
        with pytest.raises(ResolveError):
            await resolver.resolve("api.test")
    assert len(lookup.asked) == 1


async def test_lookups_under_way_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "WAITING_NAMES", 1)
    resolver = Resolver(Lookup("192.0.2.1", delay_s=0.02))
    first = asyncio.ensure_future(resolver.resolve("a.test"))
    await asyncio.sleep(0)
    with pytest.raises(ResolveError, match="too many"):
        await resolver.resolve("b.test")
    assert await first == ("192.0.2.1",)


async def test_the_hosts_own_resolver():
    assert "127.0.0.1" in await Resolver(system_lookup()).resolve("localhost")


@pytest.mark.parametrize(
    "settings",
    [
        ResolverSettings(mode="static", static={"api.test": ("192.0.2.1",)}),
        ResolverSettings(mode="system", static={"api.test": ("192.0.2.1",)}),
        ResolverSettings(mode="servers", servers=("192.0.2.53",), static={"api.test": ("192.0.2.1",)}),
    ],
    ids=lambda settings: settings.mode,
)
async def test_every_mode_is_built_from_its_settings(settings):
    assert await Resolver.from_settings(settings).resolve("api.test") == ("192.0.2.1",)
