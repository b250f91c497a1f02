"""The SOCKS5 door (RFC 1928), with user and password (RFC 1929) for the secrets of `Proxy-Authorization`.

Of the three commands only CONNECT is known; its way from the claim on is that of an HTTP CONNECT, the
binding of the ClientHello included. Names are resolved here, after they were allowed; an address is
judged as one. What says something that a name or a length cannot say is refused before it is judged:
a zero byte that ends the name for one reader and not for the other is the classical way around a suffix.
"""

import base64
import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import UNKNOWN_CLIENT, Client
from edgeguard.proxy.client import HEAD
from edgeguard.proxy.opening import Opening
from edgeguard.verdict import Facts, Verdict

VERSION: Final = 5
NO_AUTHENTICATION: Final = 0
PASSWORD: Final = 2
CONNECT: Final = 1
COMMANDS: Final = frozenset({1, 2, 3})
"""CONNECT, BIND, UDP ASSOCIATE."""
MAX_NAME_BYTES: Final = 253

NO_METHOD: Final = b"\x05\xff"
WRONG_PASSWORD: Final = b"\x01\x01"
SOCKS4_REJECTED: Final = b"\x00\x5b" + bytes(6)
_NOWHERE: Final = b"\x00\x01" + bytes(6)
"""Reserved byte, and 0.0.0.0:0 for the bound address, which is nobody's business."""
SUCCEEDED: Final = b"\x05\x00" + _NOWHERE
FAILURE: Final = 1
NOT_ALLOWED: Final = 2
HOST_UNREACHABLE: Final = 4
NO_COMMAND: Final = 7
NO_ADDRESS_TYPE: Final = 8
CODES: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.MALFORMED_REQUEST: FAILURE,
        Reason.CAPACITY_EXCEEDED: FAILURE,
        Reason.UPSTREAM_UNREACHABLE: HOST_UNREACHABLE,
        Reason.UPSTREAM_UNTRUSTED: FAILURE,
        Reason.INTERNAL_ERROR: FAILURE,
    }
)
"""Reply codes (RFC 1928, 6). All other reasons are the ruleset's: 2."""


class SocksError(Exception):
    """The message is refused. `code` is the reply code that says why best."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


class Request(NamedTuple):
    """A SOCKS5 request."""

    command: int
    host: str
    port: int
    size: int
    """Bytes that it took."""


type Stage = Literal["greeting", "password", "request"]


def read_greeting(data: bytes) -> tuple[frozenset[int], int] | None:
    """The methods that a client offers, and how many bytes it took to say so; None while it is incomplete.

    Raises:
        SocksError: Another version, or no methods.
    """
    if data[:1] != b"\x05":
        raise SocksError("not SOCKS version 5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return frozenset(data[2 : 2 + data[1]]), 2 + data[1]


def read_password(data: bytes) -> tuple[bytes, bytes, int] | None:
    """User, password, and how many bytes they took; None while they are incomplete.

    Raises:
        SocksError: Another version of the negotiation, or a user whose name Basic could not carry.
    """
    if data[:1] not in {b"", b"\x01"}:
        raise SocksError("not version 1 of the password negotiation")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    at = 2 + data[1]
    end = at + 1 + data[at]
    if len(data) < end:
        return None
    user = data[2:at]
    if b":" in user:
        raise SocksError("a colon in the user's name")
    return user, data[at + 1 : end], end


def read_request(data: bytes) -> Request | None:
    """The request at the start of `data`; None while it is incomplete.

    Raises:
        SocksError: The bytes cannot become a request.
    """
    if data[:1] not in {b"", b"\x05"}:
        raise SocksError("not SOCKS version 5")
    if len(data) < 5:
        return None
    command, reserved, kind = data[1], data[2], data[3]
    if command not in COMMANDS:
        raise SocksError(f"unknown command {command}", NO_COMMAND)
    if reserved:
        raise SocksError("the reserved byte is not zero")
    size = {1: 4, 4: 16, 3: 1 + data[4]}.get(kind)
    if size is None:
        raise SocksError(f"unknown address type {kind}", NO_ADDRESS_TYPE)
    end = 4 + size + 2
    if len(data) < end:
        return None
    raw = data[4 : 4 + size]
    host = _name(raw[1:]) if kind == 3 else str(ipaddress.ip_address(raw))
    port = int.from_bytes(data[end - 2 : end])
    if not port and command == CONNECT:
        raise SocksError("port 0")
    return Request(command, host, port, end)


def _name(raw: bytes) -> str:
    if not 0 < len(raw) <= MAX_NAME_BYTES or not all(0x21 <= byte < 0x7F for byte in raw):
        raise SocksError("the name is empty, too long, or contains what no name may")
    return raw.decode("ascii")


class Socks(Opening):
    """A connection to the SOCKS5 proxy."""

    __slots__ = ("_code", "_owner", "_stage")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._stage: Stage = "greeting"
        self._owner: Client | None = None
        self._code: int | None = None

    def _read_claim(self, data: bytes) -> None:
        try:
            while self._buffer and self._advance(self._buffer):
                pass
        except SocksError as error:
            self._code = error.code
            older = self._stage == "greeting" and data[:1] == b"\x04"
            self._refuse_unread(Reason.PROTOCOL_NOT_ALLOWED if older else Reason.MALFORMED_REQUEST)

    def _advance(self, data: bytes) -> bool:
        """Takes one message; False when it is incomplete, or was the last. Raises SocksError."""
        if self._stage == "greeting":
            greeting = read_greeting(data)
            if greeting is None:
                return False
            offered, size = greeting
            self._greet(offered)
        elif self._stage == "password":
            found = read_password(data)
            if found is None:
                return False
            user, password, size = found
            self._authenticate(user, password)
        else:
            request = read_request(data)
            if request is not None:
                self._buffer = data[request.size :]
                self._ask(request)
            return False
        if self._phase != HEAD:
            return False  # it was refused
        self._buffer = data[size:]
        return True

    def _greet(self, offered: frozenset[int]) -> None:
        if PASSWORD in offered and (self._door.challenge is not None or NO_AUTHENTICATION not in offered):
            self._stage = "password"
            self.here.write(bytes((VERSION, PASSWORD)))
        elif NO_AUTHENTICATION in offered:
            self._owner = self._identify()
            self._stage = "request"
            self.here.write(bytes((VERSION, NO_AUTHENTICATION)))
        else:
            self._refuse_unread(Reason.CLIENT_UNKNOWN)

    def _authenticate(self, user: bytes, password: bytes) -> None:
        basic = base64.b64encode(user + b":" + password).decode("ascii")
        self._owner = self._identify((f"Basic {basic}",))
        if self._owner is None:
            self._refuse_unread(Reason.CLIENT_UNKNOWN)
            return
        self._stage = "request"
        self.here.write(b"\x01\x00")

    def _ask(self, request: Request) -> None:
        guard = self._door.guard
        client = self._owner
        facts = Facts(self._id, client or UNKNOWN_CLIENT, request.host, request.port)
        if request.command != CONNECT:
            # Relaying datagrams would let HTTP/3 pass beside every rule; nothing here listens for servers either.
            self._code = NO_COMMAND
            self._reply(guard.refuse(guard.judge(facts), Reason.PROTOCOL_NOT_ALLOWED))
            return
        refused = self._enter(self._judge(facts), client)
        if refused is not None:
            self._reply(refused)

    # What the client is told

    def _grant(self) -> None:
        self.here.write(SUCCEEDED)

    def _reply(self, verdict: Verdict, status: int | None = None) -> None:
        if self._stage == "request":
            code = self._code
            if code is None:
                code = NOT_ALLOWED if verdict.reason is None else CODES.get(verdict.reason, NOT_ALLOWED)
            last = bytes((VERSION, code)) + _NOWHERE
        elif self._stage == "password":
            last = WRONG_PASSWORD
        else:
            last = SOCKS4_REJECTED if self._buffer[:1] == b"\x04" else NO_METHOD
        self._wind_up(last)
