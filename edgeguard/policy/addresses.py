"""What kind of address is this, whatever it is wrapped in.

The table follows the IANA special-purpose registries (RFC 6890 and its updates). IPv4 addresses inside
IPv6 ones (mapped, compatible, translated, NAT64 after RFC 6052, 6to4, ISATAP) are decoded and judged as well;
the stricter answer holds. The metadata services of the clouds are a class of their own: never reachable.
"""

from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from edgeguard.policy.names import canonical_ipv6

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network

WELL_KNOWN: Final = IPv6Network("64:ff9b::/96")
"""The well-known NAT64 prefix (RFC 6052)."""


class AddressClass(StrEnum):
    """Classes of addresses. Only `public` may be dialled without a rule that says `resolves_to`."""

    PUBLIC = "public"
    PRIVATE = "private"
    SHARED = "shared"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link_local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"
    DOCUMENTATION = "documentation"
    BENCHMARKING = "benchmarking"
    TRANSITION = "transition"
    RESERVED = "reserved"


_C = AddressClass
_V4: Final = {
    "0.0.0.0/8": _C.UNSPECIFIED,
    "10.0.0.0/8": _C.PRIVATE,
    "100.64.0.0/10": _C.SHARED,
    "127.0.0.0/8": _C.LOOPBACK,
    "169.254.0.0/16": _C.METADATA,  # link-local on paper, metadata in every cloud
    "172.16.0.0/12": _C.PRIVATE,
    "192.0.0.0/24": _C.RESERVED,
    "192.0.2.0/24": _C.DOCUMENTATION,
    "192.88.99.0/24": _C.TRANSITION,
    "192.168.0.0/16": _C.PRIVATE,
    "198.18.0.0/15": _C.BENCHMARKING,
    "198.51.100.0/24": _C.DOCUMENTATION,
    "203.0.113.0/24": _C.DOCUMENTATION,
    "224.0.0.0/4": _C.MULTICAST,
    "240.0.0.0/4": _C.RESERVED,
}
_V6: Final = {
    "::/96": _C.RESERVED,  # IPv4-compatible; `::` and `::1` are singled out below
    "::ffff:0:0/96": _C.TRANSITION,
    "::ffff:0:0:0/96": _C.TRANSITION,
    "64:ff9b::/96": _C.TRANSITION,
    "64:ff9b:1::/48": _C.TRANSITION,
    "100::/64": _C.RESERVED,
    "2001::/32": _C.TRANSITION,  # Teredo
    "2001:2::/48": _C.BENCHMARKING,
    "2001:db8::/32": _C.DOCUMENTATION,
    "2001:10::/28": _C.RESERVED,
    "2001:20::/28": _C.RESERVED,
    "2002::/16": _C.TRANSITION,  # 6to4
    "3fff::/20": _C.DOCUMENTATION,
    "5f00::/16": _C.RESERVED,
    "fc00::/7": _C.PRIVATE,
    "fe80::/10": _C.LINK_LOCAL,
    "fec0::/10": _C.PRIVATE,
    "ff00::/8": _C.MULTICAST,
}

SPECIAL_NETWORKS: Final = (*_V4, *_V6)
"""The networks of the table, in text."""

METADATA_ADDRESSES: Final = frozenset(
    ip_address(text)
    for text in (
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
    )
)
METADATA_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.azure.com",
        "metadata.tencentyun.com",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.packet.net",
        "metadata.platformequinix.com",
    }
)

type _Table = tuple[list[int], list[int], list[AddressClass]]


def _table(networks: dict[str, AddressClass], kind: type[IPv4Network | IPv6Network]) -> _Table:
    rows = sorted(
        (int(n.network_address), int(n.broadcast_address), c)
        for n, c in ((kind(t), c) for t, c in networks.items())
    )
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


_V4_TABLE: Final = _table(_V4, IPv4Network)
_V6_TABLE: Final = _table(_V6, IPv6Network)


def _look_up(table: _Table, number: int) -> AddressClass | None:
    starts, ends, classes = table
    place = bisect_right(starts, number) - 1
    return classes[place] if place >= 0 and number <= ends[place] else None


def parse_address(text: str) -> Address:
    """The address of canonical or resolver text; a zone is dropped. Raises ValueError."""
    return ip_address(text.partition("%")[0])


def canonical_address(text: str) -> str:
    """RFC 5952 or dotted-quad text. Raises ValueError."""
    address = parse_address(text)
    return canonical_ipv6(address) if isinstance(address, IPv6Address) else str(address)


def embedded(address: Address, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that a translator, tunnel or socket may find inside `address`."""
    if isinstance(address, IPv4Address):
        return ()
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    found = []
    if number >> 32 in {0, 0xFFFF, 0xFFFF0000} and number > 1:
        found.append(low)
    elif number >> 112 == 0x2002:
        found.append(IPv4Address(number >> 80 & 0xFFFFFFFF))
    elif number >> 96 == 0x20010000:
        found += [IPv4Address(number >> 64 & 0xFFFFFFFF), IPv4Address(~number & 0xFFFFFFFF)]
    found += [_rfc6052(number, prefix.prefixlen) for prefix in nat64 if address in prefix]
    if (number >> 32 & 0xFFFFFFFF) & 0xFDFFFFFF == 0x00005EFE:
        found.append(low)  # ISATAP interface identifier (RFC 5214)
    return tuple(dict.fromkeys(found))


def _rfc6052(number: int, length: int) -> IPv4Address:
    """The IPv4 address behind a NAT64 prefix of 32, 40, 48, 56, 64 or 96 bits; bits 64 to 71 are skipped."""
    if length >= 96:
        return IPv4Address(number & 0xFFFFFFFF)
    left = number >> 64 << 56 | number & ((1 << 56) - 1)  # without the reserved octet: 120 bits
    return IPv4Address(left >> (120 - length - 32) & 0xFFFFFFFF)


@lru_cache(maxsize=8192)
def _classify(text: str, nat64: tuple[IPv6Network, ...]) -> AddressClass:
    address = parse_address(text)
    if address in METADATA_ADDRESSES:
        return AddressClass.METADATA
    if isinstance(address, IPv4Address):
        return _look_up(_V4_TABLE, int(address)) or AddressClass.PUBLIC
    number = int(address)
    if number < 2:
        return AddressClass.LOOPBACK if number else AddressClass.UNSPECIFIED
    inner = [_classify(str(v4), nat64) for v4 in embedded(address, nat64)]
    if AddressClass.METADATA in inner:
        return AddressClass.METADATA
    special = next((c for c in inner if c is not AddressClass.PUBLIC), None)
    if special is not None:
        return special
    own = _look_up(_V6_TABLE, number)
    if own is AddressClass.TRANSITION and inner and number >> 96 != 0x20010000:
        return AddressClass.PUBLIC  # a translator's view of a public IPv4 address (DNS64, 6to4, mapped)
    if own is None and not 1 <= number >> 125 <= 1 and not inner:
        return AddressClass.RESERVED  # outside 2000::/3, nothing is assigned to the public internet
    return own or AddressClass.PUBLIC


def classify(address: str, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> AddressClass:
    """The class of an address in text; the stricter of what it is and what it carries. Raises ValueError."""
    return _classify(address, tuple(nat64))
