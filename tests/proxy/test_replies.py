"""Refusals as they read on the wire."""

import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from edgeguard.policy.decision import Required
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance
from edgeguard.proxy.page import Links
from edgeguard.proxy.replies import FORMS, limit_headers, render, wants_html


@dataclass
class Verdict:
    """The fields of a verdict that a reply reads."""

    reason: Reason | None = Reason.HOST_NOT_ALLOWED
    id: str = "0198c0de"
    rule: str | None = None
    host: str = "api.example.com"
    port: int = 443
    required: Required | None = None
    retry_after_s: float | None = None
    limit_states: tuple = ()
    bundle_id: str | None = "sha256:ab"
    facts: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(method="GET"))


def state(
    limit="calls", quota=100, period_ns=60_000_000_000, remaining=0, reset_ns=1_500_000_000, unit="requests"
):
    return SimpleNamespace(
        limit=limit, quota=quota, period_ns=period_ns, remaining=remaining, reset_ns=reset_ns, unit=unit
    )


def test_every_reason_has_a_form():
    assert set(FORMS) == set(Reason)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.HOST_NOT_ALLOWED, 403),
        (Reason.MALFORMED_REQUEST, 400),
        (Reason.MISDIRECTED_REQUEST, 421),
        (Reason.POLICY_MISSING, 503),
        (Reason.RATE_LIMITED, 429),
        (Reason.CAPACITY_EXCEEDED, 503),
        (Reason.REQUEST_TOO_LARGE, 413),
        (Reason.UPSTREAM_UNREACHABLE, 502),
        (Reason.AGE_VERIFICATION_REQUIRED, 403),
        (Reason.INTERNAL_ERROR, 500),
        (None, 500),
    ],
)
def test_status(reason, status):
    code, headers, body = render(Verdict(reason))
    document = json.loads(body)
    assert code == document["status"] == status
    assert dict(headers)["Content-Length"] == str(len(body))


def test_problem_document():
    code, headers, body = render(Verdict(rule="no-paste"))
    fields = dict(headers)
    assert code == 403
    assert fields["Content-Type"] == "application/problem+json"
    assert fields["edgeguard-reason"] == "host_not_allowed"
    assert fields["edgeguard-decision"] == "0198c0de"
    assert fields["Proxy-Status"] == 'edgeguard; error=http_request_denied; details="host_not_allowed"'
    assert fields["Cache-Control"] == "no-store"
    assert fields["Connection"] == "close"
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "No rule of the policy allows api.example.com:443.",
        "reason": "host_not_allowed",
        "decision": "0198c0de",
        "rule": "no-paste",
        "bundle": "sha256:ab",
    }


def test_an_age_gate_says_what_it_needs():
    required = Required("eu-adult", 18, Assurance.ESTIMATED, "DSA Art. 28", legal_demand=False)
    code, _, body = render(Verdict(Reason.AGE_VERIFICATION_REQUIRED, rule="eu-adult", required=required))
    assert code == 403
    assert json.loads(body)["required"] == {
        "gate": "eu-adult",
        "age": 18,
        "assurance": "estimated",
        "legal_ref": "DSA Art. 28",
    }


def test_a_legal_demand_reads_451_and_names_who_blocks():
    required = Required("gate", 18, None, None, legal_demand=True)
    code, headers, _ = render(
        Verdict(Reason.AGE_VERIFICATION_REQUIRED, required=required),
        links=Links(help="https://help.example/"),
    )
    assert code == 451
    assert dict(headers)["Link"] == '<https://help.example/>; rel="blocked-by"'


def test_an_unknown_client_is_challenged_only_where_credentials_exist():
    assert render(Verdict(Reason.CLIENT_UNKNOWN))[0] == 403
    code, headers, _ = render(Verdict(Reason.CLIENT_UNKNOWN), challenge='Basic realm="edgeguard"')
    assert code == 407
    assert dict(headers)["Proxy-Authenticate"] == 'Basic realm="edgeguard"'


def test_rate_limit_fields():
    verdict = Verdict(
        Reason.RATE_LIMITED, retry_after_s=1.2, limit_states=(state(), state("day", 5, 10, 3, 0))
    )
    code, headers, body = render(verdict)
    fields = dict(headers)
    assert code == 429
    assert fields["RateLimit-Policy"] == '"edgeguard-calls";q=100;w=60, "edgeguard-day";q=5'
    assert fields["RateLimit"] == '"edgeguard-calls";r=0;t=2, "edgeguard-day";r=3;t=0'
    assert fields["Retry-After"] == "2"
    document = json.loads(body)
    assert document["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert document["violated-policies"] == ["edgeguard-calls"]


def test_rate_limit_fields_say_what_they_count():
    """Quota units of draft-ietf-httpapi-ratelimit-headers; seats have no window."""
    fields = dict(
        limit_headers([state("volume", 10**9, unit="bytes"), state("open", 8, 0, 2, 0, "concurrent_tunnels")])
    )
    assert fields["RateLimit-Policy"] == (
        '"edgeguard-volume";q=1000000000;qu="content-bytes";w=60, "edgeguard-open";q=8;qu="concurrent-requests"'
    )


def test_limit_that_refused_is_named_even_where_its_level_is_not_known():
    """The store is down, and the limit says `on_store_error: deny`."""
    verdict = Verdict(Reason.RATE_LIMITED, rule="shared", retry_after_s=1.0)
    assert json.loads(render(verdict)[2])["violated-policies"] == ["edgeguard-shared"]


@pytest.mark.parametrize("wait", [0.001, 0.9, 1.0, 59.5, 3600.0])
def test_retry_after_is_never_early_and_spreads_by_a_tenth(wait):
    answers = {
        int(dict(render(Verdict(Reason.RATE_LIMITED, id=f"{n:08x}", retry_after_s=wait))[1])["Retry-After"])
        for n in range(200)
    }
    assert min(answers) >= math.ceil(wait)
    assert max(answers) <= math.ceil(wait * 1.1) + 1
    if wait > 100:
        assert len(answers) > 20


def test_no_limits_no_fields():
    assert limit_headers(()) == []


def test_names_of_limits_cannot_break_out_of_their_string():
    assert dict(limit_headers([state('a"\\\r\nb')]))["RateLimit"].startswith('"edgeguard-a\\"\\\\??b";')


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("application/json, TEXT/HTML;q=0.3", True),
        ("text/html;q=0", False),
        ("text/html;q=0.0", False),
        ("text/htmlx", False),
    ],
)
def test_wants_html(accept, expected):
    assert wants_html(accept) is expected


def test_the_page_escapes_and_runs_nothing():
    verdict = Verdict(rule="<b>r</b>", host="<script>alert(1)</script>")
    _, headers, body = render(verdict, accept="text/html", links=Links(help='https://h.example/"x'))
    page = body.decode()
    assert dict(headers)["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in dict(headers)["Content-Security-Policy"]
    assert "<script" not in page
    assert "<b>" not in page
    assert '"x"' not in page
    assert "host_not_allowed" in page
    assert "0198c0de" in page
    assert "prefers-color-scheme: dark" in page
    assert "sha256:ab" not in page


@pytest.mark.parametrize("host", ["", "a" * 300, "ä.example", "a\r\nb: c"])
def test_a_host_that_is_not_one_is_not_repeated(host):
    _, headers, body = render(Verdict(Reason.MALFORMED_REQUEST, host=host))
    assert all("\n" not in value for _, value in headers)
    _, _, body = render(Verdict(host=host))
    assert json.loads(body)["detail"] == "No rule of the policy allows this destination."


def test_an_ipv6_target_has_brackets():
    _, _, body = render(Verdict(host="2001:db8::1"))
    assert "[2001:db8::1]:443" in json.loads(body)["detail"]


def test_http2_has_no_connection_field():
    assert "Connection" not in dict(render(Verdict(), http_version="2")[1])
    assert "Connection" not in dict(render(Verdict(), close=False)[1])


def test_head_has_the_length_and_no_body():
    verdict = Verdict(facts=SimpleNamespace(method="HEAD"))
    _, headers, body = render(verdict)
    assert body == b""
    assert int(dict(headers)["Content-Length"]) > 0


def test_another_status_for_the_same_reason():
    code, _, body = render(Verdict(Reason.UPSTREAM_UNREACHABLE), status=504)
    assert code == json.loads(body)["status"] == 504


GATE = Required("eu-adult", 18, Assurance.ESTIMATED, "Directive <2010/13/EU>", False)


@pytest.mark.parametrize(
    ("reason", "says", "offers"),
    [
        (Reason.AGE_VERIFICATION_REQUIRED, "No proof that you are 18 or older", True),
        (Reason.AGE_TOKEN_INVALID, "was not accepted", True),
        (Reason.AGE_BELOW_MINIMUM, "somebody younger than 18", False),
    ],
)
def test_the_page_of_a_gate_says_what_why_and_where(reason, says, offers):
    links = Links("https://help.example/", "https://age.example/start?a=1&b=2")
    code, _, body = render(Verdict(reason, rule="eu-adult", required=GATE), accept="text/html", links=links)
    page = body.decode()
    assert code == 403
    assert says in page
    assert "<h1>You have to be 18 or older to see this</h1>" in page
    assert "an estimate by an age check service, or anything stronger" in page
    assert "Directive &lt;2010/13/EU&gt;" in page
    assert "0198c0de" in page
    assert ('href="https://age.example/start?a=1&amp;b=2"' in page) is offers
    assert "<script" not in page


def test_programs_learn_where_to_verify():
    links = Links(verify="https://age.example/")
    _, _, body = render(Verdict(Reason.AGE_VERIFICATION_REQUIRED, required=GATE), links=links)
    assert json.loads(body)["required"]["verify"] == "https://age.example/"


@pytest.mark.parametrize(
    ("links", "target"),
    [
        (Links("https://help.example/", blocked_by="https://who.example/"), "https://who.example/"),
        (Links("https://help.example/"), "https://help.example/"),
        (Links(), "urn:edgeguard:unnamed"),
    ],
    ids=["named", "help", "nobody"],
)
def test_a_451_always_names_who_blocks(links, target):
    demanded = GATE._replace(legal_demand=True)
    code, headers, _ = render(Verdict(Reason.AGE_VERIFICATION_REQUIRED, required=demanded), links=links)
    assert code == 451
    assert ("Link", f'<{target}>; rel="blocked-by"') in headers
