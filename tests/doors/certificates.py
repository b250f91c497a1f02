"""A small certificate authority for the tests of the doors: leaves of every kind, and a revocation list."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """Signs certificates into a folder.

    Attributes:
        file: Its own certificate.
        revoked_file: Its revocation list, empty at first.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        self._now = dt.datetime.now(dt.UTC)
        certificate = (
            self._builder(self._name, self._key, days=1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.revoked_file = folder / "crl.pem"
        self.revoke()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: float):
        start = self._now - dt.timedelta(days=2)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(self._now + dt.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )

    def issue(
        self,
        name: str,
        *,
        dns: list[str] | None = None,
        uris: list[str] | None = None,
        ips: list[str] | None = None,
        days: float = 1,
        purpose: x509.ObjectIdentifier | None = None,
    ) -> Path:
        """A leaf with its key in one file. `days` from now until it expires; negative: it has."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(text) for text in dns or ()]
        names += [x509.UniformResourceIdentifier(text) for text in uris or ()]
        names += [x509.IPAddress(ipaddress.ip_address(text)) for text in ips or ()]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, days=days).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self.last_serial = certificate.serial_number
        file = self._folder / f"{name}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return file

    def revoke(self, *serials: int, days: float = 1) -> None:
        """Writes the revocation list anew. `days` from now until the next is due."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(self._now - dt.timedelta(days=2))
            .next_update(self._now + dt.timedelta(days=days))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(self._now - dt.timedelta(days=1))
                .build()
            )
        crl = builder.sign(self._key, hashes.SHA256())
        self.revoked_file.write_bytes(crl.public_bytes(serialization.Encoding.PEM))


SERVER_ONLY = ExtendedKeyUsageOID.SERVER_AUTH
