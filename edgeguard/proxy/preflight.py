"""What can be wrong with a node is found out before its first client: root, addresses, authority."""

from typing import Final, NamedTuple

from edgeguard.bundle.refusal import Refusal
from edgeguard.bundle.state import TrustState
from edgeguard.bundle.testkeys import loopback_only
from edgeguard.proxy.authority import Authority, ensure_authority
from edgeguard.settings import Settings


class NodeError(Exception):
    """The node must not start. The message says why, and how to mend it."""


MINTED: Final = "authority-was-made"
"""File in the state folder: an authority that is missing beside it was lost and is not made anew silently."""


class Grounds(NamedTuple):
    """What a node stands on."""

    root: bytes
    trust: TrustState
    """Of the root alone."""
    authority: Authority


def preflight(settings: Settings, root: bytes | None = None) -> Grounds:
    """Checks the root and the places it is used at; makes the interception authority at the first start.

    Args:
        settings: The node's configuration.
        root: Bytes of the configured root; None: they are read.

    Raises:
        OSError: the root cannot be read. NodeError, AuthorityError: as their messages say.
    """
    if root is None:
        root = settings.trust.root.read_bytes()
    try:
        trust = TrustState.start(
            root, settings.environment, audience=settings.trust.audience, floor=settings.trust.floor
        )
    except Refusal as refusal:
        raise NodeError(f"{settings.trust.root}: the root is refused: {refusal}") from None
    local_only = loopback_only(trust.root, settings.environment)
    if local_only is not None and settings.listen.exposed is not None:
        raise NodeError(
            f"{local_only}, so this node may listen on loopback only, not on {settings.listen.exposed}"
        )
    existed = (settings.trust.state_dir / MINTED).exists()
    return Grounds(root, trust, ensure_authority(settings.interception.ca_dir, existed=existed))


def remember_authority(settings: Settings) -> None:
    """Notes that the authority has been made; the state folder must exist by now."""
    (settings.trust.state_dir / MINTED).touch()
