"""The closed set of reason codes.

The same word stands in the JSON body, the `edgeguard-reason` header, the decision log and
the metrics. The order of the members is the ladder of `docs/policy-reference.md`: when several
reasons apply to one request, the first one is given.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused. An allowed request has no reason (`None`)."""

    MALFORMED_REQUEST = "malformed_request"
    MISDIRECTED_REQUEST = "misdirected_request"
    QUARANTINED = "quarantined"
    POLICY_MISSING = "policy_missing"
    POLICY_EXPIRED = "policy_expired"
    POLICY_REVOKED = "policy_revoked"
    POLICY_RESTRICTED = "policy_restricted"
    CLIENT_UNKNOWN = "client_unknown"
    DENIED_BY_RULE = "denied_by_rule"
    HOST_NOT_ALLOWED = "host_not_allowed"
    PORT_NOT_ALLOWED = "port_not_allowed"
    CLIENT_NOT_ALLOWED = "client_not_allowed"
    CLAIM_MISSING = "claim_missing"
    PROTOCOL_NOT_ALLOWED = "protocol_not_allowed"
    OPAQUE_TUNNEL = "opaque_tunnel"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    PATH_NOT_ALLOWED = "path_not_allowed"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    AGE_TOKEN_INVALID = "age_token_invalid"  # noqa: S105 - a reason, no secret
    AGE_VERIFICATION_REQUIRED = "age_verification_required"
    AGE_BELOW_MINIMUM = "age_below_minimum"
    RATE_LIMITED = "rate_limited"
    CAPACITY_EXCEEDED = "capacity_exceeded"
    REQUEST_TOO_LARGE = "request_too_large"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_UNTRUSTED = "upstream_untrusted"
    INTERNAL_ERROR = "internal_error"
