"""The engine's hooks, dispatched from tables and closed on failure.

The stock manager walks every addon for every hook and goes on after an exception. This one
keeps, for each hook, the bound methods that exist, and after the first exception refuses
(`failsafe`) and stops: whatever follows might have relied on what just failed.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any, cast

from mitmproxy import addonmanager, exceptions, flow, hooks
from mitmproxy.master import Master

from edgeguard.proxy import failsafe

logger = logging.getLogger(__name__)

type Handlers = tuple[Callable[..., Any], ...]

_LIFECYCLE = frozenset({"running", "done", "update", "configure", "load"})


class EdgeAddonManager(addonmanager.AddonManager):
    """An addon manager that fails closed.

    Unlike the stock manager it lets exceptions of `load`, `configure` and `running` out, so that a
    process that could not set itself up does not listen.
    """

    def __init__(self, master: Master) -> None:
        super().__init__(master)  # type: ignore[no-untyped-call]
        self._table: dict[str, Handlers] = {}

    def register(self, addon: object) -> object:
        self._table.clear()
        return cast("object", super().register(addon))  # type: ignore[no-untyped-call]

    def add(self, *addons: object) -> None:
        super().add(*addons)  # type: ignore[no-untyped-call]
        self._table.clear()

    def remove(self, addon: object) -> None:
        super().remove(addon)  # type: ignore[no-untyped-call]
        self._table.clear()

    def clear(self) -> None:
        super().clear()  # type: ignore[no-untyped-call]
        self._table.clear()

    def handlers(self, name: str) -> Handlers:
        """The bound methods for a hook, in the order of the chain."""
        found = self._table.get(name)
        if found is None:
            methods = (getattr(addon, name, None) for addon in addonmanager.traverse(self.chain))
            found = tuple(method for method in methods if inspect.isroutine(method))
            self._table[name] = found
        return found

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        await self.trigger_event(event)
        if self.handlers("update") and isinstance(subject := event.args()[0], flow.Flow):
            await self.trigger_event(hooks.UpdateHook([subject]))

    async def trigger_event(self, event: hooks.Hook) -> None:
        """Runs one hook. An exception refuses what the hook was about; it is not passed on.

        `running` is the exception to that: there it ends the process, which must not listen.
        """
        name = event.name
        handlers = self._table.get(name)
        if handlers is None:
            handlers = self.handlers(name)
        if name == "tls_start_client" and event.args()[0].conn.error:
            return  # refused at its ClientHello: without a context the handshake fails
        args = event.args()
        for handler in handlers:
            try:
                result = handler(*args)
                if result is not None and inspect.isawaitable(result):
                    await result
            except Exception as error:
                # Fail closed: AddonHalt and OptionsError, which the stock manager treats apart, too.
                if name == "done":
                    logger.exception("an addon failed at shutdown")
                    continue
                if name in _LIFECYCLE:
                    raise
                if not isinstance(error, exceptions.AddonHalt):
                    logger.exception("the hook %s failed; refused", name)
                failsafe.refuse(name, args[0])
                return
            except BaseException:
                failsafe.refuse(name, args[0] if args else None)
                raise

    def trigger(self, event: hooks.Hook) -> None:
        """Runs a synchronous hook (`configure`, `load`, `update`); exceptions come out."""
        for addon in self.chain:
            self.invoke_addon_sync(addon, event)
