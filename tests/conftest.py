"""What all tests share: programs that only the system has, and a last word about those that are missing."""

import shutil
from collections.abc import Callable

import pytest

PACKAGES = {
    "curl": "curl",
    "git": "git",
    "ip": "iproute2",
    "nft": "nftables",
    "node": "nodejs",
    "nginx": "nginx-light",
    "openssl": "openssl",
    "squid": "squid",
}
"""Program to Debian package."""

MISSING = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MISSING] = set()


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
