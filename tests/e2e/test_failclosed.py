"""Fail closed, end to end: what is refused is neither resolved nor dialled, and no state lets traffic slip."""

import pytest

from tests.attacks.names import NameServer
from tests.e2e.kit import POLICY, Place, edgeguard, wait_until


@pytest.fixture(scope="module")
def names():
    server = NameServer("example")
    yield server
    server.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory, keys, names):
    resolver = f'[resolver]\nmode = "servers"\nservers = ["127.0.0.1:{names.port}"]\n'
    with Place(tmp_path_factory.mktemp("failclosed"), keys, resolver=resolver) as running:
        running.client = running.start_all()
        yield running


DENIED = [
    pytest.param("https", "evil.example", "tls", "/", "host_not_allowed", id="host"),
    pytest.param("https", "nowhere.example", "tls", "/", "host_not_allowed", id="unknown-name"),
    pytest.param("https", "tunnel.example", "http", "/", "port_not_allowed", id="port"),
    pytest.param("https", "127.0.0.1", "tls", "/", "host_not_allowed", id="address"),
    pytest.param("http", "evil.example", "http", "/ok/page", "host_not_allowed", id="plain-host"),
    pytest.param("http", "plain.example", "http", "/secret", "path_not_allowed", id="plain-path"),
    pytest.param("http", "site.example", "tls", "/ok/page", "protocol_not_allowed", id="plain-to-tls"),
]


@pytest.mark.parametrize(("scheme", "host", "port", "path", "reason"), DENIED)
def test_what_is_denied_is_neither_resolved_nor_dialled(place, names, scheme, host, port, path, reason):
    names.asked.clear()
    before = place.upstream.connections
    ask = getattr(place.client, scheme)
    seen = ask(host, getattr(place, port), path)
    assert (seen.status, seen.reason) == (403, reason)
    assert names.asked == []
    assert place.upstream.connections == before


def test_what_is_allowed_is_resolved_and_dialled_once(place, names):
    """The counters above can count."""
    names.asked.clear()
    before = place.upstream.connections
    assert place.client.https("site.example", place.tls, "/ok/page").status == 200
    assert names.asked == ["site.example"]
    assert place.upstream.connections == before + 1


def test_a_refused_request_does_not_reach_the_upstream(place):
    """Inside an allowed tunnel the connection may exist; the request never arrives there."""
    place.upstream.requests.clear()
    assert place.client.https("site.example", place.tls, "/secret").reason == "path_not_allowed"
    assert place.upstream.requests == []


def test_without_a_policy_everything_is_refused(tmp_path, keys):
    with Place(tmp_path, keys) as place:
        place.start_server()
        (tmp_path / "edgeguard.toml").write_text(place._config())
        place.start("proxy", "run", "--config", "edgeguard.toml")
        place.wait_for_port(place.proxy, "proxy")
        client = place.client_of()
        for seen in (
            client.https("tunnel.example", place.tls),
            client.https("site.example", place.tls, "/ok/page"),
            client.http("plain.example", place.http, "/ok/page"),
        ):
            assert (seen.status, seen.reason) == (503, "policy_missing")
        assert place.upstream.connections == 0
        assert place.status()["ready"] is False
        # The first bundle opens it, without a restart.
        place.write("e2e", POLICY)
        place.publish(place.release(1, lifetime_s=600))
        place.start_head()
        wait_until(lambda: place.status().get("ladder") == "fresh", "a fresh policy")
        assert client.https("tunnel.example", place.tls).status == 200


def test_a_log_that_cannot_be_written_refuses_new_work(tmp_path, keys):
    """/dev/full fails every write with ENOSPC, like a full disk."""
    with Place(tmp_path, keys) as place:
        place.decisions = "/dev/full"
        config = place._config()
        place.write("e2e", POLICY)
        bundle = place.release(1, lifetime_s=600)
        place.start_server()
        place.publish(bundle)
        place.start_head()
        (tmp_path / "edgeguard.toml").write_text(config)
        place.start("proxy", "run", "--config", "edgeguard.toml")
        place.wait_for_port(place.proxy, "proxy")
        client = place.client_of()
        wait_until(lambda: place.status().get("ladder") == "fresh", "a fresh policy")

        def refused():
            return client.https("tunnel.example", place.tls).reason == "capacity_exceeded"

        wait_until(refused, "a refusal", within_s=5)
        before = place.upstream.connections
        for seen in (
            client.https("tunnel.example", place.tls),
            client.https("site.example", place.tls, "/ok/page"),
            client.http("plain.example", place.http, "/ok/page"),
        ):
            assert (seen.status, seen.reason) == (503, "capacity_exceeded")
        assert place.upstream.connections == before
        status = place.status()
        assert (status["ready"], status["why"]) == (False, "the decision log cannot be written")
        done = edgeguard("status", "--admin", f"127.0.0.1:{place.admin}", cwd=tmp_path)
        assert done.returncode == 1
        assert "the decision log cannot be written" in done.stdout
