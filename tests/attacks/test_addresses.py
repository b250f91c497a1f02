"""Addresses that no rule opens, however they are written or wrapped: rows I, T and M, as literals and as answers.

The policy allows every literal and several trees of names, so that only the kind of an address can refuse.
"""

import ipaddress

import pytest

KIND = (403, "address_not_allowed")
BAD = (400, "malformed_request")

SPECIAL = {
    "attack-I01": "127.0.0.1",
    "attack-I01-end": "127.255.255.255",
    "attack-I01-v6": "::1",
    "attack-I02": "0.0.0.0",
    "attack-I02-v6": "::",
    "attack-I02-this-network": "0.1.2.3",
    "attack-I07": "::ffff:127.0.0.1",
    "attack-I07-private": "::ffff:10.0.0.1",
    "attack-I08": "::7f00:1",
    "attack-I08-translated": "::ffff:0:7f00:1",
    "attack-I10": "10.0.0.1",
    "attack-I10-172": "172.31.255.255",
    "attack-I10-192": "192.168.0.1",
    "attack-I10-shared": "100.64.0.1",
    "attack-I10-shared-end": "100.127.255.254",
    "attack-I10-ula": "fd12:3456::1",
    "attack-I11": "192.0.0.8",
    "attack-I11-test-1": "192.0.2.1",
    "attack-I11-test-2": "198.51.100.1",
    "attack-I11-test-3": "203.0.113.1",
    "attack-I11-bench": "198.19.255.255",
    "attack-I11-reserved": "240.0.0.1",
    "attack-I11-6to4-relay": "192.88.99.1",
    "attack-I11-doc-v6": "2001:db8::1",
    "attack-I11-doc-2": "3fff::1",
    "attack-I11-discard": "100::1",
    "attack-I11-orchid": "2001:20::1",
    "attack-I11-unassigned": "4000::1",
    "attack-I12": "224.0.0.1",
    "attack-I12-end": "239.255.255.255",
    "attack-I12-broadcast": "255.255.255.255",
    "attack-I12-v6": "ff02::1",
    "attack-I13": "fec0::1",
    "attack-I13-link": "fe80::1",
    "attack-T01": "64:ff9b::a9fe:a9fe",
    "attack-T01-private": "64:ff9b::a00:1",
    "attack-T04": "64:ff9b:1::808:808",
    "attack-T04-loopback": "64:ff9b:1::7f00:1",
    "attack-T05": "2002:7f00:1::1",
    "attack-T05-private": "2002:a00:1::1",
    "attack-T05-metadata": "2002:a9fe:a9fe::",
    "attack-T06": "2001:0:5ef5:79fb::1",
    "attack-T06-obfuscated": "2001:0:808:808:0:0:80ff:fffe",
    "attack-T06-isatap": "2a00:1::5efe:10.0.0.1",
    "attack-T06-isatap-global": "2a00:1::200:5efe:7f00:1",
    # Prefixes of this network, of every length of RFC 6052; the octet 64 to 71 stays empty.
    "attack-T04-own-32": "2a00:aa32:7f00:1::",
    "attack-T04-own-40": "2a00:aa40:117f:0:1::",
    "attack-T04-own-48": "2a00:aa48:1:7f00:0:100::",
    "attack-T04-own-56": "2a00:aa56:1:117f:0:1::",
    "attack-T04-own-64": "2a00:aa64:1:1:7f:0:100:0",
    "attack-M01": "169.254.169.254",
    "attack-M01-ecs": "169.254.170.2",
    "attack-M01-any": "169.254.1.1",
    "attack-M02": "fd00:ec2::254",
    "attack-M02-pod": "fd00:ec2::23",
    "attack-M02-google": "fd20:ce::254",
    "attack-M02-oracle": "fd00:c1::a9fe:a9fe",
    "attack-M02-42": "fd00:42::42",
    "attack-M02-scaleway": "fd00:a9fe:a9fe::1",
    "attack-M02-alibaba": "fd00:100::100:200",
    "attack-M03": "100.100.100.200",
    "attack-M03-azure": "168.63.129.16",
    "attack-M03-oracle": "192.0.0.192",
    "attack-M03-wrapped": "::ffff:168.63.129.16",
    "attack-M03-nat64": "64:ff9b::a83f:8110",
}
ROWS = [pytest.param(address, id=row) for row, address in SPECIAL.items()]

SPELLINGS = {
    "attack-I03-hex": ("0x7f000001", "127.0.0.1"),
    "attack-I03-upper": ("0X7F000001", "127.0.0.1"),
    "attack-I03-dotted-hex": ("0x7f.0.0.1", "127.0.0.1"),
    "attack-I03-octal": ("0177.0.0.1", "127.0.0.1"),
    "attack-I03-octal-ten": ("012.0.0.1", "10.0.0.1"),
    "attack-I03-octal-192": ("0300.0250.01.01", "192.168.1.1"),
    "attack-I03-number": ("2130706433", "127.0.0.1"),
    "attack-I03-number-ten": ("167772161", "10.0.0.1"),
    "attack-I03-octal-number": ("017700000001", "127.0.0.1"),
    "attack-I03-metadata": ("0xa9fea9fe", "169.254.169.254"),
    "attack-I03-many-zeros": ("0000000000000000000000000000177.0.0.1", "127.0.0.1"),
    "attack-I03-mixed": ("0x7f.00.0x0.1", "127.0.0.1"),
    "attack-I03-zero-x": ("127.0x.0.1", "127.0.0.1"),
    "attack-I04": ("127.1", "127.0.0.1"),
    "attack-I04-three": ("127.0.1", "127.0.0.1"),
    "attack-I04-dot": ("127.0.0.1.", "127.0.0.1"),
    "attack-I04-number-dot": ("2130706433.", "127.0.0.1"),
    "attack-I04-zero": ("0", "0.0.0.0"),
    "attack-I07-short": ("[::FFFF:7F00:1]", "::ffff:127.0.0.1"),
    "attack-I07-long": ("[0:0:0:0:0:ffff:7f00:1]", "::ffff:127.0.0.1"),
    "attack-I07-zeros": ("[0000:0000:0000:0000:0000:FFFF:7F00:0001]", "::ffff:127.0.0.1"),
    "attack-I08-dotted": ("[::127.0.0.1]", "::7f00:1"),
}
NONE = {
    "attack-I03-overflow": "4294967296",
    "attack-I03-hex-overflow": "0x17f000001",
    "attack-I03-octal-overflow": "0400.0.0.1",
    "attack-I03-no-octal": "0189.0.0.1",
    "attack-I03-part-overflow": "127.0.65536",
    "attack-I03-256": "256.0.0.1",
    "attack-I03-five": "127.0.0.0.1",
    "attack-I03-long-number": "9" * 60,
    "attack-I03-behind-a-name": "a.127.0.0.1",
    "attack-I03-two-dots": "127.0.0.1..",
    "attack-I04-inner": "127..1",
    "attack-I07-octal-inside": "[::ffff:0177.0.0.1]",
    "attack-I07-zeros-inside": "[::ffff:127.000.000.001]",
    "attack-I07-short-inside": "[::ffff:127.1]",
    "attack-I07-nine": "[0:0:0:0:0:0:ffff:7f00:1]",
    "attack-I07-five-digits": "[::ffff:07f00:1]",
    "attack-I07-two-gaps": "[::ffff::1]",
    "attack-I07-open": "[::1",
    "attack-I07-behind": "[::1]x",
    "attack-I07-future": "[v1.127.0.0.1]",
    "attack-I07-dot": "[::1.]",
    "attack-I07-space": "[::1 ]",
}


def hexed(address):
    return ipaddress.ip_address(address).packed.hex()


def bracketed(address):
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", ROWS)
def test_a_literal(world, node, address):
    before = world.counts(node)
    reply = world.connect(node, f"{bracketed(address)}:{{tls}}")
    assert (reply.status, reply.reason) == KIND
    reply = world.get(node, bracketed(address), "/")
    assert (reply.status, reply.reason) == KIND
    assert world.counts(node) == before


@pytest.mark.parametrize("address", ROWS)
def test_an_answer(world, node, address):
    """attack-D01: what a name resolves to is judged like a literal, in every lane; nothing is dialled."""
    before = world.counts(node)[1]
    for tree in ("answers", "answers-seen"):
        reply = world.connect(node, f"{hexed(address)}.{tree}.test:{{tls}}")
        assert (reply.status, reply.reason) == KIND
    reply = world.get(node, f"{hexed(address)}.answers.test", "/")
    assert (reply.status, reply.reason) == KIND
    assert world.counts(node)[1] == before


@pytest.mark.parametrize(
    "address", [pytest.param(a, id=f"{r}-attack-W15") for r, a in SPECIAL.items() if r.startswith("attack-M")]
)
def test_no_network_opens_a_metadata_service(world, node, address):
    """The rule there has `resolves_to: [0.0.0.0/0, ::/0]`."""
    reply = world.connect(node, f"{hexed(address)}.every.test:{{tls}}")
    assert (reply.status, reply.reason) == KIND


@pytest.mark.parametrize(("text", "means"), [pytest.param(*v, id=row) for row, v in SPELLINGS.items()])
def test_a_spelling(world, node, text, means):
    before = world.counts(node)
    reply = world.connect(node, f"{text}:{{tls}}")
    assert (reply.status, reply.reason) == KIND
    assert node.record(reply.decision)["host"] == means
    reply = world.get(node, text, "/")
    assert (reply.status, reply.reason) == KIND
    assert world.counts(node) == before


@pytest.mark.parametrize("text", [pytest.param(text, id=row) for row, text in NONE.items()])
def test_what_is_no_address(world, node, text):
    before = world.counts(node)
    for reply in (world.connect(node, f"{text}:{{tls}}"), world.get(node, text, "/")):
        assert (reply.status, reply.reason) == BAD
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[::1%25eth0]", id="attack-I09"),
        pytest.param("[fe80::1%25eth0]", id="attack-I09-link"),
        pytest.param("[fc00::1%25eth0]", id="attack-I09-ula"),
        pytest.param("[fe80::1%en0]", id="attack-I09-bare"),
        pytest.param("[::ffff:127.0.0.1%25lo]", id="attack-I09-mapped"),
        pytest.param("[2606:4700::1%25]", id="attack-I09-empty"),
        pytest.param("[::1%2541]", id="attack-I09-escape"),
        pytest.param("127.0.0.1%25lo", id="attack-I09-v4"),
    ],
)
def test_a_zone_opens_nothing(world, node, text):
    """The engine of the addon takes no zone at all; the front door drops it and judges the rest."""
    before = world.counts(node)
    for reply in (world.connect(node, f"{text}:{{tls}}"), world.get(node, text, "/")):
        assert (reply.status, reply.reason) in {KIND, BAD}
    assert world.counts(node) == before


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        pytest.param("93.184.216.34:443", (403, "port_not_allowed"), id="attack-I14"),
        pytest.param("[2606:4700::1]:443", (403, "port_not_allowed"), id="attack-I15"),
        pytest.param("1.2.3:443", (403, "port_not_allowed"), id="attack-I14-three-parts"),
        pytest.param("93.184.216.34:22", (403, "port_not_allowed"), id="attack-I14-ssh"),
        pytest.param("[::1]", BAD, id="attack-I16"),
        pytest.param("[::1]:", BAD, id="attack-I16-empty"),
    ],
)
def test_an_address_needs_a_rule_and_a_port(world, node, authority, expected):
    before = world.counts(node)
    reply = world.connect(node, authority)
    assert (reply.status, reply.reason) == expected
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("metadata.google.internal", id="attack-M04-M05"),
        pytest.param("metadata.google.internal.", id="attack-M04-dot"),
        pytest.param("METADATA.Google.Internal", id="attack-M04-case"),
        pytest.param("metadata", id="attack-M06"),
        pytest.param("169.254.169.254", id="attack-M05"),
        pytest.param("0xa9fea9fe", id="attack-M05-hex"),
    ],
)
def test_a_rule_that_names_a_metadata_service_opens_nothing(world, node, host):
    """Not even resolved, although the rule says host, port and `resolves_to`."""
    before = world.counts(node)
    for reply in (world.connect(node, f"{host}:80"), world.get(node, host, "/latest/", port=80)):
        assert (reply.status, reply.reason) == KIND
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("::ffff:10.0.0.1", id="attack-T07"),
        pytest.param("64:ff9b::a00:1", id="attack-T07-nat64"),
        pytest.param("2002:a00:1::1", id="attack-T07-6to4"),
        pytest.param("::a00:1", id="attack-T07-compatible"),
        pytest.param("2a00:1::5efe:a00:1", id="attack-T07-isatap"),
        pytest.param("::ffff:127.0.0.1", id="attack-T07-loopback"),
    ],
)
def test_an_embedded_form_inherits_no_exception(world, node, address):
    reply = world.connect(node, f"{hexed(address)}.private.test:{{tls}}")
    assert (reply.status, reply.reason) == KIND


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("64:ff9b::808:808", id="attack-T03"),
        pytest.param("2002:808:808::1", id="attack-T05-public"),
        pytest.param("::ffff:8.8.8.8", id="attack-I07-public"),
        pytest.param("100.63.255.254", id="attack-I10-below-shared"),
        pytest.param("100.128.0.1", id="attack-I10-above-shared"),
        pytest.param("9.255.255.255", id="attack-I10-below-ten"),
        pytest.param("11.0.0.1", id="attack-I10-above-ten"),
        pytest.param("172.15.255.255", id="attack-I10-below-172"),
        pytest.param("172.32.0.1", id="attack-I10-above-172"),
        pytest.param("2606:4700::1", id="attack-I15-public"),
        pytest.param("223.255.255.255", id="attack-I12-below-multicast"),
    ],
)
def test_what_must_be_let_through(world, node, address):
    """As a literal and as an answer: a name whose DNS64 answer embeds a public address is a public name.

    Where requests are inspected CONNECT is answered before anything is dialled, so nothing leaves this host.
    """
    for authority in (f"{hexed(address)}.public.test:443", f"{bracketed(address)}:444"):
        assert world.connect(node, authority).status == 200
