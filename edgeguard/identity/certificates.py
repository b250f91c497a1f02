"""The names in a client's certificate: subject alternative names of type URI and DNS, nothing else.

That a certificate counts at all (chain, times, revocation, purpose) was verified by TLS; here it is
only read. The common name is never looked at (RFC 9525, 6.3), nor is a name with a wildcard one that
anybody could be called by. An X.509 SVID has exactly one URI (SPIFFE, X509-SVID, 2), so with two of them
a certificate names nobody by URI.
"""

from typing import Final, NamedTuple

from cryptography import x509

MAX_NAMES: Final = 100
"""Certificates with more names are read as if they had none."""


class CertificateNames(NamedTuple):
    """What a verified certificate calls its holder."""

    uri: str | None = None
    """The one URI, as written; None where there is none, or more than one."""
    dns: frozenset[str] = frozenset()
    """DNS names in lower case, without wildcards."""


def read_names(der: bytes) -> CertificateNames:
    """The names of a certificate that was verified already. Never raises: what cannot be read names nobody.

    Args:
        der: The leaf certificate, as the TLS library hands it out.
    """
    try:
        found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = found.value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return CertificateNames()
    if len(uris) + len(hosts) > MAX_NAMES:
        return CertificateNames()
    return CertificateNames(
        uris[0] if len(uris) == 1 else None, frozenset(name.lower() for name in hosts if "*" not in name)
    )
