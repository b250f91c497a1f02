"""The types of the fields that authors write, and how a value is checked."""

from datetime import UTC, date, datetime
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edgeguard.policy.names import canonical_host
from edgeguard.policy.targets import TargetError, parse_network, parse_target
from edgeguard.policy.templates import PathError, parse_template

METHOD: Final = r"^[A-Z][A-Z0-9!#$%&'*+.^_`|~-]{0,31}$"
ID: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
CLIENT: Final = r"^(group:)?[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}$"
WORD: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
PERIODS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _target(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parse_target(value)
    except TargetError as error:
        raise ValueError(str(error)) from None
    return value


def _path(value: str) -> str:
    try:
        parse_template(value)
    except PathError as error:
        raise ValueError(f"{value!r}: {error}") from None
    return value


def _network(value: str) -> str:
    try:
        return str(parse_network(value))
    except TargetError as error:
        raise ValueError(str(error)) from None


def _moment(value: object) -> object:
    """A date is its first second in UTC; a date-time needs its offset from UTC."""
    if isinstance(value, str):
        try:
            if len(value) == 10:
                day = date.fromisoformat(value)
                return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)"
            ) from None
        if moment.tzinfo is None:
            raise ValueError(f"{value!r} has no offset from UTC; end it with Z")
        return int(moment.timestamp())
    raise ValueError("write a date (2026-12-31) or a time in UTC (2026-12-31T18:00:00Z)")


def one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        twice = next(v for v in values if values.count(v) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return values


def _clients(value: object) -> object:
    return ["any"] if value == "any" else value


def _https_url(value: str) -> str:
    parts = urlsplit(value)
    plain = not (parts.fragment or parts.username is not None or parts.password is not None)
    try:
        known = (
            parts.hostname is not None
            and canonical_host(parts.hostname) == parts.hostname
            and parts.port != 0
        )
    except ValueError:  # HostError, and a port that is no number
        known = False
    if parts.scheme != "https" or not plain or not known or not value.isascii() or " " in value:
        raise ValueError(f"{value!r} is not a plain https URL; write one like `https://idp.example.com/jwks`")
    return value


type Id = Annotated[str, Field(pattern=ID)]
type ClientName = Annotated[str, Field(pattern=CLIENT)]
type Word = Annotated[str, Field(pattern=WORD)]
type HttpsUrl = Annotated[str, AfterValidator(_https_url)]
type TargetText = Annotated[str, AfterValidator(_target)]
type PathText = Annotated[str, AfterValidator(_path)]
type NetworkText = Annotated[str, AfterValidator(_network)]
type Moment = Annotated[int, BeforeValidator(_moment, json_schema_input_type=str)]
type Method = Annotated[str, Field(pattern=METHOD)]
type Some[T] = Annotated[tuple[T, ...], Field(min_length=1, max_length=10_000), AfterValidator(_unique)]
type ProtocolName = Literal["tls", "http", "tcp", "websocket"]
type Protocols = Annotated[Some[ProtocolName], BeforeValidator(one_or_many)]
type Clients = Annotated[Some[ClientName], BeforeValidator(_clients)]
type Mode = Literal["enforce", "report"]
type Percent = Annotated[int, Field(ge=0, le=100)]
type Prose = Annotated[str, Field(min_length=1, max_length=4000)]
type Values = Annotated[Some[str], BeforeValidator(one_or_many)]
type Region = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,31}(-[A-Z0-9]{1,3})?$")]


class Strict(BaseModel):
    """No unknown fields, no coercion, no change afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, str_max_length=4000, hide_input_in_errors=True
    )


def parse_rate(text: str, *, is_bytes: bool) -> tuple[int, int]:
    """(quota, period in ns) of `100/s`, `5000/10m`, `1GB/h`. Raises ValueError."""
    amount, slash, period = text.partition("/")
    scale = 1
    if is_bytes:
        for suffix, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000), ("B", 1)):
            if amount.endswith(suffix):
                amount, scale = amount[: -len(suffix)], factor
                break
    count = period[:-1] or "1"
    if not slash or not amount.isdecimal() or period[-1:] not in PERIODS or not count.isdecimal():
        raise ValueError(
            f"{text!r} is not a rate; write for example `100/s`, `5000/10m` or `20/d`"
            + (", `10MB/s`" if is_bytes else "")
        )
    quota, seconds = int(amount) * scale, int(count) * PERIODS[period[-1]]
    if not 0 < quota <= 10**15 or not 0 < seconds <= 366 * 86400:
        raise ValueError(f"{text!r} is out of range")
    return quota, seconds * 10**9
