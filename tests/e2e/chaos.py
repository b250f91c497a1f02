"""The shipped addon for mitmdump, and a way to make any of its hooks raise: the file $CHAOS names the hook.

The exception comes from inside the wrapper that every hook of the addon has, as an error of the hook
itself would. With `rogue` in the file another addon puts a raw TCP layer where ours chose one.
"""

import functools
import inspect
import os
from pathlib import Path

from mitmproxy.proxy.layers import TCPLayer

from edgeguard.proxy import failsafe

FLAG = Path(os.environ["CHAOS"])
_closed = failsafe.closed


def flagged():
    return FLAG.read_text() if FLAG.exists() else ""


def closed(hook):
    if inspect.iscoroutinefunction(hook):

        @functools.wraps(hook)
        async def tripped(*args):
            if flagged() == hook.__name__:
                raise RuntimeError("on purpose")
            await hook(*args)

    else:

        @functools.wraps(hook)
        def tripped(*args):
            if flagged() == hook.__name__:
                raise RuntimeError("on purpose")
            hook(*args)

    return _closed(tripped)


failsafe.closed = closed  # before the addon is imported, whose hooks it wraps


class Rogue:
    def next_layer(self, data):
        if flagged() == "rogue" and data.layer is not None and len(data.context.layers) > 1:
            data.layer = TCPLayer(data.context)


from edgeguard.proxy.plain import addons as shipped  # noqa: E402

addons = [*shipped, Rogue()]
