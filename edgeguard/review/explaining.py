"""`policy explain`: why a request is decided as it is; asked on the command line, or taken from the decision log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeguard.policy.diff.values import describe_client, describe_target, describe_user, stamp
from edgeguard.policy.engine import Engine
from edgeguard.policy.names import split_authority
from edgeguard.policy.replay import find, recorded
from edgeguard.policy.request import Assurance, Client, Protocol, Request, User
from edgeguard.policy.tables import Tables
from edgeguard.policy.trace import Step
from edgeguard.review.reading import InputError, read_log, read_sections


@dataclass(frozen=True, slots=True)
class Question:
    """What `explain` is asked: a URL, or host[:port] for a connection of which nothing else is known."""

    destination: str
    client: str | None = None
    unknown: bool = False
    groups: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    method: str = "GET"
    age: int | None = None
    region: str | None = None
    restricted: bool = False

    def request(self) -> Request:
        """The engine's question. Raises ValueError (`HostError`)."""
        client = Client(self.client, not self.unknown, frozenset(self.groups), frozenset(self.claims))
        if "://" not in self.destination:
            host, port = split_authority(self.destination, 443)
            return Request(client, host, port, "http" if port == 80 else "tls")
        parts = urlsplit(self.destination)
        schemes: Mapping[str, tuple[Protocol, int]] = {
            "https": ("tls", 443),
            "http": ("http", 80),
            "wss": ("websocket", 443),
            "ws": ("websocket", 80),
        }
        if parts.scheme not in schemes:
            raise ValueError(f"the scheme {parts.scheme!r} is none of https, http, wss, ws")
        protocol, default = schemes[parts.scheme]
        host, port = split_authority(parts.netloc, default)
        user = None
        if self.age is not None or self.region is not None:
            user = User(self.age, self.age, Assurance.VERIFIED if self.age is not None else None, self.region)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Request(client, host, port, protocol, self.method, target, user)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why, in plain values."""

    subject: str
    allow: bool
    reason: str | None
    rule: str | None
    near: str | None
    lane: str
    lane_because: str
    would: tuple[tuple[str, str], ...]
    readings: tuple[str, ...]
    steps: tuple[Step, ...]
    recorded: str | None = None
    """What the log says that was decided, for a decision that was taken from it."""
    missing: tuple[str, ...] = ()
    """What the log does not hold."""

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["steps"] = [step._asdict() for step in self.steps]
        return data


def explain_folder(folder: Path, question: Question, now: float) -> Explanation:
    """Explains one decision of a policy (folder or bundle file). Raises `PolicyErrors`, ValueError and OSError."""
    request = question.request()
    who = "an unknown client" if question.unknown else question.client or "an identified client"
    what = f"{request.method} {request.target} at " if request.method else ""
    subject = f"{who} → {what}{request.host}:{request.port} ({request.protocol})"
    return _explain(_engine(folder), request, now, restricted=question.restricted, subject=subject)


def explain_recorded(folder: Path, log: Path, ident: str, at: float | None = None) -> Explanation:
    """Explains a logged decision on the same facts, by a policy that need not be the one that made it.

    Args:
        folder: Policy folder or bundle file.
        log: Decision log, JSON lines.
        ident: Id of the decision, as the client saw it.
        at: Unix seconds; None: the time of the decision.

    Raises `PolicyErrors`, `InputError` (no such decision, or a malformed one) and OSError.
    """
    line = find(read_log(log), ident)
    if line is None:
        raise InputError(f"{log}: has no decision {ident!r}")
    try:
        was = recorded(line)
    except ValueError as error:
        raise InputError(f"{log}: decision {ident!r}: {error}") from None
    request, missing = was.request, []
    if was.path_omitted:
        missing.append("the path: explained as far as the connection goes")
    if was.query_keys:
        missing.append(f"values in the query of {', '.join(was.query_keys)}")
    if request.user is not None and request.user.age_at_least is not None:
        missing.append("the exact age: the lower bound of its band is taken")
    subject = f"{describe_client(request.client)} → {describe_target(request)}"
    if request.user is not None:
        subject += f" for {describe_user(request.user)}"
    verdict = "allowed" if was.allow else f"refused: {was.reason}"
    told = f"{verdict}" + (f" by {was.rule}" if was.rule else "") + f" at {stamp(was.time)}"
    return _explain(
        _engine(folder),
        request,
        was.time if at is None else at,
        restricted=was.restricted,
        subject=subject,
        told=told,
        missing=tuple(missing),
    )


def _engine(place: Path) -> Engine:
    return Engine(Tables.load(read_sections(place)))


def _explain(
    engine: Engine,
    request: Request,
    now: float,
    *,
    restricted: bool,
    subject: str,
    told: str | None = None,
    missing: tuple[str, ...] = (),
) -> Explanation:
    traced = engine.explain(request, now, restricted=restricted)
    decision = traced.decision
    return Explanation(
        subject,
        decision.allow,
        None if decision.reason is None else decision.reason.value,
        decision.rule,
        decision.near,
        decision.lane.value,
        traced.lane_because,
        decision.would,
        traced.readings,
        traced.steps,
        told,
        missing,
    )
