"""Whose tokens are believed: issuers are compared field by field, since no request can show them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from edgeguard.policy.diff.values import Change, Domain, Effect
from edgeguard.policy.model import ASSURANCES

_MORE_IS_WIDER: Final = ("max_lifetime_s", "leeway_s", "age_verified_means")
_SETS: Final = ("audience", "algorithms", "keys")


def compare_issuers(
    old: Sequence[Mapping[str, object]], new: Sequence[Mapping[str, object]]
) -> Iterator[Change]:
    """Changes of the token issuers."""
    before: dict[str, Mapping[str, Any]] = {str(i["issuer"]): i for i in old}
    after: dict[str, Mapping[str, Any]] = {str(i["issuer"]): i for i in new}
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield _change(Effect.WIDENING, f"tokens of `{name}` are believed")
        elif name not in after:
            yield _change(Effect.NARROWING, f"tokens of `{name}` are no longer believed")
        else:
            for field in sorted(before[name].keys() | after[name].keys()):
                one, two = before[name].get(field), after[name].get(field)
                for effect in _field(field, one, two) if one != two else ():
                    yield _change(effect, f"issuer `{name}`: {field} changes{_values(field, one, two)}")


def _change(effect: Effect, text: str) -> Change:
    return Change(effect, Domain.IDENTITY, "issuer", text, None, None, None)


def _values(field: str, one: object, two: object) -> str:
    return "" if field == "keys" else f" from {one} to {two}"


def _field(field: str, one: object, two: object) -> Collection[Effect]:
    """What the change of one field means; both directions where that is not known."""
    if field in _MORE_IS_WIDER and type(one) is type(two) is int:
        return [Effect.WIDENING if two > one else Effect.NARROWING]
    if field in _SETS and type(one) is type(two) is list:
        mine, theirs = set(map(repr, one)), set(map(repr, two))
        return [
            effect
            for effect, some in ((Effect.WIDENING, theirs - mine), (Effect.NARROWING, mine - theirs))
            if some
        ]
    if field == "assurance" and one in ASSURANCES and two in ASSURANCES:
        stronger = ASSURANCES.index(two) > ASSURANCES.index(one)
        return [Effect.WIDENING if stronger else Effect.NARROWING]
    if field == "nbf":
        return [Effect.WIDENING] if two == "optional" else [Effect.NARROWING]
    if field == "typ":
        return [Effect.WIDENING] if two is None else [Effect.NARROWING] if one is None else list(Effect)
    return list(Effect)
