"""Ed25519 keys and their files.

A public key file is one line. A secret key file is a few `name: value` lines; the seed is sealed
with a passphrase (Argon2id, RFC 9106, and XSalsa20-Poly1305 from libsodium), or stands in the clear
and says so. Randomness comes in as an argument: `os.urandom` at the edge, anything fixed in tests.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from nacl import exceptions, pwhash, secret, signing
from nacl.bindings import crypto_core_ed25519_is_valid_point

HINT_BYTES: Final = 8
KEY_BYTES: Final = 32
PUBLIC_TAG: Final = "edgeguard-public-key-v1"
SECRET_TAG: Final = "edgeguard-secret-key-v1"  # noqa: S105 - a file tag, not a secret
_MAX_TEXT: Final = 4096

type Entropy = Callable[[int], bytes]
"""As `os.urandom`: that many unpredictable bytes."""


class KeyFileError(ValueError):
    """A key file that cannot be read; the message says what is wrong with it."""


class PassphraseError(KeyFileError):
    """The passphrase is missing or wrong."""


class KdfCost(NamedTuple):
    """What guessing one passphrase costs (Argon2id)."""

    passes: int
    memory_bytes: int


INTERACTIVE: Final = KdfCost(pwhash.argon2id.OPSLIMIT_MODERATE, pwhash.argon2id.MEMLIMIT_MODERATE)
_COST_CEILING: Final = KdfCost(pwhash.argon2id.OPSLIMIT_SENSITIVE, pwhash.argon2id.MEMLIMIT_SENSITIVE)


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """A point of the prime-order subgroup, in its only encoding."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES or not crypto_core_ed25519_is_valid_point(self.raw):
            raise KeyFileError("not an Ed25519 public key")

    @property
    def hint(self) -> bytes:
        """First 8 bytes of the SHA-256 of the raw key."""
        return hashlib.sha256(self.raw).digest()[:HINT_BYTES]

    @property
    def id(self) -> str:
        """The hint in hexadecimal: what logs and tools show."""
        return self.hint.hex()

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `message`."""
        try:
            signing.VerifyKey(self.raw).verify(message, signature)
        except (exceptions.BadSignatureError, ValueError):
            return False
        return True

    def to_text(self, name: str = "") -> str:
        """The public key file."""
        return f"{PUBLIC_TAG} {_b64(self.raw)} {name}".rstrip() + "\n"

    @classmethod
    def from_text(cls, text: str) -> "PublicKey":
        """Read a public key file, or the public half of a secret one.

        Raises:
            KeyFileError: what is wrong with it.
        """
        words = text.split() if len(text) <= _MAX_TEXT else []
        if words[:1] == [SECRET_TAG]:
            return cls(_unb64(_lines(text).get("public", ""), "public"))
        if len(words) < 2 or words[0] != PUBLIC_TAG:
            raise KeyFileError(f"not an edgeguard public key file: it begins with `{PUBLIC_TAG}`")
        return cls(_unb64(words[1], "key"))


class Signer(Protocol):
    """Whatever can sign: a key in memory, an agent, a key management service."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, message: bytes) -> bytes: ...


class SigningKey:
    """An Ed25519 secret key in memory."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise KeyFileError(f"a seed has {KEY_BYTES} bytes")
        self._key = signing.SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))

    @classmethod
    def generate(cls, entropy: Entropy) -> "SigningKey":
        """A new key; `entropy` is `os.urandom`."""
        return cls(entropy(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"

    def to_text(
        self, passphrase: bytes | None, entropy: Entropy, *, name: str = "", cost: KdfCost = INTERACTIVE
    ) -> str:
        """The secret key file, sealed with `passphrase`, or in the clear if that is None."""
        head = [SECRET_TAG, f"name: {name}", f"public: {_b64(self.public.raw)}"]
        seed = bytes(self._key)
        if passphrase is None:
            return "\n".join(
                [*head, "protection: none (development and tests only)", f"seed: {_b64(seed)}", ""]
            )
        salt = entropy(pwhash.argon2id.SALTBYTES)
        box = secret.SecretBox(_stretch(passphrase, salt, cost))
        sealed = bytes(box.encrypt(seed, entropy(secret.SecretBox.NONCE_SIZE)))
        body = ["protection: argon2id", f"passes: {cost.passes}", f"memory_bytes: {cost.memory_bytes}"]
        return "\n".join([*head, *body, f"salt: {_b64(salt)}", f"sealed: {_b64(sealed)}", ""])

    @classmethod
    def from_text(cls, text: str, passphrase: bytes | None = None) -> "SigningKey":
        """Open a secret key file. `passphrase` is not looked at for a key in the clear.

        Raises:
            PassphraseError: it is missing or wrong.
            KeyFileError: the file is not one.
        """
        if len(text) > _MAX_TEXT or not text.startswith(SECRET_TAG):
            raise KeyFileError(f"not an edgeguard secret key file: it begins with `{SECRET_TAG}`")
        fields = _lines(text)
        public = PublicKey(_unb64(fields.get("public", ""), "public"))
        seed = _unseal(fields, passphrase) if protected(text) else _unb64(fields.get("seed", ""), "seed")
        key = cls(seed)
        if key.public != public:
            raise KeyFileError("the public half does not belong to the secret half")
        return key


def protected(text: str) -> bool:
    """Whether opening this secret key file takes a passphrase."""
    return not _lines(text).get("protection", "").startswith("none")


def _unseal(fields: dict[str, str], passphrase: bytes | None) -> bytes:
    if fields.get("protection") != "argon2id":
        raise KeyFileError(
            f"unknown protection {fields.get('protection', '')!r}; `argon2id` or `none` is known"
        )
    if passphrase is None:
        raise PassphraseError("the key is sealed with a passphrase, and none was given")
    try:
        cost = KdfCost(int(fields.get("passes", "")), int(fields.get("memory_bytes", "")))
    except ValueError:
        raise KeyFileError("`passes` and `memory_bytes` are numbers") from None
    if not (
        1 <= cost.passes <= _COST_CEILING.passes and 8192 <= cost.memory_bytes <= _COST_CEILING.memory_bytes
    ):
        raise KeyFileError("`passes` or `memory_bytes` is outside what this program will spend")
    salt, sealed = _unb64(fields.get("salt", ""), "salt"), _unb64(fields.get("sealed", ""), "sealed")
    if len(salt) != pwhash.argon2id.SALTBYTES:
        raise KeyFileError(f"`salt` has {pwhash.argon2id.SALTBYTES} bytes")
    try:
        return bytes(secret.SecretBox(_stretch(passphrase, salt, cost)).decrypt(sealed))
    except (exceptions.CryptoError, ValueError):
        raise PassphraseError("wrong passphrase (or the file was changed)") from None


def _stretch(passphrase: bytes, salt: bytes, cost: KdfCost) -> bytes:
    return bytes(
        pwhash.argon2id.kdf(
            secret.SecretBox.KEY_SIZE, passphrase, salt, opslimit=cost.passes, memlimit=cost.memory_bytes
        )
    )


def _lines(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or name in fields:
            raise KeyFileError(f"a key file holds `name: value` lines, each name once, not {line[:20]!r}")
        fields[name] = value.strip()
    return fields


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _unb64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise KeyFileError(f"`{field}` is not base64") from None
