"""Handing rules to the kernel, by nft(8): all of them or none, and an error wherever that is not certain."""

import shutil
import subprocess
from pathlib import Path

from edgeguard.netfilter.ruleset import REMOVE, TABLE

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
"""linux/capability.h."""
DEADLINE_S = 30.0


class NetfilterError(Exception):
    """The packet filter is not as it was asked for. The message says why, and what to do."""


def capable(number: int) -> bool:
    """Whether this process holds a capability. Raises OSError without /proc."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def apply(text: str) -> None:
    """Puts the rules in force in this network namespace, in one transaction, and looks whether they are.

    Raises:
        NetfilterError: They are not in force. What was in force before still is.
    """
    _nft("-f", "-", text=text)
    listed = _nft("list", "table", "inet", TABLE)
    if "policy drop" not in listed:
        raise NetfilterError(f"nft reported success, and there is no table inet {TABLE} that drops anything")


def remove() -> None:
    """Takes the rules away. Without them everything passes. Raises NetfilterError."""
    _nft("-f", "-", text=REMOVE)


def _nft(*words: str, text: str = "") -> str:
    if not capable(CAP_NET_ADMIN):
        raise NetfilterError(
            "changing the packet filter takes CAP_NET_ADMIN in this network namespace: nothing was changed. "
            "Run it as root, or in an init container with capabilities: add: [NET_ADMIN]"
        )
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
    if program is None:
        raise NetfilterError("the program nft is missing: apt-get install nftables. Nothing was changed")
    try:
        done = subprocess.run(  # noqa: S603 - an absolute program, fixed words
            [program, *words], input=text, text=True, capture_output=True, check=False, timeout=DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        raise NetfilterError(f"nft did not answer within {DEADLINE_S:.0f} s") from None
    if done.returncode:
        raise NetfilterError(f"nft refused: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
