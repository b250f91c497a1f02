"""Targets and methods: every reading is judged, the bytes go on as they are. Rows P, by every way in.

The policy allows `/ok/**` on `plain.test` (plain HTTP) and, for GET and POST, on `site.test` (inspected TLS).
"""

import contextlib
import socket

import pytest

from tests.attacks.multiplex import Talk, request
from tests.attacks.world import answer

FINE = (200, None)
ELSEWHERE = (403, "path_not_allowed")
BAD = (400, "malformed_request")

TARGETS = [
    pytest.param("/ok/../secret", ELSEWHERE, id="attack-P01"),
    pytest.param("/ok/./../secret", ELSEWHERE, id="attack-P01-dot"),
    pytest.param("/ok/a/../b", FINE, id="attack-P01-inside"),
    pytest.param("/ok/..", ELSEWHERE, id="attack-P01-last"),
    pytest.param("/ok/...", FINE, id="attack-P01-three-dots"),
    pytest.param("/ok/%2e%2e/secret", ELSEWHERE, id="attack-P02"),
    pytest.param("/ok/%2E%2E/secret", ELSEWHERE, id="attack-P02-upper"),
    pytest.param("/ok/.%2e/secret", ELSEWHERE, id="attack-P02-mixed"),
    pytest.param("/ok/%252e%252e/secret", ELSEWHERE, id="attack-P02-twice"),
    pytest.param("/ok/%25252e%25252e/secret", BAD, id="attack-P02-three-times"),
    pytest.param("/ok/%c0%ae%c0%ae/secret", BAD, id="attack-P02-overlong"),
    pytest.param("/ok/%u002e%u002e/secret", BAD, id="attack-P02-utf-16"),
    pytest.param("/ok/..%2fsecret", ELSEWHERE, id="attack-P03"),
    pytest.param("/ok/..%2Fsecret", ELSEWHERE, id="attack-P03-upper"),
    pytest.param("/ok/%2e%2e%2fsecret", ELSEWHERE, id="attack-P03-all"),
    pytest.param("/ok/..%252fsecret", ELSEWHERE, id="attack-P03-twice"),
    pytest.param("/ok%2fsecret", ELSEWHERE, id="attack-P03-prefix"),
    pytest.param("/ok/..%c0%afsecret", BAD, id="attack-P03-overlong"),
    pytest.param("/ok/a%2Fb", FINE, id="attack-P04"),
    pytest.param("/ok/@scope%2fpackage", FINE, id="attack-P04-scoped"),
    pytest.param("/ok/%E2%82%AC%20x", FINE, id="attack-P04-utf-8"),
    pytest.param("//ok/../secret", ELSEWHERE, id="attack-P05"),
    pytest.param("/secret//ok/x", ELSEWHERE, id="attack-P05-inside"),
    pytest.param("//ok/x", ELSEWHERE, id="attack-P05-leading"),
    pytest.param("/ok//x", FINE, id="attack-P05-allowed"),
    pytest.param("/ok/..;/secret", ELSEWHERE, id="attack-P06"),
    pytest.param("/ok/..;x/secret", ELSEWHERE, id="attack-P06-name"),
    pytest.param("/ok/..;x=y;z/secret", ELSEWHERE, id="attack-P06-pairs"),
    pytest.param("/ok/%2e%2e;/secret", ELSEWHERE, id="attack-P06-escaped-dots"),
    pytest.param("/ok/..%3B/secret", ELSEWHERE, id="attack-P06-escaped"),
    pytest.param("/ok/..%253b/secret", ELSEWHERE, id="attack-P06-twice"),
    pytest.param("/ok;/../secret", ELSEWHERE, id="attack-P06-before"),
    pytest.param("/..", BAD, id="attack-P07"),
    pytest.param("/ok/../../secret", BAD, id="attack-P07-deep"),
    pytest.param("/..;/..;", BAD, id="attack-P07-parameters"),
    pytest.param("/%2e%2e/ok/x", BAD, id="attack-P07-escaped"),
    pytest.param("/ok/%00", BAD, id="attack-P08-nul"),
    pytest.param("/ok/%0A", BAD, id="attack-P08-lf"),
    pytest.param("/ok/%0d%0aHost:%20evil.test", BAD, id="attack-P08-crlf attack-S12"),
    pytest.param("/ok/%250d%250a", BAD, id="attack-P08-crlf-twice attack-S12"),
    pytest.param("/ok/%7F", BAD, id="attack-P08-del"),
    pytest.param("/ok/%C2%85", BAD, id="attack-P08-c1"),
    pytest.param("/ok/\xe9", BAD, id="attack-P08-raw"),
    pytest.param("/ok/%zz", BAD, id="attack-P08-broken"),
    pytest.param("/ok/%", BAD, id="attack-P08-cut"),
    pytest.param("/ok/%ff", BAD, id="attack-P08-not-utf-8"),
    pytest.param("/ok/..\\secret", BAD, id="attack-P08-backslash"),
    pytest.param("/ok/..%5csecret", BAD, id="attack-P08-escaped-backslash"),
    pytest.param("/ok/..%255csecret", BAD, id="attack-P08-backslash-twice"),
    pytest.param("/ok/x#/../../secret", BAD, id="attack-P09"),
    pytest.param("/ok/x?a#b", BAD, id="attack-P09-query"),
    pytest.param("/ok/x%23y", FINE, id="attack-P09-escaped"),
    pytest.param("/ok/" + "a" * 9000, BAD, id="attack-P11"),
    pytest.param("/ok" + "/a" * 300, BAD, id="attack-P11-segments"),
    pytest.param("/ok/x?../../secret", FINE, id="attack-P14-dots-in-query"),
    pytest.param("/ok/x??&=&;", FINE, id="attack-P14-odd-query"),
    pytest.param("/secret?/ok/x", ELSEWHERE, id="attack-P14-path-in-query"),
    pytest.param("/secret%3f/ok/x", ELSEWHERE, id="attack-P14-escaped-question"),
    pytest.param("/OK/x", ELSEWHERE, id="attack-P15-case"),
    pytest.param("/secret", ELSEWHERE, id="attack-P01-plain"),
]


def arrived(world, before: int, target: str, method: str = "GET") -> None:
    """The upstream got exactly the bytes that were judged, once."""
    assert [(m, path) for m, _, path in world.web.requests[before:]] == [(method, target)]


def plain(world, node, target: str, method: str = "GET", fields: str = ""):
    """In absolute form."""
    authority = f"plain.test:{world.web.http}"
    return world.ask(
        node, f"{method} http://{authority}{target} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n", method
    )


def reverse(world, node, target: str, method: str = "GET", fields: str = ""):
    """In origin form, to stock mitmdump in reverse mode."""
    with socket.create_connection(("127.0.0.1", world.ports["reverse"]), 5) as link:
        link.sendall(f"{method} {target} HTTP/1.1\r\nHost: own.test\r\n{fields}\r\n".encode("latin-1"))
        return answer(link, method)


def inspected(world, node, target: str, method: str = "GET", fields: str = ""):
    """Inside TLS; on one connection, as long as it is kept."""
    head = f"{method} {target} HTTP/1.1\r\nHost: site.test:{{tls}}\r\n{fields}\r\n"
    secure = OPEN.pop((node.name, "h1"), None) or opened(world, node)
    secure.sendall(world.fill(head).encode("latin-1"))
    reply = answer(secure, method)
    if reply.status in {200, 403}:
        OPEN[node.name, "h1"] = secure
    return reply


def multiplexed(world, node, target: str, method: str = "GET", fields: str = ""):
    """The same as HTTP/2."""
    more = [tuple(line.lower().split(": ", 1)) for line in fields.split("\r\n") if line]
    talk = OPEN.pop((node.name, "h2"), None) or Talk(opened(world, node, "h2"))
    reply = talk.ask(*request(world.fill("site.test:{tls}"), target, *more, method=method))
    if not reply.gone:
        OPEN[node.name, "h2"] = talk
    return reply


OPEN = {}
"""Connections that are used again."""
ENDS = contextlib.ExitStack()


def opened(world, node, alpn: str | None = None):
    return ENDS.enter_context(world.secured(node, "site.test:{tls}", alpn=alpn))


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    OPEN.clear()
    ENDS.close()


@pytest.mark.parametrize(("target", "outcome"), TARGETS)
def test_a_target_has_the_meaning_that_every_server_sees(world, node, target, outcome):
    ways = [plain, inspected, multiplexed, *([reverse] if node.name == "addon" else [])]
    for way in ways:
        before = len(world.web.requests)
        reply = way(world, node, target)
        seen = (reply.status, reply.reason)
        assert seen == outcome or (way is multiplexed and outcome == BAD and reply.gone), (way.__name__, seen)
        if outcome == FINE:
            arrived(world, before, target)
        else:
            assert len(world.web.requests) == before


METHODS = [
    pytest.param("GET", "", FINE, id="attack-P15-get"),
    pytest.param("get", "", (403, "method_not_allowed"), id="attack-P15-lower"),
    pytest.param("Get", "", (403, "method_not_allowed"), id="attack-P15-mixed"),
    pytest.param("PROPFIND", "", (403, "method_not_allowed"), id="attack-P15-propfind"),
    pytest.param("DELETE", "", (403, "method_not_allowed"), id="attack-P15-delete"),
    pytest.param("G" * 33, "", BAD, id="attack-P15-long"),
    pytest.param("TRACE", "", (403, "method_not_allowed"), id="attack-S11-trace"),
    pytest.param("Trace", "", (403, "method_not_allowed"), id="attack-S11-case"),
    pytest.param("TRACK", "", (403, "method_not_allowed"), id="attack-S11-track"),
    pytest.param("DEBUG", "", (403, "method_not_allowed"), id="attack-S11-debug"),
    *(
        pytest.param("POST", f"{name}: DELETE\r\n", (403, "method_not_allowed"), id=f"attack-P15-{name}")
        for name in (
            "X-HTTP-Method-Override",
            "X-HTTP-Method",
            "X-Method-Override",
            "x_http_method_override",
            "X.Http.Method",
        )
    ),
    pytest.param("POST", "X-HTTP-Method-Override: GET\r\n", FINE, id="attack-P15-override-allowed"),
]


@pytest.mark.parametrize(("method", "fields", "outcome"), METHODS)
def test_a_method_is_what_any_server_takes_it_for(world, node, method, fields, outcome):
    for way in (inspected, multiplexed):
        before = len(world.web.requests)
        if method == "POST":
            fields += "Content-Length: 0\r\n" if way is inspected else ""
        reply = way(world, node, "/ok/x", method, fields)
        assert (reply.status, reply.reason) == outcome, way.__name__
        assert len(world.web.requests) - before == (outcome == FINE)


@pytest.mark.parametrize(
    ("query", "outcome"),
    [
        pytest.param("_method=DELETE", (403, "method_not_allowed"), id="attack-P15-query"),
        pytest.param("a=b;_method=delete", (403, "method_not_allowed"), id="attack-P15-query-semicolon"),
        pytest.param("%5fmethod=PUT", (403, "method_not_allowed"), id="attack-P15-query-escaped"),
        pytest.param("%255fmethod=PUT", (403, "method_not_allowed"), id="attack-P15-query-twice"),
        pytest.param("x-http-method-override=PATCH", (403, "method_not_allowed"), id="attack-P15-query-name"),
        pytest.param("_method=GET&_method=DELETE", (403, "method_not_allowed"), id="attack-P15-query-both"),
        pytest.param("_method=GET", FINE, id="attack-P15-query-allowed"),
        pytest.param("method=DELETE", FINE, id="attack-P15-query-other"),
    ],
)
def test_a_method_in_the_query_counts(world, node, query, outcome):
    for way in (inspected, multiplexed):
        reply = way(world, node, f"/ok/x?{query}")
        assert (reply.status, reply.reason) == outcome, way.__name__


FORMS = [
    pytest.param("HTTP://plain.test:{http}/ok/x", FINE, id="attack-P01-scheme-case"),
    pytest.param("http://plain.test:{http}?/ok/x", BAD, id="attack-P14-no-path"),
    pytest.param("http://plain.test:{http}#/ok/x", BAD, id="attack-P09-no-path"),
    pytest.param("http://plain.test:{http}\\@evil.test/ok/x", BAD, id="attack-P08-authority"),
    pytest.param("http://plain.test:{http}%2fok/x", BAD, id="attack-P03-authority"),
    pytest.param("http://evil.test@plain.test:{http}/ok/x", BAD, id="attack-P01-userinfo"),
    pytest.param("http:///ok/x", BAD, id="attack-P01-no-host"),
    pytest.param("http:/ok/x", (421, "misdirected_request"), id="attack-P01-one-slash"),
    pytest.param("http:plain.test/ok/x", (421, "misdirected_request"), id="attack-P01-opaque"),
    pytest.param("ftp://plain.test:{http}/ok/x", (421, "misdirected_request"), id="attack-P01-ftp"),
    pytest.param("javascript://plain.test:{http}/ok/x", (421, "misdirected_request"), id="attack-P01-script"),
    pytest.param("*", (421, "misdirected_request"), id="attack-P01-star"),
    pytest.param("plain.test:{http}/ok/x", (421, "misdirected_request"), id="attack-P01-authority"),
    pytest.param("", BAD, id="attack-P01-empty"),
]


@pytest.mark.parametrize(("target", "outcome"), FORMS)
def test_the_form_of_a_target(world, node, target, outcome):
    before = len(world.web.requests)
    reply = world.ask(node, f"GET {target} HTTP/1.1\r\nHost: plain.test:{{http}}\r\n\r\n")
    expected = {outcome, BAD} if outcome[0] == 421 else {outcome}
    assert (reply.status, reply.reason) in expected
    assert len(world.web.requests) - before == (outcome == FINE)
