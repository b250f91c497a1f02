"""A client of python-tuf that reads edgeguard's msgpack envelopes: the oracle of `test_differential.py`.

Nothing of edgeguard is used here but the bytes: the envelope is opened with msgpack, the signed message built anew, and
all judging (thresholds, root chain, versions, expiry, hashes) is python-tuf's `TrustedMetadataSet`, driven in the order
of its own `Updater`. The profile maps root to root, the head to timestamp and snapshot (one envelope is both), the
bundle to targets, and one environment to the repository.
"""

import contextlib
from datetime import UTC, datetime

import msgpack
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.exceptions import DownloadError, EqualVersionNumberError, RepositoryError
from tuf.api.metadata import MetaFile, Role, Root, Snapshot, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

KINDS = {Root: "root", Timestamp: "head", Snapshot: "head", Targets: "bundle"}


class Missing(DownloadError):
    """The server has no such file."""


def _time(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def _key(raw):
    import hashlib

    name = hashlib.sha256(raw).digest()[:8].hex()
    return SSlibKey(name, "ed25519", "ed25519", {"public": raw.hex()})


def _root(data, environment):
    held = data["environments"][environment]
    quorums = {
        "root": data["root"],
        "timestamp": held["head"],
        "snapshot": held["head"],
        "targets": held["release"],
    }
    keys = {key.keyid: key for quorum in quorums.values() for key in map(_key, quorum["keys"])}
    roles = {
        name: Role([_key(raw).keyid for raw in quorum["keys"]], quorum["threshold"])
        for name, quorum in quorums.items()
    }
    return Root(data["version"], "1.0.34", _time(data["expires"]), keys, roles)


def _meta(item):
    version, digest, length = item
    return MetaFile(version, length, {"sha256": digest.hex()})


def _document(role, data, environment):
    expires = _time(data["expires"])
    if role is Root:
        return _root(data, environment)
    if role is Timestamp:
        return Timestamp(data["version"], "1.0.34", expires, MetaFile(data["version"]))
    if role is Snapshot:
        names = {"bundle": "targets.json"}
        meta = {names.get(name, f"{name}.json"): _meta(item) for name, item in data["members"].items()}
        return Snapshot(data["version"], "1.0.34", expires, meta)
    return Targets(data["version"], "1.0.34", expires, {})


class ProfileSet(TrustedMetadataSet):
    """python-tuf's rules over edgeguard's bytes."""

    def __init__(self, root, environment, now):
        self._environment = environment
        try:
            super().__init__(root, EnvelopeType.METADATA)
        finally:
            self.reference_time = _time(now)

    def __setattr__(self, name, value):
        if name == "_load_data":
            value = self._load
        super().__setattr__(name, value)

    def _load(self, role, data, delegator=None, role_name=None):
        try:
            version, kind, payload, signatures = msgpack.unpackb(data)
        except ValueError as error:
            raise RepositoryError(str(error)) from error
        wanted = f"application/vnd.edgeguard.{KINDS[role]}.v1+msgpack"
        wanted += "" if role is Root else f";env={self._environment}"
        if version != 1 or kind != wanted:
            raise RepositoryError(f"{kind} where {wanted} is due")
        named = {hint.hex(): Signature(hint.hex(), value.hex()) for hint, value in signatures}
        if len(named) != len(signatures):
            raise RepositoryError("two signatures with one key id")
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        if delegator is not None:
            delegator.verify_delegate(role_name or role.type, message, named)
        return _document(role, msgpack.unpackb(payload), self._environment), message, named


class Oracle:
    """What python-tuf's `Updater` keeps between its refreshes, and one refresh."""

    def __init__(self, root, environment):
        self.environment = environment
        self.root = root
        self.head = self.bundle = None
        self.root_version = ProfileSet(root, environment, 0).root.version

    def refresh(self, server, now):
        """True if the refresh succeeds. `server` is (roots by name, head, blobs by hash)."""
        try:
            self._refresh(*server, now)
        except (RepositoryError, DownloadError):
            return False
        return True

    def _refresh(self, roots, head, blobs, now):
        trusted = ProfileSet(self.root, self.environment, now)
        while (data := roots.get(trusted.root.version + 1)) is not None:
            trusted.update_root(data)
            self.root, self.root_version = data, trusted.root.version
        self._head(trusted, head)
        self._bundle(trusted, blobs)

    def _head(self, trusted, data):
        held = self.head
        if held is not None:
            with contextlib.suppress(RepositoryError):
                trusted.update_timestamp(held)
        if data is None:
            raise Missing("head")
        try:
            trusted.update_timestamp(data)
        except EqualVersionNumberError:
            data = held
        if held is not None:
            try:
                trusted.update_snapshot(held, trusted=True)
            except RepositoryError:
                pass
            else:
                return
        trusted.update_snapshot(data)
        # The head is one document: as a timestamp it is kept only if it will do as a snapshot.
        self.head = data

    def _bundle(self, trusted, blobs):
        if self.bundle is not None:
            try:
                trusted.update_targets(self.bundle)
            except RepositoryError:
                pass
            else:
                return
        data = blobs.get(trusted.snapshot.meta["targets.json"].hashes["sha256"])
        if data is None:
            raise Missing("bundle")
        trusted.update_targets(data)
        self.bundle = data
