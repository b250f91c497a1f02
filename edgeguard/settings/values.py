"""Checked values of the configuration: addresses, paths, secrets, names. Each error says what to write."""

import ipaddress
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo

from edgeguard.policy.addresses import AddressClass, classify
from edgeguard.policy.names import HostError, canonical_host, split_authority

_ASIDE_FORM = 'write { file = "..." } or { env = "..." }: a secret never stands in the file itself'
_ASIDE_MAX_BYTES = 65_536
UNIX_PATH_BYTES = 107
"""What fits into an address of a unix socket on Linux (unix(7)), its final zero left out."""


def split_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:3128` or `[::1]:3128` as (address, port). Raises ValueError with what to write."""
    host, colon, port = text.rpartition(":")
    form = 'write an address and a port, like "127.0.0.1:3128" or "[::1]:3128"'
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(form)
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; {form}") from None
    if bracketed != (address.version == 6):
        raise ValueError(form)
    return str(address), int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _base(info: ValidationInfo) -> Path | None:
    return info.context["base"] if info.context else None


def anchored(path: Path, info: ValidationInfo) -> Path:
    base = _base(info)
    return path if base is None else base / path.expanduser()


def unix_path(text: str, info: ValidationInfo) -> str:
    """`unix:` and a path, anchored. Raises ValueError with what to write."""
    path = anchored(Path(text.removeprefix("unix:")), info)
    if text == "unix:" or len(bytes(path)) > UNIX_PATH_BYTES:
        raise ValueError(
            f'write a path of at most {UNIX_PATH_BYTES} bytes after "unix:", like "unix:/run/edgeguard/proxy.sock"'
        )
    return f"unix:{path}"


def _secret(value: object, info: ValidationInfo) -> object:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, dict) or len(value) != 1 or info.context is None:
        raise ValueError(_ASIDE_FORM)
    ((kind, source),) = value.items()
    if kind not in {"file", "env"} or not isinstance(source, str):
        raise ValueError(_ASIDE_FORM)
    if kind == "env":
        text = info.context["environ"].get(source)
        if text is None:
            raise ValueError(f"the environment variable {source} is not set")
    else:
        path = info.context["base"] / source
        try:
            with path.open("rb") as file:
                text = file.read(_ASIDE_MAX_BYTES + 1).decode()
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
    text = text.rstrip("\r\n")
    if not text or len(text) > _ASIDE_MAX_BYTES:
        raise ValueError(f"the secret in {source} is empty or longer than {_ASIDE_MAX_BYTES} bytes")
    return text


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f'{error}; write a network like "10.0.0.0/8" or "fd00::/8"') from None


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f'{text!r} is not an IP address; write one like "192.0.2.7"') from None


def web_url(text: str) -> str:
    """An http or https address that can stand in a header and a page; empty for none. Raises ValueError."""
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "<>\\')
    if text and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or not plain):
        raise ValueError(f'{text!r} is not a web address; write one like "https://help.example.com/proxy"')
    return text


def header_name(text: str) -> str:
    if not text or not set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise ValueError("write a header name of lower-case letters, digits and '-'")
    return text


def split_server(text: str) -> tuple[str, int]:
    """A DNS server as (address, port): `192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53`, `[2001:db8::53]:5353`."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        address, port = split_address(text)
    if not port:
        raise ValueError("port 0 is no server's")
    return address, port


def server(text: str) -> str:
    try:
        split_server(text)
    except ValueError:
        raise ValueError(
            f'{text!r} is not a DNS server; write an address like "192.0.2.53" or "192.0.2.53:5353"'
        ) from None
    return text


def split_proxy(text: str) -> tuple[str, str, int]:
    """`host:port`, `http://host:port` or `https://host:port` as (scheme, canonical host, port). Raises ValueError."""
    scheme, separator, authority = text.rpartition("://")
    if not separator:
        scheme = "http"
    if scheme not in {"http", "https"}:
        raise ValueError(f"{scheme}:// is no scheme of a proxy; write http:// or https://")
    host, port = split_authority(authority.removesuffix("/"), None)
    if not port:
        raise ValueError("port 0 is no proxy's")
    return scheme, host, port


def split_origin(text: str) -> tuple[str, str, int]:
    """`https://10.0.0.5:8443` or `http://origin.internal` as (scheme, canonical host, port). Raises ValueError."""
    scheme, separator, authority = text.partition("://")
    if not separator or scheme not in {"http", "https"}:
        raise ValueError(
            f'{text!r} is no origin; write one like "https://10.0.0.5:8443" or "http://127.0.0.1:8080"'
        )
    host, port = split_authority(authority.removesuffix("/"), 443 if scheme == "https" else 80)
    if not port:
        raise ValueError("port 0 is no origin's")
    return scheme, host, port


def origin_url(text: str) -> str:
    try:
        split_origin(text)
    except HostError as error:
        raise ValueError(f'{error}; write it like "https://10.0.0.5:8443", without a path') from None
    return text


def proxy_url(text: str) -> str:
    if text:
        try:
            split_proxy(text)
        except ValueError as error:
            raise ValueError(f'{error}; write it like "proxy.example.com:3128"') from None
    return text


_INTERNAL_SPACE = frozenset(
    {AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL}
)


def parent_permitted(address: str, *, internal: bool) -> bool:
    """Whether a parent proxy may stand at a canonical address: in public space, or in `internal` space if that was said."""
    kind = classify(address)
    return kind is AddressClass.PUBLIC or (internal and kind in _INTERNAL_SPACE)


def near(text: str) -> str:
    """An entry of `no_proxy` in canonical form: a network, or a host with `*.` or `**.` before it or nothing."""
    with suppress(ValueError):
        return str(ipaddress.ip_network(text))
    stars = next((stars for stars in ("**.", "*.") if text.startswith(stars)), "")
    return stars + _host(text.removeprefix(stars))


def _host(text: str) -> str:
    try:
        return canonical_host(text)
    except HostError as error:
        raise ValueError(f"{text!r} is not a host name: {error}") from None


def host_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not host or not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= 65_535:
        raise ValueError('write a host and a port, like "vault.internal:443"')
    return text


def port_range(text: str) -> str:
    """`443`, or `8000-8999`. Raises ValueError with what to write."""
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    plain = all(number.isascii() and number.isdigit() and 0 < int(number) <= 65_535 for number in numbers)
    if not plain or int(numbers[0]) > int(numbers[-1]):
        raise ValueError(f'{text!r} is no port; write one like "443", or a range like "8000-8999"')
    return "-".join(str(int(number)) for number in numbers)


def port_ranges(ranges: tuple[str, ...]) -> tuple[str, ...]:
    """Ranges that do not overlap, since a set of the packet filter takes no others. Raises ValueError."""
    spans = sorted((int(text.partition("-")[0]), int(text.rpartition("-")[2]), text) for text in ranges)
    for (_, last, one), (first, _, other) in pairwise(spans):
        if first <= last:
            raise ValueError(f"{one} and {other} overlap; join them")
    return ranges


def store_url(text: str) -> str:
    """The address of a store of rate limits; empty for none. Raises ValueError with what to write."""
    form = 'write an address like "valkeys://limits.internal:6379/0" or "unix:///run/valkey.sock"'
    if not text:
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"valkey", "valkeys", "redis", "rediss", "unix"}:
        raise ValueError(f"{text!r} names no Valkey or Redis server; {form}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"name and password do not stand in the address: use username and password; {form}")
    if parts.query or parts.fragment or not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise ValueError(f"{text!r} is not a plain address; {form}")
    if parts.scheme != "unix" and not (parts.path.strip("/").isdigit() or parts.path in {"", "/"}):
        raise ValueError(f"the path of {text!r} is not the number of a database; {form}")
    return text


type AnchoredPath = Annotated[Path, AfterValidator(anchored)]
type Secret = Annotated[SecretStr, BeforeValidator(_secret)]
type Seconds = Annotated[float, Field(gt=0, le=86_400)]
type Count = Annotated[int, Field(gt=0, le=100_000_000)]
type Size = Annotated[int, Field(gt=0, le=1 << 40)]
type Cidr = Annotated[str, AfterValidator(_cidr)]
type Address = Annotated[str, AfterValidator(_ip)]
type Host = Annotated[str, AfterValidator(_host)]
type Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
type Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
type Ports = Annotated[tuple[Annotated[str, AfterValidator(port_range)], ...], AfterValidator(port_ranges)]
