"""A connection of which only the destination is known: could anything on it be allowed, and which lane has to look further?

The answer depends on the plan and the protocol alone, so it is worked out once for each. Only gates behind a closed
tunnel are judged anew for every connection.
"""

from collections.abc import Sequence

from edgeguard.policy.decision import Decision, Lane, LimitHit
from edgeguard.policy.gates import Gates
from edgeguard.policy.keys import settle
from edgeguard.policy.plan import Plan
from edgeguard.policy.reasons import Reason
from edgeguard.policy.refusal import Refused, stage_reason
from edgeguard.policy.request import User
from edgeguard.policy.statements import Statement


def connection(plan: Plan, protocol: str) -> Decision:
    """The decision that holds as long as the plan does. Kept in `plan.connect`."""
    port = plan.port
    allows = [a for a in plan.allows if a.cond.opens(protocol, port)]
    free = [a for a in allows if a.cond.free(protocol, port)]
    lane = _lane(plan, protocol, allows, free)
    # What goes through a tunnel is granted by the allows that ask for nothing inside it; only their
    # `resolves_to` counts there.
    granting = free if lane is Lane.TUNNEL else allows
    refused = plan.early or _refusal(plan, protocol, allows, granting)
    if refused is not None:
        would = [("would_allow", a.id) for a in plan.report_allows if a.cond.opens(protocol, port)]
        decision = refused.decision(lane, tuple(would), plan.until)
    else:
        names = [a.id for a in allows]
        would = [("would_deny", d.id) for d in plan.report_denies if d.cond.certain(protocol, port)]
        if not allows and plan.learn is not None:
            would.append(("would_deny", plan.learn))
        rule = free[0].id if free else names[0] if names else plan.learn
        limits = _limits(plan, protocol, rule or "", names)
        decision = Decision(
            True, None, rule, lane, None, tuple(would), limits, None, networks(granting), plan.until
        )
    plan.connect[protocol] = decision
    return decision


def gated_tunnel(
    plan: Plan, decision: Decision, protocol: str, gates: Gates, user: User | None, now: float
) -> Decision:
    """Gates on a connection that stays closed are judged once, here, method and path taken as matching."""
    if not decision.allow or decision.lane is Lane.INSPECT:
        return decision
    meant = [g for g in plan.gates if g.cond.may_touch(protocol, plan.port)]
    if not meant:
        return decision
    refused, end = gates.refusal(meant, user, now), until(plan, user, now)
    if refused is not None:
        return refused.decision(decision.lane, (), end)
    return decision._replace(until=end)


def until(plan: Plan, user: User | None, now: float) -> float | None:
    """When time alone may change a verdict that gates had a say in."""
    end = plan.until
    if user is not None and user.expires is not None and user.expires > now:
        return user.expires if end is None or user.expires < end else end
    return end


def networks(allows: Sequence[Statement]) -> tuple[str, ...]:
    """What the allows say in `resolves_to`, each once."""
    named = [a.networks for a in allows if a.networks]
    if len(named) < 2:
        return named[0] if named else ()
    return tuple(dict.fromkeys(network for some in named for network in some))


def _refusal(plan: Plan, protocol: str, allows: list[Statement], granting: list[Statement]) -> Refused | None:
    """The first reason of the ladder that applies."""
    port = plan.port
    if (
        not allows
    ):  # only an allow that does not survive offline leads there: it is the freshness ladder that refuses
        for lost in plan.lost:
            if lost.cond.opens(protocol, port):
                return Refused(Reason.POLICY_RESTRICTED, None, lost.id)
    for deny in plan.denies:  # one that nothing inside can escape
        if deny.cond.certain(protocol, port) and deny.id not in plan.lifts:
            return Refused(Reason.DENIED_BY_RULE, deny.id)
    if not allows and plan.learn is None:
        if not plan.allows:
            return Refused(stage_reason(plan.stage, protocol), None, plan.near)
        reason = Reason.OPAQUE_TUNNEL if protocol == "tcp" else Reason.PROTOCOL_NOT_ALLOWED
        return Refused(reason, None, plan.allows[0].id)
    if protocol == "tcp":  # opaque bytes cannot be looked into: every deny that looks inside may be meant
        for deny in plan.denies:
            if deny.cond.may_touch(protocol, port):
                return Refused(Reason.DENIED_BY_RULE, deny.id)
    if plan.refused_address([a.id for a in granting]):
        return Refused(Reason.ADDRESS_NOT_ALLOWED)
    return None


def _lane(plan: Plan, protocol: str, allows: list[Statement], free: list[Statement]) -> Lane:
    """Inspect only if something beyond client, host and port could change the verdict, or an author insists."""
    if protocol == "tcp":
        return Lane.TUNNEL
    said = {a.tls for a in allows}
    if "inspect" in said or any(
        s.tls == "inspect" for s in (*plan.denies, *plan.report_allows, *plan.report_denies)
    ):
        return Lane.INSPECT
    if "passthrough" in said:
        return Lane.TUNNEL
    port = plan.port
    if plan.learn is None and not free:
        return Lane.INSPECT
    if not set(networks(allows)) <= set(networks(free)):
        return Lane.INSPECT  # some requests may go to addresses where others may not
    if any(s.cond.may_touch(protocol, port) for s in (*plan.denies, *plan.gates)):
        return Lane.INSPECT
    names = {a.id for a in allows}
    for statement, hit in plan.limits:
        if not hit.enforced or hit.unit != "requests" or not statement.cond.may_touch(protocol, port):
            continue
        rules = statement.limit.rules if statement.limit is not None else None
        if rules is None or rules & names:
            return Lane.INSPECT
    return Lane.TUNNEL


def _limits(plan: Plan, protocol: str, rule: str, names: Sequence[str]) -> tuple[LimitHit, ...]:
    """The limits that count this connection."""
    return tuple(
        settle(hit, rule, None)
        for statement, hit in plan.limits
        if hit.unit != "requests"
        and (
            statement.limit is None
            or statement.limit.rules is None
            or not statement.limit.rules.isdisjoint(names)
        )
        and statement.cond.may_touch(protocol, plan.port)
    )
