"""From a policy to tables that a node only has to decode.

Sections are plain data: None, bool, int, str, lists, maps with text keys. Everything is sorted, so the same statements give the
same data whatever file or order they stood in. Prose (owners, rationales) stays in the sources.

    rules       allows, denies, limits, learning, quarantine; their host index; names; flags
    age         gates, their host index, region groups
    identity    client groups, token issuers
    exceptions  lifts, by the id of what they lift
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from edgeguard.policy.flat import Flat, collect_names, flatten
from edgeguard.policy.kinds import MAX_LABELS, VERSION, Kind
from edgeguard.policy.model import ASSURANCES, AgeGate, Exception_, Policy, RateLimit, When
from edgeguard.policy.names import is_address
from edgeguard.policy.regions import BUILT_IN_GROUPS
from edgeguard.policy.targets import HostKind

type Section = dict[str, object]

MAX_PER_HOST: Final = 4096
"""Statements that one entry of the host index may hold."""
MAX_EVERYWHERE: Final = 512
"""Statements without a destination."""
MAX_TEMPLATES: Final = 512
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class CompileError(ValueError):
    """The policy asks for more than a lookup can do quickly. The message names the statement or host."""


def compile_policy(policy: Policy) -> dict[str, Section]:
    """Compiles a checked policy. Raises `CompileError`."""
    flats: list[Flat] = []
    for item in flatten(policy, collect_names(policy)):
        if not isinstance(item, Flat):
            raise CompileError(f"{item[0]}: {item[1]}")
        flats.append(item)
    flats.sort(key=lambda f: f.id)
    flats = _place_limits(flats)
    return {
        "rules": _rules(policy, [f for f in flats if f.kind not in {Kind.GATE, Kind.EXCEPTION}]),
        "age": _age(policy, [f for f in flats if f.kind is Kind.GATE]),
        "identity": _identity(policy),
        "exceptions": _exceptions([f for f in flats if f.kind is Kind.EXCEPTION]),
    }


def _place_limits(flats: list[Flat]) -> list[Flat]:
    """A limit that names allows and no destination is found where those allows lead, not everywhere."""
    by_id = {flat.id: flat for flat in flats}
    out = []
    for flat in flats:
        rules = flat.source.match.rules if isinstance(flat.source, RateLimit) else None
        if rules is not None and flat.targets is None:
            targets = dict.fromkeys(target for rule in rules for target in by_id[rule].targets or ())
            flat = replace(flat, targets=tuple(targets))  # noqa: PLW2901
        out.append(flat)
    return out


def _rules(policy: Policy, flats: list[Flat]) -> Section:
    names = collect_names(policy)
    flags: dict[str, bool] = {}
    for module in policy.modules:
        flags |= module.flags
    section = _table(flats)
    section["v"] = VERSION
    section["salt"] = next((m.salt for m in policy.modules if m.salt is not None), "")
    section["flags"] = dict(sorted(flags.items()))
    section["resources"] = {
        name: [
            list(r.to),
            None if r.paths is None else list(r.paths),
            None if r.query is None else {k: list(v) for k, v in sorted(r.query.items())},
        ]
        for name, r in sorted(names.resources.items())
    }
    section["actions"] = {
        name: [
            None if a.methods is None else list(a.methods),
            None if a.paths is None else list(a.paths),
            a.resource,
        ]
        for name, a in sorted(names.actions.items())
    }
    return section


def _age(policy: Policy, flats: list[Flat]) -> Section:
    groups = {name: list(codes) for name, codes in BUILT_IN_GROUPS.items()}
    for module in policy.modules:
        groups |= {name: sorted(codes) for name, codes in module.regions.items()}
    section = _table(flats)
    section["v"] = VERSION
    section["groups"] = dict(sorted(groups.items()))
    return section


def _identity(policy: Policy) -> Section:
    groups: dict[str, set[str]] = {}
    issuers: dict[str, object] = {}
    for module in policy.modules:
        for name, members in module.client_groups.items():
            groups.setdefault(name, set()).update(members)
        for issuer in module.issuers:
            issuers[issuer.issuer] = issuer.model_dump(mode="json")
    return {
        "v": VERSION,
        "groups": {n: sorted(m) for n, m in sorted(groups.items())},
        "issuers": [issuers[i] for i in sorted(issuers)],
    }


def _exceptions(flats: list[Flat]) -> Section:
    pools = _Pools(flats)
    rows: list[object] = []
    for flat in flats:
        assert isinstance(flat.source, Exception_)  # noqa: S101 - the kind says so
        targets = (
            None
            if flat.targets is None
            else [[t.kind.value, t.host, *(t.ports or (1, 65535))] for t in sorted(flat.targets, key=str)]
        )
        rows.append([flat.id, flat.source.lifts, *pools.place(flat), targets, flat.start, flat.end])
    return {"v": VERSION, "clients": pools.clients, "conds": pools.conds, "rows": rows}


class _Pools:
    """Client sets and conditions, stored once each."""

    def __init__(self, flats: Iterable[Flat]) -> None:
        flats = list(flats)
        self._clients = {key: _client_data(key) for key in {f.clients for f in flats} if key is not None}
        self._conds = {
            key: _condition(*key) for key in {_condition_key(f) for f in flats} if key != (None,) * 4
        }
        self._client_at = {key: i for i, key in enumerate(sorted(self._clients, key=repr))}
        self._cond_at = {key: i for i, key in enumerate(sorted(self._conds, key=repr))}
        self.clients = [self._clients[key] for key in self._client_at]
        self.conds = [self._conds[key] for key in self._cond_at]

    def place(self, flat: Flat) -> tuple[int, int]:
        clients = -1 if flat.clients is None else self._client_at[flat.clients]
        return clients, self._cond_at.get(_condition_key(flat), -1)


def _client_data(clients: tuple[str, ...]) -> list[object]:
    groups = sorted(c.removeprefix("group:") for c in clients if c.startswith("group:"))
    return ["any" in clients, sorted(c for c in clients if c != "any" and not c.startswith("group:")), groups]


def _condition_key(flat: Flat) -> tuple[object, ...]:
    def key(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(sorted(values))

    return key(flat.protocols), key(flat.methods), key(flat.paths), flat.query


def _condition(protocols: object, methods: object, paths: object, query: object) -> list[object]:
    def data(values: object) -> object:
        return None if values is None else list(values)  # type: ignore[call-overload]

    fields = None if query is None else [[k, list(v)] for k, v in query]  # type: ignore[attr-defined]
    return [data(protocols), data(methods), data(paths), fields]


def _table(flats: list[Flat]) -> Section:
    pools = _Pools(flats)
    rows: list[object] = []
    exact: dict[str, list[int]] = {}
    below: dict[str, list[int]] = {}
    nets: dict[str, list[int]] = {}
    everywhere: list[int] = []
    depth = 0
    for index, flat in enumerate(flats):
        if flat.paths is not None and len(flat.paths) > MAX_TEMPLATES:
            raise CompileError(
                f"{flat.id}: more than {MAX_TEMPLATES} paths in one statement; use `**` or several statements"
            )
        rows.append([flat.id, int(flat.kind), flat.percent, *pools.place(flat), _extra(flat) or None])
        if flat.kind is Kind.QUARANTINE or flat.targets is None:
            everywhere.append(index)
            continue
        for target in sorted(flat.targets, key=str):
            entry = [index, *(target.ports or (1, 65535))]
            if target.kind is HostKind.EXACT and is_address(
                target.host
            ):  # so that embedded spellings are found, too
                nets.setdefault(f"{target.host}/{128 if ':' in target.host else 32}", []).extend(entry)
                continue
            if target.kind is HostKind.NETWORK:
                nets.setdefault(target.host, []).extend(entry)
                continue
            if target.kind in {HostKind.EXACT, HostKind.TREE}:
                exact.setdefault(target.host, []).extend(entry)
            if target.kind in {HostKind.BELOW, HostKind.TREE}:
                below.setdefault(target.host, []).extend(entry)
                depth = max(depth, target.host.count(".") + 1)
                if depth > MAX_LABELS:
                    raise CompileError(
                        f"{flat.id}: `{target}` has more than {MAX_LABELS} labels below its wildcard"
                    )
    for index_part in (exact, below, nets):
        for host, entries in index_part.items():
            if len(entries) > 3 * MAX_PER_HOST:
                raise CompileError(f"`{host}` has more than {MAX_PER_HOST} statements; join some of them")
    if len(everywhere) > MAX_EVERYWHERE:
        raise CompileError(f"more than {MAX_EVERYWHERE} statements have no destination; join some of them")
    return {
        "clients": pools.clients,
        "conds": pools.conds,
        "rows": rows,
        "exact": dict(sorted(exact.items())),
        "below": dict(sorted(below.items())),
        "nets": dict(sorted(nets.items())),
        "everywhere": everywhere,
        "depth": depth,
    }


def _extra(flat: Flat) -> dict[str, object]:
    """The fields that few statements have."""
    extra: dict[str, object] = {}
    if flat.claims:
        extra["claims"] = sorted(flat.claims)
    if flat.start is not None:
        extra["start"] = flat.start
    if flat.end is not None:
        extra["end"] = flat.end
    if flat.when is not None:
        extra["when"] = _when(flat.when)
    if flat.survive:
        extra["survive"] = True
    if flat.tls is not None:
        extra["tls"] = flat.tls
    if flat.resolves:
        extra["resolves"] = sorted(flat.resolves)
    if flat.kind is Kind.QUARANTINE and flat.targets:
        extra["except"] = [
            [t.kind.value, t.host, *(t.ports or (1, 65535))] for t in sorted(flat.targets, key=str)
        ]
    if isinstance(flat.source, RateLimit):
        quota, period = flat.source.rate()
        match_rules = flat.source.match.rules
        extra["limit"] = [
            flat.source.unit,
            quota,
            period,
            flat.source.burst or quota,
            flat.source.scope,
            list(flat.source.key),
            *flat.source.shared(),
        ]
        if match_rules is not None:
            extra["rules"] = sorted(match_rules)
    if isinstance(flat.source, AgeGate):
        need = flat.source.require
        assurance = 0 if need.assurance is None else ASSURANCES.index(need.assurance) + 1
        extra["gate"] = [need.age, assurance, flat.source.legal_ref, flat.source.legal_demand]
        if flat.source.regions is not None:
            extra["regions"] = sorted(flat.source.regions)
    return extra


def _when(when: When) -> list[object]:
    hours = None
    if when.hours is not None:
        first, last = when.hours.split("-")
        hours = [_minutes(first), _minutes(last)]
    days = None if when.days is None else sorted(DAYS.index(day) for day in when.days)
    return [dict(sorted(when.flags.items())), days, hours]


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
