"""Binding: all doors or none, and whose a unix socket is."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from edgeguard.proxy.doortls import DoorTls
from edgeguard.proxy.listeners import ListenError, adopt, bind, release
from edgeguard.settings import ListenTls, Settings
from tests.doors.certificates import Authority
from tests.ports import free_port


def settings(**listen: object) -> Settings:
    return Settings.model_validate({"environment": "dev", "listen": listen})


def test_every_door_is_bound_in_a_fixed_order_and_none_listens_yet():
    listeners = bind(settings(address="127.0.0.1:0", socks="[::1]:0", transparent="127.0.0.1:0"))
    try:
        assert [listener.kind for listener in listeners] == ["http", "socks", "transparent"]
        assert str(listeners[1]) == f"socks5h://[::1]:{listeners[1].at[1]}"
        for listener in listeners:
            with pytest.raises(ConnectionRefusedError), socket.create_connection(listener.at):
                pass
    finally:
        release(listeners)


def test_another_process_adopts_what_was_bound():
    configured = settings(address="127.0.0.1:0", socks="127.0.0.1:0")
    bound = bind(configured)
    inherited = [os.dup(listener.socket.fileno()) for listener in bound]
    adopted = adopt(configured, inherited)
    assert [(a.kind, a.at) for a in adopted] == [(b.kind, b.at) for b in bound]
    release(bound)
    release(adopted)
    with pytest.raises(ValueError, match="shorter"):
        adopt(configured, [])


def test_all_or_none():
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ListenError, match=r"\[listen\] socks = '127.0.0.1:\d+': Address already in use"),
    ):
        bind(settings(address=f"127.0.0.1:{port}", socks=f"127.0.0.1:{taken.getsockname()[1]}"))
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0666", 0o666)])
def test_a_unix_socket_has_its_mode_and_is_removed(tmp_path, text, mode):
    path = tmp_path / "run" / "proxy.sock"
    before = os.umask(0o077)
    try:
        (listener,) = bind(settings(address=f"unix:{path}", socket_mode=text))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert str(listener) == f"unix:{path}"
    assert listener.at is None
    release([listener])
    assert not path.exists()


def test_an_abandoned_socket_is_replaced_and_a_living_one_is_not(tmp_path):
    path = tmp_path / "proxy.sock"
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert path.exists()
    (listener,) = bind(settings(address=f"unix:{path}"))
    listener.socket.listen(1)
    with pytest.raises(ListenError, match="in use"):
        bind(settings(address=f"unix:{path}"))
    assert path.exists()
    release([listener])


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_socket_is_never_replaced(tmp_path, kind):
    path = tmp_path / "proxy.sock"
    target = tmp_path / "precious"
    target.write_text("precious")
    path.write_text("precious") if kind == "file" else path.symlink_to(target)
    with pytest.raises(ListenError, match="File exists"):
        bind(settings(address=f"unix:{path}"))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"\[listen.tls\] .*own.pem: no such file"),
        ({"own.pem": "nonsense", "key.pem": ""}, r"\[listen.tls\] .*own.pem: cannot be used"),
        ({"good": "", "crl.pem": "-----BEGIN CERTIFICATE-----"}, "would be trusted"),
        ({"good": "", "crl.pem": ""}, r"crl.pem: cannot be used"),
    ],
)
def test_certificate_files_that_cannot_be_used(tmp_path, files, message):
    tls = {"certificate": tmp_path / "own.pem", "key": tmp_path / "key.pem"}
    if "good" in files:
        authority = Authority(tmp_path / "ca")
        tls = dict.fromkeys(tls, authority.issue("own", dns=["localhost"]))
        tls |= {"client_auth": "required", "client_ca": authority.file, "client_crl": tmp_path / "crl.pem"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ListenError, match=message):
        bind(settings(address="127.0.0.1:0", tls=tls))


def test_files_are_read_again_and_bad_ones_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeguard.proxy.doortls.LOOK_S", 0)
    file = Authority(tmp_path / "ca").issue("own", dns=["localhost"])
    own = DoorTls(ListenTls(certificate=file, key=file))
    first = own.context()
    assert own.context() is first
    file.write_text("nonsense")
    assert own.context() is first
    Authority(tmp_path / "another").issue("own", dns=["localhost"]).rename(file)
    assert own.context() is not first
