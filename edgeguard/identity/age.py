"""What a token's claims say about a person's age, in one normal form.

Read are: `age_over_NN` (ISO/IEC 18013-5, 7.2.5: true for NN bounds the age from below, false from
above, and says nothing else), `birthdate` (OpenID Connect Core, 5.1), `age_band` ("18+", "13-15"),
`age_at_least` and `age_at_most`, and `age_verified`. Types are strict: the text "true" or the number
1 is not a yes. What cannot be read is unknown, and unknown never satisfies a gate. Claims that
contradict each other leave the age unknown.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from edgeguard.policy.request import Assurance, User

MAX_AGE: Final = 150
_OVER: Final = re.compile(r"age_over_([0-9]{2})")
_BAND: Final = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3})|\+)")
_BIRTHDATE: Final = re.compile(r"([0-9]{4})(?:-([0-9]{2})-([0-9]{2}))?")
_REGION: Final = re.compile(r"[A-Z]{2}(?:-[A-Z0-9]{1,3})?")
_ASSURANCES: Final = {level.name.lower(): level for level in Assurance}

type Bounds = tuple[int | None, int | None]


def read_user(
    claims: Mapping[str, object],
    now: float,
    *,
    expires: float,
    assurance: Assurance | None = None,
    age_verified_means: int = 18,
    region: str = "",
) -> User:
    """The normal form of verified claims.

    Args:
        claims: Of a token whose signature and times are good.
        now: Unix seconds.
        expires: Until when the token counts, Unix seconds.
        assurance: The level of tokens that name none (`age_assurance`).
        age_verified_means: The age that `age_verified: true` stands for at this issuer.
        region: The region of tokens that name none.
    """
    bounds: list[Bounds] = [_over(claims), _band(claims.get("age_band")), _plain(claims)]
    if claims.get("age_verified") is True:
        bounds.append((age_verified_means, None))
    if (born := claims.get("birthdate")) is not None:
        bounds.append(_born(born, now))
        # The answer holds until a birthday may begin somewhere: the next change of date at either end.
        expires = min(expires, _next_date(now, -12), _next_date(now, 14))
    low = max((b for b, _ in bounds if b is not None), default=None)
    high = min((b for _, b in bounds if b is not None), default=None)
    if low is not None and high is not None and low > high:
        low = high = None
    if "age_assurance" in claims:
        named = claims["age_assurance"]
        assurance = _ASSURANCES.get(named) if isinstance(named, str) else None
    if "region" in claims:
        where = claims["region"]
        region = where if isinstance(where, str) and _REGION.fullmatch(where) else ""
    return User(
        age_at_least=low,
        age_at_most=high,
        assurance=assurance if low is not None or high is not None else None,
        region=region or None,
        expires=expires,
    )


def _over(claims: Mapping[str, object]) -> Bounds:
    low: int | None = None
    high: int | None = None
    for name, value in claims.items():
        found = _OVER.fullmatch(name)
        if found is None:
            continue
        age = int(found[1])
        if value is True:
            low = age if low is None else max(low, age)
        elif value is False:
            high = age - 1 if high is None else min(high, age - 1)
    return low, high


def _band(value: object) -> Bounds:
    found = _BAND.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None, None
    low = int(found[1])
    high = int(found[2]) if found[2] is not None else None
    return low, high


def _plain(claims: Mapping[str, object]) -> Bounds:
    low, high = claims.get("age_at_least"), claims.get("age_at_most")
    return _age(low), _age(high)


def _age(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_AGE else None


def _born(value: object, now: float) -> Bounds:
    """Bounds of the age at `now`, wherever the person is: time zones reach from UTC-12 to UTC+14."""
    found = _BIRTHDATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[1] == "0000":
        return None, None
    latest, earliest = _date(now, -12), _date(now, 14)
    year = int(found[1])
    if found[2] is None:
        low, high = latest.year - year - 1, earliest.year - year
    else:
        try:
            born = date(year, int(found[2]), int(found[3]))
        except ValueError:
            return None, None
        # Born on 29 February, in other years: the later day bounds from below, the earlier from above.
        eve = (2, 28) if (born.month, born.day) == (2, 29) else (born.month, born.day)
        low = latest.year - year - ((latest.month, latest.day) < (born.month, born.day))
        high = earliest.year - year - ((earliest.month, earliest.day) < eve)
    if high < 0 or low > MAX_AGE:
        return None, None
    return max(0, low), high


def _date(now: float, offset_h: int) -> date:
    return (datetime.fromtimestamp(now, UTC) + timedelta(hours=offset_h)).date()


def _next_date(now: float, offset_h: int) -> float:
    """Unix seconds of the next midnight at UTC plus `offset_h`."""
    shift = offset_h * 3600
    return ((now + shift) // 86_400 + 1) * 86_400 - shift
