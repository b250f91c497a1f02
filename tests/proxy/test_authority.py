"""The interception authority on disk."""

import datetime as dt
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edgeguard.proxy.authority import (
    PUBLIC_NAME,
    SECRET_NAME,
    AuthorityError,
    ensure_authority,
    load_authority,
)


def test_it_is_made_once(tmp_path):
    first = ensure_authority(tmp_path / "ca")
    second = ensure_authority(tmp_path / "ca")
    assert first == second
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / SECRET_NAME).stat().st_mode) == 0o600
    assert sorted(p.name for p in (tmp_path / "ca").iterdir()) == [PUBLIC_NAME, SECRET_NAME]


def test_it_is_a_small_authority_for_servers_only(tmp_path):
    certificate = x509.load_pem_x509_certificate(ensure_authority(tmp_path / "ca").certificate_pem)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_the_export_holds_no_key(tmp_path):
    authority = ensure_authority(tmp_path / "ca")
    authority.export(tmp_path / "public.pem")
    exported = (tmp_path / "public.pem").read_bytes()
    assert exported == authority.certificate_pem
    assert b"PRIVATE" not in exported
    assert b"PRIVATE" not in (tmp_path / "ca" / PUBLIC_NAME).read_bytes()


def test_two_authorities_have_two_names(tmp_path):
    one, two = (
        x509.load_pem_x509_certificate(ensure_authority(tmp_path / name).certificate_pem) for name in "ab"
    )
    assert one.subject != two.subject


@pytest.mark.parametrize("existed", [False, True])
def test_a_lost_key_is_not_replaced(tmp_path, existed):
    ensure_authority(tmp_path / "ca")
    (tmp_path / "ca" / SECRET_NAME).unlink()
    with pytest.raises(AuthorityError, match="gone"):
        ensure_authority(tmp_path / "ca", existed=existed)


def test_a_wiped_volume_is_not_a_first_start(tmp_path):
    with pytest.raises(AuthorityError, match="gone"):
        ensure_authority(tmp_path / "ca", existed=True)


@pytest.mark.parametrize(
    ("name", "mode"), [("", 0o755), ("", 0o770), (SECRET_NAME, 0o640), (SECRET_NAME, 0o604)]
)
def test_open_permissions_are_refused(tmp_path, name, mode):
    ensure_authority(tmp_path / "ca")
    (tmp_path / "ca" / name).chmod(mode)
    with pytest.raises(AuthorityError, match="chmod"):
        load_authority(tmp_path / "ca")


def test_a_symbolic_link_is_refused(tmp_path):
    ensure_authority(tmp_path / "ca")
    secret = tmp_path / "ca" / SECRET_NAME
    secret.rename(tmp_path / "elsewhere.pem")
    secret.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(AuthorityError, match="symbolic"):
        load_authority(tmp_path / "ca")


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_damage_is_named(tmp_path, data):
    ensure_authority(tmp_path / "ca")
    (tmp_path / "ca" / SECRET_NAME).write_bytes(data)
    with pytest.raises(AuthorityError, match=SECRET_NAME):
        load_authority(tmp_path / "ca")


def test_a_key_of_another_certificate_is_refused(tmp_path):
    ensure_authority(tmp_path / "a")
    other = ensure_authority(tmp_path / "b")
    secret = tmp_path / "a" / SECRET_NAME
    key = secret.read_bytes().split(b"-----BEGIN CERTIFICATE")[0]
    secret.write_bytes(key + other.certificate_pem)
    with pytest.raises(AuthorityError, match="does not belong"):
        load_authority(tmp_path / "a")


def test_an_expired_authority_says_how_to_mend(tmp_path):
    ensure_authority(tmp_path / "ca")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=4000)
    with pytest.raises(AuthorityError, match="remove"):
        load_authority(tmp_path / "ca", now=later)
