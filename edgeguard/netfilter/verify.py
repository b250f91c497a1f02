"""What gets out: every way is tried as the workload, and again as the proxy, whose traffic is exempt.

A way that stays shut for the workload and opens for the proxy is shut by the rules. One that opens for
neither proves nothing: the target may be down, or the network may not lead there. It is UNKNOWN, never a
pass. Where the proxy's user cannot be taken (no root, or a client behind a gateway), what a run before
the rules found open takes its place.
"""

import encodings.idna  # noqa: F401 - for TLS, while the files can still be read: another user may not
import json
import os
import socket
import ssl
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

from edgeguard.netfilter.plan import Place, Plan
from edgeguard.netfilter.ways import NAME, PROBES, WAYS, Seen, Target, Way, attempt, become
from edgeguard.settings.values import split_address

type Verdict = Literal["ALLOWED", "BLOCKED", "UNKNOWN"]

TIMEOUT_S: Final = 3.0
NOT_TRIED: Final = Seen("nothing", "not tried: give an address that answers, with --probe")


class ProbeError(ValueError):
    """A target cannot be used. The message says what to write."""


class Row(NamedTuple):
    """One way out, and whether it is one."""

    way: str
    about: str
    target: str
    verdict: Verdict
    detail: str


def targets(given: Sequence[str]) -> dict[str, str]:
    """The target of each way: its own, or that of `NAME=TARGET`. Raises ProbeError."""
    chosen = {way.name: way.target for way in WAYS} | {"connect": f"{NAME}:443"}
    for text in given:
        name, equals, target = text.partition("=")
        known = [way.name for way in WAYS if not way.own]
        if not equals or name not in {"connect", *known}:
            raise ProbeError(
                f"{text!r} is no probe; write NAME=TARGET, where NAME is one of connect, {', '.join(known)}"
            )
        try:
            if name != "connect":
                _target(PROBES[name], target)
            elif not target.rpartition(":")[2].isdigit():
                raise ValueError('write a host and a port, like "example.com:22"')
        except ValueError as error:
            raise ProbeError(f"--probe {text}: {error}") from None
        chosen[name] = target
    return chosen


def _target(way: Way, text: str) -> Target:
    if way.name.startswith("icmp"):
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
        return text, 0
    return split_address(text)


def verify(
    plan: Plan,
    chosen: Mapping[str, str],
    *,
    door: Place | str | None,
    tls: bool,
    user: int | None,
    before: frozenset[str],
    timeout_s: float = TIMEOUT_S,
) -> list[Row]:
    """Tries every way.

    Args:
        plan: What is in force, as far as the configuration knows.
        chosen: The target of each way.
        door: The explicit HTTP door: a place, the path of a unix socket, or None.
        tls: Whether that door speaks TLS.
        user: Run as this user; None: as whoever calls. Only root can choose.
        before: Ways that were open before the rules.
        timeout_s: Time for each try, in seconds.
    """

    def trials() -> dict[str, Seen]:
        return _trials(chosen, timeout_s)

    seen = _as(user, trials)
    # The control: only root can be both.
    control = _as(plan.user, trials) if os.geteuid() == 0 and user != plan.user else {}
    rows = [_connect(chosen["connect"], door, timeout_s, tls=tls, user=user)] if door is not None else []
    for way in WAYS:
        proven = way.name in before or (way.name in control and control[way.name].outcome == "open")
        verdict, detail = _judged(seen[way.name], proven=proven, own=way.own)
        rows.append(Row(way.name, way.about, chosen[way.name], verdict, detail))
    taken = _as(user, lambda: {"user": become(plan.user)})["user"]
    verdict, detail = _judged(taken, proven=True, own=True)
    rows.append(Row("proxy-user", "passing for the proxy", "", verdict, detail))
    return rows


def _judged(seen: Seen, *, proven: bool, own: bool) -> tuple[Verdict, str]:
    if seen.outcome == "open":
        return "ALLOWED", seen.detail
    if seen.outcome == "shut":
        return "BLOCKED", seen.detail
    if proven and not own:
        return "BLOCKED", f"{seen.detail}; the target does answer without the rules"
    return "UNKNOWN", f"{seen.detail}; nothing shows that the target answers at all"


def _trials(chosen: Mapping[str, str], timeout_s: float) -> dict[str, Seen]:
    def one(way: Way) -> Seen:
        if not way.own and not chosen[way.name]:
            return NOT_TRIED
        return attempt(way, ("", 0) if way.own else _target(way, chosen[way.name]), timeout_s)

    with ThreadPoolExecutor(len(WAYS)) as pool:
        return dict(zip((way.name for way in WAYS), pool.map(one, WAYS), strict=True))


def _connect(target: str, door: Place | str | None, timeout_s: float, *, tls: bool, user: int | None) -> Row:
    """A CONNECT to what no policy allows. Only an answer of the proxy shows that it is refused."""

    def ask() -> dict[str, Seen]:
        try:
            return {
                "connect": Seen("nothing", "no door")
                if door is None
                else _asked(target, door, timeout_s, tls=tls)
            }
        except OSError as error:
            return {"connect": Seen("nothing", f"the door does not answer: {error.strerror or error}")}

    verdict, detail = _judged(_as(user, ask)["connect"], proven=False, own=True)
    return Row("connect", "CONNECT to what is not approved", target, verdict, detail)


def _asked(target: str, door: Place | str, timeout_s: float, *, tls: bool) -> Seen:
    link = socket.socket(
        socket.AF_UNIX if isinstance(door, str) else socket.AF_INET6 if door.ipv6 else socket.AF_INET
    )
    with link:
        link.settimeout(timeout_s)
        link.connect(door if isinstance(door, str) else (door.address, door.port))
        wire = link
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            wire = context.wrap_socket(link)
        with wire:
            wire.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            words = wire.recv(1024).split(maxsplit=2)
    status = words[1].decode("ascii", "replace") if len(words) > 1 else ""
    if status == "200":
        return Seen("open", "the proxy answered 200")
    return (
        Seen("shut", f"the proxy answered {status}") if status else Seen("nothing", "the door said nothing")
    )


def _as(user: int | None, work: Callable[[], dict[str, Seen]]) -> dict[str, Seen]:
    """Does the work in a child process, as another user if one is named.

    Raises:
        OSError: Only root can take another user's id; or the child ended early.
    """
    other = user is not None and user != os.geteuid()
    if other and os.geteuid() != 0:
        raise OSError(f"only root can try as user {user}; run this as that user instead")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            if user is not None and other:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(work(), pipe)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(f"could not try as user {os.geteuid() if user is None else user}")
    return {name: Seen(outcome, detail) for name, (outcome, detail) in json.loads(text).items()}
