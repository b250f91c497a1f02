"""Plain headers count from listed clients only, once, and exactly."""

import pytest

from edgeguard.identity.plain import PlainReader
from edgeguard.policy.request import UNKNOWN_CLIENT, Assurance, Client, User
from edgeguard.settings.model import PlainHeaders

NOW = 1_800_000_000.0
EDGE = Client("edge", identified=True)
HEADERS = {"x-age": "age_at_least", "x-adult": "age_over_18", "x-band": "age_band", "x-country": "region"}


@pytest.fixture
def reader():
    return PlainReader(PlainHeaders(clients=("edge",), headers=HEADERS))


def test_a_listed_client_is_believed(reader):
    user = reader.read(EDGE, [("x-age", "21"), ("x-country", "DE")], NOW)
    assert user == User(age_at_least=21, assurance=Assurance.SELF_DECLARED, region="DE")


@pytest.mark.parametrize(
    "client",
    [UNKNOWN_CLIENT, Client("other", identified=True), Client("edge", identified=False)],
    ids=["unknown", "unlisted", "unproved"],
)
def test_nobody_else_is(reader, client):
    assert reader.read(client, [("x-age", "21")], NOW) is None


def test_the_default_list_is_empty():
    assert PlainReader(PlainHeaders(headers=HEADERS)).read(EDGE, [("x-age", "21")], NOW) is None


@pytest.mark.parametrize(
    "fields",
    [
        [("x-age", "21"), ("x-age", "21")],
        [("x-age", "12"), ("x-age", "30")],
        [("x-age", "21, 12")],
        [("x-age", "+21")],
        [("x-age", "2_1")],
        [("x-age", "21.0")],
        [("x-age", "\u0662\u0661")],
        [("x-age", "9999")],
        [("x-age", "")],
        [("x-adult", "TRUE")],
        [("x-adult", "1")],
        [("x-adult", "yes")],
        [("x-band", "18")],
        [("x-adult", "true"), ("x-band", "13-15")],
    ],
    ids=repr,
)
def test_what_is_not_exact_is_unknown(reader, fields):
    assert reader.read(EDGE, fields, NOW).age_at_least is None


def test_silence_says_nothing(reader):
    assert reader.read(EDGE, [], NOW) is None


def test_one_claim_has_one_field():
    with pytest.raises(ValueError, match="two fields say region"):
        PlainHeaders(headers={"x-a": "region", "x-b": "region"})
