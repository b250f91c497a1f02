"""The environment that makes a command use the proxy and trust its certificates.

There is no one variable that every tool reads, so all of those that curl, git, pip, Node and Python
document are set. The authorities are one file: the configured upstream store plus the proxy's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
AUTHORITY_VARIABLES: Final = (
    "SSL_CERT_FILE",  # Python's ssl, OpenSSL, Go
    "REQUESTS_CA_BUNDLE",  # requests, and pip through it
    "CURL_CA_BUNDLE",  # curl
    "GIT_SSL_CAINFO",  # git
    "PIP_CERT",  # pip
    "NODE_EXTRA_CA_CERTS",  # Node, npm
    "AWS_CA_BUNDLE",  # AWS command line and SDKs
    "CARGO_HTTP_CAINFO",  # cargo
    "DENO_CERT",  # Deno
)


def child_environment(inherited: Mapping[str, str], proxy_url: str, authorities: Path) -> dict[str, str]:
    """The environment of a command whose traffic goes through the proxy.

    Args:
        inherited: The environment to start from. Its `NO_PROXY` is emptied: an exception there is a way around.
        proxy_url: `http://127.0.0.1:3128`.
        authorities: PEM file that the command trusts.
    """
    environment = dict(inherited)
    for name in PROXY_VARIABLES:
        environment[name] = proxy_url
    for name in AUTHORITY_VARIABLES:
        environment[name] = str(authorities)
    environment["NO_PROXY"] = environment["no_proxy"] = ""
    environment["NODE_USE_ENV_PROXY"] = "1"  # Node 24 and later: fetch() uses the variables above
    return environment


def write_authorities(target: Path, *sources: Path) -> Path:
    """Joins PEM files into one; returns `target`."""
    target.write_bytes(b"\n".join(source.read_bytes().strip() for source in sources) + b"\n")
    return target
