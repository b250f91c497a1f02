"""Signed user tokens: JWT (RFC 7519) with pinned issuers, algorithms and keys (RFC 8725).

Issuers come from the signed bundle. A token has to be exactly one value, three base64url parts of
strict JSON without duplicate members, from a known issuer, for one of its audiences, within its
times, signed with one of its algorithms by one of its keys. Keys that a token brings or points to
(`jwk`, `jku`, `x5u`, `x5c`) are never looked at; extensions that it calls critical are refused.
"""

import base64
import json
import logging
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from typing import Any, Final, NamedTuple, NoReturn

from joserfc.jws import JWSRegistry

from edgeguard.identity.age import read_user
from edgeguard.identity.jwks import IssuerKey, KeyRing, read_key
from edgeguard.policy.request import Assurance, User

logger = logging.getLogger(__name__)

ALGORITHMS: Final = frozenset({"ES256", "ES384", "EdDSA", "Ed25519", "RS256", "PS256"})
"""What an issuer may use. Never a shared secret, never `none`."""
MAX_TOKEN_CHARS: Final = 8192
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_INVALID: Final = User(invalid=True)


class TokenError(ValueError):
    """A token is refused. The message names no value of the token."""


class _Issuer(NamedTuple):
    name: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    keys: tuple[IssuerKey, ...]
    """Of the bundle; empty where they come from `source`."""
    source: str | None
    """Where keys from outside the bundle come from: `source_of` the entry."""
    typ: str | None
    """What `typ` must be; None: nothing, or `JWT`."""
    nbf: bool
    """Whether `nbf` must be there."""
    leeway_s: int
    max_lifetime_s: int
    assurance: Assurance | None
    age_verified_means: int


class _Known(NamedTuple):
    user: User
    valid_from: float
    valid_until: float


def source_of(entry: Mapping[str, object]) -> str | None:
    """Where an issuer's keys come from: `file:NAME`, an https URL, or None for the bundle."""
    if entry.get("jwks_file") is not None:
        return f"file:{entry['jwks_file']}"
    url = entry.get("jwks_url")
    return None if url is None else str(url)


class TokenReader:
    """Reads user tokens under one policy. Not thread-safe: it belongs to the traffic's loop.

    Args:
        issuers: The compiled issuers of the identity section: `issuer`, `audience`, `algorithms`, `keys` (JWKs),
            `jwks_file`, `jwks_url`, `typ`, `nbf`, `leeway_s`, `max_lifetime_s`, `assurance`, `age_verified_means`.
            One that cannot be used is left out with an error in the log, so that its tokens are invalid.
        ring: Keys of the issuers that have none in the bundle.
        max_chars: Longest token.
        cache: Verified tokens that are remembered until they expire.
        region: Region of people whose token names none.
        subject_key: Keys the hash of the subject; random by default.
    """

    def __init__(
        self,
        issuers: Sequence[Mapping[str, object]],
        *,
        ring: KeyRing | None = None,
        max_chars: int = MAX_TOKEN_CHARS,
        cache: int = 4096,
        region: str = "",
        subject_key: bytes | None = None,
    ) -> None:
        self._issuers: dict[str, list[_Issuer]] = {}
        for entry in issuers:
            try:
                issuer = _issuer(entry)
            except Exception:
                # Fail closed: joserfc and bad data raise many things; this issuer's tokens are then invalid.
                logger.exception("the token issuer %r cannot be used", entry.get("issuer"))
                continue
            self._issuers.setdefault(issuer.name, []).append(issuer)
        self._ring = ring if ring is not None else KeyRing()
        self._generation = self._ring.generation
        self._max_chars = max_chars
        self._cache_size = cache
        self._region = region
        self._subject_key = subject_key if subject_key is not None else secrets.token_bytes(32)
        self._cache: dict[bytes, _Known] = {}

    def read(self, values: Sequence[str], now: float) -> User | None:
        """The person behind a request, in normal form. Never raises.

        Args:
            values: Every value of the user header. None is nobody; more than one is invalid.
            now: Unix seconds.
        """
        if not values:
            return None
        if len(values) != 1 or not 0 < len(values[0]) <= self._max_chars:
            return _INVALID
        token = values[0]
        try:
            if self._generation != self._ring.generation:
                # A key came or went: what it signed has to be looked at again.
                self._generation = self._ring.generation
                self._cache.clear()
            digest = sha256(token.encode("ascii")).digest()
            known = self._cache.get(digest)
            if known is not None:
                if known.valid_from <= now < known.valid_until:
                    return known.user
                del self._cache[digest]
            known = self._verify(token, now)
        except TokenError as error:
            logger.debug("a user token was refused: %s", error)
            return _INVALID
        except Exception:  # noqa: BLE001
            # Fail closed: the token is the client's, and a library that trips over it must not let it pass.
            logger.debug("a user token could not be read")
            return _INVALID
        while len(self._cache) >= self._cache_size:
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = known
        return known.user

    def _verify(self, token: str, now: float) -> _Known:
        parts = _COMPACT.fullmatch(token)
        if parts is None:
            raise TokenError("not three base64url parts")
        header, claims = _json_object(parts[1]), _json_object(parts[2])
        name = claims.get("iss")
        if not isinstance(name, str) or name not in self._issuers:
            raise TokenError("unknown issuer")
        problem: TokenError | None = None
        for issuer in self._issuers[name]:
            try:
                _check_header(header, issuer)
                valid_from, valid_until = _check_claims(claims, issuer, now)
                valid_until = min(valid_until, self._check_signature(token, header, issuer, now))
            except TokenError as error:
                problem = error
                continue
            user = read_user(
                claims,
                now,
                expires=valid_until,
                assurance=issuer.assurance,
                age_verified_means=issuer.age_verified_means,
                region=self._region,
            )
            user = user._replace(subject=self._subject(issuer.name, claims.get("sub")))
            return _Known(user, valid_from, user.expires if user.expires is not None else valid_until)
        raise problem or TokenError("unknown issuer")

    def _subject(self, issuer: str, subject: object) -> str | None:
        if not isinstance(subject, str) or not subject:
            return None
        named = f"{issuer}\x00{subject}".encode()
        return blake2b(named, key=self._subject_key, digest_size=16).hexdigest()

    def _check_signature(self, token: str, header: Mapping[str, Any], issuer: _Issuer, now: float) -> float:
        """Returns until when the key is believed, Unix seconds."""
        if issuer.source is None:
            _check_signature(token, header, issuer.keys)
            return math.inf
        keys = self._ring.fitting(issuer.source, now)
        kid = header.get("kid")
        if keys and kid is not None and all(key.kid != kid for key in keys):
            self._ring.miss(issuer.source)
        _check_signature(token, header, keys)
        return self._ring.until(issuer.source)


def _issuer(entry: Mapping[str, Any]) -> _Issuer:
    algorithms = frozenset(entry["algorithms"])
    if not algorithms or not algorithms <= ALGORITHMS:
        raise ValueError(f"algorithms {sorted(algorithms - ALGORITHMS)} are not accepted")
    audience = entry["audience"]
    audiences = frozenset([audience] if isinstance(audience, str) else audience)
    if not audiences or not all(isinstance(value, str) and value for value in audiences):
        raise ValueError("an issuer needs audiences")
    level = entry.get("assurance")
    source = source_of(entry)
    keys = tuple(read_key(jwk) for jwk in entry.get("keys", ()))
    if bool(keys) == (source is not None):
        raise ValueError("an issuer needs keys, or one place where they are")
    return _Issuer(
        name=str(entry["issuer"]),
        audiences=audiences,
        algorithms=algorithms,
        keys=keys,
        source=source,
        typ=entry.get("typ"),
        nbf=entry.get("nbf", "required") == "required",
        leeway_s=entry.get("leeway_s", 30),
        max_lifetime_s=entry.get("max_lifetime_s", 3600),
        assurance=None if level is None else Assurance[str(level).upper()],
        age_verified_means=entry.get("age_verified_means", 18),
    )


def _json_object(part: str) -> dict[str, Any]:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise TokenError("not strict JSON") from None
    if not isinstance(value, dict):
        raise TokenError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate member")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_header(header: Mapping[str, Any], issuer: _Issuer) -> None:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise TokenError("algorithm not pinned for the issuer")
    if "crit" in header or "b64" in header:
        raise TokenError("critical extensions are not known")
    if not isinstance(header.get("kid", ""), str):
        raise TokenError("kid is not text")
    typ = header.get("typ")
    if typ is not None and not isinstance(typ, str):
        raise TokenError("typ is not text")
    # RFC 7515, 4.1.9: the prefix may be left out, and media types ignore case.
    found = None if typ is None else typ.lower().removeprefix("application/")
    wanted = {None, "jwt"} if issuer.typ is None else {issuer.typ.lower().removeprefix("application/")}
    if found not in wanted:
        raise TokenError("wrong typ")


def _check_claims(claims: Mapping[str, Any], issuer: _Issuer, now: float) -> tuple[float, float]:
    """Audience and times. Returns from when and until when the token counts, leeway included."""
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(value, str) for value in named):
        raise TokenError("aud is neither text nor a list of text")
    if issuer.audiences.isdisjoint(named):
        raise TokenError("for another audience")
    expires = _moment(claims, "exp")
    if expires is None:
        raise TokenError("exp is missing")
    begins = _moment(claims, "nbf")
    if begins is None and issuer.nbf:
        raise TokenError("nbf is missing")
    not_before = max(begins or 0.0, _moment(claims, "iat") or 0.0)
    if now >= expires + issuer.leeway_s:
        raise TokenError("expired")
    if now < not_before - issuer.leeway_s:
        raise TokenError("not valid yet")
    if expires > now + issuer.max_lifetime_s + issuer.leeway_s:
        raise TokenError("valid for too long")
    return not_before - issuer.leeway_s, expires + issuer.leeway_s


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in {int, float} or not math.isfinite(value) or not 0 <= value < 1 << 40:
        raise TokenError(f"{name} is not a time")
    return float(value)


def _check_signature(token: str, header: Mapping[str, Any], keys: Sequence[IssuerKey]) -> None:
    algorithm, kid = header["alg"], header.get("kid")
    fitting = [
        key
        for key_id, key_alg, key in keys
        if (kid is None or key_id == kid) and (key_alg is None or key_alg == algorithm)
    ]
    if len(fitting) != 1:
        # Without a kid the key must be the only one: trying all of them would be guessing.
        raise TokenError("no key fits")
    key = fitting[0]
    # The primitive itself: the envelope was checked above, more strictly than the library would.
    model = JWSRegistry.algorithms[algorithm]
    signed, _, signature = token.rpartition(".")
    try:
        model.check_key(key)
        good = key.key_type == model.key_type and model.verify(
            signed.encode(), base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)), key
        )
    except Exception as error:
        # Fail closed: whatever the library says about a signature or a key that does not fit.
        raise TokenError("signature not good") from error
    if good is not True:
        raise TokenError("signature not good")
