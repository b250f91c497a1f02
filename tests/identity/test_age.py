"""Claims to bounds: nearest attestation, strict types, and never a year too old."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.identity.age import read_user
from edgeguard.policy.request import Assurance

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()


def bounds(claims, now=NOW):
    user = read_user(claims, now, expires=now + 60)
    return user.age_at_least, user.age_at_most


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, (None, None)),
        ({"age_over_18": True}, (18, None)),
        ({"age_over_18": False}, (None, 17)),
        ({"age_over_21": True, "age_over_18": True}, (21, None)),
        ({"age_over_16": True, "age_over_18": False}, (16, 17)),
        ({"age_over_65": False}, (None, 64)),
        ({"age_over_65": False, "age_over_13": True}, (13, 64)),
        ({"age_over_21": True, "age_over_18": False}, (None, None)),
        ({"age_over_18": "true"}, (None, None)),
        ({"age_over_18": 1}, (None, None)),
        ({"age_over_18": None}, (None, None)),
        ({"age_over_018": True, "age_over_1": True, "AGE_OVER_18": True, "age_over_18 ": True}, (None, None)),
        ({"age_over_١٨": True}, (None, None)),
        ({"age_verified": True}, (18, None)),
        ({"age_verified": False}, (None, None)),
        ({"age_verified": "true"}, (None, None)),
        ({"age_band": "13-15"}, (13, 15)),
        ({"age_band": "18+"}, (18, None)),
        ({"age_band": "15-13"}, (None, None)),
        ({"age_band": "18"}, (None, None)),
        ({"age_band": 18}, (None, None)),
        ({"age_at_least": 18, "age_at_most": 20}, (18, 20)),
        ({"age_at_least": True}, (None, None)),
        ({"age_at_least": 18.0}, (None, None)),
        ({"age_at_least": 1000}, (None, None)),
        ({"age_at_least": -1}, (None, None)),
        ({"birthdate": "2008-06-15"}, (18, 18)),
        ({"birthdate": "2008-06-16"}, (17, 18)),
        ({"birthdate": "2008-06-17"}, (17, 17)),
        ({"birthdate": "2008"}, (17, 18)),
        ({"birthdate": "2007"}, (18, 19)),
        ({"birthdate": "0000-06-15"}, (None, None)),
        ({"birthdate": "2008-02-30"}, (None, None)),
        ({"birthdate": "2008-6-15"}, (None, None)),
        ({"birthdate": 20080615}, (None, None)),
        ({"birthdate": "2030-01-01"}, (None, None)),
        ({"birthdate": "1800-01-01"}, (None, None)),
        ({"birthdate": "2000-01-01", "age_over_18": False}, (None, None)),
    ],
)
def test_bounds(claims, expected):
    assert bounds(claims) == expected


@pytest.mark.parametrize(
    ("instant", "expected"),
    [
        # 15 June begins at UTC+14 when it is 10:00 UTC on the 14th, and at UTC-12 at 12:00 UTC on the 15th.
        (datetime(2026, 6, 14, 9, 59, tzinfo=UTC), (17, 17)),
        (datetime(2026, 6, 14, 10, 0, tzinfo=UTC), (17, 18)),
        (datetime(2026, 6, 15, 11, 59, tzinfo=UTC), (17, 18)),
        (datetime(2026, 6, 15, 12, 0, tzinfo=UTC), (18, 18)),
    ],
)
def test_birthday_counts_only_where_it_has_begun_everywhere(instant, expected):
    assert bounds({"birthdate": "2008-06-15"}, instant.timestamp()) == expected


def test_leap_day():
    assert bounds({"birthdate": "2008-02-29"}, datetime(2026, 2, 28, 13, tzinfo=UTC).timestamp()) == (17, 18)
    assert bounds({"birthdate": "2008-02-29"}, datetime(2026, 3, 1, 13, tzinfo=UTC).timestamp()) == (18, 18)


def test_birthdate_expires_when_the_date_changes():
    born = {"birthdate": "2008-06-15"}
    at = datetime(2026, 6, 15, 9, tzinfo=UTC).timestamp()
    assert read_user(born, at, expires=at + 86_400).expires == at + 3600
    assert read_user(born, at, expires=at + 60).expires == at + 60


@pytest.mark.parametrize(
    ("claims", "level"),
    [
        ({"age_over_18": True}, Assurance.ESTIMATED),
        ({"age_over_18": True, "age_assurance": "self_declared"}, Assurance.SELF_DECLARED),
        ({"age_over_18": True, "age_assurance": "VERIFIED"}, None),
        ({"age_over_18": True, "age_assurance": 5}, None),
        ({"age_over_18": True, "age_assurance": ["verified"]}, None),
        ({"age_assurance": "verified"}, None),
    ],
)
def test_assurance(claims, level):
    user = read_user(claims, NOW, expires=NOW + 1, assurance=Assurance.ESTIMATED)
    assert user.assurance is level


@pytest.mark.parametrize(
    ("claims", "region"),
    [
        ({}, "GB"),
        ({"region": "US-TX"}, "US-TX"),
        ({"region": "EU"}, "EU"),
        ({"region": "us"}, None),
        ({"region": ""}, None),
        ({"region": "Germany"}, None),
        ({"region": ["DE"]}, None),
        ({"region": None}, None),
    ],
)
def test_region_from_claim_then_configuration(claims, region):
    assert read_user(claims, NOW, expires=NOW + 1, region="GB").region == region


def test_age_verified_means_what_the_issuer_says():
    assert read_user({"age_verified": True}, NOW, expires=NOW + 1, age_verified_means=16).age_at_least == 16


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    [
        "age_over_18",
        "age_over_21",
        "birthdate",
        "age_band",
        "age_at_least",
        "age_at_most",
        "age_verified",
        "region",
        "age_assurance",
    ]
)


@given(st.dictionaries(names | st.text(max_size=12), json_values, max_size=6))
def test_any_claims_are_read_without_an_exception(claims):
    user = read_user(claims, NOW, expires=NOW + 60)
    assert not user.invalid
    if user.age_at_least is not None and user.age_at_most is not None:
        assert user.age_at_least <= user.age_at_most


@given(st.dates(min_value=datetime(1900, 1, 1).date(), max_value=datetime(2026, 6, 14).date()))  # noqa: DTZ001
def test_birthdate_never_makes_anybody_too_old(born):
    low, high = bounds({"birthdate": born.isoformat()})
    exact = 2026 - born.year - ((born.month, born.day) > (6, 15))
    assert low <= exact <= high <= low + 1
