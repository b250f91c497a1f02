"""Decisions of a log, decided again by another policy: which of them flip.

A line of schema `edgeguard.decision/1` holds the facts of its decision, except what must not be logged: values in the query, the exact
age, and the path where the configuration leaves paths out. What is missing is tried in every way that the policy can tell
apart; if the answers differ, the decision is undecided, and counted as such. Limits are not replayed: their state is not in the log.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from edgeguard.policy.addresses import parse_address
from edgeguard.policy.decision import Decision
from edgeguard.policy.diff.admits import admits
from edgeguard.policy.diff.inside import Inside, looks
from edgeguard.policy.diff.side import Side
from edgeguard.policy.diff.values import Example, Outcome
from edgeguard.policy.names import HostError, canonical_host, is_address
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, Client, Protocol, Request, User
from edgeguard.policy.tables import Statement

SCHEMA: Final = "edgeguard.decision/1"
AGES: Final = (13, 15, 16, 18, 21)
"""Bounds of the age bands in the log."""
_PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "tls": "tls",
    "http": "http",
    "tcp": "tcp",
    "websocket": "websocket",
}
NOT_THE_POLICY: Final = frozenset(
    {
        Reason.MALFORMED_REQUEST, Reason.MISDIRECTED_REQUEST, Reason.POLICY_MISSING, Reason.POLICY_EXPIRED, Reason.POLICY_REVOKED,
        Reason.CAPACITY_EXCEEDED, Reason.REQUEST_TOO_LARGE, Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_UNTRUSTED,
        Reason.INTERNAL_ERROR,
    }
)  # fmt: skip
"""Refusals that another policy would not change."""


class Unreadable(ValueError):  # noqa: N818 - what the tools print
    """A line that is not a decision of this schema. The message says why."""


class Recorded(NamedTuple):
    """One decision of the log."""

    id: str
    time: float
    request: Request
    """Without query values; without method and path where only the destination was known, or the path was left out."""
    method: str | None
    query_keys: tuple[str, ...]
    path_omitted: bool
    older: User | None
    """The same person at the upper end of the age band."""
    restricted: bool
    allow: bool
    reason: Reason | None
    rule: str | None
    limit: str | None
    addresses: tuple[str, ...]
    of_policy: bool
    """Whether a policy decided it at all."""
    cut: bool
    """A text was too long for the log."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A decision that goes the other way."""

    id: str
    line: int
    example: Example
    before: Outcome
    after: Outcome

    def __str__(self) -> str:
        now = "would be allowed" if self.after.allow else "would be refused"
        return f"{self.example} {now} ({self.after}; was {self.before})"


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of the decisions of a log."""

    decisions: int
    flips: tuple[Flip, ...]
    undecided: Mapping[str, int]
    """Number of decisions by what was missing."""
    skipped: int
    """Decisions that no policy made: there was none, or something else failed."""
    unreadable: tuple[str, ...]

    @property
    def newly_allowed(self) -> int:
        return sum(flip.after.allow for flip in self.flips)

    @property
    def newly_refused(self) -> int:
        return len(self.flips) - self.newly_allowed

    def as_dict(self) -> dict[str, Any]:
        return {
            "decisions": self.decisions,
            "newly_allowed": self.newly_allowed,
            "newly_refused": self.newly_refused,
            "undecided": dict(self.undecided),
            "skipped": self.skipped,
            "unreadable": list(self.unreadable),
            "flips": [
                {
                    "id": f.id,
                    "line": f.line,
                    "request": f.example.as_dict(),
                    "before": f.before._asdict(),
                    "after": f.after._asdict(),
                }
                for f in self.flips
            ],
        }


def is_decision(line: Mapping[str, Any]) -> bool:
    """Whether the line is a decision; ends of connections and events are not."""
    return line.get("kind") in {"connect", "request"}


def recorded(line: Mapping[str, Any]) -> Recorded:
    """The facts of one decoded line. Raises `Unreadable`."""
    if line.get("schema") != SCHEMA:
        raise Unreadable(f"schema {line.get('schema')!r} is not {SCHEMA!r}")
    try:
        return _recorded(line)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"a field is missing or malformed: {error}") from None


def _recorded(line: Mapping[str, Any]) -> Recorded:
    if line["verdict"] not in {"allow", "deny"} or type(line["host"]) is not str:
        raise ValueError("no verdict on a host")
    low, high, up_to = _band(line.get("age"))
    assurance = Assurance[line["assurance"].upper()] if "assurance" in line else None
    invalid = line.get("token") == "invalid"
    user = older = None
    if invalid or low is not None or high is not None or assurance is not None or "region" in line:
        user = User(low, high, assurance, line.get("region"), None, invalid)
        older = user._replace(age_at_least=up_to) if low is not None else user
    client = Client(
        line.get("client"),
        bool(line.get("identified", "client" in line)),
        frozenset(line.get("groups", ())),
        frozenset(line.get("claims", ())),
    )
    reason = Reason(line["reason"]) if "reason" in line else None
    ladder = line.get("ladder")
    try:
        host, canonical = canonical_host(line["host"]), True
    except HostError:
        host, canonical = line["host"], False
    whole = line["kind"] == "request"
    request = Request(
        client, host, int(line["port"]), _PROTOCOLS[line["protocol"]],
        line["method"] if whole and "path" in line else None, line.get("path") if whole else None, user,
        tuple(line.get("overrides", ())) if whole else (),
    )  # fmt: skip
    return Recorded(
        str(line["id"]),
        datetime.fromisoformat(line["time"]).timestamp(),
        request,
        line["method"] if whole else None,
        tuple(line.get("query_keys", ())),
        whole and "path" not in line,
        older,
        ladder == "restricted",
        line["verdict"] == "allow",
        reason,
        line.get("rule"),
        line.get("limit"),
        tuple(line.get("addresses", ())),
        canonical and reason not in NOT_THE_POLICY and ladder not in {"closed", "quarantined"},
        any(str(line.get(name, "")).endswith("…") for name in ("host", "path", "client")),
    )


def _band(text: str | None) -> tuple[int | None, int | None, int | None]:
    """(at least, at most, the age that `at least` may really be) of `13-14`, `0-17`, `18+`."""
    if text is None:
        return None, None, None
    low_text, _, high_text = text.removesuffix("+").partition("-")
    low = int(low_text)
    next_step = next((step for step in AGES if step > low), 121)
    return low or None, int(high_text) if high_text else None, next_step - 1


class Replayer:
    """Decides recorded decisions by a candidate policy (compiled sections)."""

    def __init__(self, sections: Mapping[str, object]) -> None:
        self._side = Side(sections, {})
        self._inside = Inside()

    def decide(self, was: Recorded, at: float) -> tuple[tuple[Request, Decision] | None, str]:
        """The request and its decision; or None, and what is missing from the log to tell."""
        engine, restricted = self._side.engine, was.restricted
        answers: dict[bool, tuple[Request, Decision]] = {}
        missing = ""
        for request, why in self._possible(was, at):
            decision = engine.decide(request, at, restricted=restricted)
            missing = missing or why
            answers.setdefault(decision.allow, (request, decision))
            if len(answers) == 2:
                return None, why or missing
        return next(iter(answers.values())), ""

    def _possible(self, was: Recorded, at: float) -> Iterator[tuple[Request, str]]:
        """Every request that the line can mean, with what had to be guessed."""
        request = was.request
        users = [request.user] if was.older == request.user else [request.user, was.older]
        if not was.path_omitted and not was.query_keys:
            for user in users:
                yield request._replace(user=user), "the exact age"
            return
        statements = self._statements(request)
        conds = [s.cond for s in statements] + [lift.cond for s in statements for lift in s.lifts]
        by_query = any(c.query is not None for c in conds)
        _, targets, _ = self._inside.requests(statements, malformed=any(looks(s) for s in statements))
        plain = "&".join(f"{quote(key, safe='')}=" for key in was.query_keys)
        for user in users:
            if was.path_omitted:
                for target in targets:
                    yield request._replace(method=was.method, target=target, user=user), "the path"
            elif not by_query:
                yield request._replace(target=f"{request.target}?{plain}", user=user), "the exact age"
            else:
                queries = {target.partition("?")[2] for target in targets} | {plain}
                for query in sorted(queries):
                    yield (
                        request._replace(target=f"{request.target}?{query}", user=user),
                        "values in the query",
                    )

    def _statements(self, request: Request) -> list[Statement]:
        literal = parse_address(request.host) if is_address(request.host) else None
        return [
            m.statement for m in self._side.meets(request.host, literal) if m.low <= request.port <= m.high
        ]

    def check(self, was: Recorded, at: float) -> tuple[Decision | None, str]:
        """As `decide`, with what the log says of addresses and limits."""
        found, why = self.decide(was, at)
        if found is None:
            return None, why
        request, decision = found
        if not decision.allow:
            return decision, ""
        if was.reason is Reason.ADDRESS_NOT_ALLOWED:
            return None, "the resolved addresses"
        if was.reason is Reason.RATE_LIMITED:
            if any(hit.limit == was.limit and hit.enforced for hit in decision.limits):
                return _refused(decision, Reason.RATE_LIMITED, was.limit), ""
            return None, "the state of the limits"
        if was.addresses and not is_address(request.host):
            left = [
                admits(self._side.engine, request, address, at, restricted=was.restricted)
                for address in was.addresses
            ]
            if not any(admission.addresses for admission in left):
                return _refused(decision, Reason.ADDRESS_NOT_ALLOWED, left[-1].rule), ""
        return decision, ""


def replay(
    lines: Iterable[tuple[int, Mapping[str, Any] | str]],
    sections: Mapping[str, object],
    at: float | None = None,
) -> Replay:
    """Replays a log.

    Args:
        lines: (number, decoded line, or what is wrong with it).
        sections: The candidate, compiled.
        at: Unix seconds at which everything is decided; None: each decision at its own time.
    """
    replayer = Replayer(sections)
    flips: list[Flip] = []
    undecided: dict[str, int] = {}
    unreadable: list[str] = []
    decisions = skipped = 0
    for number, line in lines:
        if isinstance(line, str):
            unreadable.append(f"line {number}: {line}")
            continue
        if not is_decision(line):
            continue
        try:
            was = recorded(line)
        except Unreadable as error:
            unreadable.append(f"line {number}: {error}")
            continue
        decisions += 1
        if not was.of_policy:
            skipped += 1
            continue
        moment = was.time if at is None else at
        decision, why = (
            (None, "texts that were too long for the log") if was.cut else replayer.check(was, moment)
        )
        if decision is None:
            undecided[why] = undecided.get(why, 0) + 1
        elif decision.allow is not was.allow:
            flips.append(_flip(was, number, moment, decision))
    return Replay(decisions, tuple(flips), dict(sorted(undecided.items())), skipped, tuple(unreadable))


def _flip(was: Recorded, line: int, at: float, decision: Decision) -> Flip:
    request = was.request
    if was.path_omitted:
        request = request._replace(method=was.method, target=None)
    reason = None if was.reason is None else was.reason.value
    before = Outcome(was.allow, reason, was.rule, "")
    after_reason = None if decision.reason is None else decision.reason.value
    after = Outcome(decision.allow, after_reason, decision.rule, decision.lane.value)
    return Flip(was.id, line, Example(request, at, was.restricted), before, after)


def _refused(decision: Decision, reason: Reason, rule: str | None) -> Decision:
    return decision._replace(allow=False, reason=reason, rule=rule)


def find(lines: Iterable[tuple[int, Mapping[str, Any] | str]], ident: str) -> Mapping[str, Any] | None:
    """The decision with this id; None if the log has none."""
    return next(
        (
            line
            for _, line in lines
            if not isinstance(line, str) and is_decision(line) and line.get("id") == ident
        ),
        None,
    )
