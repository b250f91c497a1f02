"""Destinations that have to be told apart: one host per class of names, one address per class of addresses, one port per range.

Two names are of the same class if the same statements meet them: every host that is named exactly is a class, and so is a
name below each suffix that nobody names. Addresses fall into the intervals between the ends of all networks.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from edgeguard.policy.addresses import METADATA_ADDRESSES, SPECIAL_NETWORKS, Address
from edgeguard.policy.diff.side import Met, Network
from edgeguard.policy.kinds import Kind

FRESH: Final = "edgeguard-any"
MAX_ADDRESSES: Final = 20_000
"""Classes of addresses that are looked at."""
_TEREDO: Final = ip_network("2001::/32")
_EMBEDDING: Final = (
    (ip_network("::/96"), 0),
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("::ffff:0:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
"""Where IPv6 carries an IPv4 address, and how far it is shifted."""
_ISATAP: Final = 0x00005EFE << 32


def fresh_label(hosts: Iterable[str]) -> str:
    """A label that none of the hosts has."""
    taken = {label for host in hosts if FRESH in host for label in host.split(".")}
    label, count = FRESH, 1
    while label in taken:
        label, count = f"{FRESH}-{count}", count + 1
    return label


def name_classes(exact: set[str], below: set[str]) -> Iterator[str]:
    """A name of every class; names that somebody wrote come first."""
    label = fresh_label(exact | below)
    yield from sorted(exact)
    for suffix in sorted(below):
        yield f"{label}.{suffix}"
    yield f"{label}.example"
    yield "localhost"
    yield f"{label}.localhost"


def address_classes(networks: Iterable[Network], zones: Sequence[Network] | None = None) -> list[Address]:
    """An address of every interval between the ends of the networks, of the special ranges and of what IPv6 may carry.

    Args:
        networks: All networks that tell addresses apart.
        zones: Only addresses in these are of interest; None: all.
    """
    cuts4, cuts6 = {0}, {0}
    for network in (*networks, *_special()):
        (cuts4 if network.version == 4 else cuts6).update(_ends(network))
    for address in METADATA_ADDRESSES:
        (cuts4 if address.version == 4 else cuts6).update((int(address), int(address) + 1))
    cuts4 = {cut for cut in cuts4 if cut >> 32 == 0}
    for carrier, shift in _EMBEDDING:
        base = int(carrier.network_address)
        cuts6.update(base + (cut << shift) for cut in cuts4)
    cuts6 = {cut for cut in cuts6 if cut >> 128 == 0}
    inside = None if zones is None else _spans(zones)
    found: list[Address] = [IPv4Address(n) for n in _starts(sorted(cuts4), inside, 4, 1 << 32)]
    six = _starts(sorted(cuts6), inside, 6, 1 << 128)
    found += [IPv6Address(n) for n in six]
    if six:
        found += _isatap(sorted(cuts6), sorted(cuts4), inside)
    return found


@cache
def _special() -> tuple[Network, ...]:
    carriers = [carrier for carrier, _ in _EMBEDDING]
    return (*map(ip_network, SPECIAL_NETWORKS), *carriers, _TEREDO, ip_network("2000::/3"))


def _ends(network: Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address) + 1


def _spans(zones: Sequence[Network]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for zone in zones:
        found[zone.version].append(_ends(zone))
    return {version: _merge(sorted(spans)) for version, spans in found.items()}


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for low, high in spans:
        if out and low <= out[-1][1]:
            out[-1] = out[-1][0], max(high, out[-1][1])
        else:
            out.append((low, high))
    return out


def _within(number: int, spans: list[tuple[int, int]]) -> bool:
    place = bisect_right(spans, (number, 1 << 129)) - 1
    return place >= 0 and number < spans[place][1]


def _starts(
    cuts: list[int], inside: dict[int, list[tuple[int, int]]] | None, version: int, end: int
) -> list[int]:
    """The first address of every interval inside the zones, whose own ends are cuts."""
    if inside is None:
        return [cut for cut in cuts if cut < end]
    return [cut for cut in cuts if cut < end and _within(cut, inside[version])]


def _isatap(
    cuts6: list[int], cuts4: list[int], inside: dict[int, list[tuple[int, int]]] | None
) -> Iterator[Address]:
    """Interface identifiers that carry an IPv4 address (RFC 5214), in every interval that has room for one."""
    for start, end in zip(cuts6, [*cuts6[1:], 1 << 128], strict=True):
        if inside is not None and not _within(start, inside[6]):
            continue
        for four in cuts4:
            number = start >> 64 << 64 | _ISATAP | four
            if number < start:
                number += 1 << 64
            if number < end:
                yield IPv6Address(number)


def touches_teredo(networks: Iterable[Network]) -> bool:
    return any(n.version == 6 and n.overlaps(_TEREDO) for n in networks)


def port_classes(met: Sequence[Met]) -> Iterator[int]:
    """A port of every range on which something can be allowed; 443 where it is one of them."""
    cuts = {1, 80, 81}
    zones: list[tuple[int, int]] = []
    for statement, low, high, _ in met:
        cuts.update((low, high + 1))
        if statement.kind in {Kind.ALLOW, Kind.LEARN} and statement.percent:
            zones.append((low, high + 1))
        for pattern in statement.excepted:
            cuts.update((pattern.low, pattern.high + 1))
        for lift in statement.lifts:
            for pattern in lift.hosts or ():
                cuts.update((pattern.low, pattern.high + 1))
    spans = _merge(sorted(zones))
    ordered = sorted(cut for cut in cuts if cut < 65536)
    for start, end in zip(ordered, [*ordered[1:], 65536], strict=True):
        if _within(start, spans):
            yield 443 if start <= 443 < end else start
