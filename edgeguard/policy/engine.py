"""The engine: one question in, one decision out.

    allowed = some allow matches, no deny matches, every matching gate passes, every address is permitted

for every reading of the request (order never matters). `Engine` is immutable apart from bounded memos of pure results (`plan.py`
and below it), so it may be shared, and a decision depends on nothing but its arguments.
"""

from collections.abc import Sequence
from ipaddress import IPv6Network
from typing import TYPE_CHECKING, Final

from edgeguard.policy.addresses import METADATA_NAMES, WELL_KNOWN
from edgeguard.policy.admit import Addresses
from edgeguard.policy.connect import connection, gated_tunnel
from edgeguard.policy.decision import Admission, Decision
from edgeguard.policy.gates import Gates
from edgeguard.policy.inside import Inside, Recent
from edgeguard.policy.kinds import Kind
from edgeguard.policy.matching import asked_of
from edgeguard.policy.plan import Plan
from edgeguard.policy.planner import Planner, suffixes
from edgeguard.policy.refusal import Refused
from edgeguard.policy.request import Client, Request
from edgeguard.policy.tables import ENTRY, Tables

if TYPE_CHECKING:
    from edgeguard.policy.trace import Trace

MEMO: Final = 8192
"""Plans kept per generation; two generations live at most."""
LONE: Final = 65_536
"""The same for plans that all clients of an allow share."""

type _Key = tuple[Client, str, int, bool]
type _Lone = tuple[int, frozenset[str] | None, Decision, Plan]
"""Port, names of the clients (None: any identified one), decision on a TLS connection, plan."""


class Engine:
    """Decides. `tables` are loaded and checked; `nat64` are the NAT64 prefixes of the network."""

    __slots__ = (
        "_addresses",
        "_gates",
        "_lone",
        "_lone_old",
        "_memo",
        "_old",
        "_recent",
        "planner",
        "tables",
    )

    def __init__(self, tables: Tables, *, nat64: Sequence[IPv6Network] = (WELL_KNOWN,)) -> None:
        self.tables = tables
        self.planner = Planner(tables, nat64)
        self._gates = Gates(tables.region_groups)
        self._addresses = Addresses(tables, self.planner, self._gates)
        self._memo: dict[_Key, Plan] = {}
        self._old: dict[_Key, Plan] = {}
        self._recent = Recent()
        self._lone: dict[str, _Lone] = {}
        self._lone_old: dict[str, _Lone] = {}

    @property
    def rule_count(self) -> int:
        """How many statements are in force, gates included."""
        return len(self.tables.rules) + len(self.tables.gates)

    def decide(self, request: Request, now: float, *, restricted: bool = False) -> Decision:
        """The verdict at `now` (Unix seconds). `restricted`: only allows that survive offline count.

        Raises nothing for any canonical request; a malformed method or target is a refusal.
        """
        client, host, port, protocol, method, target, user, overrides = request
        lone = self._lone.get(host)
        if (
            lone is not None
            and lone[0] == port
            and not restricted
            and (client[1] if (names := lone[1]) is None else client[0] in names)
        ):
            if method is None and target is None and protocol == "tls":
                return lone[2]
            plan = lone[3]
        else:
            key = (client, host, port, restricted)
            known = self._memo.get(key)
            plan = known if known is not None and known.start <= now < known.end else self._plan(key, now)
        if method is None and target is None:
            decision = plan.connect.get(protocol) or connection(plan, protocol)
            if not plan.gates:
                return decision
            return gated_tunnel(plan, decision, protocol, self._gates, user, now)
        inside = plan.inside.get(protocol)
        if inside is None:
            inside = plan.inside[protocol] = Inside(plan, protocol, self._recent)
        return inside.judge(method, target, user, overrides, self._gates, now)

    def plan(self, request: Request, now: float, *, restricted: bool = False) -> Plan:
        """The residual policy for the request's destination."""
        return self._plan((request.client, request.host, request.port, restricted), now)

    def admit(
        self,
        request: Request,
        addresses: Sequence[str],
        now: float,
        *,
        restricted: bool = False,
        decision: Decision | None = None,
    ) -> Admission:
        """Which of the resolved `addresses` (text) may be dialled for a request that `decide` allows.

        `decision` is what `decide` has said of the same question, if it was asked already. Metadata never; other special-purpose space only inside a granting allow's `resolves_to`; never what a deny names.
        """
        if decision is None:
            decision = self.decide(request, now, restricted=restricted)
        if not decision.allow:
            return Admission((), decision.reason, decision.rule)
        return self._addresses.admit(decision, request, addresses, now, restricted)

    def denied(
        self, request: Request, names: Sequence[str], now: float, *, closed: bool = False
    ) -> str | None:
        """The deny that holds for one of other `names` of a request's host that is allowed; None: there is none.

        Whoever asks: an allow may be for clients that nobody knows. Of a connection only what holds for everything
        on it counts; with `closed` nobody looks into it later, so whatever could be meant does.
        """
        protocol, port = request.protocol, request.port
        asked = None if request.method is None or request.target is None else asked_of(request)
        for name in names:
            plan = self.plan(request._replace(host=name), now)
            for deny in plan.denies:
                cond, lifts = deny.cond, plan.lifts.get(deny.id, ())
                if asked is not None:
                    met = cond.touches(protocol, port) and asked.hits(cond.hits, lifts)
                else:
                    met = cond.certain(protocol, port) and not lifts
                    met = met or (closed and cond.may_touch(protocol, port))
                if met:
                    return deny.id
        return None

    def explain(self, request: Request, now: float, *, restricted: bool = False) -> "Trace":
        """The ordered trace of the decision, computed on these tables."""
        from edgeguard.policy.trace import trace

        return trace(self, request, now, restricted=restricted)

    def forget(self) -> None:
        """Lets go of every memo, one by one: of an engine that is no longer in force, and from any thread.

        Plans and what is inside them know each other, so that only a garbage collection would free them, all at once.
        """
        self._recent.clear()
        for memo in (self._memo, self._old, self._lone, self._lone_old):
            while memo:
                try:
                    _, known = memo.popitem()
                except KeyError:  # somebody who still asks has begun anew
                    break
                plan = known if isinstance(known, Plan) else known[3]
                plan.inside.clear()

    # finding or building the plan

    def _plan(self, key: _Key, now: float) -> Plan:
        for memo in (self._memo, self._old):
            plan = memo.get(key)
            if plan is not None and plan.start <= now < plan.end:
                break
        else:
            client, host, port, restricted = key
            plan = None if restricted else self._alone(client, host, port, now)
            if plan is not None:
                return plan
            plan = self.planner.build(client, host, port, now, restricted)
        if len(self._memo) >= MEMO and key not in self._memo:
            self._old, self._memo = self._memo, {}
        self._memo[key] = plan
        return plan

    def _alone(self, client: Client, host: str, port: int, now: float) -> Plan | None:
        """The plan where one plain allow stands alone on an exact host: the same for every client that it means."""
        known = self._lone_old.get(host)
        if known is None or known[0] != port:
            rules, gates = self.tables.rules, self.tables.gates
            found = rules.exact.get(host)
            if found is None or len(found) != ENTRY or not found[1] <= port <= found[2]:
                return None
            statement = rules.get(found[0])
            if statement.kind is not Kind.ALLOW or not statement.plain:
                return None
            if rules.everywhere or gates.everywhere or host in METADATA_NAMES or host in gates.exact:
                return None
            if any(True for table in (rules, gates) for _ in suffixes(table, host)):
                return None
            names = None if statement.clients is None else statement.clients.names
            if not (client.identified if names is None else client.name in names):
                return None
            plan = self.planner.build(client, host, port, now, False)
            known = (port, names, connection(plan, "tls"), plan)
        elif not (client.identified if known[1] is None else client.name in known[1]):
            return None
        if len(self._lone) >= LONE:
            self._lone_old, self._lone = self._lone, {}
        self._lone[host] = known
        return known[3]


__all__ = ["Engine", "Refused"]
