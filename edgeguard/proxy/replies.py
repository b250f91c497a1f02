"""How a refusal reads on the wire: status, headers, and a body for programs or for people.

Pure: a verdict in, bytes out. Problem details are RFC 9457; `Proxy-Status` is RFC 9209, which lets
a client tell our answer from the origin's; `RateLimit` and `RateLimit-Policy` are the lists of
named items of draft-ietf-httpapi-ratelimit-headers-10; 451 is RFC 7725. A reply names the reason,
the rule, the decision and the bundle, and nothing else of the policy.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from edgeguard.policy.decision import Required
from edgeguard.policy.reasons import Reason
from edgeguard.proxy.page import Links, Refusal, page

_NS: Final = 1_000_000_000
_PROBLEMS: Final = "https://iana.org/assignments/http-problem-types"


class Form(NamedTuple):
    """What one reason looks like."""

    status: int
    error: str
    """Proxy error type of RFC 9209, 2.3."""
    text: str
    """One sentence for a person, without policy detail. `{target}` is host:port."""


NOWHERE: Final = Links()
UNNAMED: Final = "urn:edgeguard:unnamed"
"""Stands for who blocks where the configuration names nobody: RFC 7725 asks for the link all the same."""
_DENIED: Final = "http_request_denied"
FORMS: Final[Mapping[Reason, Form]] = MappingProxyType({
    Reason.MALFORMED_REQUEST: Form(400, "http_request_error", "The request is malformed or ambiguous, so it was not judged."),
    Reason.MISDIRECTED_REQUEST: Form(421, _DENIED, "The request names another destination than the connection that carries it."),
    Reason.QUARANTINED: Form(503, _DENIED, "This proxy is under quarantine: a signed order refuses all but essential destinations."),
    Reason.POLICY_MISSING: Form(503, "proxy_configuration_error", "This proxy has no verified policy yet, so it refuses everything."),
    Reason.POLICY_EXPIRED: Form(503, "proxy_configuration_error", "The policy in force has expired, so everything is refused."),
    Reason.POLICY_REVOKED: Form(503, "proxy_configuration_error", "The policy in force was revoked, so everything is refused."),
    Reason.POLICY_RESTRICTED: Form(503, "proxy_configuration_error", "The policy can no longer be proved current, so only essential destinations are allowed."),
    Reason.CLIENT_UNKNOWN: Form(403, _DENIED, "The policy admits identified clients only, and this client is not known."),
    Reason.DENIED_BY_RULE: Form(403, _DENIED, "A rule of the policy denies requests to {target}."),
    Reason.HOST_NOT_ALLOWED: Form(403, _DENIED, "No rule of the policy allows {target}."),
    Reason.PORT_NOT_ALLOWED: Form(403, _DENIED, "The policy allows this host, but not on the port of {target}."),
    Reason.CLIENT_NOT_ALLOWED: Form(403, _DENIED, "The policy allows {target}, but not for this client."),
    Reason.CLAIM_MISSING: Form(403, _DENIED, "The policy allows {target} only with a claim that this client's token lacks."),
    Reason.PROTOCOL_NOT_ALLOWED: Form(403, _DENIED, "The policy does not allow this protocol for {target}."),
    Reason.OPAQUE_TUNNEL: Form(403, _DENIED, "The tunnel to {target} does not carry TLS, and no rule allows that."),
    Reason.METHOD_NOT_ALLOWED: Form(403, _DENIED, "The policy allows {target}, but not with this method."),
    Reason.PATH_NOT_ALLOWED: Form(403, _DENIED, "The policy allows {target}, but not this path."),
    Reason.ADDRESS_NOT_ALLOWED: Form(403, "destination_ip_prohibited", "The addresses behind {target} may not be reached."),
    Reason.AGE_TOKEN_INVALID: Form(403, _DENIED, "The age token was presented, but it is not valid."),
    Reason.AGE_VERIFICATION_REQUIRED: Form(403, _DENIED, "This content needs a verified age."),
    Reason.AGE_BELOW_MINIMUM: Form(403, _DENIED, "This content needs a higher age than the one shown."),
    Reason.RATE_LIMITED: Form(429, _DENIED, "A rate limit of the policy is used up. Try again later."),
    Reason.CAPACITY_EXCEEDED: Form(503, "connection_limit_reached", "This proxy takes no more work at the moment. Try again later."),
    Reason.REQUEST_TOO_LARGE: Form(413, _DENIED, "The request is larger than this proxy accepts."),
    Reason.UPSTREAM_UNREACHABLE: Form(502, "destination_unavailable", "No connection to {target} could be made, or it broke off."),
    Reason.UPSTREAM_UNTRUSTED: Form(502, "tls_certificate_error", "The certificate that {target} presented is not trusted."),
    Reason.INTERNAL_ERROR: Form(500, "proxy_internal_error", "The proxy failed to judge the request, so it was refused."),
})  # fmt: skip


class LimitView(Protocol):
    """What a reply needs of `limits.process.LimitState`."""

    @property
    def limit(self) -> str: ...
    @property
    def quota(self) -> int: ...
    @property
    def period_ns(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def reset_ns(self) -> int: ...
    @property
    def unit(self) -> str: ...


class FactsView(Protocol):
    """What a reply needs of `verdict.Facts`."""

    @property
    def method(self) -> str | None: ...


class VerdictView(Protocol):
    """What a reply needs of `verdict.Verdict`."""

    @property
    def id(self) -> str: ...
    @property
    def reason(self) -> Reason | None: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def required(self) -> Required | None: ...
    @property
    def retry_after_s(self) -> float | None: ...
    @property
    def limit_states(self) -> Sequence[LimitView]: ...
    @property
    def bundle_id(self) -> str | None: ...
    @property
    def facts(self) -> FactsView: ...


def render(
    verdict: VerdictView,
    *,
    accept: str = "",
    http_version: str = "1.1",
    links: Links = NOWHERE,
    challenge: str | None = None,
    status: int | None = None,
    close: bool = True,
) -> tuple[int, list[tuple[str, str]], bytes]:
    """A refusal as (status, headers, body).

    Args:
        verdict: The refusal. One without a reason reads as `internal_error`.
        accept: The request's `Accept` value; `text/html` in it gives a page instead of JSON.
        http_version: "1.0", "1.1" or "2"; HTTP/2 has no `Connection` field (RFC 9113, 8.2.2).
        links: Where the answer leads.
        challenge: Value of `Proxy-Authenticate`. With it an unknown client reads 407.
        status: Another status than the reason's own, such as 431 or 504.
        close: Whether an HTTP/1 connection ends after this reply.
    """
    reason = verdict.reason or Reason.INTERNAL_ERROR
    form = FORMS[reason]
    code = status or form.status
    headers: list[tuple[str, str]] = []
    if reason is Reason.CLIENT_UNKNOWN and challenge:
        code = 407
        headers.append(("Proxy-Authenticate", challenge))
    elif verdict.required is not None and verdict.required.legal_demand:
        code = 451
        headers.append(("Link", f'<{links.blocked_by or links.help or UNNAMED}>; rel="blocked-by"'))
    text = form.text.format(target=_target(verdict))
    if wants_html(accept):
        kind, body = "text/html; charset=utf-8", _page(verdict, reason, code, text, links)
        headers.append(("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"))
    else:
        kind, body = "application/problem+json", _problem(verdict, reason, code, text, links)
    headers[:0] = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    headers += [
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
        ("X-Content-Type-Options", "nosniff"),
        ("edgeguard-reason", reason.value),
        ("edgeguard-decision", verdict.id),
        ("Proxy-Status", f'edgeguard; error={form.error}; details="{reason.value}"'),
    ]
    retry = _retry_after(verdict, reason)
    if retry is not None:
        headers.append(("Retry-After", str(retry)))
    headers += limit_headers(verdict.limit_states)
    if close and http_version.startswith("1"):
        headers.append(("Connection", "close"))
    return code, headers, b"" if verdict.facts.method == "HEAD" else body


def limit_headers(states: Sequence[LimitView]) -> list[tuple[str, str]]:
    """`RateLimit-Policy` and `RateLimit`, to be *added* to whatever the origin says.

    Each is a List of its own items under our own names, so that appending never changes an
    item of the origin's. Empty without states.
    """
    if not states:
        return []
    policies, limits = [], []
    for state in states:
        name = _quoted(f"edgeguard-{state.limit}")
        # The window is whole seconds; a period that is not cannot be said, and `w` is optional.
        window = f";w={state.period_ns // _NS}" if state.period_ns and state.period_ns % _NS == 0 else ""
        policies.append(f"{name};q={state.quota}{_UNITS.get(state.unit, '')}{window}")
        limits.append(f"{name};r={max(0, state.remaining)};t={_ceil_s(state.reset_ns)}")
    return [("RateLimit-Policy", ", ".join(policies)), ("RateLimit", ", ".join(limits))]


_UNITS: Final = {"bytes": ';qu="content-bytes"', "concurrent_tunnels": ';qu="concurrent-requests"'}
"""Quota units of the draft other than requests, which need not be said. A tunnel is a CONNECT request."""


def wants_html(accept: str) -> bool:
    """Whether the client names `text/html` with a weight above zero. Wildcards do not count."""
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind in {"text/html", "application/xhtml+xml"}:
            return not any(p.startswith("q=0") and not p.strip("q=0.") for p in parameters)
    return False


def _retry_after(verdict: VerdictView, reason: Reason) -> int | None:
    """Whole seconds, never early. Spread by up to a tenth so that refused clients do not return as one."""
    wait = verdict.retry_after_s
    if wait is None:
        return 1 if reason is Reason.CAPACITY_EXCEEDED else None
    spread = (zlib.crc32(verdict.id.encode()) % 1000) / 10_000
    # `t` of the refusing limit never lies after Retry-After, which wins where both stand.
    return max(1, _ceil_s(int(wait * (1 + spread) * _NS)))


def _problem(verdict: VerdictView, reason: Reason, code: int, text: str, links: Links) -> bytes:
    """The problem+json document. `about:blank` says that the title is the status phrase (RFC 9457, 4.2.1)."""
    kind = f"{links.help}#{reason.value}" if links.help else "about:blank"
    if reason is Reason.RATE_LIMITED:
        kind = f"{_PROBLEMS}#quota-exceeded"
    elif reason is Reason.CAPACITY_EXCEEDED:
        kind = f"{_PROBLEMS}#temporary-reduced-capacity"
    document: dict[str, object] = {
        "type": kind,
        "title": HTTPStatus(code).phrase,
        "status": code,
        "detail": text,
        "reason": reason.value,
        "decision": verdict.id,
        "rule": verdict.rule,
        "bundle": verdict.bundle_id,
    }
    if verdict.required is not None:
        required: dict[str, object] = {
            "gate": verdict.required.gate,
            "age": verdict.required.age,
            "assurance": verdict.required.assurance.name.lower() if verdict.required.assurance else None,
            "legal_ref": verdict.required.legal_ref,
        }
        if links.verify:
            required["verify"] = links.verify
        document["required"] = required
    if reason is Reason.RATE_LIMITED:
        spent = [s.limit for s in verdict.limit_states if s.remaining <= 0]
        if verdict.rule is not None and verdict.rule not in spent:
            spent.append(verdict.rule)  # of a rate-limited request the rule is the limit that refused
        document["violated-policies"] = [f"edgeguard-{limit}" for limit in spent]
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _page(verdict: VerdictView, reason: Reason, code: int, text: str, links: Links) -> bytes:
    phrase = HTTPStatus(code).phrase
    return page(Refusal(code, phrase, text, reason, verdict.id, verdict.rule, verdict.required), links)


def _target(verdict: VerdictView) -> str:
    """host:port for a sentence; text that is not a plain host is not repeated."""
    host = verdict.host
    if not host or len(host) > 255 or not host.isascii() or not host.isprintable():
        return "this destination"
    return f"[{host}]:{verdict.port}" if ":" in host else f"{host}:{verdict.port}"


def _quoted(text: str) -> str:
    """A structured-field String (RFC 9651, 4.1.6); what it cannot hold becomes `?`."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ceil_s(nanoseconds: int) -> int:
    return max(0, -(-nanoseconds // _NS))
