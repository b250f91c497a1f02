"""A small world to offer things to: published test keys, a root, and makers of documents."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from edgeguard.bundle import build
from edgeguard.bundle.documents import (
    BlobRef,
    Bundle,
    Caps,
    Environment,
    Head,
    Quorum,
    Root,
    media_type,
)
from edgeguard.bundle.envelope import seal
from edgeguard.bundle.refusal import RefusalCode
from edgeguard.bundle.testkeys import published
from edgeguard.bundle.trust import BundleOffered, HeadOffered, Refuse, RootOffered, TrustState, step

T0 = 1_800_000_000
HOUR = 3600
DAY = 86400
ENV = "prod"

R1, R2, R3, R4, R5 = (published(f"root-{n}") for n in range(1, 6))
L1, L2, L3, L4, L5 = (published(f"release-{n}") for n in range(1, 6))
H1, H2, H3 = (published(f"head-{n}") for n in range(1, 4))
S1 = published("spare-1")


class FakeTables:
    """Stands for the compiled tables: the state machine only hands sections over."""

    def __init__(self, sections):
        self.sections = sections
        self.issuers = ()

    @classmethod
    def load(cls, sections):
        if sections["rules"] == "broken":
            raise ValueError("broken on purpose")
        return cls(sections)


def fake_engine(tables):
    return SimpleNamespace(tables=tables)


def sections(rules=(), **gated):
    return {"rules": list(rules), "age": {}, "identity": {}, "exceptions": {}, **gated}


def quorum(*keys, threshold=1):
    return Quorum(tuple(sorted(key.public for key in keys)), threshold)


def environment(release=(L1,), head=(H1,), threshold=1, widening=None, head_threshold=1, floor=0, **caps):
    caps = {"head_lifetime_s": 2 * HOUR, "bundle_lifetime_s": 30 * DAY, "grace_s": DAY, **caps}
    return Environment(
        quorum(*release, threshold=threshold),
        widening or threshold,
        quorum(*head, threshold=head_threshold),
        Caps(**caps),
        floor,
    )


def root(
    version=1, keys=(R1, R2, R3), threshold=2, environments=None, issued=T0 - DAY, expires=T0 + 365 * DAY
):
    return Root(
        version,
        issued,
        expires,
        quorum(*keys, threshold=threshold),
        {ENV: environment()} if environments is None else environments,
    )


def sealed(document, *signers, env=None, kind=None):
    kind = kind or document.kind
    name = env or getattr(document, "environment", "")
    return seal(media_type(kind, name), document.to_payload(), signers)


def sealed_root(document, *signers):
    return sealed(document, *(signers or (R1, R2)))


def bundle(
    version=1, *, rules=(), env=ENV, issued=T0, not_before=None, expires=None, grace=0, gated=None, **more
):
    section = build.encode_section(sections(rules or [f"rule of version {version}"], **(gated or {})))
    not_before = issued if not_before is None else not_before
    return Bundle(
        env, version, issued, not_before, expires or issued + 20 * DAY, section, grace_s=grace, **more
    )


def ref(data, version):
    import hashlib

    return BlobRef(version, hashlib.sha256(data).hexdigest(), len(data))


def head(version, blob, blob_version, *, env=ENV, issued=T0, expires=None, quarantine=0, **members):
    return Head(
        env,
        version,
        issued,
        expires or issued + HOUR,
        {"bundle": ref(blob, blob_version), **members},
        quarantine,
    )


@dataclass
class Node:
    """A node and what happened to it."""

    state: TrustState
    effects: list = field(default_factory=list)

    @classmethod
    def new(cls, document=None, *signers, env=ENV, **more):
        return cls(TrustState.start(sealed_root(document or root(), *signers), env, **more))

    def offer(self, event, now=T0 + 1):
        self.state, effects = step(self.state, event, now)
        self.effects.extend(effects)
        return effects

    def head(self, document, *signers, now=T0 + 1):
        return self.offer(HeadOffered(sealed(document, *(signers or (H1,)))), now)

    def root(self, document, *signers, now=T0 + 1):
        return self.offer(RootOffered(sealed_root(document, *signers), document.version), now)

    def update(self, document, *signers, head_version=None, now=T0 + 1, head_signers=(H1,), **more):
        """Publish a bundle under a head, as an honest server does; the effects of the bundle."""
        blob = sealed(document, *(signers or (L1,)))
        number = head_version or document.version
        more.setdefault("issued", int(now) - 1)
        done = self.head(
            head(number, blob, document.version, env=document.environment, **more), *head_signers, now=now
        )
        if code(done):
            return done
        return self.offer(BundleOffered(blob), now)

    @classmethod
    def running(cls, document=None, **more):
        """A node that enforces version 1."""
        node = cls.new(document, **more)
        assert code(node.update(bundle(1))) is None
        node.effects.clear()
        return node


def code(effects) -> RefusalCode | None:
    found = [effect.refusal.code for effect in effects if isinstance(effect, Refuse)]
    return found[0] if found else None


def alarm(effects) -> bool:
    return any(effect.refusal.alarm for effect in effects if isinstance(effect, Refuse))


def kinds(effects):
    return [type(effect).__name__ for effect in effects]
