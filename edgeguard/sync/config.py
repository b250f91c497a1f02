"""What the sync side of a node is told, as one frozen value."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from edgeguard.settings.model import Settings
from edgeguard.sync.alerts import AlertConfig
from edgeguard.sync.fetch import FetchLimits


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Names end in their unit; see `docs/configuration.md` for the keys that set them."""

    environment: str
    state_dir: Path
    urls: tuple[str, ...] = ()
    audience: str = ""
    floor: int = 0
    manifest_required: bool = False
    app: str = ""
    poll_s: float = 15.0
    long_poll_s: float = 30.0
    backoff_base_s: float = 0.5
    backoff_max_s: float = 60.0
    reconcile_s: float = 60.0
    """Between comparisons that read every byte again; each cycle makes one that does not."""
    pause_s: float = 0.25
    """Shortest time between two cycles, whatever the server does."""
    full_every: int = 20
    """Every so many polls the head is fetched without a validator, in case the server's is wrong."""
    head_bytes: int = 65_536
    root_bytes: int = 262_144
    bundle_bytes: int = 16_777_216
    fetch: FetchLimits = field(default_factory=FetchLimits)
    ca_file: str | None = None
    token: str | None = field(default=None, repr=False)
    alerts: AlertConfig = field(default_factory=AlertConfig)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        trust, sync, alerts = settings.trust, settings.sync, settings.alerts
        return cls(
            environment=settings.environment,
            state_dir=trust.state_dir,
            urls=sync.urls,
            audience=trust.audience,
            floor=trust.floor,
            manifest_required=trust.manifest == "required",
            app=trust.app,
            poll_s=sync.poll_s,
            long_poll_s=sync.long_poll_s,
            backoff_max_s=sync.backoff_max_s,
            reconcile_s=sync.reconcile_s,
            head_bytes=sync.head_bytes,
            root_bytes=sync.root_bytes,
            bundle_bytes=sync.bundle_bytes,
            fetch=FetchLimits(deadline_s=sync.deadline_s, min_rate_bytes_s=sync.min_rate_bytes_s),
            ca_file=str(sync.ca_file) if sync.ca_file is not None else None,
            token=sync.token.get_secret_value() if sync.token is not None else None,
            alerts=AlertConfig(
                webhook=alerts.webhook,
                token=alerts.token.get_secret_value() if alerts.token is not None else None,
                ca_file=str(alerts.ca_file) if alerts.ca_file is not None else None,
                cooldown_s=alerts.cooldown_s,
                attempts=alerts.attempts,
                deadline_s=alerts.deadline_s,
            ),
        )
