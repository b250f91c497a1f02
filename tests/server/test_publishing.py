"""What the server takes and what it refuses: over a real socket, with real signatures."""

import asyncio
import hashlib
from dataclasses import replace

import pytest

from edgeguard.bundle.documents import Caps, Kind, media_type
from edgeguard.bundle.envelope import Envelope, seal
from edgeguard.server.tokens import PublishTokens
from edgeguard.sync.publish import PublishError, publish, publish_bytes
from tests.server.conftest import TOKEN
from tests.sync.signing import DAY, HOUR, key, lay_out, ref


@pytest.fixture
def put(running):
    async def send(data, name="document", token=TOKEN):
        return await publish_bytes(running.url, token, name, data)

    return send


async def refused(sending, code):
    with pytest.raises(PublishError) as caught:
        await sending
    assert caught.value.code == code
    return caught.value


async def test_a_release_from_bundle_to_head(running, put, authority):
    bundle = authority.bundle(2)
    receipt = await put(bundle)
    assert (receipt.role, receipt.version, receipt.created) == ("bundle", 2, True)
    assert receipt.path == f"blobs/{hashlib.sha256(bundle).hexdigest()}"
    head = authority.head(2, bundle, 2)
    receipt = await put(head)
    assert (receipt.role, receipt.version, receipt.path) == ("head", 2, "test/head")
    assert (running.directory / "test/head").read_bytes() == head
    assert (running.directory / receipt.path).stat().st_mode & 0o777 == 0o644
    assert not (await put(head)).created
    assert not (await put(bundle)).created
    assert not list(running.directory.rglob("*.tmp"))


async def test_files_go_in_the_order_that_the_server_needs(running, authority, tmp_path):
    bundle = authority.bundle(2)
    files = []
    for name, data in (
        ("a-head", authority.head(2, bundle, 2)),
        ("b-bundle", bundle),
        ("c-root", authority.root(2)),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        files.append(path)
    receipts = await publish(running.url, TOKEN, files)
    assert [receipt.role for receipt in receipts] == ["root", "bundle", "head"]


async def test_a_head_needs_its_members(put, authority):
    await refused(put(authority.head(2, authority.bundle(2), 2)), "member_missing")


async def test_roots_form_a_chain(running, put, authority):
    old = authority.root()
    assert not (await put(old)).created
    rotated = replace(authority, root_keys=("root-c", "root-d"))
    await refused(put(rotated.root(2)), "key_unknown")
    await refused(put(authority.root(3)), "root_gap")
    await refused(put(authority.root(2, signers=["root-a"])), "threshold")
    await refused(put(authority.root(1, expires_at=authority.now + 2 * DAY)), "equivocation")
    assert (await put(rotated.root(2, before=authority.root_keys))).path == "root/2.root"
    await refused(put(authority.root(3)), "key_unknown")
    assert (await put(rotated.root(3))).version == 3


async def test_rotated_release_keys_count_at_once(put, authority):
    rotated = replace(authority, release_keys=("release-b",))
    await put(rotated.root(2))
    await refused(put(authority.bundle(2)), "key_unknown")
    assert (await put(rotated.bundle(2))).created


async def test_a_rotated_head_key_takes_back_a_version_that_ran_ahead(put, authority):
    bundle = authority.bundle(1)
    await put(authority.head(2**31, bundle))
    await refused(put(authority.head(2, bundle)), "rollback_head")
    rotated = replace(authority, head_keys=("head-b",))
    await put(rotated.root(2))
    assert (await put(rotated.head(2, bundle))).version == 2


@pytest.mark.parametrize("case", [pytest.param(None, id="threat-publish")])
async def test_nothing_older_and_nothing_twice(put, authority, case):
    old, new = authority.bundle(1), authority.bundle(3)
    await put(new)
    await put(authority.head(5, new, 3))
    await refused(put(authority.bundle(2)), "rollback_bundle")
    await refused(put(authority.bundle(3, grace_s=1)), "equivocation")
    await refused(put(authority.head(4, new, 3)), "rollback_head")
    await refused(put(authority.head(5, new, 3, quarantine=1)), "equivocation")
    await refused(put(authority.head(6, old, 1)), "rollback_bundle")
    await refused(put(authority.head(6, new, 4)), "version_mismatch")
    await refused(put(authority.head(6 + 2**32, new, 3)), "version_jump")


CASES = {
    "bit flipped in the payload": (
        lambda a: flip(a.bundle(2), a.bundle(2).index(b"policy") + 8),
        "sig_invalid",
    ),
    "unknown key": (lambda a: a.bundle(2, signers=["stranger"]), "key_unknown"),
    "no signature": (lambda a: a.bundle(2, signers=[]), "threshold"),
    "head key signs a bundle": (lambda a: a.bundle(2, signers=["head-a"]), "key_unknown"),
    "other environment": (lambda a: a.bundle(2, environment="prod"), "env"),
    "type of another environment": (lambda a: a.bundle(2, type_env="prod"), "env"),
    "bundle under a head's type": (lambda a: head_of_a_bundle(a.bundle(2), a.env), "type"),
    "unknown type": (lambda a: seal("text/plain", b"x", [key("release-a")]), "type"),
    "expired bundle": (lambda a: a.bundle(2, issued_at=1, not_before=1, expires_at=2), "expired"),
    "lifetime over the cap": (lambda a: a.bundle(2, expires_at=a.now + 60 * DAY), "lifetime"),
    "grace over the cap": (lambda a: a.bundle(2, grace_s=2 * DAY), "lifetime"),
    "expired head": (
        lambda a: a.head(2, a.bundle(1), issued_at=a.now - 2 * HOUR, expires_at=a.now - HOUR),
        "freeze",
    ),
    "head of the future": (
        lambda a: a.head(2, a.bundle(1), issued_at=a.now + HOUR, expires_at=a.now + 2 * HOUR),
        "not_before",
    ),
    "head that lives too long": (lambda a: a.head(2, a.bundle(1), expires_at=a.now + 2 * DAY), "lifetime"),
    "head with a wrong length": (
        lambda a: a.head(2, b"", members={"bundle": ref(a.bundle(1), 1)._replace(length=7)}),
        "member_missing",
    ),
    "html": (lambda a: b"<html>please log in</html>", "malformed"),
    "nothing": (lambda a: b"", "malformed"),
    "half": (lambda a: a.bundle(2)[:100], "malformed"),
}


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def head_of_a_bundle(bundle, env):
    return seal(media_type(Kind.HEAD, env), Envelope.parse(bundle).payload, [key("head-a")])


@pytest.mark.parametrize("case", CASES)
async def test_what_is_not_vouched_for_is_refused(running, http, authority, case):
    make, code = CASES[case]
    before = {path: path.read_bytes() for path in running.directory.rglob("*") if path.is_file()}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with http.put(f"{running.url}v1/publish", data=make(authority), headers=headers) as response:
        reply = await response.json(content_type=None)
        assert response.status in {409, 422}
        assert reply["code"] == code
        assert response.content_type == "application/problem+json"
    after = {path: path.read_bytes() for path in running.directory.rglob("*") if path.is_file()}
    after.pop(running.directory / ".lock", None)
    assert after == before


async def test_the_floor_of_the_root(put, authority):
    await put(replace(authority, floor=5).root(2))
    await refused(put(authority.bundle(4)), "rollback_bundle")
    assert (await put(authority.bundle(5))).created


async def test_a_folder_without_a_root_takes_nothing(tmp_path, start, authority):
    running = start(tmp_path)
    await refused(publish_bytes(running.url, TOKEN, "root", authority.root()), "no_root")


async def test_a_damaged_root_in_the_folder_vouches_for_nothing(running, put, authority):
    (running.directory / "root/1.root").write_bytes(authority.root(signers=["root-a", "stranger"]))
    await refused(put(authority.bundle(2)), "threshold")


async def test_several_publishers_at_once_leave_one_winner(put, authority):
    bundle = authority.bundle(1)
    tasks = [put(authority.head(2, bundle, quarantine=number), f"{number}") for number in range(8)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert {getattr(result, "code", None) for result in results} <= {None, "equivocation"}


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN]
)
async def test_publishing_takes_a_token(running, http, authority, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    async with http.put(f"{running.url}v1/publish", data=authority.bundle(2), headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    async with http.put(
        f"{running.url}v1/publish", data=authority.bundle(2), headers={"Authorization": f"bearer  {TOKEN}"}
    ) as response:
        assert response.status == 201


async def test_without_tokens_publishing_is_off(served, start, http, authority):
    running = start(served, tokens="")
    headers = {"Authorization": "Bearer "}
    async with http.put(f"{running.url}v1/publish", data=authority.bundle(2), headers=headers) as response:
        assert response.status == 403


def test_token_files():
    tokens = PublishTokens.parse(f"# both forms\n{TOKEN}\nsha256:{hashlib.sha256(b'other').hexdigest()}\n")
    assert tokens.accepts(f"Bearer {TOKEN}")
    assert tokens.accepts("Bearer other")
    assert not tokens.accepts("Bearer \udcff")
    assert TOKEN not in repr(vars(PublishTokens)) + repr([getattr(tokens, name) for name in tokens.__slots__])
    with pytest.raises(ValueError, match=r"line 1.*at least 32"):
        PublishTokens.parse("short")


async def test_bodies_have_a_cap_and_a_deadline(running, http):
    headers = {"Authorization": f"Bearer {TOKEN}"}

    async def endless():
        while True:
            yield b"x" * 65536

    async def trickle():
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.1)

    async with http.put(f"{running.url}v1/publish", data=b"x" * 100_001, headers=headers) as response:
        assert response.status == 413
    try:
        async with http.put(f"{running.url}v1/publish", data=endless(), headers=headers) as response:
            assert response.status == 413
    except OSError:  # the server closed while we were still sending
        pass
    async with http.put(f"{running.url}v1/publish", data=trickle(), headers=headers) as response:
        assert response.status == 408


async def test_publishing_wakes_a_long_poll(running, put, http, authority):
    async with http.get(f"{running.url}test/head") as response:
        etag = response.headers["ETag"]

    async def wait():
        headers = {"If-None-Match": etag, "Prefer": "wait=5"}
        async with http.get(f"{running.url}test/head", headers=headers) as response:
            return await response.read()

    waiting = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0.2)
    head = authority.head(2, authority.bundle(1))
    await put(head)
    assert await waiting == head


async def test_a_server_that_is_not_there_and_files_that_are_not_documents(tmp_path):
    path = tmp_path / "x"
    await refused(publish("http://127.0.0.1:9/", TOKEN, [path]), "unreadable")
    path.write_bytes(b"x")
    error = await refused(publish("http://127.0.0.1:9/", TOKEN, [path]), "malformed")
    assert str(path) in str(error)
    with pytest.raises(ValueError, match="plain http is for loopback only"):
        await publish("http://bundles.example/", TOKEN, [])


async def test_caps_of_the_root_bound_a_bundle(tmp_path, start, authority):
    small = replace(authority, caps=Caps(bundle_bytes=100))
    lay_out(tmp_path, small.env, roots=[small.root()])
    running = start(tmp_path)
    await refused(publish_bytes(running.url, TOKEN, "b", small.bundle(1, policy=b"x" * 200)), "too_big")
    await refused(publish_bytes("http://127.0.0.1:9/", TOKEN, "b", small.bundle(1)), "unreachable")
