"""The certificate authority that intercepted connections are signed with.

Made once, ECDSA P-256, in the file layout that the engine reads: `mitmproxy-ca.pem` holds key
and certificate, `mitmproxy-ca-cert.pem` the certificate alone, which is what clients get. It is
never made again in silence: a new authority would break every client that trusts the old one, and
a wiped volume must not look like a first start.
"""

import os
import secrets
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SECRET_NAME: Final = "mitmproxy-ca.pem"  # noqa: S105 - a file name
PUBLIC_NAME: Final = "mitmproxy-ca-cert.pem"
DHPARAM_NAME: Final = "mitmproxy-dhparam.pem"
LIFETIME: Final = timedelta(days=3650)
BACKDATED: Final = timedelta(days=2)
"""Clients whose clocks are behind accept a new authority too."""


class AuthorityError(Exception):
    """The authority cannot be used. The message says what is wrong, where, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A usable interception authority."""

    directory: Path
    certificate_pem: bytes
    """What clients are to trust."""
    fingerprint: str
    """SHA-256 of the certificate, lower-case hexadecimal."""
    expires: datetime

    def export(self, target: Path) -> None:
        """Writes the public certificate, and nothing else, to `target` (mode 0644)."""
        _write(target, self.certificate_pem, 0o644)


def ensure_authority(directory: Path, *, existed: bool = False, now: datetime | None = None) -> Authority:
    """The authority in `directory`; made there if there has never been one.

    Args:
        directory: Made with mode 0700 if missing.
        existed: Other state says that an authority was made before: then a missing one is an error.
        now: The time that validity is checked at and that a new one starts from; default: the clock's.

    Raises:
        AuthorityError: missing though it existed, unsafe permissions, unreadable, or expired.
    """
    secret = directory / SECRET_NAME
    if not secret.exists():
        if existed or (directory / PUBLIC_NAME).exists():
            raise AuthorityError(
                f"{secret}: the key of the interception authority is gone, though it was made before. "
                f"Restore it from a backup; or remove {directory} and have every client trust a new one."
            )
        _create(directory, now or datetime.now(UTC))
    return load_authority(directory, now=now)


def load_authority(directory: Path, *, now: datetime | None = None) -> Authority:
    """The authority in `directory`. Raises AuthorityError."""
    secret = directory / SECRET_NAME
    _check_owner(directory, 0o077)
    _check_owner(secret, 0o077)
    try:
        raw = secret.read_bytes()
        key = serialization.load_pem_private_key(raw, None)
        certificate = x509.load_pem_x509_certificate(raw)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"{secret}: no private key and certificate in PEM form ({error})") from error
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{secret}: the private key does not belong to the certificate")
    moment = now or datetime.now(UTC)
    expires = certificate.not_valid_after_utc
    if not certificate.not_valid_before_utc <= moment < expires:
        raise AuthorityError(
            f"{secret}: the interception authority is valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"to {expires:%Y-%m-%d}; remove {directory} to make a new one, and have every client trust it"
        )
    return Authority(
        directory,
        certificate.public_bytes(serialization.Encoding.PEM),
        certificate.fingerprint(hashes.SHA256()).hex(),
        expires,
    )


def _create(directory: Path, now: datetime) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(directory, 0o077)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, now)
        public = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # The secret last: its presence is what says that the authority is complete.
        _write(directory / f".{PUBLIC_NAME}.new", public, 0o644)
        _write(directory / SECRET_NAME, private + public, 0o600, exclusive=True)
        (directory / f".{PUBLIC_NAME}.new").replace(directory / PUBLIC_NAME)
    except FileExistsError:
        return  # another process was first; its authority is the one
    except OSError as error:
        raise AuthorityError(
            f"{directory}: the interception authority cannot be written ({error.strerror})"
        ) from error


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # A distinct name for each authority keeps clients from mixing up two of them.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "edgeguard"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"edgeguard interception {secrets.token_hex(4)}"),
        ]
    )
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _write(path: Path, data: bytes, mode: int, *, exclusive: bool = False) -> None:
    """Whole or not at all, and durable. `exclusive`: raises FileExistsError instead of replacing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path, follow_symlinks=False)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_owner(path: Path, forbidden: int) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode):
        raise AuthorityError(f"{path}: a symbolic link; put the file itself there")
    if found.st_uid != os.geteuid():
        raise AuthorityError(
            f"{path}: belongs to user {found.st_uid}, but edgeguard runs as user {os.geteuid()}; change the owner"
        )
    if stat.S_IMODE(found.st_mode) & forbidden:
        kind = "u=rwx,go=" if stat.S_ISDIR(found.st_mode) else "u=rw,go="
        raise AuthorityError(
            f"{path}: others can read it (mode {stat.S_IMODE(found.st_mode):04o}); run: chmod {kind} {path}"
        )
