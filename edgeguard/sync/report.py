"""What sync has to say: events as they happen, and the last of each kind for `status`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class EventKind(StrEnum):
    """What happened. A closed set, for logs and metrics."""

    ACTIVATED = "activated"
    REFUSED = "refused"
    FAILED = "failed"
    RECOVERED = "recovered"
    NOT_PERSISTED = "not_persisted"
    DRIFT = "drift"
    CLOCK = "clock"
    LADDER = "ladder"
    INTERNAL = "internal"


class SyncEvent(NamedTuple):
    """One thing that happened, for the log and for whoever is on call."""

    kind: EventKind
    code: str
    """Reason code: a refusal's, a fetch's, or a drift's class."""
    detail: str
    at: float
    """Trusted time, Unix seconds."""
    alarm: bool = False
    """True for what no honest server, signer or disk produces."""


@dataclass(frozen=True, slots=True)
class Report:
    """The last of each kind; kept beside the documents so that it survives a restart."""

    last_success: float | None = None
    """Unix seconds at which a server last showed a head that is current."""
    last_refusal: SyncEvent | None = None
    last_failure: SyncEvent | None = None
    """The failure that lasts; None while all is well."""

    def noting(self, event: SyncEvent) -> "Report":
        match event.kind:
            case EventKind.REFUSED | EventKind.NOT_PERSISTED:
                return replace(self, last_refusal=event, last_failure=event)
            case EventKind.FAILED | EventKind.INTERNAL:
                return replace(self, last_failure=event)
            case _:
                return self

    def succeeding(self, now: float) -> "Report":
        return replace(self, last_success=now, last_failure=None)

    def to_data(self) -> dict[str, object]:
        return {
            "last_success": self.last_success,
            "last_refusal": self.last_refusal._asdict() if self.last_refusal else None,
            "last_failure": self.last_failure._asdict() if self.last_failure else None,
        }

    def encode(self) -> bytes:
        return json.dumps(self.to_data()).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Report":
        """Reads a kept report; one that cannot be read is an empty one, since nothing is decided by it."""
        try:
            value = json.loads(data)
            success = value["last_success"]
            return cls(
                float(success) if success is not None else None,
                _event(value["last_refusal"]),
                _event(value["last_failure"]),
            )
        except (ValueError, KeyError, TypeError):
            return cls()


def _event(value: Mapping[str, object] | None) -> SyncEvent | None:
    if value is None:
        return None
    at = value["at"]
    if not isinstance(at, int | float):
        raise TypeError("at")
    return SyncEvent(
        EventKind(str(value["kind"])), str(value["code"]), str(value["detail"]), at, value["alarm"] is True
    )
