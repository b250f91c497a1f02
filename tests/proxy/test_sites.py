"""One's own sites: whose certificate is shown, and what the origin is told of a visitor."""

import pytest

from edgeguard.demo.tokens import make_certificates
from edgeguard.proxy import sites
from edgeguard.proxy.doortls import DoorTlsError
from edgeguard.proxy.headers import forwarded
from edgeguard.proxy.sites import SiteTls, open_sites
from edgeguard.settings import SettingsError, Site, load_settings


def site(**changes):
    return Site.model_validate({"name": "media.test", "origin": "http://127.0.0.1:8080", **changes})


def test_the_certificate_is_one_of_the_site(tmp_path):
    _, leaf = make_certificates(tmp_path, ["media.test", "*.wild.test"])
    found = open_sites([site(certificate=leaf), site()])
    assert found["media.test", True].port == 443
    assert found["media.test", False].port == 80
    SiteTls("a.wild.test", leaf, None).connection()
    for name in ("other.test", "a.b.wild.test", "wild.test"):
        with pytest.raises(DoorTlsError, match=f"not for {name}"):
            SiteTls(name, leaf, None)


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_files_that_are_no_certificate(tmp_path, text):
    file = tmp_path / "site.pem"
    with pytest.raises(DoorTlsError, match="no such file"):
        SiteTls("media.test", file, None)
    file.write_text(text)
    with pytest.raises(DoorTlsError, match="no certificate with its key"):
        SiteTls("media.test", file, None)


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeguard.proxy.doortls.LOOK_S", 0.0)
    (tmp_path / "new").mkdir()
    _, leaf = make_certificates(tmp_path, ["media.test"])
    _, renewed = make_certificates(tmp_path / "new", ["media.test"])
    shown = SiteTls("media.test", leaf, None)
    first = shown.connection().get_context()
    leaf.write_bytes(renewed.read_bytes() + b"\n")
    second = shown.connection().get_context()
    assert second is not first
    leaf.write_text("broken")
    assert shown.connection().get_context() is second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "need each other"),
        ('[[site]]\nname = "10.0.0.1"\norigin = "http://10.0.0.5"', "a site has a name"),
        ('[[site]]\nname = "a.test"\norigin = "10.0.0.5:80"', "is no origin"),
        ('[[site]]\nname = "a.test"\norigin = "http://10.0.0.5/path"', "without a path"),
        ('[[site]]\nname = "a.test"\norigin = "http://10.0.0.5"\norigin_name = "b.test"', "https origin"),
        ('[[site]]\nname = "a.test"\norigin = "http://10.0.0.5"\nkey = "x"', "key needs certificate"),
        ('[[site]]\nname = "a.test"\norigin = "http://10.0.0.5"\n' * 2, "two entries"),
    ],
)
def test_sites_that_are_refused(tmp_path, text, words):
    file = tmp_path / "edge.toml"
    file.write_text(f'environment = "test"\n[listen]\nreverse = "127.0.0.1:8443"\n{text}\n')
    with pytest.raises(SettingsError, match=words):
        load_settings(file, {})


@pytest.mark.parametrize(
    ("field", "address", "told"),
    [
        ("off", "192.0.2.1", []),
        (
            "x-forwarded-for",
            "192.0.2.1",
            [(b"X-Forwarded-For", b"192.0.2.1"), (b"X-Forwarded-Proto", b"https")],
        ),
        ("x-forwarded-for", None, []),
        ("forwarded", "192.0.2.1", [(b"Forwarded", b"for=192.0.2.1;proto=https")]),
        ("forwarded", "2001:db8::1", [(b"Forwarded", b'for="[2001:db8::1]";proto=https')]),
        ("forwarded", None, [(b"Forwarded", b"for=unknown;proto=https")]),
    ],
)
def test_the_origin_hears_of_a_visitor_what_we_say(field, address, told):
    said = (
        (b"x_forwarded.for", b"127.0.0.1"),
        (b"FORWARDED", b"for=x"),
        (b"X-Real-IP", b"y"),
        (b"Kept", b"z"),
    )
    assert list(forwarded(said, field, address, secure=True)) == [(b"Kept", b"z"), *told]


def test_sessions_are_not_resumed():
    assert sites._OPTIONS & sites.SSL.OP_NO_TICKET
