"""Whose quota and whose bucket: clients by name, those without one by the network of their address."""

from functools import cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from publicsuffixlist import PublicSuffixList

from edgeguard.policy.addresses import parse_address
from edgeguard.policy.decision import LimitHit
from edgeguard.policy.names import is_address
from edgeguard.policy.request import Client
from edgeguard.policy.statements import Statement

_LATER: Final = "\x00"
"""Begins the part of a key that only the request knows."""
STANDARD_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}
)


def client_key(client: Client) -> str:
    """The name, or the network of the address where there is none."""
    return f"name:{client.name}" if client.name is not None else network_of(client.address)


def network_of(address: str | None) -> str:
    """An IPv4 address, or the /64 of an IPv6 one (RFC 6177: a site gets more than one address, and not less)."""
    if address is None:
        return "addr:-"
    try:
        parsed = parse_address(address)
    except ValueError:
        return "addr:-"
    if isinstance(parsed, IPv4Address):
        return f"addr:{parsed}"
    if parsed.ipv4_mapped is not None:
        return f"addr:{parsed.ipv4_mapped}"
    return f"addr:{IPv6Address(int(parsed) >> 64 << 64)}/64"


def bucket(salt: str, client: Client) -> int:
    """The client's place among 100, the same for every statement of a bundle."""
    digest = blake2b(f"{salt}\x00{client_key(client)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 100


def domain_of(host: str) -> str:
    """The registrable domain, so that names below it share a quota; an address, or a public suffix, is itself."""
    if is_address(host):
        return host
    return _suffixes().privatesuffix(host) or host


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def limit_key(parts: tuple[str, ...], client: Client, host: str) -> str:
    """The key of a limit, as far as client and host settle it."""
    return "|".join(_part(part, client, host) for part in parts)


def _part(part: str, client: Client, host: str) -> str:
    match part:
        case "client":
            return client_key(client)
        case "client_ip":
            return network_of(client.address)
        case "domain":
            return domain_of(host)
        case _:
            return _LATER + part


def hit_of(statement: Statement, key: str, enforced: bool) -> LimitHit:
    """What the limiter is asked. Raises TypeError for a statement that is no limit."""
    limit = statement.limit
    if limit is None:
        raise TypeError(f"{statement.id} is no limit")
    return LimitHit(
        statement.id,
        key,
        limit.unit,
        limit.quota,
        limit.period_ns,
        limit.burst,
        limit.scope,
        enforced,
        limit.exact,
        limit.on_store_error,
    )


def settled(hit: LimitHit) -> bool:
    """Whether the key depends on nothing but the client."""
    return _LATER not in hit.key


def settle(hit: LimitHit, rule: str, method: str | None) -> LimitHit:
    """Fills in what only the request knows; methods outside the standard ones share a quota."""
    if settled(hit):
        return hit
    known = method if method in STANDARD_METHODS else "other"
    return hit._replace(key=hit.key.replace("\x00rule", rule).replace("\x00method", known))
