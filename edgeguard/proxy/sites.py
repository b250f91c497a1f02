"""One's own sites, which the door `reverse` stands in front of: who they are, and the certificate they show.

A visitor of a site knows of no proxy, so the certificate is the site's own, never one of the interception
authority. It is looked at before anybody connects, and again when its file changes. Sessions are not resumed.
"""

import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from mitmproxy.addons.tlsconfig import AppData, alpn_select_callback
from OpenSSL import SSL

from edgeguard.proxy.doortls import DoorTlsError, Watched
from edgeguard.settings import Site as SiteSettings
from edgeguard.settings.values import split_origin

logger = logging.getLogger(__name__)

_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION


class SiteTls:
    """What a site shows its visitors.

    Raises:
        DoorTlsError: The files cannot be used, or the certificate is not one of this site.
    """

    def __init__(self, name: str, certificate: Path, key: Path | None) -> None:
        self._watched = Watched(
            f"the site {name}", (certificate, key), lambda: _context(name, certificate, key or certificate)
        )

    def connection(self) -> SSL.Connection:
        """The server's side of the next handshake, HTTP/2 or HTTP/1.1 as the visitor prefers."""
        connection = SSL.Connection(self._watched.now())
        connection.set_app_data(AppData(client_alpn=None, server_alpn=None, http2=True))
        connection.set_accept_state()
        return connection


@dataclass(frozen=True, slots=True)
class Site:
    """One site. Names are canonical."""

    name: str
    port: int
    """As visitors and rules see it."""
    tls: SiteTls | None
    origin_host: str
    origin_port: int
    origin_tls: bool
    origin_name: str
    """Whose certificate an origin with TLS must show."""
    forwarded: str
    """Which field tells the origin the visitor's address: off, forwarded, x-forwarded-for."""


type Sites = Mapping[tuple[str, bool], Site]
"""By name, and whether visitors speak TLS."""


def open_sites(settings: Sequence[SiteSettings]) -> Sites:
    """The sites of a configuration. Raises DoorTlsError."""
    found: dict[tuple[str, bool], Site] = {}
    for site in settings:
        scheme, host, port = split_origin(site.origin)
        shown = None if site.certificate is None else SiteTls(site.name, site.certificate, site.key)
        found[site.name, shown is not None] = Site(
            site.name,
            site.public_port,
            shown,
            host,
            port,
            scheme == "https",
            site.origin_name or site.name,
            site.forwarded,
        )
    return found


def _context(name: str, certificate: Path, key: Path) -> SSL.Context:
    """Raises DoorTlsError."""
    check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # its messages tell more than those of the other binding
    try:
        check.load_cert_chain(certificate, key, _no_password)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = _names(leaf)
    except FileNotFoundError as error:
        raise DoorTlsError(f"{error.filename or certificate}: no such file") from None
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise DoorTlsError(f"{certificate}: no certificate with its key as PEM: {error}") from None
    if name not in names and f"*.{name.partition('.')[2]}" not in names:
        raise DoorTlsError(f"{certificate}: is for {', '.join(sorted(names)) or 'nobody'}, not for {name}")
    if leaf.not_valid_after_utc < datetime.now(UTC):
        logger.error("%s: the certificate of %s expired on %s", certificate, name, leaf.not_valid_after_utc)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_alpn_select_callback(alpn_select_callback)
    context.use_certificate_chain_file(certificate)
    context.use_privatekey_file(key)
    return context


def _names(leaf: x509.Certificate) -> set[str]:
    """DNS names in lower case (RFC 9525, 6.3: the common name does not count)."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.value.get_values_for_type(x509.DNSName)}


def _no_password() -> str:
    raise ValueError("the key has a password; write it without one, readable for edgeguard alone")
