"""Keys of issuers from files and URLs: fetched as the policy allows, bounded, and never sooner than the cooldown."""

import asyncio
import contextlib
import json
import ssl
from types import SimpleNamespace

import pytest
from aiohttp import web
from joserfc.jwk import ECKey

from edgeguard.demo.tokens import make_certificates
from edgeguard.identity.jwks import KeyRing
from edgeguard.policy.decision import Lane
from edgeguard.policy.reasons import Reason
from edgeguard.proxy import jwks
from edgeguard.settings.model import User
from tests.fakes import FakeGuard, RecordingResolver

KEY = ECKey.generate_key("P-256", {"kid": "a"})
OTHER = ECKey.generate_key("P-256", {"kid": "b"})
NOW = 1_800_000_000.0


def document(*keys):
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


class Guard(FakeGuard):
    snapshot = None

    def now(self):
        return NOW


@pytest.fixture
def guard():
    return Guard()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("pki"), ["idp.test"])


class Issuer:
    """An identity provider that counts."""

    def __init__(self):
        self.asked = 0
        self.answer = document(KEY)
        self.status = 200
        self.delay_s = 0.0
        self.url = ""

    async def serve(self, request):
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        headers = {"Location": "https://idp.test/elsewhere"} if self.status == 302 else {}
        return web.Response(body=self.answer, status=self.status, headers=headers)


@contextlib.asynccontextmanager
async def listening(issuer, leaf):
    app = web.Application()
    app.router.add_get("/jwks", issuer.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    issuer.port = site._server.sockets[0].getsockname()[1]
    issuer.url = f"https://idp.test:{issuer.port}/jwks"
    try:
        yield issuer
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def fetching(guard, issuers, authorities=None, resolver=None, **changes):
    """A running fetcher; yields its ring and its resolver."""
    guard.snapshot = SimpleNamespace(issuers=issuers)
    ring = KeyRing()
    resolver = resolver or RecordingResolver({"idp.test": ["127.0.0.1"]})
    settings = User(**changes)
    fetcher = jwks.KeyFetcher(guard, ring, resolver, settings, authorities)
    fetcher.start()
    try:
        yield ring, resolver
    finally:
        await fetcher.stop()


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.fixture
async def issuer(certificates):
    async with listening(Issuer(), certificates[1]) as found:
        yield found


async def test_a_policy_that_changes_while_the_name_is_resolved_counts(guard, issuer, certificates):
    guard.allow("idp.test", issuer.port, lane=Lane.INSPECT)

    class Changing(RecordingResolver):
        async def resolve(self, host):
            guard.allowed.clear()
            return await super().resolve(host)

    resolver = Changing({"idp.test": ["127.0.0.1"]})
    async with fetching(guard, [{"jwks_url": issuer.url}], certificates[0], resolver) as (ring, _):
        await until(lambda: guard.refusals)
        assert guard.refusals == [Reason.HOST_NOT_ALLOWED]
        assert issuer.asked == 0
        assert not ring.until(issuer.url)


async def test_keys_are_fetched_where_a_rule_allows_it(guard, issuer, certificates):
    guard.allow("idp.test", issuer.port, lane=Lane.INSPECT)
    async with fetching(guard, [{"jwks_url": issuer.url}], certificates[0]) as (ring, resolver):
        await until(lambda: ring.until(issuer.url))
        assert [key.kid for key in ring.fitting(issuer.url, NOW)] == ["a"]
        assert ring.until(issuer.url) == NOW + 86_400
        assert resolver.asked == ["idp.test"]
        asked = guard.judged[0]
        assert (asked.client.name, asked.method, asked.target) == ("edgeguard", "GET", "/jwks")
        await until(lambda: guard.open == 0)
        assert [why for *_, why in guard.finished] == ["done"]


async def test_without_a_rule_nothing_is_resolved_or_dialled(guard, issuer, certificates):
    async with fetching(guard, [{"jwks_url": issuer.url}], certificates[0]) as (ring, resolver):
        await until(lambda: guard.refusals)
        assert guard.refusals == [Reason.HOST_NOT_ALLOWED]
        assert resolver.asked == []
        assert issuer.asked == 0
        assert ring.fitting(issuer.url, NOW) == ()


async def test_an_address_that_is_refused_is_not_dialled(guard, issuer, certificates):
    guard.allow("idp.test", issuer.port)
    guard.refused_addresses.add("127.0.0.1")
    async with fetching(guard, [{"jwks_url": issuer.url}], certificates[0]):
        await until(lambda: guard.refusals)
        assert issuer.asked == 0


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"status": 302}, {}),
        ({"status": 500}, {}),
        ({"answer": b"no"}, {}),
        ({"answer": b" " * 70_000}, {}),
        ({"delay_s": 1.0}, {"jwks_deadline_s": 0.2}),
    ],
    ids=["redirect", "error", "not-json", "too-large", "too-slow"],
)
async def test_bad_answers_leave_no_keys(guard, issuer, certificates, caplog, changes, settings):
    guard.allow("idp.test", issuer.port)
    vars(issuer).update(changes)
    async with fetching(guard, [{"jwks_url": issuer.url}], certificates[0], **settings) as (ring, _):
        await until(lambda: "cannot be fetched" in caplog.text)
        assert issuer.asked == 1
        assert ring.fitting(issuer.url, NOW) == ()


async def test_an_issuer_is_verified(guard, issuer, caplog):
    guard.allow("idp.test", issuer.port)
    async with fetching(guard, [{"jwks_url": issuer.url}]) as (ring, _):
        await until(lambda: "cannot be fetched" in caplog.text)
        assert ring.fitting(issuer.url, NOW) == ()


async def test_unknown_keys_ask_again_after_the_cooldown_only(guard, issuer, certificates):
    guard.allow("idp.test", issuer.port)
    sources = [{"jwks_url": issuer.url}]
    async with fetching(guard, sources, certificates[0], jwks_cooldown_s=0.5) as (ring, _):
        await until(lambda: ring.until(issuer.url))
        issuer.answer = document(KEY, OTHER)
        for _ in range(200):
            ring.miss(issuer.url)
            await asyncio.sleep(0)
        assert issuer.asked == 1
        await until(lambda: len(ring.fitting(issuer.url, NOW)) == 2)
        assert issuer.asked == 2


async def test_an_issuer_that_is_down_is_believed_for_a_while(guard, issuer, certificates, caplog):
    guard.allow("idp.test", issuer.port)
    sources = [{"jwks_url": issuer.url}]
    settings = {"jwks_refresh_s": 0.1, "jwks_cooldown_s": 0.1, "jwks_max_age_s": 60.0}
    async with fetching(guard, sources, certificates[0], **settings) as (ring, _):
        await until(lambda: ring.until(issuer.url))
        issuer.status = 503
        ring.miss(issuer.url)
        await until(lambda: "cannot be fetched" in caplog.text)
        assert ring.fitting(issuer.url, NOW + 59) != ()
        assert ring.fitting(issuer.url, NOW + 60) == ()


async def test_files_are_followed(guard, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jwks, "LOOK_S", 0.02)
    path = tmp_path / "idp.json"
    path.write_bytes(document(KEY))
    async with fetching(guard, [{"jwks_file": "idp.json"}], jwks_dir=tmp_path) as (ring, resolver):
        source = "file:idp.json"
        await until(lambda: [k.kid for k in ring.fitting(source, NOW)] == ["a"])
        new = tmp_path / "new"
        new.write_bytes(document(OTHER))
        new.rename(path)
        await until(lambda: [k.kid for k in ring.fitting(source, NOW)] == ["b"])
        path.write_bytes(b"broken")
        await until(lambda: not ring.fitting(source, NOW))
        assert "the keys cannot be used: not JSON" in caplog.text
        assert resolver.asked == []
        assert guard.judged == []


async def test_a_new_policy_takes_its_issuers_along(guard, tmp_path):
    (tmp_path / "a.json").write_bytes(document(KEY))
    async with fetching(guard, [{"jwks_file": "a.json"}], jwks_dir=tmp_path) as (ring, _):
        await until(lambda: ring.until("file:a.json"))
        guard.snapshot = SimpleNamespace(issuers=[])
        guard.changed()
        await until(lambda: not ring.until("file:a.json"))
