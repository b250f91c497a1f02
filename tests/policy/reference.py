"""A deliberately naive evaluator: it walks the authoring models, one loop per sentence of the semantics, and knows no tables.

It shares nothing with the engine but the models and the readings of a path. Only what both can say is compared: the verdict, the
reason, and whether the lane may stay closed.
"""

from ipaddress import ip_address, ip_network

from edgeguard.policy.paths import PathError, query_readings, readings
from edgeguard.policy.reasons import Reason
from edgeguard.policy.regions import BUILT_IN_GROUPS

ORDER = list(Reason)
LEVELS = [None, "self_declared", "guardian_declared", "estimated", "inferred", "verified"]


def split(text):
    """(host pattern, (low, high) or None)"""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if not port:
        return host, None
    low, _, high = port.partition("-")
    return host, (int(low), int(high or low))


def address(host):
    try:
        return ip_address(host)
    except ValueError:
        return None


def host_matches(pattern, host):
    literal = address(host)
    if "/" in pattern or address(pattern) is not None:
        network = ip_network(pattern)
        return literal is not None and literal.version == network.version and literal in network
    if literal is not None:
        return False
    if pattern.startswith("**."):
        return host == pattern[3:] or host.endswith(pattern[2:])
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and host != pattern[2:]
    return host == pattern


def resolve(policy, where):
    """(to, methods, paths, query) with the names replaced"""
    resources = {n: r for m in policy.modules for n, r in m.resources.items()}
    actions = {n: a for m in policy.modules for n, a in m.actions.items()}
    to, methods, paths, query, resource = where.to, where.methods, where.paths, where.query, where.resource
    if where.action:
        action = actions[where.action]
        methods, paths = methods or action.methods, paths or action.paths
        resource = resource or action.resource
    if resource:
        named = resources[resource]
        to, paths, query = named.to, paths or named.paths, query or named.query
    return to, methods, paths, query


def destination(to, host, port, protocols, is_allow):
    """(host matches, host and port match)"""
    if to is None:
        return True, True
    on_host = on_port = False
    for text in to:
        pattern, ports = split(text)
        if not host_matches(pattern, host):
            continue
        on_host = True
        if ports is not None:
            on_port |= ports[0] <= port <= ports[1]
        elif not is_allow:
            on_port = True
        else:
            names = set(protocols or ("tls",))
            on_port |= ("http" in names and port == 80) or (names != {"http"} and port == 443)
    return on_host, on_port


def template_matches(template, segments, loose):
    parts = template[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts = parts[:-1]
    have = list(segments)
    if loose:
        parts, have = [p.casefold() for p in parts], [s.casefold() for s in have]
        parts = parts[:-1] if parts[-1:] == [""] else parts
        have = have[:-1] if have[-1:] == [""] else have
    if len(have) < len(parts) or (not rest and len(have) != len(parts)):
        return False
    return all((p == "*" and h != "") or (p != "*" and p == h) for p, h in zip(parts, have, strict=False))


def client_matches(clients, client, groups, is_allow):
    if clients is None:
        return client.identified or not is_allow
    return any(
        c == "any" or c == client.name or (c.startswith("group:") and c[6:] in groups) for c in clients
    )


def implied(port):
    return {"http"} if port == 80 else {"tls"}


def strict_protocol(protocols, protocol, port, residual):
    names = set(protocols) if protocols else implied(port)
    return protocol in names or "tcp" in names or (protocol == "websocket" and not residual)


def loose_protocol(protocols, protocol, port):
    return (
        not protocols
        or protocol in protocols
        or (protocol == "websocket" and bool(implied(port) & set(protocols)))
    )


def query_strict(query, fields):
    return all(
        (found := [v for k, v in fields if k == key]) and ("*" in values or all(v in values for v in found))
        for key, values in query.items()
    )


def query_loose(query, fields):
    return all(
        any(
            k.casefold() == key.casefold()
            and ("*" in values or v.casefold() in {x.casefold() for x in values})
            for k, v in fields
        )
        for key, values in query.items()
    )


def loose_method(methods, method):
    wanted = {m.upper() for m in methods}
    return method.upper() in wanted or (method.upper() == "HEAD" and "GET" in wanted)


def mode(item, module):
    if item.enforce_percent is not None:
        raise NotImplementedError
    return (item.mode or module.mode or "enforce") == "enforce"


def timely(item, now):
    start = getattr(item, "valid_from", None) or getattr(item, "granted", None) or 0
    end = getattr(item, "valid_until", None) or item.expires
    return start <= now and (end is None or now < end)


def restrictive_matches(policy, item, where, request, groups, method, path, queries):
    to, methods, paths, query = resolve(policy, where)
    return (
        client_matches(where.clients, request.client, groups, False)
        and set(getattr(item, "claims", None) or ()) <= request.client.claims
        and destination(to, request.host, request.port, None, False)[1]
        and loose_protocol(where.protocol, request.protocol, request.port)
        and (methods is None or loose_method(methods, method))
        and (paths is None or any(template_matches(t, path, True) for t in paths))
        and (query is None or any(query_loose(query, q) for q in queries))
    )


def exception_matches(item, request, groups, method, path, queries):
    return (
        (item.clients is None or client_matches(item.clients, request.client, groups, False))
        and destination(item.to, request.host, request.port, None, False)[1]
        and (item.methods is None or method in item.methods)
        and (item.paths is None or any(template_matches(t, path, False) for t in item.paths))
        and (item.query is None or all(query_strict(item.query, q) for q in queries))
    )


def groups_of(policy, client):
    groups = set(client.groups)
    for module in policy.modules:
        for name, members in module.client_groups.items():
            if client.name in members:
                groups.add(name)
    return groups


def region_matches(policy, wanted, region):
    groups = dict(BUILT_IN_GROUPS)
    for module in policy.modules:
        groups |= module.regions
    if wanted is None or region is None:
        return True
    codes = {c for w in wanted for c in groups.get(w, (w,))}
    mine = set(groups.get(region, (region,)))
    return any(m == c or m.startswith(c + "-") or c.startswith(m + "-") for m in mine for c in codes)


def gate_reason(gate, user):
    if user is None:
        return Reason.AGE_VERIFICATION_REQUIRED
    if user.invalid:
        return Reason.AGE_TOKEN_INVALID
    level = LEVELS.index(gate.require.assurance)
    if user.assurance is None or int(user.assurance) < level:
        return Reason.AGE_VERIFICATION_REQUIRED
    if user.age_at_most is not None and user.age_at_most < gate.require.age:
        return Reason.AGE_BELOW_MINIMUM
    if user.age_at_least is None or user.age_at_least < gate.require.age:
        return Reason.AGE_VERIFICATION_REQUIRED
    return None


def decide(policy, request, now, restricted=False):
    """(allow, reason) of a whole request, by the text of the semantics."""
    try:
        paths, queries = readings(request.target), query_readings(request.target)
    except PathError:
        return False, Reason.MALFORMED_REQUEST
    groups = groups_of(policy, request.client)
    methods = [request.method, *(o.strip().upper() for o in request.overrides)]
    every = [(m, p) for m in methods for p in paths]
    rules = [(module, rule) for module in policy.modules for rule in module.rules]
    lifts = [item for module in policy.modules for item in module.exceptions]
    reasons = []

    for module in policy.modules:
        for item in module.quarantine:
            inside = client_matches(item.clients, request.client, groups, False) and (
                item.expires is None or now < item.expires
            )
            if inside and not (
                item.except_ and destination(item.except_, request.host, request.port, None, False)[1]
            ):
                reasons.append(Reason.QUARANTINED)

    for module, rule in rules:
        if rule.effect == "deny" and mode(rule, module) and timely(rule, now):
            hit = any(
                restrictive_matches(policy, rule, rule, request, groups, m, p, queries) for m, p in every
            )
            lifted = any(
                lift.lifts == rule.id
                and not restricted
                and timely(lift, now)
                and all(exception_matches(lift, request, groups, m, p, queries) for m, p in every)
                for lift in lifts
            )
            if hit and not lifted:
                reasons.append(Reason.DENIED_BY_RULE)

    worst, lost = None, {}
    unknown = not request.client.identified
    learn = not restricted and any(
        client_matches(item.clients, request.client, groups, False) and now < item.expires
        for module in policy.modules
        for item in module.learning
    )
    for method, path in every:
        furthest = -1
        for module, rule in rules:
            if rule.effect != "allow" or not mode(rule, module) or not timely(rule, now):
                continue
            to, wanted, templates, query = resolve(policy, rule)
            residual = bool(wanted or templates or query)
            on_host, on_port = destination(to, request.host, request.port, rule.protocol, True)
            steps = [
                on_host,
                on_port,
                client_matches(rule.clients, request.client, groups, True),
                set(rule.claims or ()) <= request.client.claims,
                strict_protocol(rule.protocol, request.protocol, request.port, residual),
                method.upper() not in {"TRACE", "CONNECT"} if wanted is None else method in wanted,
                (templates is None or any(template_matches(t, path, False) for t in templates))
                and (query is None or all(query_strict(query, q) for q in queries)),
            ]
            reached = steps.index(False) if False in steps else len(steps)
            if reached >= 4:
                unknown = False
            if restricted and not rule.survive_offline:
                lost.setdefault(rule.id, []).append(reached == len(steps))
                continue
            furthest = max(furthest, reached)
        ladder = [
            Reason.HOST_NOT_ALLOWED, Reason.PORT_NOT_ALLOWED, Reason.CLIENT_NOT_ALLOWED, Reason.CLAIM_MISSING,
            Reason.OPAQUE_TUNNEL if request.protocol == "tcp" else Reason.PROTOCOL_NOT_ALLOWED,
            Reason.METHOD_NOT_ALLOWED, Reason.PATH_NOT_ALLOWED,
        ]  # fmt: skip
        if furthest < len(ladder) and not learn:
            reason = ladder[max(furthest, 0)]
            worst = reason if worst is None or ORDER.index(reason) < ORDER.index(worst) else worst
    if worst is not None:
        reasons.append(worst)
        if any(all(outcomes) for outcomes in lost.values()):
            reasons.append(Reason.POLICY_RESTRICTED)
    if unknown and not learn:
        reasons.append(Reason.CLIENT_UNKNOWN)

    user = request.user
    if user is not None and not user.invalid and user.expires is not None and user.expires <= now:
        user = None
    region = None if user is None or user.invalid else user.region
    for module in policy.modules:
        for gate in module.age_gates:
            if (
                not mode(gate, module)
                or not timely(gate, now)
                or not region_matches(policy, gate.regions, region)
            ):
                continue
            if any(
                restrictive_matches(policy, gate, gate.match, request, groups, m, p, queries)
                for m, p in every
            ):
                reason = gate_reason(gate, user)
                if reason is not None:
                    reasons.append(reason)
    if not reasons:
        return True, None
    return False, min(reasons, key=ORDER.index)
