"""The guard joins everything and fails closed: each part is made to misbehave in turn."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from edgeguard.bundle.snapshot import Ladder, Snapshot
from edgeguard.evidence.lines import Lines, Written, encode
from edgeguard.evidence.log import FIRST_PREV
from edgeguard.guard import Guard
from edgeguard.limits.process import ProcessLimiter
from edgeguard.limits.taken import Taken, Ticket
from edgeguard.policy.decision import Admission, Decision, Lane, LimitHit
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.verdict import Entry, Facts, record_of

NOW = 1_000_000.0
CLIENT = Client("checkout", identified=True)
HIT = LimitHit("per-client", "checkout", "requests", 2, 60 * 10**9, 2, "process", True)
SEAT = LimitHit("seats", "checkout", "concurrent_tunnels", 1, 0, 1, "process", True)


class FakeEngine:
    """Allows good.example; everything about it can be replaced."""

    def __init__(self, **decision: object) -> None:
        self.decision = Decision(allow=True, rule="good", lane=Lane.TUNNEL)._replace(**decision)
        self.asked: list[tuple[Request, float, bool]] = []
        self.raises: Exception | None = None
        self.forgotten = 0

    def decide(self, request: Request, now: float, *, restricted: bool = False) -> Decision:
        self.asked.append((request, now, restricted))
        if self.raises:
            raise self.raises
        if request.host != "good.example":
            return Decision(allow=False, reason=Reason.HOST_NOT_ALLOWED)
        return self.decision

    def forget(self) -> None:
        self.forgotten += 1

    def admit(
        self,
        request: Request,
        addresses: Sequence[str],
        now: float,
        *,
        restricted: bool = False,
        decision: Decision | None = None,
    ) -> Admission:
        if self.raises:
            raise self.raises
        kept = tuple(a for a in addresses if not a.startswith("10."))
        return Admission(kept, None if kept else Reason.ADDRESS_NOT_ALLOWED)


class FakeLog:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.full = False

    def offer(self, entry: Entry) -> bool:
        if self.full:
            return False
        self.entries.append(entry)
        return True


class FakeClients:
    def identify(self, peer: str | None, proxy_authorization: Sequence[str], proof=None) -> Client:
        return CLIENT


def snapshot(engine: FakeEngine, **changes: object) -> Snapshot:
    values: dict[str, object] = {
        "engine": engine,
        "issuers": (),
        "environment": "test",
        "bundle_id": "sha256:" + "a" * 64,
        "policy_hash": "sha256:" + "b" * 64,
        "bundle_version": 3,
        "head_version": 5,
        "root_version": 1,
        "signers": ("k1",),
        "issued_at": 0,
        "not_before": 0,
        "stale_at": int(NOW) + 100,
        "restricted_at": int(NOW) + 200,
        "closed_at": int(NOW) + 300,
    }
    return Snapshot(**{**values, **changes})  # type: ignore[arg-type]


class Bench:
    """A guard with everything around it in reach."""

    def __init__(self, engine: FakeEngine | None = None, **guard: object) -> None:
        self.now = NOW
        self.ns = 0
        self.engine = engine or FakeEngine()
        self.log = FakeLog()
        self.guard = Guard(
            clients=FakeClients(),  # type: ignore[arg-type]
            limiter=ProcessLimiter(100),
            log=self.log,  # type: ignore[arg-type]
            clock=lambda: self.now,
            monotonic_ns=lambda: self.ns,
            **guard,  # type: ignore[arg-type]
        )

    def activate(self, **changes: object) -> None:
        self.guard.activate(snapshot(self.engine, **changes))


def facts(host: str = "good.example", port: int = 443, **changes: object) -> Facts:
    return Facts("c1", CLIENT, host, port)._replace(**changes)


def test_nothing_is_allowed_before_a_policy_is_there() -> None:
    bench = Bench()
    verdict = bench.guard.judge(facts())
    assert (verdict.allow, verdict.reason, verdict.ladder) == (False, Reason.POLICY_MISSING, Ladder.CLOSED)


@pytest.mark.parametrize("spelling", ["good.example", "GOOD.example", "good.example."])
def test_hosts_are_judged_in_their_canonical_form(spelling: str) -> None:
    bench = Bench()
    bench.activate()
    assert bench.guard.judge(facts(spelling)).allow
    assert bench.engine.asked[-1][0].host == "good.example"


@pytest.mark.parametrize("host", ["", "good..example", "a b", "good.example\x00.evil", "[[good]]", "x" * 300])
def test_what_has_no_canonical_form_is_malformed_and_never_judged(host: str) -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.judge(facts(host))
    assert verdict.reason is Reason.MALFORMED_REQUEST
    assert not bench.engine.asked


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("good.example",), None),
        (("GOOD.example.", "good.example:443"), None),
        (("evil.example",), Reason.MISDIRECTED_REQUEST),
        (("good.example", "evil.example"), Reason.MISDIRECTED_REQUEST),
        (("good.example:444",), Reason.MISDIRECTED_REQUEST),
        (("good.example, evil.example",), Reason.MALFORMED_REQUEST),
        (("",), Reason.MALFORMED_REQUEST),
    ],
)
def test_every_claimed_name_is_the_authority(names: tuple[str, ...], reason: Reason | None) -> None:
    bench = Bench()
    bench.activate()
    assert bench.guard.judge(facts(names=names)).reason is reason


@pytest.mark.parametrize(
    ("seconds", "ladder", "reason", "restricted"),
    [
        (0, Ladder.FRESH, None, False),
        (99.99, Ladder.FRESH, None, False),
        (100, Ladder.STALE, None, False),
        (200, Ladder.RESTRICTED, None, True),
        (300, Ladder.CLOSED, Reason.POLICY_EXPIRED, None),
    ],
)
def test_every_decision_compares_the_deadlines(
    seconds: float, ladder: Ladder, reason: Reason | None, restricted: bool | None
) -> None:
    bench = Bench()
    bench.activate()
    bench.now = NOW + seconds
    verdict = bench.guard.judge(facts())
    assert (verdict.ladder, verdict.reason) == (ladder, reason)
    assert verdict.staleness_s == max(0.0, seconds - 100)
    if restricted is None:
        assert not bench.engine.asked
    else:
        assert bench.engine.asked[-1][2] is restricted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"revoked": True}, Reason.POLICY_REVOKED), ({"quarantined": True}, Reason.QUARANTINED)],
)
def test_revocation_and_quarantine_leave_only_the_essentials(
    changes: dict[str, object], reason: Reason
) -> None:
    bench = Bench(essentials={("vault.example", 443)})
    bench.activate(**changes)
    assert bench.guard.judge(facts()).reason is reason
    essential = bench.guard.judge(facts("vault.example"))
    assert essential.allow
    assert bench.guard.admit(essential, ["93.184.216.34"]).allow
    for address in ("169.254.169.254", "127.0.0.1", "::ffff:169.254.169.254", "224.0.0.1"):
        assert bench.guard.admit(essential, [address]).reason is Reason.ADDRESS_NOT_ALLOWED


def test_essentials_are_not_a_policy() -> None:
    bench = Bench(essentials={("vault.example", 443)})
    bench.activate()
    assert bench.guard.judge(facts("vault.example")).reason is Reason.HOST_NOT_ALLOWED


def test_an_exception_while_deciding_denies() -> None:
    bench = Bench()
    bench.activate()
    bench.engine.raises = RuntimeError("boom")
    assert bench.guard.judge(facts()).reason is Reason.INTERNAL_ERROR


def test_an_exception_while_admitting_denies() -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.judge(facts())
    bench.engine.raises = RuntimeError("boom")
    assert bench.guard.admit(verdict, ["192.0.2.1"]).reason is Reason.INTERNAL_ERROR


def test_an_exception_while_settling_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.judge(facts())

    def broken(entry: Entry) -> bool:
        raise RuntimeError("boom")

    monkeypatch.setattr(bench.log, "offer", broken)
    assert bench.guard.settle(verdict).reason is Reason.INTERNAL_ERROR


def test_admit_keeps_the_order_and_drops_what_is_forbidden() -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.admit(bench.guard.judge(facts()), ["10.0.0.1", "192.0.2.2", "192.0.2.1"])
    assert verdict.addresses == ("192.0.2.2", "192.0.2.1")
    refused = bench.guard.admit(bench.guard.judge(facts()), ["10.0.0.1"])
    assert (refused.reason, refused.addresses) == (Reason.ADDRESS_NOT_ALLOWED, ())
    nowhere = bench.guard.admit(bench.guard.judge(facts()), [])
    assert nowhere.reason is Reason.ADDRESS_NOT_ALLOWED


def test_our_own_listeners_are_never_dialled() -> None:
    bench = Bench(own=lambda address, port: (address, port) == ("192.0.2.7", 443))
    bench.activate()
    verdict = bench.guard.admit(bench.guard.judge(facts()), ["192.0.2.7", "192.0.2.8"])
    assert verdict.addresses == ("192.0.2.8",)
    assert bench.guard.admit(verdict, ["192.0.2.7"]).reason is Reason.ADDRESS_NOT_ALLOWED


def test_a_full_log_refuses_new_work_and_gives_the_seat_back() -> None:
    bench = Bench(FakeEngine(limits=(SEAT,)))
    bench.activate()
    bench.log.full = True
    for _ in range(3):
        verdict = bench.guard.settle(bench.guard.judge(facts()))
        assert (verdict.allow, verdict.reason) == (False, Reason.CAPACITY_EXCEEDED)
    bench.log.full = False
    assert bench.guard.settle(bench.guard.judge(facts())).allow


def test_limits_are_charged_where_they_belong() -> None:
    bench = Bench(FakeEngine(limits=(HIT,)))
    bench.activate()
    for _ in range(5):
        assert bench.guard.settle(bench.guard.judge(facts())).allow, "CONNECT is not a request"
    request = facts(method="GET", target="/")
    assert [bench.guard.settle(bench.guard.judge(request)).reason for _ in range(3)] == [
        None,
        None,
        Reason.RATE_LIMITED,
    ]
    refused = bench.guard.settle(bench.guard.judge(request))
    assert refused.rule == "per-client"
    assert refused.retry_after_s == pytest.approx(30, abs=0.1)
    bench.ns = 31 * 10**9
    assert bench.guard.settle(bench.guard.judge(request)).allow


def test_a_seat_is_free_again_after_finish_or_refuse() -> None:
    bench = Bench(FakeEngine(limits=(SEAT,)))
    bench.activate()
    first = bench.guard.settle(bench.guard.judge(facts()))
    assert bench.guard.settle(bench.guard.judge(facts())).reason is Reason.RATE_LIMITED
    bench.guard.finish(first, sent=1, received=2, why="closed")
    second = bench.guard.settle(bench.guard.judge(facts()))
    assert second.allow
    assert bench.guard.refuse(second, Reason.MISDIRECTED_REQUEST).reason is Reason.MISDIRECTED_REQUEST
    assert bench.guard.settle(bench.guard.judge(facts())).allow


def test_each_settled_verdict_is_one_record_with_what_a_replay_needs() -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.settle(
        bench.guard.judge(facts(method="GET", target="/a?token=secret", names=("good.example",)))
    )
    record = record_of(bench.log.entries[0])
    assert (record.id, record.kind, record.verdict, record.rule) == (verdict.id, "request", "allow", "good")
    assert (record.host, record.port, record.method, record.path) == ("good.example", 443, "GET", "/a")
    assert record.query_keys == ("token",)
    assert (record.bundle, record.bundle_version, record.ladder) == (
        verdict.bundle_id,
        3,
        Ladder.FRESH,
    )
    assert "secret" not in repr(record)


def test_the_end_of_a_tunnel_is_recorded_when_it_ends() -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.settle(bench.guard.judge(facts()))
    bench.now = NOW + 60
    bench.guard.finish(verdict, sent=1, received=2, why="client_closed")
    first, last = (record_of(entry) for entry in bench.log.entries)
    assert (first.id, last.id) == (verdict.id, verdict.id)
    assert (first.time, last.time, last.kind) == (NOW, NOW + 60, "close")


def test_entries_of_one_key_make_records_that_differ_in_their_own_fields_alone() -> None:
    """Whatever is recorded of a verdict is in its key or its own: changing it changes one of them."""
    bench = Bench()
    bench.activate()
    user = User(18, 20, Assurance.VERIFIED, "DE", 5e9, False, "somebody")
    whole = bench.guard.settle(
        bench.guard.judge(facts(tokens=("t",), method="GET", target="/a?b=1", overrides=("PUT",)))
    )
    request = whole.request._replace(user=user)
    whole = whole._replace(request=request, addresses=("192.0.2.1",), resolved=("192.0.2.2",))
    decision, client = whole.decision, whole.facts.client
    changed = [Entry(whole, *end) for end in ((1, 2, "closed", 3.0), (1, 2, "idle", 3.0))]
    for field, value in {"reason": Reason.DENIED_BY_RULE, "rule": "r", "near": "n", "allow": False, "limits": (HIT,),
                         "would": (("would_deny", "r"),), "lane": Lane.INSPECT}.items():  # fmt: skip
        changed.append(Entry(whole._replace(decision=decision._replace(**{field: value}))))
    for field, value in {"name": "c", "identified": not client.identified, "groups": frozenset("g"), "claims": frozenset("c")}.items():  # fmt: skip
        other = whole.facts._replace(client=client._replace(**{field: value}))
        changed.append(Entry(whole._replace(facts=other)))
    for field, value in {"connection": "c", "port": 1, "protocol": "tcp", "names": ("n",), "method": None, "target": None,
                         "tokens": (), "overrides": ()}.items():  # fmt: skip
        changed.append(Entry(whole._replace(facts=whole.facts._replace(**{field: value}))))
    for field, value in {"age_at_least": 1, "age_at_most": 99, "assurance": Assurance.ESTIMATED, "region": "FR", "invalid": True}.items():  # fmt: skip
        changed.append(Entry(whole._replace(request=request._replace(user=user._replace(**{field: value})))))
    changed.append(Entry(whole._replace(request=request._replace(user=None))))
    changed.append(Entry(whole._replace(request=request._replace(host="other.example"))))
    for field, value in {"bundle_id": "b", "policy_hash": "p", "bundle_version": 9, "stale_at": 1}.items():
        changed.append(Entry(whole._replace(snapshot=dataclasses.replace(whole.snapshot, **{field: value}))))
    for field, value in {"id": "i", "now": 1.0, "snapshot": None, "ladder": Ladder.STALE, "addresses": (),
                         "taken": Taken(True, would=("l",))}.items():  # fmt: skip
        changed.append(Entry(whole._replace(**{field: value})))
    changed.append(Entry(whole._replace(taken=Taken(False, "l"))))
    changed.append(Entry(whole._replace(id="n", request=None)))
    lines, seen = Lines(), set()
    for entry in (Entry(whole), *changed):
        record = record_of(entry)
        seen.add(encode(record, 1, FIRST_PREV))
        sort, own = lines.sort_of(entry)
        assert sort.line(own, 1, FIRST_PREV) == encode(record, 1, FIRST_PREV)
        assert Written(sort.record, own).whole() == record
    assert len(seen) == len(changed) + 1, "each change shows in the line"
    alike = whole._replace(facts=whole.facts._replace(client=client._replace(address="192.0.2.9")))
    assert lines.sort_of(Entry(alike))[0] is lines.sort_of(Entry(whole))[0]


def test_a_refused_address_stands_in_the_record() -> None:
    bench = Bench()
    bench.activate()
    refused = bench.guard.settle(bench.guard.admit(bench.guard.judge(facts()), ["10.0.0.1"]))
    assert refused.addresses == ()
    assert record_of(bench.log.entries[0]).addresses == ("10.0.0.1",)


def test_ids_are_unique() -> None:
    bench = Bench()
    assert len({bench.guard.judge(facts()).id for _ in range(1000)}) == 1000


def test_rejudging_uses_what_is_in_force_now() -> None:
    bench = Bench()
    bench.activate()
    verdict = bench.guard.admit(bench.guard.judge(facts()), ["192.0.2.1"])
    assert bench.guard.rejudge(verdict).allow
    bench.engine.decision = Decision(allow=False, reason=Reason.DENIED_BY_RULE)
    bench.activate()
    assert bench.guard.rejudge(verdict).reason is Reason.DENIED_BY_RULE
    bench.guard.activate(None)
    assert bench.guard.rejudge(verdict).reason is Reason.POLICY_MISSING


def test_a_connection_that_is_known_is_asked_again_whenever_the_answer_may_differ() -> None:
    bench = Bench(FakeEngine(until=NOW + 50))
    bench.activate()

    def asks(**changes: object) -> bool:
        before = len(bench.engine.asked)
        verdict = bench.guard.judge(facts(**changes))
        assert verdict.now == bench.now
        assert verdict.ladder is bench.guard.ladder()
        return len(bench.engine.asked) > before

    assert [asks(), asks(), asks()] == [True, False, False]
    for different in (
        {"port": 444}, {"protocol": "tcp"}, {"client": CLIENT._replace(groups=frozenset("g"))},
        {"client": CLIENT._replace(address="192.0.2.7")}, {"names": ("good.example",)}, {"host": "GOOD.example"},
    ):  # fmt: skip
        assert [asks(**different), asks(**different)] == [True, False]
    for never in ({"method": "GET", "target": "/"}, {"tokens": ("t",)}, {"plain": (("x-age", "1"),)}, {"overrides": ("PUT",)}, {"host": "evil.example"}):  # fmt: skip
        assert [asks(**never), asks(**never)] == [True, True]
    assert not asks()
    bench.activate()
    assert [asks(), asks()] == [True, False]
    bench.now = NOW - 1
    assert asks(), "the clock was set back"
    bench.now = NOW + 49.9
    assert not asks()
    bench.now = NOW + 50
    assert asks(), "the decision itself says until when it holds"
    for deadline in (100, 200):
        bench.engine.decision = bench.engine.decision._replace(until=None)
        bench.now = NOW + deadline - 0.1
        asks()
        assert not asks()
        bench.now = NOW + deadline
        assert asks(), "the ladder has moved"
    bench.now = NOW + 300
    assert bench.guard.judge(facts()).reason is Reason.POLICY_EXPIRED


def test_an_engine_forgets_when_another_is_in_force() -> None:
    bench = Bench()
    bench.activate()
    first, bench.engine = bench.engine, FakeEngine()
    assert first.forgotten == 0
    bench.activate()
    assert (first.forgotten, bench.engine.forgotten) == (1, 0)
    bench.activate(head_version=9)
    assert bench.engine.forgotten == 0, "a new head is no new engine"
    bench.guard.activate(None)
    assert bench.engine.forgotten == 1


def test_known_connections_are_bounded_and_each_has_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeguard.guard.MAX_KNOWN", 3)
    bench = Bench()
    bench.activate()
    verdicts = [bench.guard.judge(facts(port=port, connection=f"c{port}")) for port in (*range(10), 9, 9)]
    assert len(bench.guard._in_force.known) <= 3
    assert len({verdict.id for verdict in verdicts}) == 12
    assert [verdict.facts.port for verdict in verdicts] == [*range(10), 9, 9]
    assert verdicts[-1] == verdicts[-2]._replace(id=verdicts[-1].id)


async def test_subscribers_hear_of_changes_and_of_deadlines() -> None:
    bench = Bench()
    heard: list[Ladder] = []
    bench.guard.subscribe(lambda: 1 / 0)  # one broken subscriber does not silence the others
    bench.guard.subscribe(lambda: heard.append(bench.guard.ladder()))
    bench.guard.start()
    loop = asyncio.get_running_loop()
    start = loop.time()
    bench.guard._clock = lambda: NOW + loop.time() - start
    bench.guard.activate(
        snapshot(bench.engine, stale_at=NOW + 0.05, restricted_at=NOW + 0.1, closed_at=NOW + 0.15)
    )  # type: ignore[arg-type]
    await asyncio.sleep(0.3)
    bench.guard.stop()
    assert heard == [Ladder.FRESH, Ladder.STALE, Ladder.RESTRICTED, Ladder.CLOSED]


def test_a_tunnel_that_changes_its_protocol_is_counted_once() -> None:
    hit = LimitHit("tunnels", "checkout", "tunnels", 2, 60 * 10**9, 2, "process", True)
    bench = Bench()
    bench.engine.decision = bench.engine.decision._replace(limits=(hit, SEAT))
    bench.activate()
    guard = bench.guard
    first = guard.settle(guard.judge(facts()))
    guard.finish(first, sent=0, received=0, why="protocol_changed")
    again = guard.settle(guard.judge(facts(protocol="tcp")), before=first)
    assert (first.allow, again.allow) == (True, True)
    assert guard.settle(guard.judge(facts())).reason is Reason.RATE_LIMITED, "the seat is taken again"
    guard.finish(again, sent=0, received=0, why="closed")
    assert guard.settle(guard.judge(facts())).allow, "the second tunnel, not the third"
    assert [entry.why for entry in bench.log.entries][:3] == [None, "protocol_changed", None]


# Limits that are counted elsewhere


class FarLimiter(ProcessLimiter):
    """Answers only when it is told to, and remembers what was given back."""

    def __init__(self) -> None:
        super().__init__(100)
        self.go = asyncio.Event()
        self.asked, self.back, self.tickets = 0, [], []

    def reserve(self, hits, now_ns):
        self.asked += 1

        async def answer():
            await self.go.wait()
            return Ticket()

        return answer() if hits[0].scope == "fleet" else None

    def take(self, hits, now_ns, amount=1, ticket=None):
        self.tickets.append(ticket)
        return super().take(hits, now_ns, amount)

    def give_back(self, ticket) -> None:
        self.back.append(ticket)


FAR = HIT._replace(scope="fleet", unit="tunnels")


def far_bench() -> tuple[Bench, FarLimiter]:
    bench = Bench(FakeEngine(limits=(FAR,)))
    bench.guard._limiter = limiter = FarLimiter()
    bench.activate()
    return bench, limiter


async def test_what_is_counted_here_is_not_awaited() -> None:
    bench = Bench(FakeEngine(limits=(HIT._replace(unit="tunnels"),)))
    bench.guard._limiter = FarLimiter()
    bench.activate()
    assert bench.guard.reserve(bench.guard.judge(facts())) is None
    assert bench.guard.reserve(bench.guard.judge(facts("evil.example"))) is None
    assert bench.guard._limiter.asked == 0
    bench.engine.decision = bench.engine.decision._replace(limits=(FAR,))
    bench.activate()
    waiting = bench.guard.reserve(bench.guard.judge(facts()))
    assert waiting is not None
    bench.guard._limiter.go.set()
    assert (await waiting).ticket is not None
    assert bench.guard._limiter.asked == 1


async def test_awaited_answer_is_redeemed_by_settling_and_once() -> None:
    bench, limiter = far_bench()
    waiting = bench.guard.reserve(bench.guard.judge(facts()))
    limiter.go.set()
    verdict = bench.guard.settle(await waiting)
    assert verdict.allow
    assert limiter.tickets == [verdict.ticket or limiter.tickets[0]]
    assert isinstance(limiter.tickets[0], Ticket)
    bench.guard.refuse(verdict, Reason.UPSTREAM_UNREACHABLE)
    assert limiter.back == [], "what was charged and dialled stays charged"


@pytest.mark.parametrize("change", ["policy", "expiry", "refusal"])
async def test_nothing_is_charged_under_another_policy_than_the_one_that_decided(change: str) -> None:
    bench, limiter = far_bench()
    first = bench.guard.admit(bench.guard.judge(facts()), ["192.0.2.1"])
    waiting = asyncio.ensure_future(bench.guard.reserve(first))
    await asyncio.sleep(0)
    if change == "policy":
        bench.activate(bundle_version=4)
    elif change == "expiry":
        bench.now += 500
    else:
        bench.engine = FakeEngine(allow=False, reason=Reason.DENIED_BY_RULE)
        bench.activate(bundle_version=4)
    limiter.go.set()
    verdict = bench.guard.settle(await waiting)
    assert verdict.id == first.id
    assert len(limiter.back) == 1, "the answer under the old policy was given back"
    if change == "policy":
        assert verdict.allow
        assert verdict.snapshot.bundle_version == 4
        assert verdict.addresses == ("192.0.2.1",)
    else:
        assert verdict.reason is (Reason.POLICY_EXPIRED if change == "expiry" else Reason.DENIED_BY_RULE)
        assert limiter.tickets == []


async def test_a_policy_that_changes_again_and_again_is_refused_in_the_end() -> None:
    bench, limiter = far_bench()
    limiter.go.set()
    stands, bench.guard._stands = bench.guard._stands, lambda _: False
    verdict = await bench.guard.reserve(bench.guard.judge(facts()))
    assert verdict.reason is Reason.CAPACITY_EXCEEDED
    assert len(limiter.back) == limiter.asked == 3
    bench.guard._stands = stands


async def test_whoever_left_and_what_is_refused_meanwhile_is_given_back() -> None:
    bench, limiter = far_bench()
    limiter.go.set()
    verdict = await bench.guard.reserve(bench.guard.judge(facts()))
    bench.guard.forgo(verdict)
    verdict = await bench.guard.reserve(bench.guard.judge(facts()))
    assert bench.guard.refuse(verdict, Reason.ADDRESS_NOT_ALLOWED).ticket is None
    assert len(limiter.back) == 2
    gone, refused = bench.log.entries
    assert (gone.verdict.allow, gone.why, refused.verdict.allow) == (True, "client_lost", False)


async def test_limiter_that_cannot_be_asked_is_settled_and_fails_closed() -> None:
    bench, limiter = far_bench()
    limiter.reserve = None  # type: ignore[assignment]
    verdict = bench.guard.judge(facts())
    assert bench.guard.reserve(verdict) is None


def test_a_request_that_ends_gives_no_seat_of_its_tunnel_back() -> None:
    bench = Bench(FakeEngine(limits=(SEAT, HIT)))
    bench.activate()
    tunnel = bench.guard.settle(bench.guard.judge(facts()))
    request = bench.guard.settle(bench.guard.judge(facts(method="GET", target="/")))
    bench.guard.finish(request, sent=0, received=0, why="done")
    assert bench.guard.settle(bench.guard.judge(facts())).reason is Reason.RATE_LIMITED
    bench.guard.finish(tunnel, sent=0, received=0, why="closed")
    assert bench.guard.settle(bench.guard.judge(facts())).allow


def test_record_names_limits_that_are_nearly_used_up() -> None:
    bench = Bench(FakeEngine(limits=(HIT._replace(unit="tunnels", quota=5, burst=5),)))
    bench.activate()
    verdicts = [bench.guard.settle(bench.guard.judge(facts())) for _ in range(6)]
    near = [record_of(Entry(verdict)).near_limits for verdict in verdicts]
    assert near == [(), (), (), ("per-client",), ("per-client",), ()]
