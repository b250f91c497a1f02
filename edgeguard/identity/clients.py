"""Who owns a connection.

One order: a client certificate, then a secret in `Proxy-Authorization`, then the user of a unix
socket, then the source network (longest prefix), then the static client, then unknown. Credentials
that are presented and wrong are refused, whatever else is known; nothing further is tried, so that a
typing mistake cannot turn into another identity. What is not configured means nothing: without
secrets the header is not looked at, without certificate entries a certificate names nobody.

Where there are certificate entries and a verified certificate matches none, its holder is somebody
whom we do not know. A secret may still name him; where he comes from may not.
"""

import base64
import binascii
import ipaddress
import secrets
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from edgeguard.identity.certificates import CertificateNames
from edgeguard.policy.request import UNKNOWN_CLIENT, Client
from edgeguard.settings import Identity

MAX_CREDENTIALS: Final = 8192
"""Longest value of `Proxy-Authorization` that is looked at, in characters."""
CHALLENGE: Final = 'Basic realm="edgeguard", charset="UTF-8", Bearer realm="edgeguard"'
"""For `Proxy-Authenticate` (RFC 9110, 11.7.1)."""


class CredentialsInvalid(Exception):  # noqa: N818 - a fact about the client, not a failure of ours
    """The client presented credentials that are not valid. Answer 407."""


class Proof(NamedTuple):
    """What a connection itself proves about the other end, beside its address."""

    certificate: CertificateNames | None = None
    """Of a client certificate that TLS has verified."""
    uid: int | None = None
    """User of the process at the other end of a unix socket, as the kernel says."""
    gid: int | None = None
    """Its primary group."""


class ClientDirectory:
    """Names the owners of connections.

    Args:
        identity: Section `[identity]` of the configuration.

    Raises:
        ValueError: Two entries share one secret.
    """

    def __init__(self, identity: Identity) -> None:
        # Secrets are looked up by a keyed hash of their hash: the time that takes tells nothing about them.
        self._pepper = secrets.token_bytes(32)
        self._secrets: dict[bytes, Client] = {}
        for entry in identity.secret:
            if entry.secret is not None:
                digest = sha256(entry.secret.get_secret_value().encode()).digest()
            else:
                digest = bytes.fromhex(entry.sha256 or "")
            at = self._index(digest)
            if at in self._secrets:
                raise ValueError(
                    f"the clients {self._secrets[at].name} and {entry.client} have the same secret; give each its own"
                )
            self._secrets[at] = _client(entry.client, entry.groups, entry.claims)
        self._uris = {e.uri: _client(e.client, e.groups, e.claims) for e in identity.certificate if e.uri}
        self._dns = {e.dns: _client(e.client, e.groups, e.claims) for e in identity.certificate if e.dns}
        self._users = [(e.uid, e.gid, _client(e.client, e.groups, e.claims)) for e in identity.peer]
        networks = [
            (ipaddress.ip_network(e.cidr), _client(e.client, e.groups, e.claims)) for e in identity.cidr
        ]
        self._networks = sorted(networks, key=lambda pair: -pair[0].prefixlen)
        self._rest = UNKNOWN_CLIENT
        if identity.static is not None:
            self._rest = _client(identity.static, identity.static_groups, identity.static_claims)
        self._by_address = lru_cache(4096)(self._look_up)

    def identify(
        self, peer: str | None, proxy_authorization: Sequence[str] = (), proof: Proof | None = None
    ) -> Client:
        """The owner of a connection.

        Args:
            peer: Source address; None for a unix socket.
            proxy_authorization: Every value of that header.
            proof: What the connection proves; None for one that proves nothing.

        Raises:
            CredentialsInvalid: Secrets are configured and what was presented is not one of them.
        """
        found = self._by_address(peer)
        if proof is None and not (self._secrets and proxy_authorization):
            return found
        holder = None if proof is None or proof.certificate is None else self._holder(proof.certificate)
        secret: Client | None = None
        if self._secrets and proxy_authorization:
            secret = self._authenticate(proxy_authorization)
        if holder is not None and holder.identified:
            owner = holder
        elif secret is not None:
            owner = secret
        elif holder is not None:
            owner = holder
        else:
            owner = found if proof is None or proof.uid is None else self._user(proof) or found
        return owner._replace(address=found.address)

    def _holder(self, names: CertificateNames) -> Client | None:
        """Who holds a verified certificate: unknown if no entry fits; None where certificates name nobody."""
        if not self._uris and not self._dns:
            return None
        matching = {self._dns[name] for name in names.dns if name in self._dns}
        if names.uri in self._uris:
            matching.add(self._uris[names.uri])
        # One certificate that is two clients is neither.
        return matching.pop() if len(matching) == 1 else UNKNOWN_CLIENT

    def _user(self, proof: Proof) -> Client | None:
        """Who a user of this host is; None if no entry fits."""
        for uid, gid, client in self._users:
            if uid in {None, proof.uid} and gid in {None, proof.gid}:
                return client
        return None

    def _look_up(self, peer: str | None) -> Client:
        if peer is None:
            return self._rest
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return UNKNOWN_CLIENT
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        for network, client in self._networks:
            if address in network:
                return client._replace(address=str(address))
        return self._rest._replace(address=str(address))

    def _authenticate(self, values: Sequence[str]) -> Client:
        if len(values) != 1 or len(values[0]) > MAX_CREDENTIALS:
            raise CredentialsInvalid("Proxy-Authorization must come once, and be short")
        scheme, _, rest = values[0].strip(" \t").partition(" ")
        rest = rest.strip(" \t")
        user: str | None = None
        if scheme.lower() == "bearer":
            secret = rest.encode("utf-8", "surrogateescape")
        elif scheme.lower() == "basic":
            try:
                name, colon, secret = base64.b64decode(rest, validate=True).partition(b":")
                user = name.decode()
            except (binascii.Error, ValueError):
                raise CredentialsInvalid("Basic credentials are not base64 of user:password") from None
            if not colon:
                raise CredentialsInvalid("Basic credentials have no colon")
        else:
            raise CredentialsInvalid("only the schemes Basic and Bearer are known")
        client = self._secrets.get(self._index(sha256(secret).digest()))
        if client is None or not secret:
            raise CredentialsInvalid("unknown credentials")
        if user is not None and not compare_digest(user.encode(), (client.name or "").encode()):
            raise CredentialsInvalid("unknown credentials")
        return client

    def _index(self, digest: bytes) -> bytes:
        return blake2b(digest, key=self._pepper, digest_size=32).digest()


def _client(name: str, groups: Sequence[str], claims: Sequence[str]) -> Client:
    return Client(name=name, identified=True, groups=frozenset(groups), claims=frozenset(claims))
