"""The signed envelope: `[1, type, payload, [[key hint, signature], ...]]` in msgpack.

Signatures cover the pre-authentication encoding of type and payload (DSSE 1.0.2, "PAE"), so the
received bytes are verified before the payload is parsed, and the same bytes are parsed, hashed and
stored. There is no algorithm field: version 1 means Ed25519 (RFC 8032). The key hint is not
authenticated; it only says which key to try.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from edgeguard.bundle import codec
from edgeguard.bundle.keys import HINT_BYTES, PublicKey, Signer
from edgeguard.bundle.refusal import Refusal, RefusalCode, malformed

VERSION: Final = 1
MAX_SIGNATURES: Final = 32
SIGNATURE_BYTES: Final = 64
OVERHEAD_BYTES: Final = 4096
"""More than an envelope adds to its payload: type, signatures and framing."""


class Signature(NamedTuple):
    """One signature and the hint of the key that made it."""

    hint: bytes
    value: bytes


class Envelope(NamedTuple):
    """An envelope whose form is right and whose signatures nobody has checked yet."""

    type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes, *, size: int = 1 << 28) -> "Envelope":
        """Read an envelope of at most `size` bytes. Costs no cryptography.

        Raises:
            Refusal: too_big, malformed, or sig_invalid for a hint or signature of the wrong length.
        """
        value = codec.decode(data, codec.Limits(size=size, depth=3))
        if not isinstance(value, list) or len(value) != 4:
            raise malformed("an envelope is an array of four")
        version, kind, payload, signatures = value
        if type(version) is not int or version != VERSION:
            raise Refusal(
                RefusalCode.SCHEMA_UNSUPPORTED, f"envelope version {version!r}, {VERSION} is supported"
            )
        if not isinstance(kind, str) or not isinstance(payload, bytes) or not isinstance(signatures, list):
            raise malformed("an envelope holds a type (str), a payload (bin) and signatures (array)")
        if len(signatures) > MAX_SIGNATURES:
            raise Refusal(
                RefusalCode.TOO_BIG, f"{len(signatures)} signatures, at most {MAX_SIGNATURES} are accepted"
            )
        return cls(kind, payload, tuple(_signature(item) for item in signatures))

    def encode(self) -> bytes:
        """The wire form."""
        return codec.encode([VERSION, self.type, self.payload, [list(item) for item in self.signatures]])

    def verify(self, keys: Sequence[PublicKey], threshold: int) -> tuple[str, ...]:
        """The ids of the distinct keys that signed, at least `threshold` of them.

        A further signature that is unknown or invalid does no harm; a repeated hint does, whatever
        else the envelope holds. At most one verification per key is made.

        Raises:
            Refusal: sig_dup, key_unknown, sig_invalid or threshold.
        """
        hints = [item.hint for item in self.signatures]
        if len(set(hints)) != len(hints):
            raise Refusal(RefusalCode.SIG_DUP, "two signatures with the same key hint")
        by_hint = {key.hint: key for key in keys}
        message = pae(self.type, self.payload)
        known = [(by_hint[item.hint], item.value) for item in self.signatures if item.hint in by_hint]
        valid = {key.raw: key.id for key, signature in known if key.verifies(message, signature)}
        if len(valid) >= max(threshold, 1):
            return tuple(sorted(valid.values()))
        if not self.signatures:
            raise Refusal(RefusalCode.THRESHOLD, "not signed")
        if not known:
            raise Refusal(RefusalCode.KEY_UNKNOWN, "no signature by a key of this role")
        if len(valid) < len(known):
            raise Refusal(RefusalCode.SIG_INVALID, f"{len(valid)} valid of {threshold} needed; one is wrong")
        raise Refusal(RefusalCode.THRESHOLD, f"{len(valid)} of {threshold} needed signatures")

    def merged(self, signatures: Iterable[Signature]) -> "Envelope":
        """The same envelope with further signatures; a hint that is there already is replaced."""
        by_hint = {item.hint: item for item in (*self.signatures, *signatures)}
        return self._replace(signatures=tuple(by_hint[hint] for hint in sorted(by_hint)))


def _signature(item: object) -> Signature:
    if not isinstance(item, list) or len(item) != 2:
        raise malformed("a signature is an array of two")
    hint, value = item
    if not isinstance(hint, bytes) or not isinstance(value, bytes):
        raise malformed("key hint and signature are bin")
    if len(hint) != HINT_BYTES or len(value) != SIGNATURE_BYTES:
        raise Refusal(
            RefusalCode.SIG_INVALID, f"a hint has {HINT_BYTES} bytes and a signature {SIGNATURE_BYTES}"
        )
    return Signature(hint, value)


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def sign(kind: str, payload: bytes, signer: Signer) -> Signature:
    """One detached signature."""
    return Signature(signer.public.hint, signer.sign(pae(kind, payload)))


def seal(kind: str, payload: bytes, signers: Iterable[Signer]) -> bytes:
    """A whole envelope, signatures in the order of their hints."""
    return Envelope(kind, payload, ()).merged(sign(kind, payload, signer) for signer in signers).encode()


def identity(payload: bytes) -> str:
    """`sha256:…` of the payload: what a document is called, however often it was signed."""
    return "sha256:" + hashlib.sha256(payload).hexdigest()
