"""The published test vectors are what this implementation computes and decides."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
from kit import ENV, H1, H2, R1, T0, Node, code, environment, root, sealed
from nacl.signing import VerifyKey

from edgeguard.bundle.documents import BlobRef, Head
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.testkeys import loopback_only, published
from edgeguard.bundle.trust import BundleOffered, HeadOffered, ManifestOffered, RootOffered, TrustState

FILE = Path(__file__).parent.parent / "vectors" / "vectors.json"
VECTORS = json.loads(FILE.read_text())


def test_the_file_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_vectors", FILE.with_name("make.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make() == VECTORS


@pytest.mark.parametrize("name", VECTORS["documents"])
def test_the_stages_hang_together(name):
    """As a second implementation would check them: nothing of edgeguard but the parser."""
    item = VECTORS["documents"][name]
    kind, payload = item["type"].encode(), bytes.fromhex(item["payload"])
    message = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    assert message.hex() == item["pae"]
    for key, signature in item["signatures"].items():
        VerifyKey(bytes.fromhex(VECTORS["keys"][key]["public"])).verify(message, bytes.fromhex(signature))
    data = bytes.fromhex(item["envelope"])
    assert hashlib.sha256(data).hexdigest() == item["envelope_sha256"]
    assert item["identity"] == "sha256:" + hashlib.sha256(payload).hexdigest()
    assert Envelope.parse(data).payload == payload


@pytest.mark.parametrize("history", ["history", "required"])
def test_the_history_ends_as_it_says(history):
    more = {"app": "sha256:" + hashlib.sha256(b"app").hexdigest()} if history == "required" else {}
    state = TrustState.start(bytes.fromhex(VECTORS["documents"]["root-1"]["envelope"]), "prod", **more)
    node = Node(state)
    for item in VECTORS[history]:
        data = bytes.fromhex(item["data"])
        event = {
            "root": lambda data=data, item=item: RootOffered(data, item["version"]),
            "head": lambda data=data: HeadOffered(data),
            "bundle": lambda data=data: BundleOffered(data),
            "manifest": lambda data=data: ManifestOffered(data),
        }[item["event"]]()
        effects = node.offer(event, item["now"])
        assert (code(effects) or "accepted") == item["verdict"], item["why"]
        assert node.state.revoked is item.get("revoked", False)


def test_published_keys_and_dev_stay_on_loopback():
    assert "published test keys" in loopback_only(root(), ENV)
    assert "development" in loopback_only(root(), "dev")
    from edgeguard.bundle.keys import SigningKey

    own = [SigningKey(bytes([n]) * 32) for n in range(1, 4)]
    mine = root(keys=own[:1], threshold=1, environments={ENV: environment(release=own[1:2], head=own[2:])})
    assert loopback_only(mine, ENV) is None
    mixed = root(keys=own[:1], threshold=1, environments={ENV: environment(release=own[1:2], head=(H1,))})
    assert H1.public.id in loopback_only(mixed, ENV)
    assert published("root-1").public == R1.public


def test_a_head_is_small():
    named = {"bundle": BlobRef(2**31, "ab" * 32, 250_000)}
    document = Head("production", 1_800_000_000, T0, T0 + 900, named, 1)
    assert len(sealed(document, H1)) <= 330
    assert len(sealed(document, H1, H2)) <= 450
