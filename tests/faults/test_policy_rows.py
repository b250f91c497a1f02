"""Rows of the fault matrix that the policy decides: exceptions, matchers, and a pod without a past."""

from datetime import UTC, datetime

import pytest

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.evaluate import evaluate
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Request
from edgeguard.policy.source import PolicyErrors, load_sources
from edgeguard.policy.tables import Tables, TablesError

CLIENT = Client("migration", identified=True)
ASKED = Request(CLIENT, "old.corp.example", 443)
POLICY = """edgeguard: 1
module: m
owner: o
rules:
  - {id: reach, effect: allow, to: ["**.corp.example"]}
  - {id: blocked, effect: deny, to: ["old.corp.example"]}
exceptions:
  - {id: exc-1, lifts: blocked, clients: [migration], owner: o, reason: r, ticket: T-1, granted: 2026-06-01, expires: 2026-06-20}
"""
GRANTED, EXPIRES = (datetime(2026, 6, day, tzinfo=UTC).timestamp() for day in (1, 20))


def sections(text: str = POLICY) -> dict[str, object]:
    return dict(compile_policy(load_sources({"m.yaml": text.encode()})))


def engine(text: str = POLICY) -> Engine:
    return Engine(Tables.load(sections(text)))


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        pytest.param(GRANTED - 1, False, id="fault-B22-before"),
        pytest.param(GRANTED, True, id="fault-B22-from"),
        pytest.param(EXPIRES - 0.001, True, id="fault-B22-last-moment"),
        pytest.param(EXPIRES, False, id="fault-B22-expired"),
    ],
)
def test_an_exception_ends_at_its_moment_on_every_path(now: float, allowed: bool) -> None:
    asked = engine()
    asked.decide(ASKED, GRANTED)  # what is remembered from then must not outlive it
    inside = ASKED._replace(method="GET", target="/")
    question = {"client": "migration", "host": "old.corp.example", "port": 443}
    assert asked.decide(ASKED, now).allow is allowed
    assert asked.decide(inside, now).allow is allowed
    assert asked.explain(ASKED, now).decision.allow is allowed
    assert evaluate(asked, question, now)["allow"] is allowed
    assert not asked.decide(ASKED, now, restricted=True).allow, "exceptions never survive offline"


def test_a_decision_says_when_its_exception_ends() -> None:
    assert engine().decide(ASKED, GRANTED).until == EXPIRES


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param(
            "clients: [migration]", 'to: ["**.corp.example"]', "as wide as", id="fault-F13-wider-destination"
        ),
        pytest.param("clients: [migration], ", "", "narrower", id="fault-F13-no-bound"),
        pytest.param(", expires: 2026-06-20", "", "expires", id="fault-F14-no-end"),
        pytest.param("expires: 2026-06-20", "expires: 2026-07-20", "30 days", id="fault-F14-too-long"),
        pytest.param("reason: r, ", "", "reason", id="fault-F14-no-reason"),
        pytest.param("owner: o, reason", "reason", "owner", id="fault-F14-no-owner"),
        pytest.param("ticket: T-1, ", "", "ticket", id="fault-F14-no-ticket"),
        pytest.param("lifts: blocked", "lifts: blockd", "blocked", id="fault-F15-no-such-rule"),
        pytest.param("lifts: blocked", "lifts: reach", "not a deny or a limit", id="fault-F15-not-liftable"),
    ],
)
def test_an_exception_is_narrow_short_and_accounted_for(old: str, new: str, says: str) -> None:
    assert old in POLICY
    with pytest.raises(PolicyErrors, match=says):
        sections(POLICY.replace(old, new))


def test_a_node_refuses_what_no_tool_of_ours_would_build() -> None:
    built = sections()
    changed = repr(built["exceptions"])
    assert "exc-1" in changed
    damaged = {**built, "exceptions": {"rows": "everything"}}
    with pytest.raises(TablesError):
        Tables.load(damaged)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("/(a+)+$", id="fault-D24-regex"),
        pytest.param("/[a-z]{1,99}", id="fault-D24-class"),
    ],
)
def test_no_pattern_language_but_segments(template: str) -> None:
    """What a regular expression would explode on is refused, or means itself."""
    text = POLICY.replace('to: ["old.corp.example"]', f'to: ["old.corp.example"], paths: ["{template}"]')
    try:
        asked = engine(text)
    except PolicyErrors:
        return
    long = ASKED._replace(
        client=Client("other", identified=True), method="GET", target="/" + "a" * 4000 + "!"
    )
    assert asked.decide(long, GRANTED).reason is not Reason.DENIED_BY_RULE
