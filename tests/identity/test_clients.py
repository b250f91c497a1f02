"""Who owns a connection: one order, and no way round it."""

import base64
from hashlib import sha256

import pytest
from pydantic import SecretStr

from edgeguard.identity.clients import ClientDirectory, CredentialsInvalid
from edgeguard.policy.request import UNKNOWN_CLIENT, Client
from edgeguard.settings import CidrClient, Identity, SecretClient


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


DIRECTORY = ClientDirectory(
    Identity(
        static="workload",
        static_groups=("sidecars",),
        cidr=(
            CidrClient(cidr="10.0.0.0/8", client="office"),
            CidrClient(cidr="10.1.0.0/16", client="lab", groups=("labs",), claims=("lab.read",)),
            CidrClient(cidr="fd00::/8", client="office-six"),
        ),
        secret=(
            SecretClient(client="ci", sha256=sha256(b"s3cret-ci").hexdigest(), claims=("ci.run",)),
            SecretClient(client="agent", secret=SecretStr("s3cret-agent")),
        ),
    )
)


@pytest.mark.parametrize(
    ("peer", "name", "address"),
    [
        ("10.2.3.4", "office", "10.2.3.4"),
        ("10.1.3.4", "lab", "10.1.3.4"),
        ("::ffff:10.1.3.4", "lab", "10.1.3.4"),
        ("FD00::1", "office-six", "fd00::1"),
        ("fd00::1%eth0", "office-six", "fd00::1"),
        ("192.0.2.1", "workload", "192.0.2.1"),
        (None, "workload", None),
    ],
)
def test_address_then_static(peer, name, address):
    client = DIRECTORY.identify(peer)
    assert (client.name, client.identified, client.address) == (name, True, address)
    assert DIRECTORY.identify(peer) == client


def test_groups_and_claims_come_along():
    assert DIRECTORY.identify("10.1.0.1") == Client(
        "lab", True, frozenset({"labs"}), frozenset({"lab.read"}), "10.1.0.1"
    )
    assert DIRECTORY.identify(None).groups == {"sidecars"}


def test_nobody_is_unknown():
    directory = ClientDirectory(Identity())
    assert directory.identify("192.0.2.1") == Client(address="192.0.2.1")
    assert directory.identify(None) == UNKNOWN_CLIENT
    # Nothing can be checked, so nothing is claimed: the header is not even looked at.
    assert directory.identify("192.0.2.1", ["Basic !!!"]) == Client(address="192.0.2.1")


@pytest.mark.parametrize("value", ["Bearer s3cret-ci", "bearer  s3cret-ci ", basic("ci", "s3cret-ci")])
def test_secret_comes_first(value):
    client = DIRECTORY.identify("10.1.0.1", [value])
    assert client == Client("ci", True, frozenset(), frozenset({"ci.run"}), "10.1.0.1")


def test_secret_from_the_environment_or_a_file():
    assert DIRECTORY.identify(None, ["Bearer s3cret-agent"]).name == "agent"


@pytest.mark.parametrize(
    "values",
    [
        ["Bearer wrong"],
        ["Bearer "],
        ["Bearer"],
        [""],
        ["Digest username=ci"],
        [basic("agent", "s3cret-ci")],
        [basic("", "s3cret-ci")],
        ["Basic " + base64.b64encode(b"ci").decode()],
        ["Basic not-base64!"],
        ["Basic " + base64.b64encode(b"\xff\xfe:s3cret-ci").decode()],
        ["Bearer s3cret-ci", "Bearer s3cret-ci"],
        ["Bearer " + "x" * 10_000],
        ["Bearer \udcff"],
        ["Bearer " + sha256(b"s3cret-ci").hexdigest()],
    ],
)
def test_wrong_credentials_never_fall_through(values):
    with pytest.raises(CredentialsInvalid):
        DIRECTORY.identify("10.1.0.1", values)


def test_unreadable_peer_is_unknown_even_with_a_static_client():
    assert DIRECTORY.identify("not-an-address") == UNKNOWN_CLIENT


def test_two_clients_cannot_share_a_secret():
    same = (SecretClient(client="a", secret=SecretStr("x")), SecretClient(client="b", secret=SecretStr("x")))
    with pytest.raises(ValueError, match="a and b have the same secret"):
        ClientDirectory(Identity(secret=same))
