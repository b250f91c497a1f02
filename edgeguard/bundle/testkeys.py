"""Published keys for tests, demonstrations and test vectors. Anybody can sign with them.

Each seed is the SHA-256 of a sentence that contains its name. Nodes refuse a root that holds one of
them, and the environment `dev`, unless they listen on loopback only.
"""

import hashlib
from functools import cache
from typing import Final

from edgeguard.bundle.documents import Root
from edgeguard.bundle.keys import PublicKey, SigningKey

NAMES: Final = tuple(
    f"{role}-{number}" for role in ("root", "release", "head", "spare") for number in range(1, 6)
)
DEVELOPMENT: Final = "dev"


def published(name: str) -> SigningKey:
    """The published test key `name`, one of `NAMES`. Raises KeyError for another name."""
    if name not in NAMES:
        raise KeyError(name)
    return SigningKey(
        hashlib.sha256(f"edgeguard published test key, never trust it: {name}".encode()).digest()
    )


@cache
def _all() -> frozenset[bytes]:
    return frozenset(published(name).public.raw for name in NAMES)


def is_published(key: PublicKey) -> bool:
    """Whether anybody can sign with this key."""
    return key.raw in _all()


def loopback_only(root: Root, environment: str) -> str | None:
    """Why a node under this root may listen on loopback only, or None if it may listen anywhere."""
    if environment == DEVELOPMENT:
        return f"the environment {DEVELOPMENT!r} is for local development"
    roles = [root.root]
    if found := root.environments.get(environment):
        roles += [found.release, found.head]
    exposed = sorted(key.id for quorum in roles for key in quorum.keys if is_published(key))
    return f"the root trusts published test keys ({', '.join(exposed)})" if exposed else None
