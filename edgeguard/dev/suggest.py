"""The YAML that would allow exactly what was just refused, and nothing more."""

import json
import re
import zlib
from ipaddress import ip_network
from typing import Final

from edgeguard.evidence.record import Record
from edgeguard.policy.addresses import AddressClass, classify
from edgeguard.policy.names import is_address
from edgeguard.policy.paths import PathError, parse_template, readings
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
MAX_WORDS: Final = 40
_UNSAYABLE: Final = re.compile(r"[?#\\\\%;*/]")


def suggestion(record: Record) -> str | None:
    """A rule in the policy language, indented as an entry of `rules:`; None where no allow would help.

    The narrowest rule: this host and port, and method and path where they are known.
    """
    if record.host is None:
        return None
    local = _local(record.host)
    if record.reason not in MENDABLE and not (record.reason is Reason.ADDRESS_NOT_ALLOWED and local):
        return None
    host = f"[{record.host}]" if ":" in record.host else record.host
    lines = [f"  - id: {_identifier(record)}", "    effect: allow", f'    to: ["{host}:{record.port}"]']
    if record.client is not None:
        lines.append(f"    clients: [{record.client}]")
    elif not record.identified:
        lines.append("    clients: any")
    if record.protocol != "tls":
        lines.append(f"    protocol: {record.protocol}")
    if record.method is not None:
        lines.append(f"    methods: [{record.method}]")
    if record.path is not None:
        templates = _templates(record.path)
        if templates is None:
            return None
        # JSON's strings are YAML's.
        lines.append(f"    paths: {json.dumps(templates, ensure_ascii=False)}")
    if local:
        lines.append(f"    resolves_to: {json.dumps(local)}")
    return "\n".join(lines)


def _local(host: str) -> list[str]:
    """What `resolves_to` has to name: this machine, or a literal of a special network. Metadata never."""
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.0/8", "::1/128"]
    if not is_address(host) or classify(host) in {AddressClass.PUBLIC, AddressClass.METADATA}:
        return []
    return [str(ip_network(host))]


def _identifier(record: Record) -> str:
    """Says what the rule allows; two different rules have two names, so that both can be pasted."""
    what = " ".join(str(part) for part in (record.host, record.method, record.path) if part is not None)
    words = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
    mark = f"{zlib.crc32(f'{what} {record.port} {record.protocol} {record.client}'.encode()):08x}"
    return f"allow-{words[:MAX_WORDS]}-{mark[:4]}"


def _templates(path: str) -> list[str] | None:
    """Templates that match every reading of a path as sent; None if the language cannot say it.

    A segment with a character that has a meaning in templates becomes `*`, one segment of any text.
    """
    templates: list[str] = []
    try:
        found = readings(path)
        for segments in found:
            text = "/" + "/".join("*" if _UNSAYABLE.search(segment) else segment for segment in segments)
            if not parse_template(text).matches(segments):
                return None
            templates.append(text)
    except PathError:
        return None
    return list(dict.fromkeys(templates))
