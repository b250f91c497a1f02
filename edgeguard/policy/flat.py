"""Statements with their names resolved: one shape for allow, deny, gate, limit, learning and quarantine.

Everything after the sources (checks, compiler, analysis) works on `Flat`, so that a named resource and a
spelled-out destination are the same thing from here on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgeguard.policy.kinds import Kind
from edgeguard.policy.model import (
    Action,
    AgeGate,
    Module,
    Policy,
    RateLimit,
    Resource,
    Rule,
    Timed,
    When,
    Where,
)
from edgeguard.policy.targets import ALL_PORTS, Target, parse_target


class ResolveError(ValueError):
    """A name that does not resolve, or two fields that say the same thing. `.field` says where."""

    def __init__(self, field_name: str, message: str, missing: str | None = None) -> None:
        super().__init__(message)
        self.field, self.missing = field_name, missing


@dataclass(frozen=True, slots=True)
class Flat:
    """One statement. None means: not restricted. Ports are settled."""

    id: str
    kind: Kind
    clients: tuple[str, ...] | None = None
    targets: tuple[Target, ...] | None = None
    protocols: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    query: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    claims: tuple[str, ...] = ()
    percent: int = 100
    """Share of clients for whom it is enforced; 0 is report."""
    start: int | None = None
    end: int | None = None
    when: When | None = None
    survive: bool = False
    tls: str | None = None
    resolves: tuple[str, ...] = ()
    source: object = field(default=None, compare=False)
    """The authoring model."""

    @property
    def residual(self) -> bool:
        """Whether it looks at something inside the connection: method, path or query."""
        return self.methods is not None or self.paths is not None or self.query is not None


@dataclass(frozen=True, slots=True)
class Names:
    """What the modules define together."""

    resources: Mapping[str, Resource]
    actions: Mapping[str, Action]


def collect_names(policy: Policy) -> Names:
    resources: dict[str, Resource] = {}
    actions: dict[str, Action] = {}
    for module in policy.modules:
        resources |= module.resources
        actions |= module.actions
    return Names(resources, actions)


def settle_ports(
    targets: tuple[Target, ...], kind: Kind, protocols: tuple[str, ...] | None
) -> tuple[Target, ...]:
    """Ports that the author left out: an allow means 443 (80 for http), everything else means every port."""
    out: list[Target] = []
    for target in targets:
        if target.ports is not None:
            out.append(target)
        elif kind is not Kind.ALLOW:
            out.append(target._replace(ports=ALL_PORTS))
        else:
            names = set(protocols or ("tls",))
            if names == {"tcp"}:
                raise ResolveError("to", f"`protocol: tcp` needs a port; write `{target}:PORT`")
            if "http" in names:
                out.append(target._replace(ports=(80, 80)))
            if names != {"http"}:
                out.append(target._replace(ports=(443, 443)))
    return tuple(dict.fromkeys(out))


def _parse(targets: tuple[str, ...] | None) -> tuple[Target, ...] | None:
    return None if targets is None else tuple(parse_target(text) for text in targets)


def _query(query: Mapping[str, tuple[str, ...]] | None) -> tuple[tuple[str, tuple[str, ...]], ...] | None:
    return (
        None
        if query is None
        else tuple(sorted((key, tuple(sorted(values))) for key, values in query.items()))
    )


def resolve_where(where: Where, kind: Kind, names: Names) -> dict[str, object]:
    """The matching fields of a `Flat`. Raises `ResolveError`."""
    methods, paths, query, to = where.methods, where.paths, _query(where.query), where.to
    resource_name = where.resource
    if where.action is not None:
        action = names.actions.get(where.action)
        if action is None:
            raise ResolveError("action", f"there is no action `{where.action}`", where.action)
        if methods is not None and action.methods is not None:
            raise ResolveError(
                "methods", f"action `{where.action}` already says which methods; write one of them"
            )
        if paths is not None and action.paths is not None:
            raise ResolveError(
                "paths", f"action `{where.action}` already says which paths; write one of them"
            )
        methods, paths = methods or action.methods, paths or action.paths
        if action.resource is not None:
            if resource_name not in {None, action.resource}:
                raise ResolveError(
                    "resource", f"action `{where.action}` is about `{action.resource}`; leave `resource` out"
                )
            resource_name = action.resource
    if resource_name is not None:
        resource = names.resources.get(resource_name)
        if resource is None:
            raise ResolveError("resource", f"there is no resource `{resource_name}`", resource_name)
        if to is not None:
            raise ResolveError("to", f"resource `{resource_name}` already says where; write one of them")
        if paths is not None and resource.paths is not None:
            raise ResolveError(
                "paths", f"resource `{resource_name}` already says which paths; write one of them"
            )
        if query is not None and resource.query is not None:
            raise ResolveError(
                "query", f"resource `{resource_name}` already says which query; write one of them"
            )
        to, paths, query = resource.to, paths or resource.paths, query or _query(resource.query)
    targets = _parse(to)
    if targets is None and kind is Kind.ALLOW:
        raise ResolveError("to", "an allow needs a destination: the action names no resource")
    return {
        "clients": where.clients,
        "targets": None if targets is None else settle_ports(targets, kind, where.protocol),
        "protocols": where.protocol,
        "methods": methods,
        "paths": paths,
        "query": query,
    }


def _timed(item: Timed, module: Module) -> dict[str, object]:
    mode = item.mode or module.mode
    percent = item.enforce_percent if item.enforce_percent is not None else 0 if mode == "report" else 100
    return {"percent": percent, "start": item.valid_from, "end": item.expires, "when": item.when}


def flatten_rule(rule: Rule, module: Module, names: Names) -> Flat:
    kind = Kind.ALLOW if rule.effect == "allow" else Kind.DENY
    return Flat(
        id=rule.id,
        kind=kind,
        claims=rule.claims or (),
        survive=rule.survive_offline,
        tls=rule.tls,
        resolves=rule.resolves_to or (),
        source=rule,
        **resolve_where(rule, kind, names),  # type: ignore[arg-type]
        **_timed(rule, module),  # type: ignore[arg-type]
    )


def flatten_gate(gate: AgeGate, module: Module, names: Names) -> Flat:
    timed = _timed(gate, module)
    timed["end"] = gate.expires if gate.expires is not None else gate.valid_until
    where = resolve_where(gate.match, Kind.GATE, names)
    return Flat(id=gate.id, kind=Kind.GATE, source=gate, **where, **timed)  # type: ignore[arg-type]


def flatten_limit(limit: RateLimit, module: Module, names: Names) -> Flat:
    where = resolve_where(limit.match, Kind.LIMIT, names)
    return Flat(id=limit.id, kind=Kind.LIMIT, source=limit, **where, **_timed(limit, module))  # type: ignore[arg-type]


def _flatten_one(item: Rule | RateLimit | AgeGate, module: Module, names: Names) -> Flat:
    if isinstance(item, Rule):
        return flatten_rule(item, module, names)
    return (
        flatten_gate(item, module, names) if isinstance(item, AgeGate) else flatten_limit(item, module, names)
    )


def flatten(policy: Policy, names: Names | None = None) -> Iterator[Flat | tuple[str, ResolveError]]:
    """Every statement of the policy, or (id, error) for one that does not resolve. In no particular order."""
    names = names or collect_names(policy)
    for module in policy.modules:
        items: tuple[Rule | RateLimit | AgeGate, ...] = (
            *module.rules,
            *module.rate_limits,
            *module.age_gates,
        )
        for item in items:
            try:
                yield _flatten_one(item, module, names)
            except ResolveError as error:
                yield item.id, error
        for learn in module.learning:
            yield Flat(learn.id, Kind.LEARN, clients=learn.clients, end=learn.expires, source=learn)
        for quarantine in module.quarantine:
            targets = _parse(quarantine.except_)
            yield Flat(
                quarantine.id,
                Kind.QUARANTINE,
                clients=quarantine.clients,
                end=quarantine.expires,
                targets=None if targets is None else settle_ports(targets, Kind.DENY, None),
                source=quarantine,
            )
        for lift in module.exceptions:
            targets = _parse(lift.to)
            yield Flat(
                lift.id,
                Kind.EXCEPTION,
                clients=lift.clients,
                targets=None if targets is None else settle_ports(targets, Kind.DENY, None),
                methods=lift.methods,
                paths=lift.paths,
                query=_query(lift.query),
                start=lift.granted,
                end=lift.expires,
                source=lift,
            )


__all__ = [
    "Flat",
    "Kind",
    "Names",
    "ResolveError",
    "collect_names",
    "flatten",
    "flatten_gate",
    "flatten_limit",
    "flatten_rule",
    "resolve_where",
    "settle_ports",
]
