"""Who may publish: bearer tokens (RFC 6750), kept as SHA-256 and compared in constant time.

Each line of a token file is a token of at least 32 characters, or `sha256:` and the hash of one, so that
the server's disk need not hold anything that opens the door.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final

MIN_TOKEN: Final = 32
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")


class PublishTokens:
    """A closed set of tokens. Empty: nobody may publish."""

    __slots__ = ("_hashes",)

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._hashes = tuple(sorted(set(hashes)))

    @classmethod
    def parse(cls, text: str) -> "PublishTokens":
        """Reads tokens, one a line; `#` begins a comment line. Raises ValueError with the line number."""
        hashes: list[bytes] = []
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            hashed = _HASH.fullmatch(line)
            if hashed:
                hashes.append(bytes.fromhex(hashed[1]))
            elif len(line) < MIN_TOKEN or not _TOKEN.fullmatch(line):
                raise ValueError(
                    f"line {number}: a publish token has at least {MIN_TOKEN} characters of A-Z a-z 0-9 . _ ~ + / = -; "
                    f"make one with: openssl rand -hex 32"
                )
            else:
                hashes.append(hashlib.sha256(line.encode()).digest())
        return cls(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization field carries one of the tokens. Looks at every token, whichever fits."""
        scheme, _, token = (authorization or "").partition(" ")
        offered = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, offered)
        return found and scheme.lower() == "bearer"
