"""What goes round between adapters, guard and log: facts in, verdicts out, entries for the record.

Plain values. `guard.py` makes verdicts of facts; adapters act on them; the log's thread shapes entries into records.
"""

from collections.abc import Hashable, Sequence
from typing import Final, Literal, NamedTuple, Self

from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.lines import Own
from edgeguard.evidence.record import Record, age_band, split_target
from edgeguard.limits.taken import LimitState, Taken, Ticket
from edgeguard.policy.decision import Decision, Lane, Required
from edgeguard.policy.engine import Engine
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Client, Protocol, Request, User

_new = tuple.__new__
_ADDRESS: Final = Client._fields.index("address")
"""The last field, and the one that is not recorded."""
_EXPIRES: Final = User._fields.index("expires")
"""What comes before it is recorded."""


class Resolved(tuple[str, ...]):  # noqa: SLOT001 - a tuple cannot have slots
    """The addresses of a name that is an alias, and the names behind it: a deny of one of those counts, too."""

    aliases: tuple[str, ...]
    """Canonical names, in the order of the chain."""

    def __new__(cls, addresses: Sequence[str], aliases: tuple[str, ...]) -> Self:
        resolved = super().__new__(cls, addresses)
        resolved.aliases = aliases
        return resolved


class Facts(NamedTuple):
    """What an adapter saw, raw."""

    connection: str
    """Id of the client connection."""
    client: Client
    host: str
    port: int
    protocol: Protocol = "tls"
    names: tuple[str, ...] = ()
    """Every other name claimed for the same thing (SNI, Host values, `:authority`), with or without a port."""
    method: str | None = None
    target: str | None = None
    tokens: tuple[str, ...] = ()
    """Values of the user header."""
    overrides: tuple[str, ...] = ()
    """Values of method-override headers."""
    plain: tuple[tuple[str, str], ...] = ()
    """(lower-case name, value) of the header fields that may say who the person is, from whomever."""


class Verdict(NamedTuple):
    """One decision, with what it was made of."""

    id: str
    now: float
    """Unix seconds."""
    facts: Facts
    request: Request | None
    """The canonical question; None when the facts have no canonical form."""
    decision: Decision
    snapshot: Snapshot | None
    ladder: Ladder
    engine: Engine | None = None
    """What decided; None where no policy did (names, essentials, no policy)."""
    addresses: tuple[str, ...] = ()
    """What may be dialled, after `admit`; empty in a refusal."""
    resolved: tuple[str, ...] = ()
    """What `admit` was asked about: the evidence of an address that was refused."""
    taken: Taken | None = None
    """What the limits said, after `settle`."""
    ticket: Ticket | None = None
    """What was awaited for the limits, between `reserve` and `settle`."""
    aliases: tuple[str, ...] = ()
    """Canonical names that the host is an alias of, as far as the resolver saw them."""

    @property
    def allow(self) -> bool:
        return self.decision.allow

    @property
    def reason(self) -> Reason | None:
        return self.decision.reason

    @property
    def rule(self) -> str | None:
        return self.decision.rule

    @property
    def near(self) -> str | None:
        return self.decision.near

    @property
    def would(self) -> tuple[tuple[str, str], ...]:
        return self.decision.would

    @property
    def lane(self) -> Lane:
        return self.decision.lane

    @property
    def required(self) -> Required | None:
        return self.decision.required

    @property
    def until(self) -> float | None:
        return self.decision.until

    @property
    def host(self) -> str:
        return self.facts.host if self.request is None else self.request.host

    @property
    def port(self) -> int:
        return self.facts.port

    @property
    def bundle_id(self) -> str | None:
        return None if self.snapshot is None else self.snapshot.bundle_id

    @property
    def policy_hash(self) -> str | None:
        return None if self.snapshot is None else self.snapshot.policy_hash

    @property
    def staleness_s(self) -> float:
        """Seconds since the head expired; 0 while it is fresh or when there is none."""
        return 0.0 if self.snapshot is None else max(0.0, self.now - self.snapshot.stale_at)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the limit that refused has room again."""
        if self.taken is None or self.taken.allowed:
            return None
        return self.taken.retry_after_ns / 1e9

    @property
    def limit_states(self) -> tuple[LimitState, ...]:
        return () if self.taken is None else self.taken.states


class Entry(NamedTuple):
    """What is offered to the decision log: cheap to make, shaped into a record in the log's own thread."""

    verdict: Verdict
    sent: int | None = None
    received: int | None = None
    why: str | None = None
    ended: float | None = None
    """Unix seconds of the end."""

    def __call__(self) -> Record:
        return record_of(self)

    def parts(self) -> tuple[Hashable, Own]:
        """For the log (`evidence/lines.py`): all that `record_of` reads, parted by what comes again."""
        verdict, sent, received, why, ended = self
        ident, now, facts, request, decision, snapshot, ladder, _, addresses, resolved, taken, _, _ = verdict
        connection, client, host, port, protocol, names, method, target, tokens, overrides, _ = facts
        stale = 0.0
        bundle: tuple[object, ...] | None = None
        if snapshot is not None:
            if now > snapshot.stale_at:
                stale = now - snapshot.stale_at
            bundle = (snapshot.bundle_id, snapshot.policy_hash, snapshot.bundle_version)
        person = None
        if request is not None:
            host = request.host
            if request.user is not None:
                person = request.user[:_EXPIRES], request.user.invalid
        counted = None
        if taken is not None:
            counted = taken.limit, taken.would, () if why is not None else taken.near
        path, query_keys = (None, ()) if target is None else split_target(target)
        key = (
            *(why, decision, client[:_ADDRESS], host, port, protocol, names, method, overrides, bool(tokens)),
            *(person, addresses or resolved, bundle, ladder, counted),
        )
        own = (
            *(ident, now if ended is None else ended, connection, path, query_keys),
            *(stale, sent, received),
        )
        return key, _new(Own, own)


def record_of(entry: Entry) -> Record:
    """What the decision log writes of an entry; runs in the log's thread."""
    verdict, sent, received, why, ended = entry
    facts, request, decision, snapshot = verdict.facts, verdict.request, verdict.decision, verdict.snapshot
    client = facts.client
    kind: Literal["connect", "request", "close"]
    kind = "close" if why is not None else "connect" if facts.method is None else "request"
    path, query_keys = (None, ()) if facts.target is None else split_target(facts.target)
    user = None if request is None else request.user
    taken = verdict.taken
    would = decision.would
    if taken is not None and taken.would:
        would += tuple([("would_deny", limit) for limit in taken.would])
    # By position: naming so many fields would cost four times as much. The order is that of `Record`.
    return Record(
        verdict.id,
        verdict.now if ended is None else ended,
        kind,
        facts.connection,
        "allow" if decision.allow else "deny",
        decision.reason,
        decision.rule,
        decision.near,
        would,
        decision.lane,
        client.name,
        client.identified,
        tuple(sorted(client.groups)) if client.groups else (),
        tuple(sorted(client.claims)) if client.claims else (),
        facts.host if request is None else request.host,
        facts.port,
        facts.protocol,
        facts.names,
        facts.method,
        facts.overrides,
        path,
        query_keys,
        None if not facts.tokens else "invalid" if user is None or user.invalid else "valid",
        None if user is None else age_band(user),
        None if user is None else user.assurance,
        None if user is None else user.region,
        verdict.addresses or verdict.resolved,
        None if snapshot is None else snapshot.bundle_id,
        None if snapshot is None else snapshot.policy_hash,
        None if snapshot is None else snapshot.bundle_version,
        verdict.ladder,
        verdict.staleness_s,
        tuple([hit.limit for hit in decision.limits]) if decision.limits else (),
        None if taken is None else taken.limit,
        sent,
        received,
        why,
        None,
        () if taken is None or why is not None else taken.near,
    )
