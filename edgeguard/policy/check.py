"""Mistakes that show only when the modules stand together: names that lead nowhere, statements that contradict.

These are errors: a policy that has one does not compile. Advice is in `analysis.py`.
"""

from collections.abc import Iterable, Iterator

from edgeguard.policy.flat import Flat, Kind, Names, collect_names, flatten
from edgeguard.policy.model import AgeGate, Exception_, RateLimit
from edgeguard.policy.regions import BUILT_IN_GROUPS, is_code
from edgeguard.policy.source import PolicyError, Sources, nearest
from edgeguard.policy.targets import HostKind, Target, host_covers, host_overlaps

MAX_STATEMENTS = 1_000_000


def check_policy(sources: Sources) -> list[PolicyError]:
    """All errors of the policy as a whole."""
    policy = sources.policy
    names = collect_names(policy)
    errors: list[PolicyError] = []
    flats: dict[str, Flat] = {}
    for item in flatten(policy, names):
        if isinstance(item, Flat):
            flats[item.id] = item
            continue
        statement, problem = item
        known = list(names.actions if problem.field == "action" else names.resources)
        hint = nearest(problem.missing, known) if problem.missing else ""
        errors.append(sources.error(statement, problem.field, str(problem), hint))
    for action_name, action in names.actions.items():
        if action.resource is not None and action.resource not in names.resources:
            hint = nearest(action.resource, list(names.resources))
            errors.append(
                sources.error(
                    f"action {action_name}", "resource", f"there is no resource `{action.resource}`", hint
                )
            )
    errors += _limit_networks(sources, flats.values())
    errors += _salts(sources)
    errors += _regions(sources, flats.values())
    errors += _references(sources, flats)
    errors += _passthrough(sources, flats, names)
    return errors


def _limit_networks(sources: Sources, flats: Iterable[Flat]) -> Iterator[PolicyError]:
    """A limit counts what is asked for by name; the model sees only networks that are spelled out, not those of a resource."""
    for flat in flats:
        for target in flat.targets or () if flat.kind is Kind.LIMIT else ():
            if target.kind is HostKind.NETWORK:
                yield sources.error(
                    flat.id,
                    "match",
                    f"a limit names hosts, not networks, and `{target}` is one",
                    "name the hosts",
                )


def _salts(sources: Sources) -> Iterator[PolicyError]:
    salts = {m.salt: m.module for m in sources.policy.modules if m.salt is not None}
    if len(salts) > 1:
        *_, last = salts.values()
        yield sources.error(f"module {last}", "salt", "the modules name different salts; a bundle has one")


def _regions(sources: Sources, flats: Iterable[Flat]) -> Iterator[PolicyError]:
    groups = set(BUILT_IN_GROUPS)
    for module in sources.policy.modules:
        groups |= module.regions.keys()
        for name, members in module.regions.items():
            for member in members:
                if not is_code(member):
                    yield sources.error(
                        f"region group {name}",
                        "",
                        f"`{member}` is not a country (ISO 3166)",
                        "write DE or US-TX",
                    )
    for flat in flats:
        if isinstance(flat.source, AgeGate):
            for region in flat.source.regions or ():
                if region not in groups and not is_code(region):
                    yield sources.error(
                        flat.id,
                        "regions",
                        f"`{region}` is neither a country nor a group",
                        nearest(region, sorted(groups)),
                    )


def _references(sources: Sources, flats: dict[str, Flat]) -> Iterator[PolicyError]:
    liftable = [f.id for f in flats.values() if f.kind in {Kind.DENY, Kind.LIMIT}]
    allows = [f.id for f in flats.values() if f.kind is Kind.ALLOW]
    for flat in flats.values():
        if isinstance(flat.source, RateLimit):
            for rule in flat.source.match.rules or ():
                if rule not in flats or flats[rule].kind is not Kind.ALLOW:
                    yield sources.error(
                        flat.id, "match.rules", f"there is no allow `{rule}`", nearest(rule, allows)
                    )
        if isinstance(flat.source, Exception_):
            lifted = flats.get(flat.source.lifts)
            if lifted is None or lifted.kind not in {Kind.DENY, Kind.LIMIT}:
                hint = nearest(flat.source.lifts, liftable)
                yield sources.error(
                    flat.id,
                    "lifts",
                    f"`{flat.source.lifts}` is not a deny or a limit; only those can be lifted",
                    hint,
                )
            else:
                yield from _narrower(sources, flat, lifted)


def _narrower(sources: Sources, lift: Flat, lifted: Flat) -> Iterator[PolicyError]:
    """An exception takes a proper part out of its rule."""
    if lift.targets is not None and lifted.targets is not None:
        for target in lift.targets:
            if not any(
                host_overlaps(target, other) and ports_overlap(target, other) for other in lifted.targets
            ):
                yield sources.error(
                    lift.id,
                    "to",
                    f"`{target}` is no destination of `{lifted.id}`, so there is nothing to lift",
                )
    if (
        lift.kind is Kind.EXCEPTION
        and lifted.kind is Kind.LIMIT
        and lift.residual
        and _unit(lifted) != "requests"
    ):
        yield sources.error(
            lift.id, "methods", f"`{lifted.id}` counts connections, which have no method, path or query"
        )
    wider = all(
        (
            lift.clients is None or lift.clients == lifted.clients or "any" in lift.clients,
            lift.targets is None or (lifted.targets is not None and _covers(lift.targets, lifted.targets)),
            lift.methods is None or (lifted.methods is not None and set(lifted.methods) <= set(lift.methods)),
            lift.paths is None or (lifted.paths is not None and set(lifted.paths) <= set(lift.paths)),
            lift.query is None or lift.query == lifted.query,
        )
    )
    if wider:
        yield sources.error(
            lift.id, "", f"the exception is as wide as `{lifted.id}` itself", "narrow it, or remove the rule"
        )


def _covers(wide: tuple[Target, ...], narrow: tuple[Target, ...]) -> bool:
    return all(any(host_covers(w, n) and port_covers(w, n) for w in wide) for n in narrow)


def ports_overlap(one: Target, two: Target) -> bool:
    (a, b), (c, d) = one.ports or (1, 65535), two.ports or (1, 65535)
    return a <= d and c <= b


def port_covers(wide: Target, narrow: Target) -> bool:
    (a, b), (c, d) = wide.ports or (1, 65535), narrow.ports or (1, 65535)
    return a <= c and d <= b


def clients_overlap(one: Flat, two: Flat) -> bool:
    """Whether some client may be meant by both. Groups may hold anybody."""
    if one.clients is None or two.clients is None:
        return True
    a, b = set(one.clients), set(two.clients)
    wild = any(c == "any" or c.startswith("group:") for c in a | b)
    return wild or bool(a & b)


def destinations_overlap(one: Flat, two: Flat) -> bool:
    if one.targets is None or two.targets is None:
        return True
    return any(host_overlaps(a, b) and ports_overlap(a, b) for a in one.targets for b in two.targets)


def _unit(flat: Flat) -> str:
    return flat.source.unit if isinstance(flat.source, RateLimit) else ""


def _passthrough(sources: Sources, flats: dict[str, Flat], _names: Names) -> Iterator[PolicyError]:
    """What asks for a look inside must not meet an allow that forbids it."""
    blind = [
        f
        for f in flats.values()
        if f.tls == "passthrough"
        or (f.protocols is not None and "tcp" in f.protocols and f.kind is Kind.ALLOW)
    ]
    if not blind:
        return
    for flat in flats.values():
        named = isinstance(flat.source, RateLimit) and flat.source.match.rules
        needs = (
            (
                flat.kind is Kind.DENY
                and (flat.residual or flat.protocols == ("websocket",))
                and flat.percent > 0
            )
            or flat.tls == "inspect"
            or (flat.kind is Kind.LIMIT and _unit(flat) == "requests" and flat.percent > 0)
        )
        if not needs:
            continue
        for allow in blind:
            if flat.kind is Kind.LIMIT and named and allow.id not in named:
                continue
            if clients_overlap(flat, allow) and destinations_overlap(flat, allow):
                what = "tls: passthrough" if allow.tls == "passthrough" else "protocol: tcp"
                yield sources.error(
                    flat.id,
                    "",
                    f"looks inside connections that `{allow.id}` leaves closed (`{what}`)",
                    "narrow one of them",
                )
