"""The rule that a refusal suggests: valid, sufficient, and nothing more."""

import pytest

from edgeguard.dev.suggest import suggestion
from edgeguard.evidence.record import Record
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables

HEAD = "edgeguard: 1\nmodule: suggested\nowner: me\nrules:\n"


def refused(host="api.test", port=443, **facts):
    facts = {"client": "me", "identified": True, "protocol": "tls", **facts}
    reason = facts.pop("reason", Reason.HOST_NOT_ALLOWED)
    return Record(
        "1", 0.0, "request", connection="1", verdict="deny", reason=reason, host=host, port=port, **facts
    )


def engine(*rules):
    return Engine(Tables.load(compile_policy(load_sources({"p.yaml": (HEAD + "\n".join(rules)).encode()}))))


def allowed(judge, record, **changes):
    facts = {"host": record.host, "port": record.port, "protocol": record.protocol}
    facts |= {"method": record.method, "target": record.path, **changes}
    client = Client(record.client, identified=record.identified)
    return judge.decide(Request(client=client, **facts), 0.0).allow


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/a/b",
        "/a/",
        "/caf%C3%A9/%7Euser",
        '/with/"quotes"',
        "/a%20b",
        "/a%252Fb",
        "/100%25/x",
        "/a;v=1/b",
        "/star/*/x",
        "/a/../b",
    ],
)
def test_a_path_that_can_be_said_is_allowed_and_no_other(path):
    record = refused(method="GET", path=path, reason=Reason.PATH_NOT_ALLOWED)
    rule = suggestion(record)
    if rule is None:
        # Only what has no template: a reading with dot segments.
        assert "/../" in path
        return
    judge = engine(rule)
    assert allowed(judge, record), rule
    assert not allowed(judge, record, target="/something/else/entirely")
    assert not allowed(judge, record, method="DELETE")
    assert not allowed(judge, record, host="other.test")
    assert not allowed(judge, record, port=8443)


@pytest.mark.parametrize(
    "record",
    [
        refused(),
        refused("2606:4700::1", 8443),
        refused("93.184.216.34"),
        refused("127.0.0.1", 8443),
        refused("localhost", 8443, reason=Reason.ADDRESS_NOT_ALLOWED),
        refused(protocol="http", port=80, method="GET", path="/x"),
        refused(client=None, identified=False),
        refused(protocol="websocket", method="GET", path="/room"),
    ],
    ids=["tunnel", "ipv6", "ipv4", "loopback", "localhost", "plain", "unknown-client", "websocket"],
)
def test_each_kind_of_refusal(record):
    judge = engine(suggestion(record))
    assert allowed(judge, record)
    request = Request(Client(record.client, identified=record.identified), record.host, record.port)
    if record.host in {"127.0.0.1", "localhost"}:
        assert judge.admit(request, ["127.0.0.1"], 0.0).addresses == ("127.0.0.1",)


def test_suggestions_can_be_pasted_together():
    records = [
        refused(method=method, path=path, port=port)
        for method in ("GET", "POST")
        for path in ("/a/b", "/a-b", "/" + "long/" * 40 + "a", "/" + "long/" * 40 + "b")
        for port in (443, 8443)
    ]
    judge = engine(*(suggestion(record) for record in records))
    assert all(allowed(judge, record) for record in records)


@pytest.mark.parametrize("reason", [Reason.DENIED_BY_RULE, Reason.RATE_LIMITED, Reason.AGE_BELOW_MINIMUM])
def test_what_is_there_on_purpose_gets_no_suggestion(reason):
    assert suggestion(refused(reason=reason)) is None


def test_no_suggestion_opens_what_a_name_resolves_to():
    """A public name that answers with a private address is an attack, or a matter for whoever owns the name."""
    assert suggestion(refused(reason=Reason.ADDRESS_NOT_ALLOWED)) is None
    assert suggestion(refused("169.254.169.254", 80, reason=Reason.ADDRESS_NOT_ALLOWED)) is None
