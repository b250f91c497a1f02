"""The admin address: `/healthz`, `/readyz`, `/status`, `/metrics`. It only reads.

A sidecar's workload shares the loopback interface, and so does every page in a developer's browser:
hence nothing here changes anything, and a request whose `Host` is not loopback is refused, which is
what stops DNS rebinding.
"""

import ipaddress
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from aiohttp import web

from edgeguard.evidence.metrics import CONTENT_TYPE
from edgeguard.proxy.listeners import unix_socket
from edgeguard.settings import Admin
from edgeguard.settings.values import split_address

MAX_HEAD_BYTES: Final = 8190
SHUTDOWN_S: Final = 1.0


class AdminError(OSError):
    """The admin address cannot be opened. Says which and why."""


class Rendered(Protocol):
    """Metrics of one process (`evidence.metrics.Metrics`) or of several (`evidence.totals.Totals`)."""

    def render(self) -> bytes:
        """The text exposition format 0.0.4."""
        ...


class AdminServer:
    """Serves health, status and metrics on the running loop.

    Args:
        admin: Section `[admin]` of the configuration. Without an address nothing is served.
        status: The document of `/status`; must be JSON.
        ready: Whether a verified policy is enforced, and in words why not.
        metrics: What `/metrics` shows.
        refresh: Awaited before `/status` and `/metrics` are answered.
    """

    def __init__(
        self,
        admin: Admin,
        status: Callable[[], dict[str, object]],
        ready: Callable[[], tuple[bool, str]],
        metrics: Rendered,
        *,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._address = admin.address
        self._status = status
        self._ready = ready
        self._metrics = metrics
        self._refresh = refresh
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """Where it listens; after `start` with the port that the kernel chose, if the configured one is 0."""
        if self._runner is None or not self._runner.addresses or self._address.startswith("unix:"):
            return self._address
        host, port = self._runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Listens. Raises AdminError if it cannot."""
        if not self._address:
            return
        app = web.Application(middlewares=[_only_loopback], handler_args={"max_line_size": MAX_HEAD_BYTES})
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status_page)
        app.router.add_get("/metrics", self._metrics_page)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await self._site(runner).start()
        except OSError as error:
            await runner.cleanup()
            why = os.strerror(error.errno) if error.errno else str(error)
            raise AdminError(
                error.errno, f"cannot listen on [admin] address {self._address}: {why}"
            ) from None
        self._runner = runner

    async def stop(self) -> None:
        """Stops listening. Harmless if it never started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._remove_socket()

    def _remove_socket(self) -> None:
        if self._address.startswith("unix:"):
            Path(self._address.removeprefix("unix:")).unlink(missing_ok=True)

    def _site(self, runner: web.AppRunner) -> web.BaseSite:
        if self._address.startswith("unix:"):
            return web.SockSite(runner, unix_socket(Path(self._address.removeprefix("unix:")), 0o600))
        host, port = split_address(self._address)
        return web.TCPSite(runner, host, port)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        ready, why = self._ready()
        return web.Response(
            status=200 if ready else 503, text=f"{'ready' if ready else 'not ready'}: {why}\n"
        )

    async def _status_page(self, _: web.Request) -> web.Response:
        if self._refresh is not None:
            await self._refresh()
        return web.json_response(
            self._status(), dumps=lambda document: json.dumps(document, indent=2, default=str)
        )

    async def _metrics_page(self, _: web.Request) -> web.Response:
        if self._refresh is not None:
            await self._refresh()
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def _only_loopback(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    if len(request.headers.getall("Host", [])) != 1 or not _loopback_host(request.host):
        return web.Response(
            status=421, text="this address answers to loopback names only\n", headers=_HEADERS
        )
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = web.Response(status=error.status, text=f"{error.reason}\n", headers=_allow(error))
    response.headers.update(_HEADERS)
    return response


_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _loopback_host(value: str) -> bool:
    host = value.rpartition(":")[0] if value.rpartition(":")[2].isdigit() else value
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
