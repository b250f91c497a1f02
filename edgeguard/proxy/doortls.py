"""The TLS context with which clients talk to the proxy itself.

Certificates are renewed and revocation lists expire while a proxy runs, so the files are looked at
again from time to time; files that cannot be used leave the context as it was, which in the end means
that an old list expires and nobody gets in. Sessions are never resumed: a resumed session would not be
asked for its certificate again, and so outlive its revocation.
"""

import contextlib
import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from edgeguard.settings import ListenTls

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Time between looks at the files."""
_MODES: Final = {
    "off": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


class DoorTlsError(Exception):
    """The certificate files cannot be used. The message says which, and why."""


class Watched[T]:
    """Something made of files, and made again when they change; files that cannot be used leave it as it was.

    Args:
        what: Section of the configuration, for the log.
        files: What it is made of.
        make: Makes it. Raises DoorTlsError.

    Raises:
        DoorTlsError: The files cannot be used at the start.
    """

    def __init__(self, what: str, files: Sequence[Path | None], make: Callable[[], T]) -> None:
        self._what = what
        self._files = [file for file in files if file is not None]
        self._make = make
        self._state = self._stamp()
        self._made = make()
        self._looked = monotonic()

    def now(self) -> T:
        """For the next handshake."""
        now = monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            state = self._stamp()
            if state != self._state:
                self._state = state
                try:
                    self._made = self._make()
                    logger.warning("the certificates of %s were read again", self._what)
                except DoorTlsError as error:
                    logger.error("the certificates of %s stay as they were: %s", self._what, error)  # noqa: TRY400
        return self._made

    def _stamp(self) -> list[tuple[int, int, int]]:
        found = []
        for file in self._files:
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return found


class DoorTls:
    """The context of `[listen.tls]`, as its files are now.

    Raises:
        DoorTlsError: The files cannot be used at the start.
    """

    def __init__(self, settings: ListenTls) -> None:
        files = (settings.certificate, settings.key, settings.client_ca, settings.client_crl)
        self._watched = Watched("[listen.tls]", files, lambda: server_context(settings))

    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._watched.now()


def server_context(settings: ListenTls) -> ssl.SSLContext:
    """Raises DoorTlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Up to TLS 1.2 sessions can be resumed by their number; what asks for certificates must not allow that.
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_2 if settings.client_auth == "off" else ssl.TLSVersion.TLSv1_3
    )
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    _load(
        settings.certificate,
        lambda: context.load_cert_chain(settings.certificate, settings.key, _no_password),
    )
    context.verify_mode = _MODES[settings.client_auth]
    if settings.client_ca is not None:
        authorities = settings.client_ca
        _load(authorities, lambda: context.load_verify_locations(authorities))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if settings.client_crl is not None:
        lists = settings.client_crl
        if b"-----BEGIN CERTIFICATE-----" in _read(lists):
            raise DoorTlsError(
                f"{lists}: holds a certificate, which would be trusted; only revocation lists belong here"
            )
        _load(lists, lambda: context.load_verify_locations(lists))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; write it without one, readable for edgeguard alone")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DoorTlsError(f"{file}: cannot be read: {error.strerror}") from None


def _load(file: Path, load: Callable[[], object]) -> None:
    try:
        load()
    except FileNotFoundError as error:
        raise DoorTlsError(f"{error.filename or file}: no such file") from None
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise DoorTlsError(
            f"{file}: cannot be used, it should hold what its key says as PEM: {error}"
        ) from None
