"""What a request claims, and what its shape alone refuses. Pure translation of the engine's objects."""

import re
from typing import Final

from mitmproxy import http

from edgeguard.policy.names import HostError, canonical_host, is_address, split_authority
from edgeguard.policy.paths import PathError, check_target
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Protocol
from edgeguard.proxy import headers
from edgeguard.proxy.passages import Passage
from edgeguard.proxy.shape import Shape
from edgeguard.proxy.websocket import asks_well
from edgeguard.verdict import Facts

STREAM_ABOVE_BYTES: Final = 65_536
"""Larger bodies, and those of unknown length, are passed on piece by piece."""
_NEVER: Final = frozenset({"TRACE", "TRACK"})
"""An echo of the request would hand out what was added on the way (RFC 9110, 9.3.8)."""
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def facts_of(flow: http.HTTPFlow, shape: Shape, passage: Passage, owner: Client, scan: headers.Scan) -> Facts:
    """What a request claims, raw. `owner` is who asks on a forward connection."""
    request = flow.request
    names = list(scan.hosts)
    if shape.forward:
        client = owner
        host, port = request.data.host, request.data.port
        secure = request.scheme == "https"
    else:
        claimed = passage.host
        if claimed is None and passage.original is not None:
            # In the clear at a transparent door: each request says itself where it wants to go.
            claimed = host_of(scan)
        if claimed is None or passage.port is None:
            raise RuntimeError("a request in a tunnel without a destination")
        client, host, port = passage.client, claimed, passage.port
        # In front of a site it is the visitor's half that is meant, whatever the origin speaks.
        secure = flow.client_conn.tls_established or (passage.site is None and request.scheme == "https")
        if request.is_http2 and request.authority:
            names.append(request.authority)
        if passage.sni is not None:
            names.append(passage.sni)
    protocol: Protocol = "websocket" if scan.upgrade else "tls" if secure else "http"
    return Facts(
        passage.connection,
        client,
        host,
        port,
        protocol,
        tuple(names),
        headers.text(request.data.method),
        headers.text(request.data.path),
        scan.tokens,
        scan.overrides + headers.overrides_in(headers.text(request.data.path)),
        scan.plain,
    )


def host_of(scan: headers.Scan) -> str:
    """The name in a Host field; empty, which no rule matches, if there is none that can be read."""
    try:
        return split_authority(scan.hosts[0], 80)[0] if scan.hosts else ""
    except HostError:
        return ""


def shape_refusal(flow: http.HTTPFlow, shape: Shape, scan: headers.Scan, max_fields: int) -> Reason | None:
    """What the shape of a request alone refuses; more than `max_fields` header fields among it."""
    request = flow.request
    if len(request.headers.fields) > max_fields:
        return Reason.REQUEST_TOO_LARGE
    method = headers.text(request.data.method).upper()
    hosts = len(scan.hosts)
    if scan.fault is not None or (scan.upgrade and not _upgrades(request, shape)):
        return Reason.MALFORMED_REQUEST
    if request.is_http2:
        if (not hosts and not request.authority) or not _one_meaning(flow, shape):
            return Reason.MALFORMED_REQUEST
    elif hosts != 1 and not (hosts == 0 and request.http_version == "HTTP/1.0"):
        return Reason.MALFORMED_REQUEST
    elif shape.absolute is not shape.forward:
        # A proxy is asked in absolute form, a server in origin form (RFC 9112, 3.2).
        return Reason.MALFORMED_REQUEST
    if method == "CONNECT" or (method in _BODILESS and (shape.body or scan.declares_body)):
        return Reason.MALFORMED_REQUEST
    if method in _NEVER:
        return Reason.METHOD_NOT_ALLOWED
    if shape.forward and request.scheme != "http":
        return Reason.PROTOCOL_NOT_ALLOWED  # TLS from here on would hide that the client's half was clear
    return None


def _one_meaning(flow: http.HTTPFlow, shape: Shape) -> bool:
    """Whether a request of HTTP/2 stays one request when it is written as HTTP/1, of the scheme that it really has."""
    data = flow.request.data
    scheme = b"https" if flow.client_conn.tls_established else b"http"
    try:
        check_target(headers.text(data.path))
    except PathError:
        return False
    return _METHOD.fullmatch(data.method) is not None and (shape.forward or shape.scheme == scheme)


def _upgrades(request: http.Request, shape: Shape) -> bool:
    fields = request.headers
    keys, versions = fields.get_all("sec-websocket-key"), fields.get_all("sec-websocket-version")
    return not shape.body and asks_well(
        headers.text(request.data.method), request.http_version, keys, versions
    )


def sni_names(sni: str | None, host: str) -> bool:
    """Whether a ClientHello's name is the destination. Addresses never stand in SNI (RFC 6066, 3)."""
    if is_address(host):
        return sni is None
    try:
        return sni is not None and canonical_host(sni) == host
    except HostError:
        return False


def streams(response: http.Response) -> bool:
    length = response.headers.get("content-length")
    return length is None or not length.isdigit() or int(length) > STREAM_ABOVE_BYTES
