"""A client that uses the proxy the way curl does, on plain sockets, and says exactly what it saw."""

import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What came back."""

    status: int | None = None
    """None when no HTTP answer came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""
    issuer: str | None = None
    """Common name of the authority that signed the certificate which the client was shown."""
    error: str | None = None
    """What ended the connection instead of an answer."""

    @property
    def reason(self) -> str | None:
        return self.headers.get("edgeguard-reason")

    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Client:
    """Where the proxy is and whom the client trusts."""

    proxy_port: int
    authorities: Path
    """PEM file with the certificate authorities that the client accepts."""

    def http(self, host: str, port: int, path: str = "/", *, method: str = "GET") -> Seen:
        """A plain HTTP request in absolute form (RFC 9112, 3.2.2)."""
        authority = f"{host}:{port}"
        try:
            with self._connect() as connection:
                return _exchange(connection, method, f"http://{authority}{path}", authority, {})
        except (OSError, HTTPException) as error:
            return Seen(error=_plain(error))

    def https(
        self,
        host: str,
        port: int,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        sni: str | None = None,
    ) -> Seen:
        """CONNECT, TLS, and one request inside it. `sni`: the name to claim instead of `host`."""
        authority = f"{host}:{port}"
        try:
            with self._connect() as connection:
                connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                tunnel = HTTPResponse(connection, method="CONNECT")
                tunnel.begin()
                if tunnel.status != 200:
                    return _read(tunnel)
                tls = ssl.create_default_context(cafile=self.authorities)
                with tls.wrap_socket(connection, server_hostname=sni or host) as secure:
                    seen = _exchange(secure, method, path, authority, headers or {})
                    return Seen(seen.status, seen.headers, seen.body, _issuer(secure), seen.error)
        except (OSError, HTTPException) as error:
            return Seen(error=_plain(error))

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.proxy_port), timeout=TIMEOUT_S)


def _exchange(
    connection: socket.socket, method: str, target: str, authority: str, headers: Mapping[str, str]
) -> Seen:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    response = HTTPResponse(connection, method=method)
    response.begin()
    return _read(response)


def _read(response: HTTPResponse) -> Seen:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Seen(response.status, headers, response.read())


def _issuer(secure: ssl.SSLSocket) -> str | None:
    raw = secure.getpeercert(binary_form=True)
    if raw is None:
        return None
    names = x509.load_der_x509_certificate(raw).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _plain(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS {(error.reason or 'error').lower().replace('_', ' ')}"
    return str(error) or type(error).__name__
