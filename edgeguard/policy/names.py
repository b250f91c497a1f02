"""Host names: exactly one reading, or refused.

Every spelling that a resolver could take for the same destination becomes one text: A-labels in
lower case (RFC 5890), one trailing dot dropped, every `inet_aton` spelling of an IPv4 address as a
dotted quad, IPv6 as in RFC 5952. Whatever could be read in two ways is refused. All linear in the input.
"""

import re
import unicodedata
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import idna

MAX_NAME = 253
MAX_LABEL = 63

_LDH = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\Z")
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)\Z")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_MAPPED = 0xFFFF


class HostError(ValueError):
    """The text is not a host that has exactly one reading. The message says why."""


def canonical_host(raw: str) -> str:
    """The one reading of `raw`, a host without port.

    Returns lower-case A-labels, a dotted quad, or an IPv6 address without brackets and zone.
    Raises `HostError` for anything else.
    """
    if not raw:
        raise HostError("the host is empty")
    if len(raw) > MAX_NAME + 2:
        raise HostError(f"the host is longer than {MAX_NAME} characters")
    if raw[0] == "[" or ":" in raw:
        return _ipv6(raw)
    host = raw.lower() if raw.isascii() else _to_ascii(raw)
    if host[-1] == ".":
        host = host[:-1]
    if not _LDH.match(host):
        raise HostError(_why_not(host))
    if "xn--" in host and (fake := _fake_a_label(host)) is not None:
        raise HostError(f"{fake[:MAX_LABEL]} stands for no internationalised name (a fake A-label)")
    last = host.rpartition(".")[2]
    if last[0].isdigit() and _NUMBER.match(last):
        return _ipv4(host)
    if len(host) > MAX_NAME:
        raise HostError(f"the host is longer than {MAX_NAME} characters")
    if len(host) > MAX_LABEL and max(map(len, host.split("."))) > MAX_LABEL:
        raise HostError(f"a label of the host is longer than {MAX_LABEL} characters")
    return host


def is_address(host: str) -> bool:
    """Whether a canonical host is an address literal. No canonical name ends in a digit-only label."""
    return ":" in host or (host[-1:].isdigit() and host.rpartition(".")[2].isdigit())


def split_authority(raw: str, default_port: int | None) -> tuple[str, int]:
    """Splits `host[:port]` strictly (RFC 3986, 3.2.2; no userinfo); the host comes back canonical.

    IPv6 literals need brackets, and nothing else may have them. Raises `HostError`.
    """
    if raw.startswith("["):
        host, closed, rest = raw.partition("]")
        if not closed:
            raise HostError("the bracket of the IPv6 address is not closed")
        host += "]"
        if rest and rest[0] != ":":
            raise HostError("text follows the bracket of the IPv6 address")
        has_port, port_text = bool(rest), rest[1:]
    else:
        host, colon, port_text = raw.partition(":")
        has_port = bool(colon)
        if ":" in port_text:
            raise HostError("the port is not a number, or an IPv6 address lacks its brackets")
    if has_port:
        return canonical_host(host), parse_port(port_text)
    if default_port is None:
        raise HostError("the port is missing")
    return canonical_host(host), default_port


def parse_port(text: str) -> int:
    """A port number from 1 to 65535 in decimal digits. Raises `HostError`."""
    if not _PORT.match(text) or not 0 < (port := int(text)) < 65536:
        raise HostError("the port must be a number from 1 to 65535")
    return port


def to_unicode(host: str) -> str:
    """The host for a reader's eyes; the A-labels themselves if they cannot be shown."""
    try:
        return idna.decode(host)
    except idna.IDNAError:
        return host


@lru_cache(maxsize=4096)
def _to_ascii(raw: str) -> str:
    labels = raw.lower().split(".")
    return ".".join(label if label.isascii() else _a_label(label) for label in labels)


def _a_label(label: str) -> str:
    if len(label) > MAX_LABEL:
        raise HostError(f"a label of the host is longer than {MAX_LABEL} characters")
    if unicodedata.normalize("NFKC", label) != label:
        raise HostError("the host uses characters that stand for others (full-width or composed forms)")
    try:
        return idna.alabel(label).decode("ascii")
    except UnicodeError:  # IDNAError among them
        # IDNA 2008 knows no symbols, registries sell them all the same: they have one A-label, too.
        if all(
            (c.isascii() and (c.isalnum() or c in "_-")) or unicodedata.category(c) in {"So", "Sk"}
            for c in label
        ):
            return "xn--" + label.encode("punycode").decode("ascii")
        raise HostError("the host is not a valid internationalised name (IDNA 2008)") from None


@lru_cache(maxsize=4096)
def _fake_a_label(host: str) -> str | None:
    """The first A-label that is not what its Unicode form encodes to (RFC 5890, 2.3.2.1).

    Of such a label readers differ: `xn--example-` is `example` to some, and nothing to others.
    """
    for label in host.split("."):
        if label.startswith("xn--"):
            try:
                shown = label[4:].encode("ascii").decode("punycode")
                if shown.isascii() or _a_label(shown.lower()) != label:
                    return label
            except ValueError:  # UnicodeError and HostError are both
                return label
    return None


def _why_not(host: str) -> str:
    if not host or host[0] == "." or ".." in host or host[-1:] == ".":
        return "the host has an empty label"
    bad = next((c for c in host if not (c.isalnum() or c in "._-")), "?")
    return f"the host contains {bad!r}, which no host name may contain"


def _ipv4(host: str) -> str:
    """Every spelling that inet_aton takes: one to four parts, decimal, octal or hexadecimal."""
    parts = host.split(".")
    if len(parts) > 4 or not all(_NUMBER.match(part) for part in parts):
        raise HostError("the host ends in a number but is not an IPv4 address")
    values = [_number(part) for part in parts]
    *head, tail = values
    if any(value > 255 for value in head) or tail >= 256 ** (5 - len(values)):
        raise HostError("a part of the IPv4 address is out of range")
    number = tail
    for place, value in enumerate(head):
        number += value << (24 - 8 * place)
    return str(IPv4Address(number))


def _number(part: str) -> int:
    if len(part) > 40:
        raise HostError("a part of the IPv4 address is out of range")
    if part[:2] in {"0x", "0X"}:
        return int(part[2:] or "0", 16)
    if part[0] == "0" and len(part) > 1:
        if not part.isdigit() or "8" in part or "9" in part:
            raise HostError("a part of the IPv4 address has a leading zero but is not octal")
        return int(part, 8)
    return int(part)


def _ipv6(raw: str) -> str:
    text = raw
    if text[0] == "[":
        if text[-1] != "]":
            raise HostError("the bracket of the IPv6 address is not closed")
        text = text[1:-1]
        if ":" not in text:
            raise HostError("only an IPv6 address may stand in brackets")
    text, percent, zone = text.partition("%")
    if percent and not _ZONE.match(zone.removeprefix("25")):
        raise HostError("the zone of the IPv6 address is malformed")
    try:
        return canonical_ipv6(IPv6Address(text))
    except AddressValueError as error:
        raise HostError(f"not an IPv6 address: {error}") from None


def canonical_ipv6(address: IPv6Address) -> str:
    """The RFC 5952 text, the same on every Python: IPv4-mapped addresses in mixed notation."""
    number = int(address)
    if number >> 32 == _MAPPED:
        return f"::ffff:{IPv4Address(number & 0xFFFFFFFF)}"
    return str(IPv6Address(number))
