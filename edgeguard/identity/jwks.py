"""Keys of token issuers: from the bundle, or from a JWKS (RFC 7517) that somebody else keeps current.

Pure: bytes and times come in. Keys from outside have a generation, so that nothing verified with a key
that is gone is remembered, and an end, so that an issuer that can no longer be asked is believed for a
stated time only.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048

type Key = ECKey | OKPKey | RSAKey


class IssuerKey(NamedTuple):
    """A public key; None where the JWK says nothing."""

    kid: str | None
    alg: str | None
    key: Key


class JwksError(ValueError):
    """A document or a key cannot be used. The message names the field."""


def read_key(jwk: Mapping[str, Any]) -> IssuerKey:
    """One public key for signatures. Raises JwksError."""
    if jwk.get("use", "sig") != "sig":
        raise JwksError("use: a key is not for signatures")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise JwksError("key_ops: a key is not for verifying")
    try:
        key = import_key(dict(jwk))
    except Exception as error:
        # Fail closed: joserfc and cryptography raise many things for keys that are none.
        raise JwksError("a key cannot be read") from error
    if not isinstance(key, ECKey | OKPKey | RSAKey) or key.is_private:
        raise JwksError("keys must be public EC, OKP or RSA keys")
    if isinstance(key, OKPKey) and key.curve_name != "Ed25519":
        raise JwksError("crv: OKP keys must be on Ed25519")
    if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
        raise JwksError(f"n: RSA keys need {MIN_RSA_BITS} bits or more")
    kid, alg = jwk.get("kid"), jwk.get("alg")
    if not isinstance(kid, str | None) or not isinstance(alg, str | None):
        raise JwksError("kid and alg are text")
    return IssuerKey(kid, alg, key)


def read_jwks(data: bytes) -> tuple[IssuerKey, ...]:
    """The usable keys of a JWK Set, at least one.

    Keys of other kinds or uses are left out, as RFC 7517, 5, says; private keys and a kid that stands
    twice are refused, since then nobody knows what the issuer meant.

    Raises:
        JwksError: not a JWK Set, or no key of it can be used.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise JwksError("not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise JwksError("keys: not a list of keys")
    if len(entries) > MAX_KEYS:
        raise JwksError(f"keys: more than {MAX_KEYS}")
    if any({"d", "p", "q"} & entry.keys() for entry in entries):
        raise JwksError("keys: holds a private key, which is no longer one")
    found: list[IssuerKey] = []
    for entry in entries:
        try:
            found.append(read_key(entry))
        except JwksError:
            continue
    if not found:
        raise JwksError("keys: none can be used to verify signatures")
    named = [key.kid for key in found if key.kid is not None]
    if len(named) != len(set(named)):
        raise JwksError("keys: a kid stands twice")
    return tuple(found)


class KeyRing:
    """Keys that come from outside the bundle, by source. Belongs to the traffic's loop.

    Args:
        wanted: Called with a source when a token names a key that it lacks.

    Attributes:
        generation: Raised whenever keys changed: what was verified before must be verified again.
    """

    __slots__ = ("_held", "_wanted", "generation")

    def __init__(self, wanted: Callable[[str], None] = lambda _source: None) -> None:
        self._held: dict[str, tuple[tuple[IssuerKey, ...], float]] = {}
        self._wanted = wanted
        self.generation = 0

    def on_wanted(self, wanted: Callable[[str], None]) -> None:
        """Who is asked for keys that are missing."""
        self._wanted = wanted

    def put(self, source: str, keys: tuple[IssuerKey, ...], until: float) -> None:
        """Keys that are believed until a moment, Unix seconds."""
        held = self._held.get(source)
        if held is None or [_mark(k) for k in held[0]] != [_mark(k) for k in keys]:
            self.generation += 1
        self._held[source] = (keys, until)

    def drop(self, source: str) -> None:
        """From now on no token of this source is good."""
        if self._held.pop(source, None) is not None:
            self.generation += 1

    def keep(self, sources: Iterable[str]) -> None:
        """Forgets all others."""
        for source in self._held.keys() - set(sources):
            self.drop(source)

    def until(self, source: str) -> float:
        """Until when the keys of a source are believed; 0 without any."""
        held = self._held.get(source)
        return 0.0 if held is None else held[1]

    def fitting(self, source: str, now: float) -> tuple[IssuerKey, ...]:
        """The keys of a source now; empty when there are none or they are too old."""
        held = self._held.get(source)
        if held is None or now >= held[1]:
            self._wanted(source)
            return ()
        return held[0]

    def miss(self, source: str) -> None:
        """A token named a key that the source does not have (yet)."""
        self._wanted(source)


def _mark(key: IssuerKey) -> tuple[str | None, str | None, str]:
    return key.kid, key.alg, key.key.thumbprint()
