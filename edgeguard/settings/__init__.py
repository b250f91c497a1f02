"""The configuration of one node: a TOML file, strictly validated, every limit named with its unit."""

from edgeguard.settings.load import Problem, SettingsError, load_settings
from edgeguard.settings.model import (
    Admin,
    Bounds,
    CidrClient,
    Essentials,
    Evidence,
    Identity,
    Interception,
    Listen,
    ListenTls,
    Resolver,
    SecretClient,
    Settings,
    Sync,
    Trust,
    Upstream,
    User,
)

__all__ = [
    "Admin",
    "Bounds",
    "CidrClient",
    "Essentials",
    "Evidence",
    "Identity",
    "Interception",
    "Listen",
    "ListenTls",
    "Problem",
    "Resolver",
    "SecretClient",
    "Settings",
    "SettingsError",
    "Sync",
    "Trust",
    "Upstream",
    "User",
    "load_settings",
]
