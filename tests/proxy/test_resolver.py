"""Names to addresses: once, in time, and remembered no longer than the answer says."""

import asyncio
import timeit

import pytest

from edgeguard.proxy import resolver as module
from edgeguard.proxy.nameservers import Answer
from edgeguard.proxy.resolver import ResolveError, Resolver
from edgeguard.settings import Resolver as ResolverSettings
from edgeguard.verdict import Resolved


class Lookup:
    def __init__(self, *addresses, ttl_s=60.0, delay_s=0.0, error=None, aliases=()):
        self.answer, self.delay_s, self.error = Answer(addresses, ttl_s, aliases), delay_s, error
        self.asked = []

    async def __call__(self, host):
        self.asked.append(host)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return self.answer


class Clock:
    """The monotonic clock, by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_is_its_own_answer(literal):
    lookup = Lookup("10.0.0.1")
    resolver = Resolver(lookup)
    assert await resolver.resolve(literal) == resolver.known(literal) == (literal,)
    assert resolver.gave(literal, literal)
    assert lookup.asked == []


async def test_the_static_table_comes_first_and_knows_exact_names():
    lookup = Lookup("10.0.0.1")
    resolver = Resolver(lookup, static={"Api.Test.": ["192.0.2.1", "192.0.2.1", "2001:DB8::1"]})
    assert await resolver.resolve("api.test") == ("192.0.2.1", "2001:db8::1") == resolver.known("api.test")
    assert await resolver.resolve("other.test") == ("10.0.0.1",)
    assert lookup.asked == ["other.test"]


async def test_without_a_source_an_unknown_name_is_unreachable():
    with pytest.raises(ResolveError, match="static table"):
        await Resolver(None, static={"api.test": ["192.0.2.1"]}).resolve("www.api.test")


@pytest.mark.parametrize("name", ["localhost", "app.dev.localhost"])
async def test_localhost_is_loopback_and_nobody_is_asked(name):
    lookup = Lookup("198.51.100.7")
    assert await Resolver(lookup).resolve(name) == ("127.0.0.1", "::1")
    assert lookup.asked == []


@pytest.mark.parametrize("name", ["notlocalhost", "localhost.example.com"])
async def test_what_only_looks_like_localhost_is_asked_for(name):
    lookup = Lookup("198.51.100.7")
    assert await Resolver(lookup).resolve(name) == ("198.51.100.7",)


async def test_answers_are_canonical_each_once_bounded_and_of_both_families():
    lookup = Lookup(
        "2001:DB8:0::1", "2001:db8::1", "2001:db8::2", "fe80::1%eth0", "nonsense", "192.0.2.2", "192.0.2.3"
    )
    resolver = Resolver(lookup, max_addresses=3)
    assert await resolver.resolve("api.test") == ("2001:db8::1", "192.0.2.2", "2001:db8::2")


async def test_one_lookup_serves_all_who_wait_and_the_next_ones():
    lookup = Lookup("192.0.2.1", delay_s=0.02)
    resolver = Resolver(lookup)
    answers = await asyncio.gather(*(resolver.resolve("api.test") for _ in range(10)))
    assert set(answers) == {("192.0.2.1",)}
    await resolver.resolve("api.test")
    assert lookup.asked == ["api.test"]


async def test_a_ttl_of_zero_is_for_those_who_wait_only():
    lookup = Lookup("192.0.2.1", ttl_s=0.0, delay_s=0.01)
    resolver = Resolver(lookup)
    await asyncio.gather(*(resolver.resolve("api.test") for _ in range(5)))
    assert lookup.asked == ["api.test"]
    assert resolver.known("api.test") is None
    await resolver.resolve("api.test")
    assert len(lookup.asked) == 2


async def test_who_stops_waiting_does_not_take_the_lookup_along():
    lookup = Lookup("192.0.2.1", delay_s=0.05)
    resolver = Resolver(lookup)
    impatient = asyncio.ensure_future(resolver.resolve("api.test"))
    patient = asyncio.ensure_future(resolver.resolve("api.test"))
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert await patient == ("192.0.2.1",)
    assert lookup.asked == ["api.test"]


async def test_a_slow_name_holds_up_nobody_else():
    async def lookup(host):
        await asyncio.sleep(5 if host.startswith("slow") else 0)
        return Answer(("192.0.2.1",), 60.0)

    resolver = Resolver(lookup, timeout_s=0.2)
    slow = [asyncio.ensure_future(resolver.resolve(f"slow{n}.test")) for n in range(200)]
    async with asyncio.timeout(0.15):
        assert await resolver.resolve("fast.test") == ("192.0.2.1",)
    assert all(isinstance(left, ResolveError) for left in await asyncio.gather(*slow, return_exceptions=True))


@pytest.mark.parametrize(
    ("ttl_s", "kept_s"), [(30.0, 30.0), (86_400.0, 60.0), (1.0, 1.0)], ids=["ttl", "capped", "short"]
)
async def test_an_answer_lives_as_long_as_it_says(clock, ttl_s, kept_s):
    lookup = Lookup("192.0.2.1", ttl_s=ttl_s)
    resolver = Resolver(lookup, cache_max_s=60.0)
    await resolver.resolve("api.test")
    clock.now += kept_s - 0.01
    assert await resolver.resolve("api.test") == resolver.known("api.test") == ("192.0.2.1",)
    clock.now += 0.02
    assert resolver.known("api.test") is None
    await resolver.resolve("api.test")
    assert len(lookup.asked) == 2


async def test_attack_D13_nothing_is_served_stale(clock):
    lookup = Lookup("192.0.2.1", ttl_s=5.0)
    resolver = Resolver(lookup)
    await resolver.resolve("api.test")
    clock.now += 5.0
    lookup.error = OSError("gone")
    with pytest.raises(ResolveError):
        await resolver.resolve("api.test")
    assert resolver.known("api.test") is None


async def test_the_cache_is_bounded():
    lookup = Lookup("192.0.2.1")
    resolver = Resolver(lookup, cache_names=2)
    for name in ("a.test", "b.test", "c.test", "a.test"):
        await resolver.resolve(name)
    assert lookup.asked == ["a.test", "b.test", "c.test", "a.test"]


@pytest.mark.parametrize(
    ("lookup", "kept_s"),
    [
        pytest.param(Lookup(ttl_s=300.0), 10.0, id="no-address"),
        pytest.param(Lookup(ttl_s=3.0), 3.0, id="no-address-for-its-ttl"),
        pytest.param(Lookup(error=OSError("unknown")), 1.0, id="attack-D13"),
        pytest.param(Lookup("192.0.2.1", delay_s=30), 1.0, id="deadline"),
        pytest.param(Lookup("fe80::1%eth0"), 10.0, id="only-zones"),
    ],
)
async def test_failures_are_one_error_and_remembered_for_a_moment(clock, lookup, kept_s):
    resolver = Resolver(lookup, timeout_s=0.05, negative_max_s=10.0)
    for _ in range(2):
        with pytest.raises(ResolveError):
            await resolver.resolve("api.test")
        assert resolver.known("api.test") is None
        clock.now += kept_s - 0.01
    assert len(lookup.asked) == 1
    with pytest.raises(ResolveError):
        await resolver.resolve("api.test")
    assert len(lookup.asked) == 2


async def test_lookups_under_way_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "WAITING_NAMES", 1)
    resolver = Resolver(Lookup("192.0.2.1", delay_s=0.02))
    first = asyncio.ensure_future(resolver.resolve("a.test"))
    await asyncio.sleep(0)
    with pytest.raises(ResolveError, match="too many"):
        await resolver.resolve("b.test")
    assert await first == ("192.0.2.1",)


async def test_an_alias_brings_the_names_behind_it():
    resolver = Resolver(Lookup("192.0.2.1", aliases=("edge.cdn.test",)))
    for answer in (await resolver.resolve("api.test"), resolver.known("api.test")):
        assert isinstance(answer, Resolved)
        assert answer == ("192.0.2.1",)
        assert answer.aliases == ("edge.cdn.test",)


async def test_what_was_answered_is_remembered_beyond_its_ttl_but_not_for_ever(clock):
    lookup = Lookup("192.0.2.1", "192.0.2.2", ttl_s=1.0)
    resolver = Resolver(lookup, history_s=600.0, max_addresses=1)
    assert not resolver.gave("api.test", "192.0.2.1")
    await resolver.resolve("api.test")
    clock.now += 300.0
    lookup.answer = Answer(("192.0.2.3",), 1.0)
    await resolver.resolve("api.test")
    assert [resolver.gave("api.test", f"192.0.2.{n}") for n in range(1, 5)] == [True, True, True, False]
    assert not resolver.gave("other.test", "192.0.2.1")
    clock.now += 301.0
    assert [resolver.gave("api.test", f"192.0.2.{n}") for n in range(1, 4)] == [False, False, True]
    clock.now += 300.0
    assert not resolver.gave("api.test", "192.0.2.3")
    assert resolver.known("api.test") is None


async def test_what_is_remembered_is_bounded(clock):
    resolver = Resolver(lookup := Lookup("192.0.2.1", ttl_s=0.0), cache_names=2)
    for n in range(100):
        lookup.answer = Answer((f"192.0.2.{n}",), 0.0)
        await resolver.resolve("api.test")
    assert [n for n in range(100) if resolver.gave("api.test", f"192.0.2.{n}")] == list(range(36, 100))
    await resolver.resolve("b.test")
    await resolver.resolve("c.test")
    assert not resolver.gave("api.test", "192.0.2.99")


async def test_what_is_known_is_told_in_under_a_microsecond_or_nearly():
    resolver = Resolver(Lookup("192.0.2.1"))
    await resolver.resolve("api.test")
    took_s = min(timeit.repeat(lambda: resolver.known("api.test"), number=10_000, repeat=5)) / 10_000
    assert took_s < 10e-6  # a busy machine; 0.25 µs on a quiet one


@pytest.mark.parametrize(
    "settings",
    [
        ResolverSettings(mode="static", static={"api.test": ("192.0.2.1",)}),
        ResolverSettings(mode="system", static={"api.test": ("192.0.2.1",)}),
        ResolverSettings(
            mode="servers",
            servers=("192.0.2.53", "[2001:db8::53]:5353"),
            static={"api.test": ("192.0.2.1",)},
        ),
    ],
    ids=lambda settings: settings.mode,
)
async def test_every_mode_is_built_from_its_settings(settings):
    assert await Resolver.from_settings(settings).resolve("api.test") == ("192.0.2.1",)
