"""Advice on a policy that compiles: what is too broad, what can never matter, what lacks its reason.

An `error` is a statement that is almost surely not what its author meant; CI refuses it. A `warning` is worth a look. The checks
compare statements pairwise only inside a bucket of the same host suffix, so large policies stay quick.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import ip_network
from typing import Final

from publicsuffixlist import PublicSuffixList

from edgeguard.policy.addresses import METADATA_NAMES, AddressClass, classify
from edgeguard.policy.check import destinations_overlap
from edgeguard.policy.covering import covers
from edgeguard.policy.flat import Flat, Kind, collect_names, flatten
from edgeguard.policy.model import AgeGate, RateLimit, Rule
from edgeguard.policy.names import is_address
from edgeguard.policy.source import PolicyError, Sources
from edgeguard.policy.targets import HostKind, Target

MAX_BUCKET: Final = 400
"""Statements of one host suffix that are compared pairwise; beyond it the check says so."""


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One piece of advice."""

    place: PolicyError
    severity: Severity
    code: str

    def __str__(self) -> str:
        return f"{self.place} [{self.severity} {self.code}]"


def analyse(sources: Sources) -> list[Finding]:
    """All findings, in the order of the files."""
    flats = [f for f in flatten(sources.policy, collect_names(sources.policy)) if isinstance(f, Flat)]
    found: list[Finding] = []
    for flat in flats:
        found += _alone(sources, flat)
    found += _pairs(sources, [f for f in flats if f.kind in {Kind.ALLOW, Kind.DENY}])
    found += _gates(sources, flats)
    found += _flags(sources, flats)
    return sorted(found)


def _finding(
    sources: Sources, severity: Severity, code: str, statement: str, field: str, message: str, hint: str = ""
) -> Finding:
    return Finding(sources.error(statement, field, message, hint), severity, code)


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _alone(sources: Sources, flat: Flat) -> Iterator[Finding]:
    for target in flat.targets or ():
        yield from _broad(sources, flat, target)
        if flat.kind is Kind.ALLOW:
            yield from _special(sources, flat, target)
    for text in flat.resolves:
        if ip_network(text).prefixlen < (8 if ip_network(text).version == 4 else 16):
            hint = "name the networks that the destination really uses"
            yield _finding(
                sources,
                Severity.WARNING,
                "broad-network",
                flat.id,
                "resolves_to",
                f"`{text}` is most of the address space",
                hint,
            )
    source = flat.source
    if isinstance(source, AgeGate) and not (source.rationale and source.legal_ref):
        missing = "rationale" if not source.rationale else "legal_ref"
        yield _finding(
            sources,
            Severity.ERROR,
            "no-reason",
            flat.id,
            missing,
            f"an age gate needs a `{missing}`",
            "say why, and by which law or rule",
        )
    if isinstance(source, Rule) and not source.rationale and _module_of(sources, flat.id) == "privacy":
        yield _finding(
            sources, Severity.ERROR, "no-reason", flat.id, "rationale", "a privacy rule needs a `rationale`"
        )
    if (
        flat.kind is Kind.ALLOW
        and flat.clients is not None
        and "any" in flat.clients
        and len(flat.clients) > 1
    ):
        yield _finding(
            sources,
            Severity.WARNING,
            "redundant",
            flat.id,
            "clients",
            "`any` makes the other clients redundant",
        )


def _module_of(sources: Sources, statement: str) -> str | None:
    for module in sources.policy.modules:
        if any(rule.id == statement for rule in module.rules):
            return module.module
    return None


def _broad(sources: Sources, flat: Flat, target: Target) -> Iterator[Finding]:
    if (
        target.kind in {HostKind.BELOW, HostKind.TREE}
        and flat.kind is Kind.ALLOW
        and _suffixes().is_public(target.host)
    ):
        message = f"`{target}` spans everybody who registers below the public suffix `{target.host}`"
        yield _finding(
            sources,
            Severity.ERROR,
            "public-suffix",
            flat.id,
            "to",
            message,
            f"name the owner, such as `*.example.{target.host}`",
        )
    if target.kind is HostKind.NETWORK and flat.kind is Kind.ALLOW and ip_network(target.host).prefixlen < 8:
        yield _finding(
            sources,
            Severity.WARNING,
            "broad-network",
            flat.id,
            "to",
            f"`{target}` is most of the address space",
        )


def _special(sources: Sources, flat: Flat, target: Target) -> Iterator[Finding]:
    address = target.host.partition("/")[0]
    if target.host in METADATA_NAMES:
        yield _finding(
            sources,
            Severity.ERROR,
            "unreachable",
            flat.id,
            "to",
            f"`{target}` is a metadata service, which no rule can open",
        )
    elif is_address(address):
        kind = classify(address)
        if kind is AddressClass.METADATA:
            yield _finding(
                sources,
                Severity.ERROR,
                "unreachable",
                flat.id,
                "to",
                f"`{target}` is a metadata service, which no rule can open",
            )
        elif kind is not AddressClass.PUBLIC and not flat.resolves:
            hint = f"add `resolves_to: [{ip_network(target.host)}]`"
            yield _finding(
                sources,
                Severity.ERROR,
                "unreachable",
                flat.id,
                "resolves_to",
                f"`{target}` is {kind.value} space and cannot be reached",
                hint,
            )


def _pairs(sources: Sources, flats: list[Flat]) -> Iterator[Finding]:
    """Allows that a deny or another allow makes pointless, denies that repeat one another."""
    buckets: defaultdict[str, dict[str, Flat]] = defaultdict(dict)
    for flat in flats:
        for target in flat.targets or ():
            buckets[_bucket(target)][flat.id] = flat
    everywhere = [f for f in flats if f.targets is None]
    seen: set[tuple[str, str]] = set()
    for suffix in sorted(buckets):
        group = [*buckets[suffix].values(), *everywhere]
        if len(group) > MAX_BUCKET:
            first = min(f.id for f in group)
            yield _finding(
                sources,
                Severity.WARNING,
                "not-compared",
                first,
                "to",
                f"more than {MAX_BUCKET} statements about `{suffix}`: not compared with one another",
            )
            continue
        for one in group:
            for two in group:
                if one is not two and (one.id, two.id) not in seen and covers(one, two):
                    seen.add((one.id, two.id))
                    yield from _covered(sources, one, two, mutual=covers(two, one))


def _bucket(target: Target) -> str:
    if target.kind is HostKind.NETWORK or is_address(target.host):
        return "addresses"
    return ".".join(target.host.split(".")[-2:])


def _covered(sources: Sources, wide: Flat, narrow: Flat, *, mutual: bool) -> Iterator[Finding]:
    """`wide` matches whatever `narrow` does."""
    if wide.kind is Kind.DENY and narrow.kind is Kind.ALLOW:
        code, message = (
            ("conflict", "says the opposite of")
            if mutual
            else ("unreachable", "can never allow anything: everything it matches is denied by")
        )
        yield _finding(
            sources,
            Severity.ERROR,
            code,
            narrow.id,
            "",
            f"`{narrow.id}` {message} `{wide.id}`",
            "narrow the deny, or remove the allow",
        )
    elif wide.kind is narrow.kind and (not mutual or wide.id < narrow.id) and _same_effect(wide, narrow):
        code = "redundant" if mutual else "shadowed"
        yield _finding(
            sources,
            Severity.WARNING,
            code,
            narrow.id,
            "",
            f"`{narrow.id}` adds nothing: `{wide.id}` matches all of it",
        )


def _same_effect(wide: Flat, narrow: Flat) -> bool:
    """Whether removing `narrow` would change nothing: it brings no lane, no private space, no survival of its own."""
    return (
        (wide.survive or not narrow.survive)
        and narrow.tls in {None, wide.tls}
        and set(narrow.resolves) <= set(wide.resolves)
    )


def _gates(sources: Sources, flats: Iterable[Flat]) -> Iterator[Finding]:
    """Gates and limits that no allow can ever meet."""
    flats = list(flats)
    allows = [f for f in flats if f.kind is Kind.ALLOW]
    if len(allows) > 20_000:
        return
    for flat in flats:
        if (
            flat.kind not in {Kind.GATE, Kind.LIMIT}
            or flat.targets is None
            or isinstance(flat.source, RateLimit)
        ):
            continue
        if not any(destinations_overlap(flat, allow) for allow in allows):
            yield _finding(
                sources,
                Severity.WARNING,
                "unreachable",
                flat.id,
                "match",
                f"no allow leads where `{flat.id}` matches",
            )


def _flags(sources: Sources, flats: Iterable[Flat]) -> Iterator[Finding]:
    known = {flag for module in sources.policy.modules for flag in module.flags}
    for flat in flats:
        for flag in flat.when.flags if flat.when is not None else ():
            if flag not in known:
                hint = "restrictive statements hold, allows do not, until it is defined under `flags`"
                yield _finding(
                    sources,
                    Severity.WARNING,
                    "unknown-flag",
                    flat.id,
                    "when.flags",
                    f"there is no flag `{flag}`",
                    hint,
                )


__all__ = [
    "Finding",
    "Severity",
    "analyse",
]
