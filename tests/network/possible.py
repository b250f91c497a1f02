"""Whether network namespaces can be made here."""

import functools
import os
import shutil
import subprocess
from typing import Final

TOOLS: Final = ("ip", "nft", "nsenter", "setpriv", "unshare")


@functools.cache
def why_not() -> str:
    """Why they cannot; empty if they can."""
    if os.geteuid() != 0:
        return "they take root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{' and '.join(absent)} missing: apt-get install nftables iproute2 util-linux"
    done = subprocess.run(
        ["unshare", "-n", "nft", "list", "ruleset"], capture_output=True, text=True, check=False
    )
    return f"this system lets nobody make them: {done.stderr.strip()}" if done.returncode else ""
