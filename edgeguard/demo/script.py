"""What the demo tries, row by row: expected beside observed. A row that differs fails the demo."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from edgeguard.demo.client import Client, Seen
from edgeguard.demo.tokens import AUTHORITY_NAME
from edgeguard.demo.world import GRACE_S, HEAD_LIFETIME_S, World

CHANGE_WITHIN_S: Final = 5.0
LADDER_S: Final = 25.0
LAST_BUNDLE_S: Final = HEAD_LIFETIME_S + GRACE_S + 9
"""Lifetime of the bundle under which the server is killed: long enough to see each rung."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    chapter: str
    what: str
    expected: str
    observed: str
    note: str = ""

    @property
    def good(self) -> bool:
        return self.expected == self.observed


def run(world: World) -> Iterator[Row]:
    """Plays the demo; yields each row as soon as it is known."""
    world.ceremony()
    world.write_policy("product", "security", "privacy")
    world.start_server()
    world.start_upstreams()
    world.publish(world.release(1, lifetime_s=600))
    world.start_head()
    client = world.start_proxy()
    yield from _lanes(world, client)
    yield from _refusals(world, client)
    yield from _limit(world, client)
    yield from _ages(world, client)
    yield from _attacks(world, client)
    yield from _ladder(world, client)


def _lanes(world: World, client: Client) -> Iterator[Row]:
    chapter = "Allowed"
    seen = client.https("api.payments.example", world.tls, "/v1/charges", method="POST")
    yield Row(
        chapter,
        "payments: host and port settle it, TLS is left alone",
        f"200, certificate by {AUTHORITY_NAME}, lane tunnel",
        f"{_outcome(seen)}, certificate by {seen.issuer}, lane {world.decision('allow').get('lane')}",
    )
    seen = client.https("catalogue.example", world.tls, "/v1/items/7")
    yield Row(
        chapter,
        "catalogue: method and path matter, TLS is opened",
        "200, certificate by edgeguard, lane inspect",
        f"{_outcome(seen)}, certificate by {_own(seen)}, lane {world.decision('allow').get('lane')}",
    )
    seen = client.http("status.example", world.http, "/")
    yield Row(chapter, "status page: plain HTTP, where a rule says so", "200", _outcome(seen))


def _refusals(world: World, client: Client) -> Iterator[Row]:
    chapter = "Refused"
    tries: list[tuple[str, str, Callable[[], Seen]]] = [
        (
            "a host that no rule names",
            "403 host_not_allowed",
            lambda: client.https("evil.example", world.tls),
        ),
        (
            "another port of an allowed host",
            "403 port_not_allowed",
            lambda: client.https("api.payments.example", 22),
        ),
        (
            "another method",
            "403 method_not_allowed",
            lambda: client.https("catalogue.example", world.tls, "/v1/items/7", method="DELETE"),
        ),
        (
            "another path",
            "403 path_not_allowed",
            lambda: client.https("catalogue.example", world.tls, "/v1/prices/7"),
        ),
        (
            "a denied path, spelled /x/%2e%2e/admin/users",
            "403 denied_by_rule",
            lambda: client.https("media.example", world.tls, "/x/%2e%2e/admin/users"),
        ),
        (
            "an allowed name that resolves to a metadata address",
            "403 address_not_allowed",
            lambda: client.https("inventory.example", world.tls),
        ),
    ]
    for what, expected, attempt in tries:
        yield Row(chapter, what, expected, _outcome(attempt()))
    seen = client.https("api.payments.example", world.tls, sni="evil.example")
    record = world.decision("deny")
    yield Row(
        chapter,
        "CONNECT to payments, TLS hello to evil.example",
        "no answer, misdirected_request",
        f"{'no answer' if seen.status is None else seen.status}, {record.get('reason')}",
        seen.error or "",
    )


def _limit(world: World, client: Client) -> Iterator[Row]:
    # One request of the three in a minute was made above.
    outcomes = [client.http("status.example", world.http, "/") for _ in range(3)]
    last = outcomes[-1]
    yield Row(
        "Rate limit",
        "3 requests a minute to the status page: the 2nd, 3rd and 4th",
        "200, 200, 429 rate_limited",
        ", ".join(_outcome(seen) for seen in outcomes),
        f"Retry-After: {last.headers.get('retry-after')}; RateLimit: {last.headers.get('ratelimit')}",
    )
    yield Row(
        "Rate limit",
        "the refusal says when to come back, and which quota it was",
        "Retry-After, RateLimit, RateLimit-Policy",
        ", ".join(
            name for name in ("Retry-After", "RateLimit", "RateLimit-Policy") if name.lower() in last.headers
        ),
    )


def _ages(world: World, client: Client) -> Iterator[Row]:
    chapter = "Age gate"

    def view(token: str | None) -> Seen:
        headers = {} if token is None else {"edgeguard-user": token}
        return client.https("media.example", world.tls, "/restricted/film", headers=headers)

    verifier = world.verifier
    yield Row(chapter, "restricted film, no token", "403 age_verification_required", _outcome(view(None)))
    too_young = verifier.token(age_over_16=True, age_over_18=False, age_assurance="verified")
    yield Row(chapter, "a token of somebody of 16", "403 age_below_minimum", _outcome(view(too_young)))
    good = view(verifier.token(age_over_18=True, age_assurance="verified"))
    arrived = "edgeguard-user" in str(good.json().get("headers")) if good.status == 200 else "?"
    yield Row(
        chapter,
        "a token of an adult; it does not reach the upstream",
        "200, token at the upstream: no",
        f"{_outcome(good)}, token at the upstream: {'yes' if arrived else 'no'}",
    )
    forged = verifier.token(age_over_18=True)[:-4] + "AAAA"
    yield Row(chapter, "the same with a forged signature", "403 age_token_invalid", _outcome(view(forged)))


def _attacks(world: World, client: Client) -> Iterator[Row]:
    chapter = "Policy under attack"
    head = world.repository / "demo/head"
    old_head = head.read_bytes()
    world.write_policy("change")
    bundle = world.release(2, lifetime_s=600)

    with world.paused("head"):
        # The head is good; whoever holds the server swaps the bytes of the blob that it names.
        blob = world.put_under_head(bundle, tampered=True)
        code = world.refusal("hash_mismatch")
        seen = client.https("api.payments.example", world.tls)
        yield Row(
            chapter,
            "a tampered bundle under a good head, while traffic goes on",
            "refused hash_mismatch, version 1 in force, payments 200",
            f"refused {code}, version {world.version()} in force, payments {_outcome(seen)}",
        )
        before = client.https("shipping.example", world.tls)
        blob.unlink()
        start = time.monotonic()
        world.publish(bundle)
        published_s = time.monotonic() - start
        after = before
        while after.status != 200 and time.monotonic() - start < CHANGE_WITHIN_S * 3:
            time.sleep(0.01)
            after = client.https("shipping.example", world.tls)
        yield Row(
            chapter,
            "the true bundle arrives: shipping is allowed now",
            "403 host_not_allowed, then 200 under version 2",
            f"{_outcome(before)}, then {_outcome(after)} under version {world.version()}",
            f"took effect {max(0.0, time.monotonic() - start - published_s):.2f} s after it was published",
        )

    with world.paused("head"):
        head.write_bytes(old_head)
        code = world.refusal("rollback_head")
        seen = client.https("shipping.example", world.tls)
        yield Row(
            chapter,
            "the older head and bundle are offered again",
            "refused rollback_head, version 2 in force, shipping 200",
            f"refused {code}, version {world.version()} in force, shipping {_outcome(seen)}",
        )


def _ladder(world: World, client: Client) -> Iterator[Row]:
    chapter = "Server gone"
    world.publish(world.release(3, lifetime_s=LAST_BUNDLE_S))
    world.wait_until(lambda: world.version() == 3, "version 3", within_s=CHANGE_WITHIN_S * 2)
    # At once: on a busy machine a polite end could outlast the last head.
    world.stop("server", signal.SIGKILL)
    world.stop("head", signal.SIGKILL)
    start = time.monotonic()

    def rung(state: str, payments: str, shipping: str) -> Row:
        world.wait_until(
            lambda: world.status().get("ladder") == state, f"the state {state}", within_s=LADDER_S
        )
        at = time.monotonic() - start
        expected = f"payments {payments}, shipping {shipping}"
        observed = (
            f"payments {_outcome(client.https('api.payments.example', world.tls))}, "
            f"shipping {_outcome(client.https('shipping.example', world.tls))}"
        )
        return Row(chapter, state, expected, observed, f"{at:.1f} s after the server was killed")

    yield rung("fresh", "200", "200")
    yield rung("stale", "200", "200")
    yield rung("restricted", "200", "503 policy_restricted")
    yield rung("closed", "503 policy_expired", "503 policy_expired")
    world.start_server()
    world.publish(world.release(4, lifetime_s=600))
    world.start_head()
    start = time.monotonic()
    row = rung("fresh", "200", "200")
    yield Row(
        "Server back",
        row.what,
        row.expected,
        row.observed,
        f"{time.monotonic() - start:.1f} s after it returned",
    )


def _outcome(seen: Seen) -> str:
    if seen.status is None:
        return f"no answer ({seen.error})"
    return f"{seen.status} {seen.reason}" if seen.reason else str(seen.status)


def _own(seen: Seen) -> str:
    return "edgeguard" if "edgeguard" in (seen.issuer or "").lower() else str(seen.issuer)
