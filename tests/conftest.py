"""What all tests share: programs that only the system has, and a last word about those that are missing."""

import os
import re
import shutil
from collections.abc import Callable

import pytest

from tests.network.possible import why_not

PACKAGES = {
    "curl": "curl",
    "git": "git",
    "ip": "iproute2",
    "nft": "nftables",
    "node": "nodejs",
    "nginx": "nginx-light",
    "openssl": "openssl",
    "redis-server": "redis-server",
    "squid": "squid",
}
"""Program to Debian package."""

ROW = re.compile(r"(?:\b|_)(attack|fault|awf)[-_]([A-Z]\d+)(?=\b|_)")
MISSING = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MISSING] = set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need network namespaces are left out where there are none, unless EDGEGUARD_TEST_NETWORK=required."""
    marked = [item for item in items if item.get_closest_marker("network")]
    if marked and why_not() and os.environ.get("EDGEGUARD_TEST_NETWORK") != "required":
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


@pytest.fixture(autouse=True)
def rows() -> None:
    """Carries the rows of a test's docstring into its id; see `pytest_generate_tests`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Rows in a name or docstring (`attack-H01`, `fault-A10`) stand in the test's id, too, so that `-k` finds them."""
    told = f"{metafunc.function.__name__} {metafunc.function.__doc__ or ''}"
    named = [f"{kind}-{row}" for kind, row in ROW.findall(told)]
    if named and "rows" in metafunc.fixturenames:
        metafunc.parametrize("rows", [None], ids=["-".join(dict.fromkeys(named))], indirect=True)


@pytest.fixture(scope="session")
def needs(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """`needs("git")` is the path of a program; without it the test is skipped and the run says what to install."""

    def find(program: str) -> str:
        found = shutil.which(program)
        if found is None:
            package = PACKAGES.get(program, program)
            request.config.stash[MISSING].add(package)
            pytest.skip(f"needs the program {program}: apt-get install {package}")
        return found

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    missing = sorted(config.stash[MISSING])
    if missing:
        terminalreporter.write_line(
            f"Tests were skipped for want of system packages: {' '.join(missing)}. "
            f"On Debian and Ubuntu: apt-get install {' '.join(missing)}",
            yellow=True,
        )
    reason = why_not()
    if reason and os.environ.get("EDGEGUARD_TEST_NETWORK") != "required":
        terminalreporter.write_line(
            f"The tests of the packet filter (tests/network) need network namespaces and were left out: {reason}.",
            yellow=True,
        )
