"""mitmproxy's addons one by one.

Importing anything of `mitmproxy.addons` imports all its forty, and with them a web framework, a directory client
and template engines: 13 MB and as much code again, in a process that uses four of them. So the package is put
in place without running it. Whoever asks it for more than a module (stock tools do, for the list of defaults)
gets the whole of it, as ever.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

PACKAGE = "mitmproxy.addons"


class _OneByOne(ModuleType):
    """The package, its own code not yet run."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{PACKAGE}.{name}"
        if importlib.util.find_spec(full) is not None:
            return importlib.import_module(full)
        spec = self.__spec__
        if spec is None or spec.loader is None or "default_addons" in vars(self):
            raise AttributeError(name)
        spec.loader.exec_module(self)
        return getattr(self, name)


def import_one_by_one() -> None:
    """Puts the package in place, unless somebody imported it already."""
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return  # another layout of mitmproxy: nothing is spared, nothing breaks
    package = _OneByOne(PACKAGE)
    package.__spec__ = spec
    package.__path__ = spec.submodule_search_locations
    package.__file__ = spec.origin
    package.__loader__ = spec.loader
    package.__package__ = PACKAGE
    sys.modules[PACKAGE] = package
    sys.modules["mitmproxy"].addons = package  # type: ignore[attr-defined]
