"""What an earlier allow wrote down about each client connection.

An upstream connection is forbidden unless its address and port were granted to the very client
connection that asks for it. So a hook that crashes, or is never called, denies by construction.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeguard.policy.request import Client
from edgeguard.proxy.origin import Origin
from edgeguard.proxy.sites import Site


@dataclass(slots=True)
class Passage:
    """One client connection: who owns it, what it may reach."""

    connection: str
    """Id of the connection, as it stands in the decision log."""
    client: Client
    host: str | None = None
    """Canonical authority of the tunnel; None on a plain forward connection, where each request names its own."""
    port: int | None = None
    aliases: tuple[str, ...] = ()
    """Canonical names that the host is an alias of."""
    original: str | None = None
    """Canonical address that the client of a transparent door dialled: whatever is claimed has to resolve to it."""
    sni: str | None = None
    """Canonical SNI of the ClientHello, once read; None when the form without SNI is the expected one."""
    origin: Origin | None = None
    """Where the connection comes from, if its transport does not tell."""
    site: Site | None = None
    """The site of one's own that the connection is for, at the reverse door."""
    grants: dict[tuple[str, int], str] = field(default_factory=dict)
    """(canonical address, port) pairs that may be dialled, and the canonical host that each was granted for."""


class Passages:
    """All open client connections by mitmproxy's `client.id`. Empty when the proxy is idle."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[str, Passage] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, client_id: str, passage: Passage) -> None:
        self._open[client_id] = passage

    def get(self, client_id: str) -> Passage | None:
        return self._open.get(client_id)

    def grant(self, client_id: str, addresses: Iterable[str], port: int, host: str | None = None) -> None:
        """Writes an allow down; `host`: whose address it is, where that is not the tunnel's.

        Raises KeyError for a connection that is not open.
        """
        passage = self._open[client_id]
        for address in addresses:
            passage.grants[address, port] = host or passage.host or address

    def holds(self, client_id: str, address: str, port: int) -> bool:
        passage = self._open.get(client_id)
        return passage is not None and (address, port) in passage.grants

    def host_of(self, client_id: str, address: str, port: int) -> str:
        """The canonical host that an address was granted for; without a grant the address."""
        passage = self._open.get(client_id)
        return address if passage is None else passage.grants.get((address, port), address)

    def close(self, client_id: str) -> None:
        self._open.pop(client_id, None)
