"""The policy language as authors write it: strict models, one class per kind of statement.

A field's type says what may be written; its description is what the reference and the editor show. Nothing here
knows where the text came from (`source.py`) or what becomes of it (`compile.py`).
"""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgeguard.policy.fields import (
    ClientName,
    Clients,
    HttpsUrl,
    Id,
    Method,
    Mode,
    Moment,
    NetworkText,
    PathText,
    Percent,
    Prose,
    Protocols,
    Region,
    Some,
    Strict,
    TargetText,
    Values,
    Word,
    one_or_many,
    parse_rate,
)
from edgeguard.policy.targets import HostKind, Target, parse_target

MAX_EXCEPTION_S: Final = 30 * 86400
ASSURANCES: Final = ("self_declared", "guardian_declared", "estimated", "inferred", "verified")


class When(Strict):
    """Conditions on flags and on the hour; all of them have to hold. Hours and days are UTC."""

    flags: dict[Word, bool] = Field(
        default_factory=dict, description="Flag states that travel in the bundle."
    )
    days: Some[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] | None = None
    hours: (
        Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$")] | None
    ) = Field(
        None,
        description="`09:00-17:30`: from the first minute, up to but not including the last; may pass midnight.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> "When":
        if not self.flags and self.days is None and self.hours is None:
            raise ValueError("`when` needs flags, days or hours")
        return self


class Where(Strict):
    """What a request must look like. Fields are joined by AND, the entries of one field by OR."""

    clients: Clients | None = Field(
        None, description="Names, `group:NAME`, or `any` to include unknown clients."
    )
    to: Some[TargetText] | None = Field(
        None, description="host[:port], *.host, **.host, CIDR; several are alternatives."
    )
    resource: Word | None = Field(
        None, description="A named resource, in place of `to`, `paths` and `query`."
    )
    action: Word | None = Field(None, description="A named action, in place of `methods`.")
    protocol: Protocols | None = Field(None, description="tls, http, tcp, websocket; one or several.")
    methods: Some[Method] | None = None
    paths: Some[PathText] | None = None
    query: dict[str, Values] | None = Field(None, description="Keys and the values they may have.")

    @property
    def targets(self) -> tuple[Target, ...] | None:
        return None if self.to is None else tuple(parse_target(text) for text in self.to)


class Timed(Strict):
    """When a statement holds, and how."""

    mode: Mode | None = Field(
        None, description="enforce (default), or report: judged and logged, never felt."
    )
    enforce_percent: Percent | None = Field(
        None, description="Share of clients for whom it is enforced; report for the rest."
    )
    expires: Moment | None = Field(
        None, description="From this moment on the statement is as if it were absent."
    )
    valid_from: Moment | None = None
    when: When | None = None
    owner: Prose | None = None
    rationale: Prose | None = None
    legal_ref: Prose | None = None
    description: Prose | None = None
    ticket: Prose | None = None

    @model_validator(mode="after")
    def _times(self) -> "Timed":
        if self.mode is not None and self.enforce_percent is not None:
            raise ValueError("`mode` and `enforce_percent` exclude each other")
        if self.valid_from is not None and self.expires is not None and self.expires <= self.valid_from:
            raise ValueError("`expires` is not after `valid_from`")
        return self


class Rule(Where, Timed):
    """An allow or a deny."""

    id: Id
    effect: Literal["allow", "deny"]
    claims: Some[Word] | None = Field(
        None, description="Claims of the client's token, all of which it must carry."
    )
    survive_offline: bool = Field(
        False, description="allow: still holds when the policy can no longer be proved current."
    )
    tls: Literal["passthrough", "inspect"] | None = Field(
        None, description="Overrides the lane that the policy implies."
    )
    resolves_to: Some[NetworkText] | None = Field(
        None, description="allow: special-purpose networks that the name may resolve to."
    )

    @model_validator(mode="after")
    def _shape(self) -> "Rule":
        if self.effect == "allow":
            if self.to is None and self.resource is None and self.action is None:
                raise ValueError("an allow needs `to` or `resource`: nothing is allowed everywhere")
            for target in self.targets or ():
                if (
                    target.kind in {HostKind.BELOW, HostKind.TREE}
                    and "." not in target.host
                    and target.host != "localhost"
                ):
                    raise ValueError(
                        f"`{target}` would allow a whole top-level domain; name at least two labels"
                    )
        else:
            for name in ("survive_offline", "resolves_to"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` belongs to an allow")
            if self.tls == "passthrough":
                raise ValueError("`tls: passthrough` belongs to an allow")
        if (
            self.protocol is not None
            and "tcp" in self.protocol
            and self.effect == "allow"
            and (self.methods or self.paths or self.query)
        ):
            raise ValueError("bytes of `protocol: tcp` have no method, path or query")
        if self.tls == "passthrough" and (self.methods or self.paths or self.query or self.action):
            raise ValueError("`tls: passthrough` hides method, path and query, so the rule cannot name them")
        return self


class LimitMatch(Where):
    """What a rate limit counts."""

    rules: Some[Id] | None = Field(None, description="Only requests that these allows match.")


class RateLimit(Timed):
    """How many, per whom."""

    id: Id
    match: LimitMatch = Field(default_factory=lambda: LimitMatch.model_validate({}))
    limit: str | int = Field(
        description="`100/s`, `5000/10m`, `1GB/h`; a bare number for concurrent_tunnels."
    )
    burst: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many at once; the limit itself if omitted."
    )
    unit: Literal["requests", "tunnels", "concurrent_tunnels", "bytes"]
    key: Some[Literal["client", "client_ip", "rule", "method", "domain"]] = Field(
        ("client",), description="Whose quota. `domain` is the registrable domain of the destination."
    )
    scope: Literal["process", "host", "fleet"] = Field(
        "process",
        description="Who shares the counter: one process, the processes of a host, the nodes of a fleet.",
    )
    accuracy: Literal["lease", "exact"] = Field(
        "lease",
        description="Scope fleet: `lease` takes quota from the store in small parts ahead of time; `exact` asks for every request.",
    )
    on_store_error: Literal["local_share", "local_full", "deny", "allow"] = Field(
        "local_share",
        description="Scopes host and fleet: what holds while the shared counter cannot be reached. `local_share`: the limit divided by the known peers.",
    )

    @model_validator(mode="after")
    def _shape(self) -> "RateLimit":
        self.rate()
        if self.unit != "requests":
            match = self.match
            if match.methods or match.paths or match.query or match.action or "method" in self.key:
                raise ValueError(
                    f"`unit: {self.unit}` counts connections, which have no method, path or query"
                )
        if any(t.kind is HostKind.NETWORK for t in self.match.targets or ()):
            raise ValueError("a limit names hosts, not networks")
        if self.accuracy == "exact" and self.scope != "fleet":
            raise ValueError("`accuracy` belongs to `scope: fleet`; the other scopes are exact")
        if self.on_store_error != "local_share" and self.scope == "process":
            raise ValueError("`on_store_error` belongs to the scopes host and fleet")
        return self

    def shared(self) -> tuple[bool, str] | tuple[()]:
        """How the shared counter is used, where that is not the usual: (exact, on_store_error)."""
        exact = self.accuracy == "exact"
        return (exact, self.on_store_error) if exact or self.on_store_error != "local_share" else ()

    def rate(self) -> tuple[int, int]:
        """(quota, period in ns). Raises ValueError."""
        if self.unit == "concurrent_tunnels":
            if not isinstance(self.limit, int) or self.limit < 1:
                raise ValueError("`limit` of concurrent_tunnels is a number of tunnels, at least 1")
            return self.limit, 0
        return parse_rate(str(self.limit), is_bytes=self.unit == "bytes")


class Resource(Strict):
    """A name for what requests touch."""

    to: Some[TargetText]
    paths: Some[PathText] | None = None
    query: dict[str, Values] | None = None


class Action(Strict):
    """A name for what requests do; may name the resource it is about."""

    methods: Some[Method] | None = None
    paths: Some[PathText] | None = None
    resource: Word | None = None


class AgeRequirement(Strict):
    """What the person behind the request must prove."""

    age: Annotated[int, Field(ge=1, le=120)]
    assurance: Literal["self_declared", "guardian_declared", "estimated", "inferred", "verified"] | None = (
        None
    )


class AgeGate(Timed):
    """A condition of age on what the allows grant."""

    id: Id
    match: Where
    regions: Some[Region] | None = Field(None, description="ISO 3166 codes or groups; omitted: everywhere.")
    require: AgeRequirement
    valid_until: Moment | None = Field(None, description="Another word for `expires`.")
    legal_demand: bool = Field(False, description="Refusals say 451 (RFC 7725).")

    @model_validator(mode="after")
    def _one_end(self) -> "AgeGate":
        if self.valid_until is not None and self.expires is not None:
            raise ValueError("`valid_until` and `expires` are the same thing; write one")
        return self


class Exception_(Strict):  # noqa: N801 - the language calls it an exception
    """A lift of one deny or limit, for a while, for a narrower set of requests."""

    id: Id
    lifts: Id
    clients: Clients | None = None
    to: Some[TargetText] | None = None
    methods: Some[Method] | None = None
    paths: Some[PathText] | None = None
    query: dict[str, Values] | None = None
    owner: Prose
    reason: Prose
    ticket: Prose
    granted: Moment = Field(description="From when on it holds.")
    expires: Moment = Field(description="At most 30 days after `granted`.")

    @model_validator(mode="after")
    def _narrow_and_short(self) -> "Exception_":
        if not 0 < self.expires - self.granted <= MAX_EXCEPTION_S:
            raise ValueError("`expires` must come after `granted`, by at most 30 days")
        if not (self.clients or self.to or self.methods or self.paths or self.query):
            raise ValueError(
                "an exception is narrower than its rule: name clients, to, methods, paths or query"
            )
        return self


class Learning(Strict):
    """Learning a network: what no allow matches is let through and logged as would_deny."""

    id: Id
    clients: Some[ClientName]
    unmatched: Literal["report"]
    expires: Moment
    owner: Prose | None = None
    rationale: Prose | None = None


class Quarantine(Strict):
    """Cuts clients off from everything but a fixed list."""

    id: Id
    clients: Clients
    except_: Some[TargetText] | None = Field(None, alias="except")
    expires: Moment | None = None
    owner: Prose | None = None
    rationale: Prose | None = None
    ticket: Prose | None = None


class Issuer(Strict):
    """Whose user tokens are believed, and how they are read."""

    issuer: str = Field(min_length=1, description="The `iss` claim, exactly.")
    audience: Annotated[Some[str], BeforeValidator(one_or_many)] = Field(description="Accepted `aud` values.")
    algorithms: Some[Literal["ES256", "ES384", "EdDSA", "Ed25519", "RS256", "PS256"]] = ("ES256",)
    keys: Annotated[tuple[dict[str, str | list[str]], ...], Field(max_length=64)] = Field(
        (), description="Public keys as JWKs. Give these, `jwks_file` or `jwks_url`."
    )
    jwks_file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = Field(
        None, description="Name of a JWKS file in the node's `user.jwks_dir`."
    )
    jwks_url: HttpsUrl | None = Field(
        None, description="Where a node fetches the keys; a rule has to allow it for the client `edgeguard`."
    )
    max_lifetime_s: Annotated[int, Field(ge=1, le=86400)] = 3600
    leeway_s: Annotated[int, Field(ge=0, le=300)] = 30
    typ: str | None = Field("JWT", description="The `typ` that a token must have; null: none, or `JWT`.")
    nbf: Literal["required", "optional"] = Field(
        "required", description="Whether `nbf` must be there. Where it is optional, `iat` counts instead."
    )
    assurance: Literal["self_declared", "guardian_declared", "estimated", "inferred", "verified"] | None = (
        None
    )
    age_verified_means: Annotated[int, Field(ge=1, le=120)] = 18

    @model_validator(mode="after")
    def _public(self) -> "Issuer":
        if any({"d", "k", "p", "q"} & key.keys() for key in self.keys):
            raise ValueError("`keys` holds public keys only; this one has private parts")
        if bool(self.keys) + (self.jwks_file is not None) + (self.jwks_url is not None) != 1:
            raise ValueError("give exactly one of `keys`, `jwks_file` and `jwks_url`")
        return self


class Module(Strict):
    """One YAML file."""

    edgeguard: Literal[1] = Field(description="Version of the language.")
    module: Id
    owner: Prose
    description: Prose | None = None
    mode: Mode | None = Field(None, description="Default for the statements of this module.")
    salt: str | None = Field(None, max_length=64, description="Salt of enforce_percent; one per bundle.")
    rules: tuple[Rule, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    age_gates: tuple[AgeGate, ...] = ()
    exceptions: tuple[Exception_, ...] = ()
    learning: tuple[Learning, ...] = ()
    quarantine: tuple[Quarantine, ...] = ()
    resources: dict[Word, Resource] = Field(default_factory=dict)
    actions: dict[Word, Action] = Field(default_factory=dict)
    flags: dict[Word, bool] = Field(default_factory=dict)
    client_groups: dict[Word, Some[ClientName]] = Field(default_factory=dict)
    regions: dict[Word, Some[Region]] = Field(
        default_factory=dict, description="Groups of regions; EU and EEA are known."
    )
    issuers: tuple[Issuer, ...] = ()


class Policy(Strict):
    """All modules of one policy, ordered by name."""

    modules: tuple[Module, ...]


__all__ = [
    "ASSURANCES",
    "Moment",
    "Strict",
    "When",
    "Where",
    "Timed",
    "Rule",
    "LimitMatch",
    "RateLimit",
    "Resource",
    "Action",
    "AgeRequirement",
    "AgeGate",
    "Exception_",
    "Learning",
    "Quarantine",
    "Issuer",
    "Module",
    "Policy",
    "parse_rate",
]
