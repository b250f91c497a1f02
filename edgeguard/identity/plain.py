"""What listed clients say of a person in plain header fields.

A header is anybody's word, so it counts only from clients whose own identity is proved and who are
listed by name; the list is empty unless the configuration says otherwise. A field has to stand exactly
once; what cannot be read is unknown, and unknown never satisfies a gate.
"""

import math
from collections.abc import Mapping, Sequence

from edgeguard.identity.age import read_user
from edgeguard.policy.request import Assurance, Client, User
from edgeguard.settings.model import PlainHeaders

_NUMBERS = frozenset({"age_at_least", "age_at_most"})
_FLAGS: Mapping[str, bool] = {"true": True, "false": False}


class PlainReader:
    """Reads plain headers from those who may send them.

    Args:
        settings: Section `[user.plain]`.
        region: Region of people for whom none is named.
    """

    __slots__ = ("_assurance", "_claims", "_clients", "_region", "names")

    def __init__(self, settings: PlainHeaders, region: str = "") -> None:
        self._clients = frozenset(settings.clients)
        self._claims = dict(settings.headers)
        self._assurance = Assurance[settings.assurance.upper()]
        self._region = region
        self.names = frozenset(self._claims)
        """Lower-case names of the fields; nobody's copy of them reaches an upstream."""

    def read(self, client: Client, fields: Sequence[tuple[str, str]], now: float) -> User | None:
        """The person in normal form; None when the client may not say, or says nothing. Never raises.

        Args:
            client: Who sends the request.
            fields: (lower-case name, value) of every field whose name is one of `names`.
            now: Unix seconds.
        """
        if not fields or not client.identified or client.name not in self._clients:
            return None
        values: dict[str, list[str]] = {}
        for name, value in fields:
            values.setdefault(name, []).append(value)
        claims: dict[str, object] = {}
        for name, found in values.items():
            claim = self._claims.get(name)
            if claim is not None:
                claims[claim] = _typed(claim, found[0].strip(" \t")) if len(found) == 1 else None
        user = read_user(claims, now, expires=math.inf, assurance=self._assurance, region=self._region)
        return user._replace(expires=None) if user.expires == math.inf else user


def _typed(claim: str, value: str) -> object:
    """The value as a token would carry it; None for what is not exactly that."""
    if claim in _NUMBERS:
        return int(value) if value.isascii() and value.isdecimal() and len(value) <= 3 else None
    if claim == "age_verified" or claim.startswith("age_over_"):
        return _FLAGS.get(value)
    return value
