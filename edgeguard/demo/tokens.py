"""The demo's age verifier: certificates for the upstreams, and user tokens signed by a key of its own."""

import datetime as dt
import json
import time
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey

ISSUER: Final = "https://age.example"
AUDIENCE: Final = "edgeguard-demo"
AUTHORITY_NAME: Final = "Demo Upstream CA"
LIFETIME: Final = dt.timedelta(days=1)


class Verifier:
    """Signs assertions about a person's age (the verifier of RFC 9998)."""

    def __init__(self) -> None:
        self._key = ECKey.generate_key("P-256", parameters={"kid": "demo", "alg": "ES256", "use": "sig"})

    def public_jwk(self) -> str:
        """The public key as one line of JSON, which is YAML too."""
        return json.dumps(self._key.as_dict(private=False))

    def token(self, **claims: object) -> str:
        """A token that is valid for five minutes."""
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 300, **claims}
        return jwt.encode({"alg": "ES256", "kid": "demo", "typ": "JWT"}, payload, self._key)


def make_certificates(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """An authority and one leaf for all `names`; returns (authority PEM, leaf chain with key PEM)."""
    now = dt.datetime.now(dt.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + LIFETIME)
        )

    authority = (
        builder(issuer, authority_key)
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
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), leaf_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority_file, leaf_file = folder / "upstream-ca.pem", folder / "upstream.pem"
    authority_file.write_bytes(authority.public_bytes(pem))
    leaf_file.touch(mode=0o600)
    leaf_file.write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    return authority_file, leaf_file
