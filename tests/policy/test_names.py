"""Hosts have one reading or none (rows H, I of the attack list)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.policy.names import HostError, canonical_host, is_address, split_authority

ONE = {
    "attack-H01": ("badexample2.com.", "badexample2.com"),
    "attack-H02": ("bAdExAmPlE2.cOm", "badexample2.com"),
    "attack-H03": ("EXAMPLE.COM.", "example.com"),
    "attack-H08": ("🔐.example.com", "xn--jv8h.example.com"),
    "attack-H09": ("тест.example.com", "xn--e1aybc.example.com"),
    "attack-H09-upper": ("\u0422\u0415\u0421\u0422.Example.com", "xn--e1aybc.example.com"),
    "attack-H11": ("тест.example.com", "xn--e1aybc.example.com"),
    "attack-H12-accent": ("allowéd.test", "xn--allowd-fva.test"),
    "attack-H20": ("foo_bar._tcp.example.com", "foo_bar._tcp.example.com"),
    "attack-I03-hex": ("0X7f000001", "127.0.0.1"),
    "attack-I03-dotted-hex": ("0x7f.0.0.1", "127.0.0.1"),
    "attack-I03-octal": ("0177.0.0.1", "127.0.0.1"),
    "attack-I03-octal-zeros": ("012.0.0.1", "10.0.0.1"),
    "attack-I03-mixed": ("0300.0250.01.01", "192.168.1.1"),
    "attack-I03-decimal": ("2130706433", "127.0.0.1"),
    "attack-I03-ten": ("167772161", "10.0.0.1"),
    "attack-I03-long-octal": ("017700000001", "127.0.0.1"),
    "attack-I03-metadata": ("0xa9fea9fe", "169.254.169.254"),
    "attack-I04": ("127.1", "127.0.0.1"),
    "attack-I04-dot": ("127.0.0.1.", "127.0.0.1"),
    "attack-I07-short": ("[::FFFF:7F00:1]", "::ffff:127.0.0.1"),
    "attack-I07-long": ("[0:0:0:0:0:ffff:7f00:1]", "::ffff:127.0.0.1"),
    "attack-I09-zone": ("[::1%25eth0]", "::1"),
    "attack-I09-link": ("fe80::1%en0", "fe80::1"),
}
NONE = {
    "attack-H06-empty": "",
    "attack-H06-colons": "::::",
    "attack-H12-fullwidth": "\uff41llowed.test",
    "attack-H12-escape": "allowed%2etest",
    "attack-H12-two-dots": "allowed.test..",
    "attack-H12-leading": ".allowed.test",
    "attack-H12-inner": "allowed..test",
    "attack-H12-fake-a-label": "xn--allowed-.test",
    "attack-H12-upper-a-label": "xn--t-hea.test",
    "attack-H12-ideographic-dot": "allowed。test",
    "attack-H17": "attacker.example\x00.google.com",
    "attack-H18": "example.com\r\nHost: x",
    "attack-H21": "a." * 300 + "com",
    "attack-H22-label": "a" * 64 + ".com",
    "attack-H22-name": ".".join(["a" * 60] * 5),
    "attack-H23": "allowed.com@evil.com",
    "attack-H05-name": "[example.net]",
    "attack-H05-v4": "[127.0.0.1]",
    "attack-H04": "[[example.net]]",
    "space": "exa mple.com",
    "five-parts": "1.2.3.4.5",
    "out-of-range": "300.1.1.1",
    "not-octal": "09.1.1.1",
    "too-large": "4294967296",
    "numeric-tld": "example.123",
    "slash": "a/b",
    "zone-of-nothing": "fe80::1%",
    "huge-number": "0x" + "f" * 200,
}


@pytest.mark.parametrize(("raw", "host"), ONE.values(), ids=ONE)
def test_one_reading(raw, host):
    assert canonical_host(raw) == host
    assert canonical_host(host) == host


@pytest.mark.parametrize("raw", NONE.values(), ids=NONE)
def test_refused(raw):
    with pytest.raises(HostError):
        canonical_host(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("example.com:8443", ("example.com", 8443)),
        ("EXAMPLE.com.", ("example.com", 443)),
        ("[2001:DB8::1]:443", ("2001:db8::1", 443)),
        pytest.param("[::1]", ("::1", 443), id="attack-I16"),
        pytest.param("example.com:007", ("example.com", 7), id="attack-H07-zeros"),
    ],
)
def test_authority(raw, expected):
    assert split_authority(raw, 443) == expected


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("[[example.net]]:1337", id="attack-H04"),
        pytest.param(":", id="attack-H06"),
        pytest.param("2001:DB8::1337", id="attack-H06-v6"),
        *[
            pytest.param(f"h{port}", id=f"attack-H07{port}")
            for port in (
                ":91337",
                ":-12",
                ":https",
                ":111111",
                ":0",
                ":65536",
                ":",
                ":80:443",
                ":٣",
                ":+1",
                ": 1",
            )
        ],
        "[::1",
        "[::1]x",
        "user@host:443",
    ],
)
def test_bad_authority(raw):
    with pytest.raises(HostError):
        split_authority(raw, 443)


def test_the_port_may_be_required():
    with pytest.raises(HostError, match="missing"):
        split_authority("example.com", None)


@given(st.text(max_size=300))
def test_any_text_is_read_once_or_refused(raw):
    try:
        host = canonical_host(raw)
    except HostError:
        return
    assert canonical_host(host) == host
    assert canonical_host(host.upper()) == host
    assert host.isascii()
    assert isinstance(is_address(host), bool)


@given(st.ip_addresses())
def test_addresses_are_recognised(address):
    assert is_address(canonical_host(str(address)))


SPELLINGS = {
    "case": str.upper,
    "mixed case": lambda h: "".join(c.upper() if i % 2 else c for i, c in enumerate(h)),
    "trailing dot": lambda h: h + ".",
    "full-width": lambda h: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in h),
    "ideographic dot": lambda h: h.replace(".", "\u3002"),
    "percent": lambda h: h.replace(".", "%2e", 1),
    "percent letter": lambda h: f"%{ord(h[0]):02x}{h[1:]}",
    "two dots": lambda h: h.replace(".", "..", 1),
    "leading dot": lambda h: "." + h,
    "soft hyphen": lambda h: h[0] + "\u00ad" + h[1:],
    "zero width": lambda h: h[0] + "\u200b" + h[1:],
    "nul": lambda h: h + "\x00.example.net",
    "userinfo": lambda h: "user@" + h,
    "brackets": lambda h: f"[{h}]",
    "space": lambda h: h + " ",
    "sharp s": lambda h: h.replace("ss", "ß"),
    "dotted i": lambda h: h.replace("i", "\u0130"),
    "kelvin": lambda h: h.replace("k", "\u212a"),
}
labels = st.text("abcdefghiklmnoprst0123456789-_", min_size=1, max_size=12)
names = st.lists(labels, min_size=2, max_size=5).map(".".join).filter(lambda h: not h[-1].isdigit())


@given(names, st.sampled_from(sorted(SPELLINGS)))
def test_another_spelling_is_the_same_host_or_refused(name, mutator):
    raw = SPELLINGS[mutator](name)
    try:
        host = canonical_host(raw)
    except HostError:
        return
    if mutator in {"sharp s", "dotted i", "kelvin"} and raw != name:
        assert host != name or raw.lower() == name  # another name, or the same by case alone
    else:
        assert host == name


def v4_spellings(number):
    """What inet_aton takes for the same address."""
    a, b, c, d = number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255
    return [
        str(number), hex(number), hex(number).upper().replace("0X", "0X"), f"0{number:o}", f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}", f"0x{a:x}.{b}.0{c:o}.{d}", f"0{a:o}.0x{b:X}.{c}.{d}.", f"{a}.{b}.{c}.{d}",
        f"0000{a:o}.{b}.{c}.{d}" if a else f"0.{b}.{c}.{d}",
    ]  # fmt: skip


@given(st.ip_addresses(v=4), st.integers(0, 9))
def test_every_ipv4_spelling_is_the_same_host(address, place):
    assert canonical_host(v4_spellings(int(address))[place]) == str(address)


def v6_spellings(address):
    number = int(address)
    full = address.exploded
    mixed = f"{':'.join(full.split(':')[:6])}:{(number >> 24) & 255}.{(number >> 16) & 255}.{(number >> 8) & 255}.{number & 255}"
    return [
        full,
        full.upper(),
        f"[{full}]",
        f"[{address.compressed.upper()}]",
        mixed,
        f"{full}%eth0",
        f"[{full}%25en0]",
    ]


@given(st.ip_addresses(v=6), st.integers(0, 6))
def test_every_ipv6_spelling_is_the_same_host(address, place):
    assert canonical_host(v6_spellings(address)[place]) == canonical_host(str(address))
