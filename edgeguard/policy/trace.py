"""Why: the ordered trace of one decision, computed only when somebody asks, on the same tables.

Every statement that can meet the destination appears once, in the order of the ladder, with what matched or the first thing that
did not. The verdict itself comes from `Engine.decide`; the trace explains it and never replaces it.
"""

from typing import Final, NamedTuple

from edgeguard.policy.addresses import parse_address
from edgeguard.policy.conditions import METHOD, OK, PATH
from edgeguard.policy.decision import Decision, Lane
from edgeguard.policy.engine import Engine
from edgeguard.policy.kinds import Kind
from edgeguard.policy.names import is_address
from edgeguard.policy.paths import DATA_SLASH, PathError, Query, fold_path, query_readings, spellings
from edgeguard.policy.plan import Plan
from edgeguard.policy.request import Request
from edgeguard.policy.statements import Statement
from edgeguard.policy.tables import ENTRY

_MISSED: Final = {METHOD: "method", PATH: "path or query"}
_ORDER: Final = {Kind.QUARANTINE: 0, Kind.DENY: 1, Kind.ALLOW: 2, Kind.LEARN: 3, Kind.GATE: 4, Kind.LIMIT: 5}


class Step(NamedTuple):
    """One statement. `missed` is the first thing that did not match; None if everything did."""

    rule: str
    kind: str
    matched: bool
    missed: str | None
    enforced: bool
    note: str = ""


class Trace(NamedTuple):
    """A decision and how it came about."""

    decision: Decision
    readings: tuple[str, ...]
    """Readings of the path, the plain one first; empty where the path is not known."""
    lane_because: str
    steps: tuple[Step, ...]


def trace(engine: Engine, request: Request, now: float, *, restricted: bool = False) -> Trace:
    """Explains `engine.decide(request, now)`."""
    decision = engine.decide(request, now, restricted=restricted)
    paths: tuple[str, ...] = ()
    queries: tuple[Query, ...] = ((),)
    if request.method is not None and request.target is not None:
        try:
            paths, queries = spellings(request.target), query_readings(request.target)
        except PathError as error:
            return Trace(
                decision, (), "the request is malformed", (Step("", "request", False, str(error), True),)
            )
    steps = []
    literal = parse_address(request.host) if is_address(request.host) else None
    for table in (engine.tables.rules, engine.tables.gates):
        seen: dict[int, tuple[bool, bool]] = {}
        for entries, only_restrictive in engine.planner.entries(table, request.host, literal):
            for place in range(0, len(entries), ENTRY):
                index = entries[place]
                fits = entries[place + 1] <= request.port <= entries[place + 2]
                seen[index] = (fits or seen.get(index, (False, False))[0], only_restrictive)
        for index, (port_fits, only_restrictive) in seen.items():
            statement = table.get(index)
            if not (only_restrictive and statement.kind is Kind.ALLOW):
                steps.append(_step(engine, statement, request, now, restricted, port_fits, paths, queries))
    steps.sort(key=lambda s: (_ORDER[Kind[s.kind.upper()]], s.rule))
    plan = engine.plan(request, now, restricted=restricted)
    return Trace(
        decision,
        tuple(path.replace(DATA_SLASH, "%2F") for path in paths),
        _lane_because(engine, plan, request, now, restricted),
        tuple(steps),
    )


def _step(
    engine: Engine, statement: Statement, request: Request, now: float, restricted: bool, port_fits: bool,
    paths: tuple[str, ...], queries: tuple[Query, ...],
) -> Step:  # fmt: skip
    missed = None if port_fits else "port"
    scratch = Plan(request.port)
    planner = engine.planner
    client, groups = request.client, planner.groups_of(request.client)
    if missed is None and not planner.active(scratch, statement, now):
        missed = "time or flags"
    if missed is None:
        whom = statement.clients
        restrictive = statement.kind is not Kind.ALLOW
        if not (restrictive or client.identified if whom is None else whom.has(client, groups)):
            missed = "client"
        elif not statement.claims <= client.claims:
            missed = "claims"
    if missed is None and paths and request.method is not None:
        missed = _inside(statement, request, paths, queries)
    elif (
        missed is None
        and not statement.cond.may_touch(request.protocol, request.port)
        and statement.kind is not Kind.ALLOW
    ) or (
        missed is None
        and statement.kind is Kind.ALLOW
        and not statement.cond.opens(request.protocol, request.port)
    ):
        missed = "protocol"
    notes = []
    if statement.cond.residual and not paths:
        notes.append("looks inside the connection")
    if restricted and statement.kind is Kind.ALLOW and not statement.survive:
        notes.append("does not survive offline")
    notes += [
        f"lifted by {lift.id} until it expires" for lift in statement.lifts if lift.start <= now < lift.end
    ]
    if statement.kind is Kind.GATE and statement.gate is not None:
        notes.append(f"asks for age {statement.gate.age}")
    return Step(
        statement.id,
        statement.kind.name.lower(),
        missed is None,
        missed,
        planner.enforced(statement, client),
        "; ".join(notes),
    )


def _inside(
    statement: Statement, request: Request, paths: tuple[str, ...], queries: tuple[Query, ...]
) -> str | None:
    cond, port, protocol = statement.cond, request.port, request.protocol
    methods = [request.method or "", *(o.strip().upper() for o in request.overrides)]
    if statement.kind is Kind.ALLOW:
        if not cond.speaks(protocol, port):
            return "protocol"
        worst = min(cond.reach(m, p, queries) for m in methods for p in paths)
        if worst == OK:
            return None
        return _MISSED[worst] + (" (in one reading of the request)" if len(paths) * len(methods) > 1 else "")
    if not cond.touches(protocol, port):
        return "protocol"
    if any(cond.hits(m, fold_path(p), queries) for m in methods for p in paths):
        return None
    return "method, path or query"


def _lane_because(engine: Engine, plan: Plan, request: Request, now: float, restricted: bool) -> str:
    """One sentence: what in the policy makes the lane what it is."""
    connect = request._replace(method=None, target=None, user=None, overrides=())
    decision = engine.decide(connect, now, restricted=restricted)
    if not decision.allow:
        return "nothing is allowed there"
    everything = [*plan.allows, *plan.denies, *plan.report_allows, *plan.report_denies]
    if decision.lane is Lane.TUNNEL:
        if any(a.tls == "passthrough" for a in plan.allows):
            return "an allow says `tls: passthrough`"
        return "client, host and port settle it; of the request only CONNECT, SNI and port are compared, Host is not seen"
    if (asks := next((s.id for s in everything if s.tls == "inspect"), None)) is not None:
        return f"`{asks}` says `tls: inspect`"
    for group, why in ((plan.denies, "a deny"), (plan.gates, "an age gate")):
        if group:
            return f"{why} looks inside: {group[0].id}"
    if not any(a.cond.free(request.protocol, plan.port) for a in plan.allows):
        return (
            f"the allows name methods, paths or protocols: {plan.allows[0].id}"
            if plan.allows
            else "no allow covers everything there"
        )
    return "a limit counts requests: " + next((s.id for s, h in plan.limits if h.unit == "requests"), "")
