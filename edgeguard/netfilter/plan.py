"""What the packet filter has to know, read off a configuration. Pure."""

import ipaddress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edgeguard.policy.addresses import AddressClass, classify
from edgeguard.settings import Settings
from edgeguard.settings.values import split_address, split_server

DNS_PORT = 53


class PlanError(ValueError):
    """The configuration leaves no packet filter to write. The message says which key, and what to write."""


class Place(NamedTuple):
    """An address and a port."""

    address: str
    """Canonical."""
    port: int

    @property
    def ipv6(self) -> bool:
        return ":" in self.address

    @property
    def anywhere(self) -> bool:
        """Whether it stands for all addresses of this host."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.ipv6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The packet filter of one node."""

    shape: Literal["sidecar", "gateway"]
    user: int
    """User id that edgeguard runs as; its own traffic passes."""
    doors: tuple[Place, ...]
    """What the workload may dial: HTTP, SOCKS5, and the admin address, which only reads."""
    transparent: Place | None
    """Where redirected connections go; None: nothing is redirected, and all is refused."""
    redirect_ports: tuple[str, ...]
    resolvers: tuple[Place, ...]
    """DNS servers that may be asked beside the proxy."""
    local_ports: tuple[str, ...]
    inbound_ports: tuple[str, ...]
    log: bool


def plan(settings: Settings) -> Plan:
    """The plan of a configuration.

    Raises:
        PlanError: A door's port or address cannot stand in a rule, or the DNS servers are not named.
    """
    wanted, listen = settings.netfilter, settings.listen
    doors = tuple(
        _place(f"[listen] {key}", text)
        for key, text in (("address", listen.address), ("socks", listen.socks))
        if text and not text.startswith("unix:")
    )
    transparent = _place("[listen] transparent", listen.transparent) if listen.transparent else None
    if wanted.shape == "gateway" and transparent is not None and transparent.loopback:
        raise PlanError(
            f"[listen] transparent = {listen.transparent!r}: what a gateway redirects does not arrive on loopback; "
            'write "0.0.0.0:3130"'
        )
    admin = settings.admin.address
    if wanted.shape == "sidecar" and admin and not admin.startswith("unix:"):
        doors += (_place("[admin] address", admin),)
    return Plan(
        shape=wanted.shape,
        user=wanted.user,
        doors=doors,
        transparent=transparent,
        redirect_ports=wanted.redirect_ports if transparent is not None else (),
        resolvers=_resolvers(settings),
        local_ports=wanted.local_ports,
        inbound_ports=wanted.inbound_ports,
        log=wanted.log,
    )


def _place(key: str, text: str) -> Place:
    place = Place(*split_address(text))
    if not place.port:
        raise PlanError(f"{key} = {text!r}: a rule needs a port, and 0 lets the kernel choose; write one")
    return place


def _resolvers(settings: Settings) -> tuple[Place, ...]:
    if settings.netfilter.dns == "refused":
        return ()
    if not settings.resolver.servers:
        raise PlanError(
            '[netfilter] dns = "resolver" opens the way to the servers of [resolver], and there are none: '
            'write mode = "servers" and servers = ["192.0.2.53"]'
        )
    places = tuple(Place(*split_server(text)) for text in settings.resolver.servers)
    for place in places:
        if classify(place.address) is AddressClass.METADATA and place.port != DNS_PORT:
            raise PlanError(f"[resolver] servers: {place} is a metadata service, where only port 53 is DNS")
    return places
