"""What an address is, whatever it is wrapped in (rows I, T, M of the attack list)."""

from ipaddress import IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.policy.addresses import METADATA_ADDRESSES, AddressClass, classify, embedded

SPECIAL = {
    "attack-I01": ["127.0.0.1", "127.255.255.255", "::1"],
    "attack-I02": ["0.0.0.0", "0.1.2.3", "::"],
    "attack-I07": ["::ffff:127.0.0.1", "::ffff:10.0.0.1"],
    "attack-I08": ["::7f00:1", "::ffff:0:7f00:1"],
    "attack-I10": [
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "fc00::1",
        "fd12::1",
        "100.64.0.1",
        "100.127.255.255",
    ],
    "attack-I11": [
        "192.0.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "198.19.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ],
    "attack-I12": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "attack-I13": ["fec0::1"],
    "attack-I09": ["fe80::1"],
    "attack-T01": ["64:ff9b::a00:1"],
    "attack-T04": ["64:ff9b:1::808:808", "64:ff9b:1::a00:1"],
    "attack-T05": ["2002:7f00:1::1", "2002:a00:1::1"],
    "attack-T06": ["2001:0:5ef5:79fb::1", "2001:0:808:808::1"],
    "isatap": ["2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:a00:1"],
    "documentation": ["2001:db8::1", "3fff::1"],
    "unassigned": ["4000::1", "8000::1"],
}
PUBLIC = {
    "attack-T03": ["64:ff9b::808:808", "64:ff9b::8.8.8.8"],
    "attack-I10-edges": [
        "100.63.255.254",
        "100.128.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "11.0.0.0",
        "9.255.255.255",
    ],
    "plain": ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "2002:808:808::1"],
}
METADATA = {
    "attack-M01": [
        "169.254.169.254",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::a9fe:a9fe",
    ],
    "attack-M02": [
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
    ],
    "attack-M03": ["100.100.100.200", "168.63.129.16", "192.0.0.192"],
}


@pytest.mark.parametrize("addresses", SPECIAL.values(), ids=SPECIAL)
def test_special(addresses):
    assert all(classify(a) not in {AddressClass.PUBLIC, AddressClass.METADATA} for a in addresses), [
        (a, classify(a)) for a in addresses
    ]


@pytest.mark.parametrize("addresses", PUBLIC.values(), ids=PUBLIC)
def test_public(addresses):
    assert all(classify(a) is AddressClass.PUBLIC for a in addresses), [(a, classify(a)) for a in addresses]


@pytest.mark.parametrize("addresses", METADATA.values(), ids=METADATA)
def test_metadata(addresses):
    assert all(classify(a) is AddressClass.METADATA for a in addresses), [(a, classify(a)) for a in addresses]


def test_a_network_has_its_own_nat64_prefix():
    prefix = (IPv6Network("2001:67c:2b0::/96"),)
    assert classify("2001:67c:2b0::808:808", prefix) is AddressClass.PUBLIC
    assert classify("2001:67c:2b0::a00:1", prefix) is AddressClass.PRIVATE
    assert classify("2001:67c:2b0::a00:1") is AddressClass.PUBLIC


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ],
)
def test_rfc6052_examples(prefix, text):
    assert ip_address("192.0.2.33") in embedded(ip_address(text), (IPv6Network(prefix),))


@given(st.ip_addresses())
def test_every_address_has_a_class(address):
    assert classify(str(address)) in AddressClass


@given(st.ip_addresses(v=4))
def test_no_wrapping_loosens(address):
    number = int(address)
    wrapped = [
        number,
        0xFFFF << 32 | number,
        0xFFFF0000 << 32 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80 | 1,
    ]
    if classify(str(address)) is not AddressClass.PUBLIC:
        assert all(classify(str(ip_address(w.to_bytes(16)))) is not AddressClass.PUBLIC for w in wrapped)


def test_metadata_addresses_are_metadata():
    assert all(classify(str(a)) is AddressClass.METADATA for a in METADATA_ADDRESSES)
