# ruff: noqa: TID251, PTH123 - it stands in for what everybody else must not call, and runs before anything is imported
"""Runs as `sitecustomize` inside the processes under test: names are answered here, and written down.

`<hex>.<hex>.answers.test` says its own addresses; `flip-N.private.test` says 127.0.0.1 once and 10.9.9.9 ever after;
every other name below `.test` is at 127.0.0.1; nothing else is known.
"""

import ipaddress
import os
import socket

_system = socket.getaddrinfo
_seen: set[str] = set()


def _answers(name: str) -> list[str]:
    labels = name.split(".")
    if name.startswith("flip-"):
        again = name in _seen
        _seen.add(name)
        return ["10.9.9.9" if again else "127.0.0.1"]
    told = [label for label in labels if len(label) in {8, 32} and set(label) <= set("0123456789abcdef")]
    if told:
        return [str(ipaddress.ip_address(bytes.fromhex(label))) for label in told]
    if labels[-1] in {"test", "localhost"}:
        return ["127.0.0.1"]
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def getaddrinfo(host, port, *arguments, **named):
    name = host.decode() if isinstance(host, bytes) else host
    try:
        ipaddress.ip_address(name or "127.0.0.1")
    except ValueError:
        pass
    else:
        return _system(host, port, *arguments, **named)
    with open(os.environ["RESOLVED"], "a") as file:
        file.write(f"{name}\n")
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port or 0, 0, 0))
        if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))
        for address in _answers(name)
    ]


socket.getaddrinfo = getaddrinfo
