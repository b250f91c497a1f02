"""Why a piece of trust material was not accepted: a closed set of codes.

Every function in this package that judges bytes answers with a value or raises `Refusal`,
never anything else. The code is what telemetry and operators see; the detail is for people.
"""

from enum import StrEnum
from typing import Final


class RefusalCode(StrEnum):
    """The closed set of grounds, grouped by the step that finds them."""

    # Bytes
    TOO_BIG = "too_big"
    MALFORMED = "malformed"
    HASH_MISMATCH = "hash_mismatch"
    # Signatures
    TYPE = "type"
    ENV = "env"
    SIG_INVALID = "sig_invalid"
    SIG_DUP = "sig_dup"
    KEY_UNKNOWN = "key_unknown"
    THRESHOLD = "threshold"
    GATED = "gated"
    # Meaning
    AUDIENCE = "audience"
    SCHEMA_UNSUPPORTED = "schema_unsupported"
    POLICY_INVALID = "policy_invalid"
    MEMBER_MISSING = "member_missing"
    VERSION_MISMATCH = "version_mismatch"
    MANIFEST_MISMATCH = "manifest_mismatch"
    # Order
    ROOT_GAP = "root_gap"
    ROOT_CHAIN = "root_chain"
    ROLLBACK_ROOT = "rollback_root"
    ROLLBACK_HEAD = "rollback_head"
    ROLLBACK_BUNDLE = "rollback_bundle"
    VERSION_JUMP = "version_jump"
    EQUIVOCATION = "equivocation"
    # Time
    LIFETIME = "lifetime"
    NOT_BEFORE = "not_before"
    EXPIRED = "expired"
    FREEZE = "freeze"
    ROOT_EXPIRED = "root_expired"
    # Sequence
    HEAD_MISSING = "head_missing"


_ALARMS: Final = frozenset(
    {
        RefusalCode.ROLLBACK_ROOT,
        RefusalCode.ROLLBACK_HEAD,
        RefusalCode.ROLLBACK_BUNDLE,
        RefusalCode.VERSION_JUMP,
        RefusalCode.EQUIVOCATION,
        RefusalCode.GATED,
    }
)


class Refusal(Exception):  # noqa: N818 - a verdict, not a defect of the program
    """Trust material that is not accepted; what was in force stays in force."""

    def __init__(self, code: RefusalCode, detail: str, *, retry_at: int | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_at = retry_at
        """Unix seconds at which the same bytes may be accepted, or None."""

    @property
    def alarm(self) -> bool:
        """True for what no honest signer or server produces: worth waking somebody."""
        return self.code in _ALARMS


def malformed(detail: str) -> Refusal:
    """The refusal for bytes or fields of the wrong form."""
    return Refusal(RefusalCode.MALFORMED, detail)
