"""Every spelling of a host has one reading or none: rows H, in every lane, through both ways in."""

import pytest

TLS = ":{tls}"
DENIED = (403, "denied_by_rule")
UNKNOWN = (403, "host_not_allowed")
BAD = (400, "malformed_request")
FINE = (200, None)

SPELLINGS = [
    pytest.param("denied.wild.test.", DENIED, id="attack-H01"),
    pytest.param("DeNiEd.WiLd.tEsT", DENIED, id="attack-H02"),
    pytest.param("xn--e1aybc.wild.test", DENIED, id="attack-H11"),
    pytest.param("XN--E1AYBC.wild.test.", DENIED, id="attack-H11-upper"),
    pytest.param("тест.wild.test", BAD, id="attack-H11-unicode"),
    pytest.param("TUNNEL.test.", FINE, id="attack-H03"),
    pytest.param("Sub.Wild.TEST", FINE, id="attack-H24"),
    pytest.param("xn--e1aybc.test", FINE, id="attack-H09"),
    pytest.param("XN--E1AYBC.TEST.", FINE, id="attack-H09-upper"),
    pytest.param("тест.test", BAD, id="attack-H09-unicode"),
    pytest.param("xn--jv8h.test", FINE, id="attack-H08"),
    pytest.param("🔐.test", BAD, id="attack-H08-unicode"),
    pytest.param("foo_bar.test", FINE, id="attack-H20"),
    pytest.param("_srv._tcp.test", FINE, id="attack-H20-service"),
    pytest.param("[[tunnel.test]]", BAD, id="attack-H04"),
    pytest.param("[tunnel.test]", BAD, id="attack-H05"),
    pytest.param("[127.0.0.1]", BAD, id="attack-H05-v4"),
    pytest.param("[tunnel.test.]", BAD, id="attack-H05-dot"),
    pytest.param("", BAD, id="attack-H06-empty"),
    pytest.param(":", BAD, id="attack-H06-colon"),
    pytest.param("2001:DB8::1337", BAD, id="attack-H06-bare-v6"),
    pytest.param("\uff41unnel.test", BAD, id="attack-H12-full-width"),
    pytest.param("tunnel%2etest", BAD, id="attack-H12-escape"),
    pytest.param("tunnel.test..", BAD, id="attack-H12-two-dots"),
    pytest.param(".tunnel.test", BAD, id="attack-H12-leading"),
    pytest.param("tunnel..test", BAD, id="attack-H12-inner"),
    pytest.param("tunn\u00e9l.test", BAD, id="attack-H12-accent"),
    pytest.param("tunnel\u3002test", BAD, id="attack-H12-ideographic-stop"),
    pytest.param("tunnel\uff0etest", BAD, id="attack-H12-full-width-stop"),
    pytest.param("tunnel\uff61test", BAD, id="attack-H12-half-width-stop"),
    pytest.param("tun\u00adnel.test", BAD, id="attack-H12-soft-hyphen"),
    pytest.param("tun\u200dnel.test", BAD, id="attack-H12-joiner"),
    pytest.param("tun\u200bnel.test", BAD, id="attack-H12-zero-width-space"),
    pytest.param("\u202etset.lennut", BAD, id="attack-H12-bidi"),
    pytest.param("tunnel.test%00.evil.test", BAD, id="attack-H12-escaped-nul"),
    pytest.param("tunnel.test\\.evil.test", BAD, id="attack-H12-backslash"),
    pytest.param("tunnel.test,evil.test", BAD, id="attack-H12-list"),
    pytest.param("tunnel.test;evil.test", BAD, id="attack-H12-semicolon"),
    pytest.param("*.wild.test", BAD, id="attack-H12-star"),
    # Labels that some decoders take for the plain name, and others do not (RFC 5890, 2.3.2.1: fake A-labels).
    pytest.param("xn--denied-.wild.test", BAD, id="attack-H11-ascii-in-disguise"),
    pytest.param("xn--tunnel-.test", BAD, id="attack-H12-ascii-in-disguise"),
    pytest.param("xn--.wild.test", BAD, id="attack-H12-empty-a-label"),
    pytest.param("xn--a-.wild.test", BAD, id="attack-H12-a-label-of-a"),
    pytest.param("xn--99999999.wild.test", BAD, id="attack-H12-overflowing-a-label"),
    pytest.param("xn---wildtest-4yj.wild.test", BAD, id="attack-H12-hyphen-a-label"),
    pytest.param("xn--80ak6aa92eA\u0410.wild.test", BAD, id="attack-H12-mixed-a-label"),
    pytest.param("sub.wild.test.evil.test", UNKNOWN, id="attack-H19-suffix"),
    pytest.param("eviltunnel.test", UNKNOWN, id="attack-H19-prefix"),
    pytest.param("wild.test", UNKNOWN, id="attack-H19-apex"),
    pytest.param("notwild.test", UNKNOWN, id="attack-H19-no-dot"),
    pytest.param("tunnel.test.evil.test", UNKNOWN, id="attack-H19-allowed-first"),
    pytest.param("a." * 300 + "wild.test", BAD, id="attack-H21"),
    pytest.param("a" * 64 + ".wild.test", BAD, id="attack-H22-label"),
    pytest.param(".".join(["a" * 60] * 5) + ".test", BAD, id="attack-H22-name"),
    pytest.param("tunnel.test@evil.test", BAD, id="attack-H23"),
    pytest.param("user:secret@tunnel.test", BAD, id="attack-H23-password"),
]


@pytest.mark.parametrize(("host", "expected"), SPELLINGS)
def test_a_connect(world, node, host, expected):
    before = world.counts(node)
    reply = world.connect(node, host + TLS)
    assert (reply.status, reply.reason) == expected
    if expected is FINE:
        world.settle()
    else:
        assert world.counts(node) == before


@pytest.mark.parametrize(("host", "expected"), SPELLINGS)
def test_an_absolute_uri(world, node, host, expected):
    """attack-H13: no rule speaks of plain HTTP there, so a good name gets as far as the protocol."""
    before = world.counts(node)
    reply = world.ask(node, f"GET http://{host}{TLS}/ok/ HTTP/1.1\r\nHost: {host}{TLS}\r\n\r\n".encode().replace(b"{tls}", b"%d" % world.ports["tls"]))  # fmt: skip
    assert (reply.status, reply.reason) == ((403, "protocol_not_allowed") if expected is FINE else expected)
    assert world.counts(node) == before


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        pytest.param(f"tunnel.test:{port}", BAD, id=f"attack-H07-{name}")
        for name, port in {
            "long": "91337",
            "minus": "-12",
            "name": "https",
            "range": "65536",
            "six": "111111",
            "zero": "0",
            "zeros": "00000",
            "empty": "",
            "two": "80:443",
            "plus": "+443",
            "space": " 443",
            "hex": "0x1bb",
            "float": "443.0",
            "underscore": "4_43",
            "full-width": "\uff14\uff14\uff13",
            "arabic": "\u0664\u0664\u0663",
            "padded": "000443",
            "path": "443/",
            "query": "443?x",
        }.items()
    ]
    + [
        pytest.param("tunnel.test:0022", (403, "port_not_allowed"), id="attack-H07-leading-zeros"),
        pytest.param("tunnel.test", BAD, id="attack-H06-no-port"),
    ],
)
def test_a_port(world, node, authority, expected):
    before = world.counts(node)
    reply = world.connect(node, authority)
    assert (reply.status, reply.reason) == expected
    assert world.counts(node) == before


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param("SITE.test.", id="attack-H14"),
        pytest.param("site.test.", id="attack-H14-dot"),
        pytest.param("sItE.TeSt", id="attack-H14-case"),
    ],
)
def test_inspection_follows_the_canonical_name(world, node, spelling):
    for path, expected in (("/ok/x", FINE), ("/secret", (403, "path_not_allowed"))):
        request = f"GET {path} HTTP/1.1\r\nHost: {spelling}:{{tls}}\r\n\r\n"
        reply = world.inside(node, f"{spelling}:{{tls}}", request, sni="site.test")
        assert (reply.status, reply.reason) == expected
    assert world.web.requests[-1] == ("GET", world.fill("site.test:{tls}"), "/ok/x")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"CONNECT tunnel.test\x00.evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="attack-H22-nul"),
        pytest.param(b"CONNECT tunnel.test:443\x00 HTTP/1.1\r\nHost: x\r\n\r\n", id="attack-H22-nul-behind"),
        pytest.param(b"GET http://plain.test\x00.evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n", id="attack-H22-nul-absolute"),
        pytest.param(b"CONNECT tunnel.test:443 HTTP/1.1\r\nHost: tunnel.test\x00:443\r\n\r\n", id="attack-H22-nul-host"),
        pytest.param(b"CONNECT tun\xadnel.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="attack-H12-latin-1"),
        pytest.param(b"CONNECT tunnel.test:443 HTTP/1.1\r\nHost: tunnel.test\xad:443\r\n\r\n", id="attack-H12-latin-1-host"),
    ],
)  # fmt: skip
def test_bytes_that_no_name_has(world, node, head):
    before = world.counts(node)
    reply = world.ask(node, head)
    assert (reply.status, reply.reason) == BAD
    assert world.counts(node) == before
