"""Rates in text, one canonical form: `100/s burst 200`, `2GB/h`, `64`. What limits, tests and comparisons print."""

from typing import Final

from edgeguard.policy.decision import LimitHit

_PERIODS: Final = {86400: "d", 3600: "h", 60: "m", 1: "s"}
_SIZES: Final = {10**9: "GB", 10**6: "MB", 10**3: "kB"}


def rate_text(quota: int, period_ns: int, burst: int, unit: str = "requests") -> str:
    """A rate as authors write it; the burst only where it is not the quota itself. A bare number for concurrent tunnels."""
    if not period_ns:
        return str(quota)
    seconds = period_ns // 10**9
    size = next(size for size in _PERIODS if seconds % size == 0)
    count = seconds // size
    text = f"{amount_text(quota, unit)}/{count if count > 1 else ''}{_PERIODS[size]}"
    return text if burst == quota else f"{text} burst {burst}"


def amount_text(amount: int, unit: str) -> str:
    """An amount in the largest unit that leaves no remainder."""
    if unit == "bytes":
        for size, name in _SIZES.items():
            if amount % size == 0:
                return f"{amount // size}{name}"
    return str(amount)


def hit_text(hit: LimitHit) -> str:
    """The rate of a limit that a decision names."""
    return rate_text(hit.quota, hit.period_ns, hit.burst, hit.unit)


def same_rate(expected: str, actual: str) -> bool:
    """Whether a test's `100/s` or `100/s burst 200` is what the policy says; without a burst only the rate is compared."""
    want, have = expected.split(), actual.split()
    return want == have or (len(want) == 1 and want == have[:1])
