"""Semantic questions: a plain dict in, a plain dict out.

A question is asked in network terms (client, host, port, method, path) or in the policy's own (resource, action). A resource and
an action stand for all their requests: the answer is yes only if every one is allowed. For that, `evaluate` asks the engine about
a witness of every statement that can tell two of those requests apart, so the answer comes from the engine and nowhere else.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

from edgeguard.policy.decision import Decision
from edgeguard.policy.engine import Engine
from edgeguard.policy.names import HostError, canonical_host, split_authority
from edgeguard.policy.rates import hit_text
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.targets import HostKind, Target, parse_target
from edgeguard.policy.templates import Template, parse_template

MAX_WITNESSES: Final = 20_000
_FRESH: Final = "edgeguard-any"
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_FIELDS: Final = (
    "client", "service", "client_address", "groups", "claims", "host", "port", "protocol", "method", "path",
    "user", "region", "resource", "action", "restricted",
)  # fmt: skip
_USER_FIELDS: Final = ("age_verified", "age", "age_at_least", "age_at_most", "assurance", "region", "token")
_LADDER: Final = {reason: place for place, reason in enumerate(Reason)}


class QuestionError(ValueError):
    """The dict is not a question. The message says which key, and what to write."""


def evaluate(engine: Engine, question: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Answers `question` at `now` (Unix seconds).

    Returns `allow`, `reason`, `rule`, `near`, `lane`, `would`, `limits` (ids; nothing is charged), `quotas` (their rates),
    `required` and `request`, the request that decided. Raises `QuestionError`.
    """
    for key in question:
        if key not in _FIELDS:
            close = difflib.get_close_matches(str(key), _FIELDS, 1)
            raise QuestionError(
                f"unknown key {key!r}"
                + (f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(_FIELDS)}")
            )
    restricted = question.get("restricted", False) is True
    worst: tuple[int, Request, Decision] | None = None
    for count, request in enumerate(requests_of(engine, question, now)):
        if count >= MAX_WITNESSES:
            raise QuestionError(
                "the resource is too wide to be judged as a whole; ask about a host and a path"
            )
        decision = engine.decide(request, now, restricted=restricted)
        place = len(_LADDER) if decision.reason is None else _LADDER[decision.reason]
        if worst is None or place < worst[0]:
            worst = (place, request, decision)
    assert worst is not None  # noqa: S101 - every question yields a request
    return _answer(worst[1], worst[2])


def _answer(request: Request, decision: Decision) -> dict[str, Any]:
    need = decision.required
    return {
        "allow": decision.allow,
        "reason": None if decision.reason is None else decision.reason.value,
        "rule": decision.rule,
        "near": decision.near,
        "lane": decision.lane.value,
        "would": [list(pair) for pair in decision.would],
        "limits": [hit.limit for hit in decision.limits],
        "quotas": {hit.limit: hit_text(hit) for hit in decision.limits},
        "required": None
        if need is None
        else {"age": need.age, "assurance": need.assurance.name.lower() if need.assurance else None},
        "request": {
            "host": request.host,
            "port": request.port,
            "protocol": request.protocol,
            "method": request.method,
            "path": request.target,
        },
    }


def requests_of(engine: Engine, question: Mapping[str, Any], now: float) -> Iterator[Request]:
    """The requests that a question stands for. Raises `QuestionError`."""
    restricted = question.get("restricted", False) is True
    client, user = _client(question), _user(question)
    own, net = "resource" in question or "action" in question, "host" in question
    if own == net:
        raise QuestionError(
            "ask about a `host`, or about a `resource` and an `action`; not both, not neither"
        )
    if own:
        yield from _own_words(engine, question, client, user, now, restricted)
        return
    protocol = question.get("protocol", "tls")
    if protocol not in {"tls", "http", "tcp", "websocket"}:
        raise QuestionError(f"protocol {protocol!r} is none of tls, http, tcp, websocket")
    try:
        host, port = split_authority(
            str(question["host"]), question.get("port", 80 if protocol == "http" else 443)
        )
    except HostError:
        try:
            host, port = canonical_host(str(question["host"])), question.get("port", 443)
        except HostError as error:
            raise QuestionError(f"host {question['host']!r}: {error}") from None
    if type(port) is not int or not 0 < port < 65536:
        raise QuestionError(f"port {port!r} is not a number from 1 to 65535")
    if "protocol" not in question and port == 80:
        protocol = "http"
    method, path = question.get("method"), question.get("path")
    if method is None and path is None and user is None:
        yield Request(client, host, port, protocol)
    else:
        yield Request(client, host, port, protocol, method or "GET", path or "/", user)


def _client(question: Mapping[str, Any]) -> Client:
    """Absent: identified, without a name. `None`: unknown."""
    names = [question[key] for key in ("client", "service") if key in question]
    if len(names) > 1:
        raise QuestionError("`client` and `service` are the same thing; write one")
    name = names[0] if names else None
    if name is not None and type(name) is not str:
        raise QuestionError("`client` is a name, or null for an unknown client")
    identified = not (names and name is None)
    return Client(
        name,
        identified,
        frozenset(_texts(question, "groups")),
        frozenset(_texts(question, "claims")),
        question.get("client_address"),
    )


def _texts(question: Mapping[str, Any], key: str) -> Iterable[str]:
    value = question.get(key, ())
    if isinstance(value, str) or not all(type(item) is str for item in value):
        raise QuestionError(f"`{key}` is a list of texts")
    return value  # type: ignore[no-any-return]


def _user(question: Mapping[str, Any]) -> User | None:
    """What the dict says counts as signed and, unless it says otherwise, verified."""
    if "user" not in question and "region" not in question:
        return None
    fields = question.get("user") or {}
    if not isinstance(fields, Mapping):
        raise QuestionError("`user` is a mapping such as {'age_verified': False}")
    region = fields.get("region", question.get("region"))
    low: int | None = None
    high: int | None = None
    for key, value in fields.items():
        if key == "age_verified" or key.startswith("age_over_"):
            if type(value) is not bool:
                raise QuestionError(f"`user.{key}` is true or false")
            bound = 18 if key == "age_verified" else _number(key, key.removeprefix("age_over_"))
            if value:
                low = bound if low is None else max(low, bound)
            elif key != "age_verified":  # not verified says nothing about the age
                high = bound - 1 if high is None else min(high, bound - 1)
        elif key in {"age", "age_at_least", "age_at_most"}:
            number = _number(key, value)
            low = number if key != "age_at_most" and (low is None or number > low) else low
            high = number if key != "age_at_least" and (high is None or number < high) else high
        elif key not in _USER_FIELDS:
            raise QuestionError(f"unknown key `user.{key}`; known: {', '.join(_USER_FIELDS)}, age_over_NN")
    assurance = Assurance.VERIFIED
    if "assurance" in fields:
        try:
            assurance = Assurance[str(fields["assurance"]).upper()]
        except KeyError:
            raise QuestionError(
                f"`user.assurance` is one of {', '.join(a.name.lower() for a in Assurance)}"
            ) from None
    if fields.get("token") not in {None, "invalid"}:
        raise QuestionError("`user.token` may only be 'invalid'")
    return User(low, high, assurance, region, None, fields.get("token") == "invalid")


def _number(key: str, value: object) -> int:
    try:
        if type(value) is bool:
            raise ValueError(value)
        return int(value)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        raise QuestionError(f"`user.{key}` needs a whole number of years") from None


# a resource and an action stand for all their requests


def _own_words(
    engine: Engine,
    question: Mapping[str, Any],
    client: Client,
    user: User | None,
    now: float,
    restricted: bool,
) -> Iterator[Request]:
    tables = engine.tables
    resource_name, action_name = question.get("resource"), question.get("action")
    methods, paths, query = None, None, None
    if action_name is not None:
        methods, paths, about = _named(tables.actions, "action", action_name)
        resource_name = resource_name or about
    if resource_name is None:
        raise QuestionError(f"action {action_name!r} names no resource; say which one")
    to, resource_paths, query = _named(tables.resources, "resource", resource_name)
    templates = [parse_template(text) for text in paths or resource_paths or ["/**"]]
    for target in map(parse_target, to):
        for port in dict.fromkeys(target.ports or (443,)):
            for host in _hosts(engine, target):
                probe = Request(client, host, port, "http" if port == 80 else "tls")
                plan = engine.plan(probe, now, restricted=restricted)
                known = [*plan.allows, *plan.denies, *plan.gates, *(s for s, _ in plan.limits)]
                for path in _paths(templates, [t for s in known for t in s.cond.templates or ()]):
                    for method in methods or _METHODS:
                        yield probe._replace(method=method, target=path + _query(query), user=user)


def _named(known: Mapping[str, Any], kind: str, name: object) -> tuple[Any, Any, Any]:
    if name not in known:
        close = difflib.get_close_matches(str(name), list(known), 1)
        raise QuestionError(
            f"there is no {kind} {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
    first, second, third = known[str(name)]
    return first, second, third


def _hosts(engine: Engine, target: Target) -> Iterator[str]:
    """A host that nobody names, and every host that some statement does."""
    if target.kind is HostKind.EXACT:
        yield target.host
        return
    if target.kind is HostKind.NETWORK:
        yield target.host.partition("/")[0]
        return
    yield f"{_FRESH}.{target.host}"
    yield f"{_FRESH}.{_FRESH}.{target.host}"
    if target.kind is HostKind.TREE:
        yield target.host
    for table in (engine.tables.rules, engine.tables.gates):
        for index, prefix in ((table.exact, ""), (table.below, f"{_FRESH}.")):
            yield from islice(
                (prefix + host for host in index if host.endswith("." + target.host)), MAX_WITNESSES
            )


def _paths(mine: Iterable[Template], others: Iterable[Template]) -> Iterator[str]:
    others = list(dict.fromkeys(others))
    longest = max((len(t.segments) for t in others), default=0)
    for template in mine:
        size = len(template.segments)
        found = dict.fromkeys(
            _instance(template, n)
            for n in (range(size, max(size, longest) + 2) if template.open else (size,))
        )
        for other in others:
            for length in range(max(size, len(other.segments)), max(size, len(other.segments)) + 2):
                if (both := _meet(template, other, length)) is not None:
                    found[both] = None
        yield from found


def _instance(template: Template, length: int) -> str:
    segments = [s if s is not None else _FRESH for s in template.segments] + [_FRESH] * (
        length - len(template.segments)
    )
    return "/" + "/".join(quote(s, safe="!$&'()*+,=:@") for s in segments)


def _meet(one: Template, two: Template, length: int) -> str | None:
    """A path that both templates match, or None."""
    for template in (one, two):
        if length < len(template.segments) or (length > len(template.segments) and not template.open):
            return None
    segments: list[str | None] = []
    for place in range(length):
        a = one.segments[place] if place < len(one.segments) else None
        b = two.segments[place] if place < len(two.segments) else None
        if a is not None and b is not None and a.casefold() != b.casefold():
            return None
        segments.append(a if a is not None else b)
    return _instance(Template(tuple(segments), False), length)


def _query(query: Mapping[str, Any] | None) -> str:
    if not query:
        return ""
    return "?" + "&".join(
        f"{quote(k, safe='')}={quote(_FRESH if '*' in v else v[0], safe='')}" for k, v in query.items()
    )
