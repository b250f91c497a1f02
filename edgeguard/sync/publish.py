"""Hands signed documents to a bundle server: `PUT /v1/publish`, one envelope at a time."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
from yarl import URL

from edgeguard.bundle.documents import MAX_BUNDLE_BYTES, Kind
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.refusal import Refusal
from edgeguard.sync.fetch import check_url, new_session

_ORDER: Final = (Kind.ROOT, Kind.BUNDLE, Kind.MANIFEST, Kind.HEAD)
"""A head may only name what is there, and is judged by the newest root."""
_REPLY_BYTES: Final = 64 * 1024


class PublishError(Exception):
    """A document that was not published. The message names the file, what was wrong, and the server's code."""

    def __init__(self, file: str, code: str, detail: str) -> None:
        super().__init__(f"{file}: not published ({code}): {detail}")
        self.file = file
        self.code = code
        self.detail = detail


class Receipt(NamedTuple):
    """The server's answer for one document."""

    file: str
    role: str
    version: int
    path: str
    identity: str
    created: bool
    """False: it was there already."""


async def publish(
    url: str, token: str, files: Iterable[Path], *, ca_file: str | None = None, timeout_s: float = 60.0
) -> tuple[Receipt, ...]:
    """Publishes files in the order roots, bundles, heads; stops at the first that is refused.

    Raises PublishError; ValueError for an address or a file of authorities that cannot be used.
    """
    base = check_url(url)
    documents = [await asyncio.to_thread(_load, path) for path in files]
    documents.sort(key=lambda item: item.rank)
    async with new_session(base, ca_file, token) as session:
        return tuple([await _put(session, base, document, timeout_s) for document in documents])


async def publish_bytes(
    url: str, token: str, name: str, data: bytes, *, ca_file: str | None = None, timeout_s: float = 60.0
) -> Receipt:
    """Publishes one envelope that is in memory; `name` is what errors call it. Raises as `publish`."""
    base = check_url(url)
    async with new_session(base, ca_file, token) as session:
        return await _put(session, base, _document(name, data), timeout_s)


class _Document(NamedTuple):
    rank: int
    name: str
    data: bytes


def _load(path: Path) -> _Document:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise PublishError(str(path), "unreadable", f"{error.strerror}") from error
    return _document(str(path), data)


def _document(name: str, data: bytes) -> _Document:
    try:
        found = Envelope.parse(data, size=MAX_BUNDLE_BYTES).type
    except Refusal as refusal:
        raise PublishError(name, str(refusal.code), f"not a signed envelope: {refusal.detail}") from refusal
    for rank, kind in enumerate(_ORDER):
        if found.startswith(f"application/vnd.edgeguard.{kind}."):
            return _Document(rank, name, data)
    raise PublishError(name, "type", f"{found[:120]!r} is nothing that is published")


async def _put(session: aiohttp.ClientSession, base: URL, document: _Document, timeout_s: float) -> Receipt:
    url = base.join(URL("v1/publish"))
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.put(url, data=document.data, allow_redirects=False) as response,
        ):
            body = await response.content.read(_REPLY_BYTES)
            status = response.status
    except TimeoutError as error:
        raise PublishError(document.name, "timeout", f"no answer from {base} in {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise PublishError(document.name, "unreachable", f"{base}: {str(error)[:200]}") from error
    return _receipt(document.name, status, body)


def _receipt(name: str, status: int, body: bytes) -> Receipt:
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    fields: Mapping[str, object] = reply if isinstance(reply, dict) else {}
    if status not in {200, 201}:
        code, detail = fields.get("code"), fields.get("detail")
        raise PublishError(name, str(code or f"status {status}"), str(detail or "the server gave no reason"))
    version = fields.get("version")
    return Receipt(
        file=name,
        role=str(fields.get("role")),
        version=version if isinstance(version, int) else 0,
        path=str(fields.get("path")),
        identity=str(fields.get("identity")),
        created=fields.get("created") is True,
    )
