"""What is known of a connection before its first byte, where that is more than a transport tells."""

from typing import NamedTuple

from edgeguard.identity.clients import Proof


class Origin(NamedTuple):
    """Where a connection comes from, and where it was going."""

    address: str | None = None
    """Source address: of the client that a PROXY header names, else of the peer; None of a unix socket."""
    proof: Proof | None = None
    """What the connection proves about the other end."""
    destination: tuple[str, int] | None = None
    """Address and port that a redirected client dialled; None at other doors, or when nobody knows."""
