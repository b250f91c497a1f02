"""The YAML that would allow exactly what was just refused, and nothing more."""

from edgeguard.evidence.record import Record
from edgeguard.policy.reasons import Reason

MENDABLE = frozenset(
    {
        Reason.HOST_NOT_ALLOWED,
        Reason.PORT_NOT_ALLOWED,
        Reason.CLIENT_NOT_ALLOWED,
        Reason.PROTOCOL_NOT_ALLOWED,
        Reason.METHOD_NOT_ALLOWED,
        Reason.PATH_NOT_ALLOWED,
    }
)
"""Reasons that an allow would mend. A deny, a gate, a limit or an address check is there on purpose."""


def suggestion(record: Record) -> str | None:
    """A rule in the policy language, indented as an entry of `rules:`; None where no allow would help.

    The narrowest rule: this host and port, and method and path where they are known.
    """
    if record.reason not in MENDABLE or record.host is None:
        return None
    identifier = "allow-" + "".join(c if c.isalnum() else "-" for c in record.host.lower()).strip("-")
    host = f"[{record.host}]" if ":" in record.host else record.host
    lines = [f"  - id: {identifier[:64]}", "    effect: allow", f'    to: ["{host}:{record.port}"]']
    if record.client is not None:
        lines.append(f"    clients: [{record.client}]")
    elif not record.identified:
        lines.append("    clients: any")
    if record.protocol != "tls":
        lines.append(f"    protocol: {record.protocol}")
    if record.method is not None:
        lines.append(f"    methods: [{record.method}]")
    if record.path is not None:
        lines.append(f'    paths: ["{_template(record.path)}"]')
    return "\n".join(lines)


def _template(path: str) -> str:
    """The path itself, so that it matches nothing else. A literal star has no template of its own."""
    return path.replace("\\", "\\\\").replace('"', '\\"')
