"""The plan as rules for nft(8): one table, both families, default drop, replaced in one transaction. Pure.

Four choices carry the weight.

- A packet is judged by where it goes, never by "established": flows from before the rules end with them.
  Only answers to connections that were let in go out by their direction, and to be let in, a
  connection has to begin with a SYN, so that nothing old is taken for new (tcp_loose).
- The proxy is known by the user of a packet's socket. The kernel sends the last packets of a connection
  when its socket belongs to nobody any more; they are known by a mark on the connection. The mark counts
  for nobody who has a socket, so a workload that takes over a source port inherits nothing.
- Loopback is no free space: a resolver or a relay that listens there is a way out. Its ports are listed.
- What is refused hears of it at once: a reset, or `administratively prohibited`.

Sources: nft(8); nft_meta_get_eval_skugid and nf_send_reset in the kernel; RFC 4890, 4.4 for neighbour discovery.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from edgeguard.netfilter.plan import Place, Plan
from edgeguard.policy.addresses import METADATA_ADDRESSES

TABLE: Final = "edgeguard"
MARK: Final = 0x65646765
"""On connections that the proxy began."""
NEIGHBOURS: Final = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report"
METADATA: Final = (
    ("ip", ["169.254.0.0/16", *sorted(str(a) for a in METADATA_ADDRESSES if a.version == 4)]),
    ("ip6", sorted(str(a) for a in METADATA_ADDRESSES if a.version == 6)),
)

type Rules = Iterator[str]


def render(plan: Plan) -> str:
    """The text for `nft -f`. It replaces the table whole, or changes nothing."""
    chains = _gateway(plan) if plan.shape == "gateway" else _sidecar(plan)
    body = "\n".join(f"  chain {name} {{\n{_lines(rules)}  }}" for name, rules in (*chains, _refused(plan)))
    return f"table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{body}\n}}\n"


REMOVE: Final = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
"""Takes the table away, whether it is there or not."""


def _lines(rules: Rules) -> str:
    return "".join(f"    {rule}\n" for rule in rules)


def _sidecar(plan: Plan) -> Sequence[tuple[str, Rules]]:
    parts: list[tuple[str, Rules]] = [
        ("output", _output(plan)),
        ("workload", _workload(plan)),
        ("input", _input(plan)),
        ("forward", iter(("type filter hook forward priority 0; policy drop;", "goto refused"))),
    ]
    if plan.transparent is not None:
        parts.insert(0, ("redirected", _redirected(plan, "output", f"meta skuid {plan.user} return")))
    return parts


def _gateway(plan: Plan) -> Sequence[tuple[str, Rules]]:
    parts: list[tuple[str, Rules]] = [("forward", _forward(plan))]
    if plan.transparent is not None:
        parts.insert(0, ("redirected", _redirected(plan, "prerouting", 'iif "lo" return')))
    return parts


def _redirected(plan: Plan, hook: str, exempt: str) -> Rules:
    """The first packet of each connection; the kernel does the same with those that follow."""
    door = plan.transparent
    if door is None:
        return
    yield f"type nat hook {hook} priority -100; policy accept;"
    yield exempt
    yield "fib daddr type local return"
    for family, addresses in METADATA:
        yield f"{family} daddr {_set(_apart(addresses))} return"
    for server in plan.resolvers:
        yield f"{_family(server)} daddr {server.address} tcp dport {server.port} return"
    target = (
        f"redirect to :{door.port}"
        if door.anywhere
        else f"dnat {_family(door)} to {f'[{door.address}]' if door.ipv6 else door.address}:{door.port}"
    )
    if plan.redirect_ports:
        version = "ipv6" if door.ipv6 else "ipv4"
        yield f"meta nfproto {version} tcp dport {_set(plan.redirect_ports)} counter {target}"


def _output(plan: Plan) -> Rules:
    yield "type filter hook output priority 0; policy drop;"
    yield f"meta skuid {plan.user} ct direction original ct mark set {MARK:#x}"
    yield f"meta skuid {plan.user} counter accept"
    # Every other packet of a socket. What follows belongs to nobody.
    yield "meta skuid >= 0 goto workload"
    yield f"ct mark {MARK:#x} meta l4proto tcp counter accept"
    yield f"icmpv6 type {{ {NEIGHBOURS} }} counter accept"
    yield "goto workload"


def _workload(plan: Plan) -> Rules:
    # A source route names the true destination where no rule looks (RFC 6274, 3.13.2.3; RFC 5095).
    yield "ip hdrlength > 5 counter goto refused"
    yield "exthdr rt exists counter goto refused"
    yield "exthdr hbh exists counter goto refused"
    yield "fib daddr type local ct direction reply counter accept"
    for door in (*plan.doors, *((plan.transparent,) if plan.transparent is not None else ())):
        where = "fib daddr type local" if door.anywhere else f"{_family(door)} daddr {door.address}"
        yield f"{where} tcp dport {door.port} counter accept"
    yield from _asking(plan)
    if plan.local_ports:
        yield f"fib daddr type local meta l4proto {{ tcp, udp }} th dport {_set(plan.local_ports)} counter accept"
    if plan.inbound_ports:
        yield f"tcp sport {_set(plan.inbound_ports)} ct direction reply counter accept"
    yield "goto refused"


def _input(plan: Plan) -> Rules:
    yield "type filter hook input priority 0; policy drop;"
    yield 'iif "lo" accept'
    yield "ct state established,related accept"
    yield f"icmpv6 type {{ {NEIGHBOURS}, nd-router-advert }} accept"
    if plan.inbound_ports:
        yield f"tcp dport {_set(plan.inbound_ports)} tcp flags & (fin | syn | rst | ack) == syn counter accept"
    yield "counter drop"


def _forward(plan: Plan) -> Rules:
    yield "type filter hook forward priority 0; policy drop;"
    yield "ip hdrlength > 5 counter goto refused"
    yield "exthdr rt exists counter goto refused"
    yield from _asking(plan)
    yield "goto refused"


def _asking(plan: Plan) -> Rules:
    """DNS to the listed servers, by where a packet was sent first: a container engine moves its resolver's port."""
    for server in plan.resolvers:
        for protocol in ("udp", "tcp"):
            to = f"ct original {_family(server)} daddr {server.address} meta l4proto {protocol}"
            yield f"{to} ct original proto-dst {server.port} counter accept"


def _refused(plan: Plan) -> tuple[str, Rules]:
    said = ('limit rate 10/second log prefix "edgeguard refused: "',) if plan.log else ()
    told = ("meta l4proto tcp counter reject with tcp reset", "counter reject with icmpx admin-prohibited")
    return "refused", chain(said, told)


def _family(place: Place) -> str:
    return "ip6" if place.ipv6 else "ip"


def _apart(addresses: Sequence[str]) -> list[str]:
    """Without those that the network already holds: intervals of a set must not overlap."""
    return [a for a in addresses if "/" in a or not a.startswith("169.254.")]


def _set(values: Sequence[str]) -> str:
    return f"{{ {', '.join(values)} }}"
