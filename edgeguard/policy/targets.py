"""Destinations as authors write them: `host[:port]`, `*.host`, `**.host`, CIDR, with a port or a range of ports.

api.stripe.com            exactly this name
*.example.com:8443        every name below, at any depth, not the apex
**.example.com            the apex and every name below
192.0.2.0/24:5432         address literals in this network
[2001:db8::/32]:443       the same for IPv6
"""

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from edgeguard.policy.names import HostError, canonical_host, is_address, parse_port

ALL_PORTS = (1, 65535)


class HostKind(StrEnum):
    """How the host part of a target matches."""

    EXACT = "exact"
    BELOW = "below"
    TREE = "tree"
    NETWORK = "network"


class TargetError(ValueError):
    """The text is not a target. The message says what to write instead."""


class Target(NamedTuple):
    """One destination pattern. `ports` is an inclusive range, or None where the author named none."""

    kind: HostKind
    host: str
    """Canonical host, the suffix below a wildcard, or the network in text."""
    ports: tuple[int, int] | None

    def __str__(self) -> str:
        prefix = {HostKind.BELOW: "*.", HostKind.TREE: "**."}.get(self.kind, "")
        host = f"[{self.host}]" if ":" in self.host else prefix + self.host
        if self.ports is None:
            return host
        low, high = self.ports
        return f"{host}:{low}" if low == high else f"{host}:{low}-{high}"


def parse_target(text: str) -> Target:
    """Parses one target. Raises `TargetError`."""
    if "://" in text:
        raise TargetError(f"{text!r} is a URL; write the host and, if need be, `:port`")
    host, ports = _split(text)
    if "/" in host:
        return Target(HostKind.NETWORK, str(parse_network(host)), ports)
    if host in {"*", "**", "*.", "**.", ""}:
        raise TargetError(
            f"{text!r} would match every host; a deny, gate or limit for every host leaves `to` out"
        )
    kind = HostKind.EXACT
    for prefix, wild in (("**.", HostKind.TREE), ("*.", HostKind.BELOW)):
        if host.startswith(prefix):
            kind, host = wild, host[len(prefix) :]
            break
    if "*" in host:
        raise TargetError(f"{text!r}: a wildcard is a whole `*.` or `**.` at the beginning, nothing else")
    try:
        canonical = canonical_host(host)
    except HostError as error:
        raise TargetError(f"{text!r}: {error}") from None
    if canonical != host.lower():
        raise TargetError(f"{text!r} is not the canonical spelling; write {canonical!r}")
    if kind is not HostKind.EXACT and is_address(canonical):
        raise TargetError(
            f"{text!r}: an address has no names below it; write a network such as `192.0.2.0/24`"
        )
    return Target(kind, canonical, ports)


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """A network in CIDR notation without host bits. Raises `TargetError`."""
    try:
        network = ip_network(text, strict=True)
    except ValueError as error:
        raise TargetError(f"{text!r} is not a network: {error}") from None
    if isinstance(network, IPv6Network) and int(network.network_address) >> 32 == 0xFFFF:
        raise TargetError(f"{text!r} is an IPv4 network in IPv6 clothes; write the IPv4 network")
    return network


def _split(text: str) -> tuple[str, tuple[int, int] | None]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise TargetError(f"{text!r}: only IPv6 stands in brackets, followed by nothing or `:port`")
        return host, _ports(rest[1:], text) if rest else None
    if text.count(":") > 1:
        return text, None  # an IPv6 address or network without a port
    host, colon, ports = text.partition(":")
    return host, _ports(ports, text) if colon else None


def _ports(text: str, whole: str) -> tuple[int, int]:
    low_text, dash, high_text = text.partition("-")
    for part in (low_text, high_text) if dash else (low_text,):
        if part.startswith("0"):
            raise TargetError(f"{whole!r}: a port has no leading zero")
    try:
        low = parse_port(low_text)
        high = parse_port(high_text) if dash else low
    except HostError as error:
        raise TargetError(f"{whole!r}: {error}") from None
    if high < low:
        raise TargetError(f"{whole!r}: the range of ports runs backwards")
    return low, high


def host_covers(wide: Target, narrow: Target) -> bool:
    """Whether every host of `narrow` is a host of `wide` (ports apart)."""
    if wide.kind is HostKind.NETWORK:
        network = ip_network(wide.host)
        if narrow.kind is HostKind.NETWORK or (narrow.kind is HostKind.EXACT and is_address(narrow.host)):
            other = ip_network(narrow.host)
        else:
            return False
        return network.version == other.version and other.subnet_of(network)  # type: ignore[arg-type]
    if wide.kind is HostKind.EXACT:
        return narrow.kind is HostKind.EXACT and wide.host == narrow.host
    if narrow.kind is HostKind.NETWORK:
        return False
    if narrow.host.endswith("." + wide.host):
        return True
    if narrow.host != wide.host:
        return False
    return wide.kind is HostKind.TREE or narrow.kind is HostKind.BELOW


def host_overlaps(one: Target, two: Target) -> bool:
    """Whether some host is matched by both (ports apart)."""
    if host_covers(one, two) or host_covers(two, one):
        return True
    if one.kind is two.kind is HostKind.NETWORK:
        a, b = ip_network(one.host), ip_network(two.host)
        return a.version == b.version and a.overlaps(b)
    return False
