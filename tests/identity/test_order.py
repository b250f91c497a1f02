"""The one order of identity: what is proven comes before what can be forged."""

from hashlib import sha256

import pytest

from edgeguard.identity.certificates import CertificateNames, read_names
from edgeguard.identity.clients import ClientDirectory, CredentialsInvalid, Proof
from edgeguard.policy.request import Client
from edgeguard.settings import Identity
from tests.doors.certificates import Authority

SECRET = sha256(b"secret").hexdigest()
ALL = {
    "static": "static",
    "cidr": ({"cidr": "10.0.0.0/8", "client": "network"},),
    "secret": ({"client": "keeper", "sha256": SECRET},),
    "certificate": (
        {"uri": "spiffe://example.org/a", "client": "a", "groups": ("g",), "claims": ("c",)},
        {"dns": "b.example.org", "client": "b"},
    ),
    "peer": (
        {"uid": 7, "gid": 8, "client": "both"},
        {"uid": 7, "client": "user"},
        {"gid": 9, "client": "group"},
    ),
}
DIRECTORY = ClientDirectory(Identity.model_validate(ALL))
A = Proof(certificate=CertificateNames("spiffe://example.org/a"))
STRANGER = Proof(certificate=CertificateNames("spiffe://example.org/x", frozenset({"x.example.org"})))
GOOD, BAD = ("Bearer secret",), ("Bearer wrong",)


@pytest.mark.parametrize(
    ("peer", "credentials", "proof", "name"),
    [
        ("10.0.0.1", (), None, "network"),
        ("192.0.2.1", (), None, "static"),
        ("10.0.0.1", GOOD, None, "keeper"),
        ("10.0.0.1", (), A, "a"),
        ("10.0.0.1", GOOD, A, "a"),
        ("10.0.0.1", (), Proof(certificate=CertificateNames(None, frozenset({"b.example.org"}))), "b"),
        ("10.0.0.1", (), STRANGER, None),
        ("192.0.2.1", (), STRANGER, None),
        ("10.0.0.1", GOOD, STRANGER, "keeper"),
        (None, (), Proof(uid=7, gid=8), "both"),
        (None, (), Proof(uid=7, gid=9), "user"),
        (None, (), Proof(uid=1, gid=9), "group"),
        (None, (), Proof(uid=1, gid=1), "static"),
        (None, GOOD, Proof(uid=7, gid=8), "keeper"),
        (None, (), Proof(), "static"),
    ],
)
def test_the_first_that_applies_counts(peer, credentials, proof, name):
    client = DIRECTORY.identify(peer, credentials, proof)
    assert (client.name, client.identified) == (name, name is not None)
    assert client.address == peer


@pytest.mark.parametrize("proof", [None, A, STRANGER, Proof(uid=7, gid=8)])
def test_wrong_credentials_never_fall_through(proof):
    """attack-Y05"""
    with pytest.raises(CredentialsInvalid):
        DIRECTORY.identify("10.0.0.1", BAD, proof)


def test_a_certificate_of_two_clients_is_neither():
    both = Proof(certificate=CertificateNames("spiffe://example.org/a", frozenset({"b.example.org"})))
    assert DIRECTORY.identify("10.0.0.1", (), both) == Client(address="10.0.0.1")


def test_groups_and_claims_come_with_a_certificate():
    client = DIRECTORY.identify(None, (), A)
    assert (client.groups, client.claims) == ({"g"}, {"c"})


def test_without_entries_a_certificate_names_nobody():
    directory = ClientDirectory(Identity.model_validate({**ALL, "certificate": ()}))
    assert directory.identify("10.0.0.1", (), STRANGER).name == "network"
    assert directory.identify("10.0.0.1", GOOD, A).name == "keeper"


def test_names_are_read_from_the_alternative_names_alone(tmp_path):
    authority = Authority(tmp_path / "ca")

    def names(**found: list[str]) -> CertificateNames:
        import ssl

        pem = authority.issue("common.example.org", **found).read_text().partition("-----BEGIN PRIVATE")[0]
        return read_names(ssl.PEM_cert_to_DER_cert(pem))

    assert names() == CertificateNames()
    assert names(dns=["B.example.org", "*.example.org"]) == CertificateNames(
        None, frozenset({"b.example.org"})
    )
    assert names(uris=["spiffe://x/y"]) == CertificateNames("spiffe://x/y")
    assert names(uris=["spiffe://x/y", "https://z"]).uri is None
    assert read_names(b"") == read_names(b"\x30\x00") == CertificateNames()
