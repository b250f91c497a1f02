"""What the layers of the lane hand to the hooks, and what they ask of them."""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from edgeguard.policy.reasons import Reason
from edgeguard.proxy.clienthello import Hello
from edgeguard.settings import Bounds

SHAPE: Final = "edgeguard.shape"
REPLY: Final = "edgeguard.reply"
CLIENT_LEFT: Final = "edgeguard.client_left"
"""Keys of `flow.metadata`."""


class Shape(NamedTuple):
    """What the engine forgets about a request before the hooks see it."""

    forward: bool
    """It came to an explicit proxy, outside of any tunnel."""
    absolute: bool
    """Its target was in absolute form, or it has an `:authority`."""
    body: bool
    """More than the head follows."""
    scheme: bytes
    """As sent, in lower case; empty in origin form."""


class Desk(Protocol):
    """Where the layers get their replies and report what they see."""

    bounds: Bounds

    def unreadable(self, client: Client, reason: Reason) -> http.Response: ...
    def hello(self, client: Client, hello: Hello | None) -> None: ...
    def opaque(self, client: Client) -> bool: ...
    def unreadable_hello(self, client: Client) -> None: ...
    def misdirected(self, client: Client) -> None: ...
    def multiplexed(self, client: Client, h2: BufferedH2Connection) -> None: ...
    def carries(self, client: Client, waiting: Callable[[], int]) -> None: ...
    def within(self, client: Client, seconds: float | None) -> None: ...
    def draining(self, client: Client) -> None: ...
    def moved(self, flow: http.HTTPFlow | None, client: Client, size: int, *, sent: bool) -> None: ...
    def ended(self, flow: http.HTTPFlow | None, client: Client, why: str = "done") -> None: ...
