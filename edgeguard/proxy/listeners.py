"""The doors of a node as sockets: every listening socket of a configuration, bound once.

Binding stands apart from serving, so that a parent process can bind and several workers serve the
same sockets: nobody else can then take the port, and the queue of accepted connections outlives a
worker. A bound socket does not listen yet: who serves it begins to. Ports are never shared by
SO_REUSEPORT, with which a stale process of the same user would go on answering under an old policy.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from edgeguard.proxy.doortls import DoorTlsError, server_context
from edgeguard.proxy.sites import open_sites
from edgeguard.settings import Settings
from edgeguard.settings.values import split_address

type Kind = Literal["http", "socks", "transparent", "reverse"]

IP_TRANSPARENT: Final = 19
IPV6_TRANSPARENT: Final = 75
"""linux/in.h and linux/in6.h; Python names neither."""


class ListenError(Exception):
    """A door could not be opened. The message says which, and why."""


class Listener(NamedTuple):
    """One bound socket."""

    kind: Kind
    """What is spoken there: HTTP proxy, SOCKS5, or nothing, for connections that were redirected and visitors of one's own sites."""
    socket: socket.socket
    tls: bool
    """Whether clients speak TLS to the proxy itself."""

    @property
    def unix(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    @property
    def at(self) -> tuple[str, int] | None:
        """Address and port, with the port that the kernel chose; None for a unix socket."""
        return None if self.unix else self.socket.getsockname()[:2]

    def __str__(self) -> str:
        """As it is written in a proxy setting: `http://127.0.0.1:3128`, `socks5h://[::1]:1080`, `unix:/run/edge.sock`."""
        at = self.at
        if at is None:
            return f"unix:{self.socket.getsockname()}"
        scheme = {"http": "https" if self.tls else "http", "socks": "socks5h"}.get(self.kind, self.kind)
        return f"{scheme}://[{at[0]}]:{at[1]}" if ":" in at[0] else f"{scheme}://{at[0]}:{at[1]}"


def bind(settings: Settings) -> tuple[Listener, ...]:
    """Binds every door of the configuration, in a fixed order; all or none.

    Raises:
        ListenError: One could not be bound, or files of `[listen.tls]` or of a site cannot be used; the message names its key.
    """
    if settings.listen.tls is not None:
        try:
            server_context(settings.listen.tls)  # found out here, once, and not by every worker
        except DoorTlsError as error:
            raise ListenError(f"[listen.tls] {error}") from None
    try:
        open_sites(settings.site)
    except DoorTlsError as error:
        raise ListenError(f"[[site]] {error}") from None
    bound: list[Listener] = []
    for kind, key, address in _planned(settings):
        try:
            bound.append(Listener(kind, _bound(kind, address, settings), _tls(kind, settings)))
        except OSError as error:
            release(bound)
            why = os.strerror(error.errno) if error.errno else str(error)
            raise ListenError(f"cannot listen on [listen] {key} = {address!r}: {why}") from None
    return tuple(bound)


def adopt(settings: Settings, filenos: Sequence[int]) -> tuple[Listener, ...]:
    """The listeners of `bind(settings)` in another process, which inherited their descriptors in the same order."""
    return tuple(
        Listener(kind, socket.socket(fileno=fileno), _tls(kind, settings))
        for (kind, _, _), fileno in zip(_planned(settings), filenos, strict=True)
    )


def release(listeners: Sequence[Listener]) -> None:
    """Closes what `bind` returned, and removes the files of unix sockets. Only for the process that bound them."""
    for listener in listeners:
        if listener.unix and listener.socket.fileno() >= 0:
            # The file first: while we still listen, nobody takes the path for abandoned.
            with contextlib.suppress(OSError):
                Path(listener.socket.getsockname()).unlink()
        listener.socket.close()


def unix_socket(path: Path, mode: int) -> socket.socket:
    """A bound unix socket. A leftover file is replaced; one where somebody listens is not.

    Raises:
        OSError: The path is in use, is no socket, or cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.is_symlink() or (path.exists() and not stat.S_ISSOCK(path.lstat().st_mode)):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        if path.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise OSError(errno.EADDRINUSE, "somebody listens there")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The descriptor's mode becomes the file's: there is no moment at which others could connect.
            os.fchmod(listener.fileno(), mode & 0o600)
            listener.bind(str(path))
            path.chmod(mode)
        except OSError:
            listener.close()
            raise
    return listener


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two processes that start at once must not both find the file abandoned."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _planned(settings: Settings) -> list[tuple[Kind, str, str]]:
    """(kind, key, address) of every door, in the order in which they are bound."""
    listen = settings.listen
    doors: list[tuple[Kind, str, str]] = [
        ("http", "address", listen.address),
        ("socks", "socks", listen.socks),
        ("transparent", "transparent", listen.transparent),
        ("reverse", "reverse", listen.reverse),
    ]
    return [door for door in doors if door[2]]


def _tls(kind: Kind, settings: Settings) -> bool:
    return kind == "http" and settings.listen.tls is not None


def _bound(kind: Kind, address: str, settings: Settings) -> socket.socket:
    if address.startswith("unix:"):
        return unix_socket(Path(address.removeprefix("unix:")), settings.listen.permissions)
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == "transparent":
            # For TPROXY rules, which need the privilege; REDIRECT rules need neither.
            with contextlib.suppress(PermissionError):
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
                else:
                    listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
