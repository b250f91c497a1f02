"""Nobody is let in by a header: every way around an age gate, at every door that looks inside, over both versions of HTTP."""

import contextlib
import hmac
import json
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import hpack
import pytest
from joserfc import jwe
from joserfc.jwk import ECKey

from tests.attacks.gates import BIRTHDATE, LISTED, SUBJECT, WAYS, Person, World, part, read
from tests.attacks.multiplex import PREFACE, Talk, frame, request

TOKEN = "edgeguard-user"
ASKED, YOUNG, BAD_TOKEN = "age_verification_required", "age_below_minimum", "age_token_invalid"
MALFORMED, MISDIRECTED = "malformed_request", "misdirected_request"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("gates")) as running:
        yield running
        for node in ("edge", "addon"):
            assert "Traceback" not in running.output(node)


@pytest.fixture(params=[f"{way}-{alpn}" for way in WAYS for alpn in ("http/1.1", "h2")])
def way(request, world):
    name, _, alpn = request.param.rpartition("-")
    return world.ways[name, alpn]


@pytest.fixture
def adult(world):
    return (TOKEN, world.person.token())


def refused(way, reply, *reasons):
    """Nothing of the content came, and where an answer did, it says why."""
    assert b"adults only" not in reply.body
    if reply.status is None:
        assert way.alpn == "h2"  # where a stream or connection may simply end
        assert MALFORMED in reasons
    else:
        assert reply.reason in reasons


# Readings of a path, and of the method

PATHS = [
    ("/restricted/film", ASKED),
    ("/restricted", ASKED),
    ("/restricted/", ASKED),
    ("/restricted?x=/free", ASKED),
    ("/a/%2e%2e/restricted/film", ASKED),
    ("/a/../restricted/film", ASKED),
    ("/./restricted/film", ASKED),
    ("//restricted///film", ASKED),
    ("/Restricted/film", ASKED),
    ("/%72estricted/film", ASKED),
    ("/restricted%2ffilm", ASKED),
    ("/a/..%2frestricted/film", ASKED),
    ("/x/..;/restricted;v=1/film", ASKED),
    ("/restricted;v=1/film", ASKED),
    ("/%2572estricted%252ffilm", ASKED),
    ("/a\\restricted", MALFORMED),
    ("/restricted%5cfilm", MALFORMED),
    ("/restricted%00.png", MALFORMED),
    ("/restricted/%c0%af", MALFORMED),
    ("/free#/../restricted/film", MALFORMED),
    ("/free\t/restricted", MALFORMED),
]


def test_every_reading_of_a_path_meets_the_gate(way):
    """attack-G01"""
    for path, reason in PATHS:
        refused(way, way.get(path), reason, MALFORMED)


METHODS = [
    ("get", (), (MALFORMED, ASKED)),
    ("HEAD", (), (ASKED,)),
    ("POST", (("X-HTTP-Method-Override", "GET"),), (ASKED,)),
    ("POST", (("X-HTTP-Method", "get"),), (ASKED,)),
    ("POST", (("X_HTTP.Method_Override", "GET"),), (ASKED,)),
    ("POST", (("X-Method-Override", "HEAD"),), (ASKED,)),
    ("TRACE", (), ("method_not_allowed",)),
]


def test_another_spelling_of_a_method_is_no_other_method(way):
    """attack-G02"""
    for method, fields, reasons in METHODS:
        refused(way, way.get("/viewing/x", *fields, method=method), *reasons)


def test_a_method_in_the_query_counts_as_a_method(way):
    """attack-G02"""
    refused(way, way.get("/viewing/x?_method=GET", method="POST"), ASKED)
    assert way.get("/viewing/x", ("content-length", "0"), method="POST").status == 200


# Which field counts


def test_an_alias_of_the_token_field_is_not_the_field(way, adult):
    """attack-G03"""
    for name in ("Edgeguard_User", "edgeguard.user", "EDGEGUARD_USER"):
        refused(way, way.get("/restricted/x", (name, adult[1])), ASKED)


def test_a_token_counts_once(way, world, adult):
    """attack-G03"""
    refused(way, way.get("/restricted/x", adult, adult), BAD_TOKEN)
    young = (TOKEN, world.person.token(age_over_18=False, birthdate=None))
    refused(way, way.get("/restricted/x", young, adult), BAD_TOKEN)
    refused(way, way.get("/restricted/x", (TOKEN, f"{adult[1]}, {adult[1]}")), BAD_TOKEN)
    assert way.get("/restricted/x", adult).status == 200


def test_a_token_counts_in_its_own_field_only(way, adult):
    """attack-G03"""
    for name in ("Authorization", "Cookie", "X-Forwarded-User", "X-Auth-Token", "Proxy-Authenticate"):
        refused(way, way.get(f"/restricted/x?{TOKEN}={adult[1]}", (name, f"Bearer {adult[1]}")), ASKED)


def test_folded_and_broken_fields_are_refused(way, adult):
    """attack-G03"""
    if way.alpn == "h2":
        refused(way, way.get("/restricted/x", (TOKEN, f"x\r\n {adult[1]}")), MALFORMED)
        return
    for field in (f"{TOKEN}: x\r\n {adult[1]}", f"{TOKEN} : {adult[1]}", f"{TOKEN}:\r\n\t{adult[1]}"):
        head = f"GET /restricted/x HTTP/1.1\r\nHost: {way.authority}\r\n{field}\r\n\r\n"
        refused(way, way.raw(head.encode()), MALFORMED)


PLAIN = (("X-User-Age", "30"), ("X-Age-Assurance", "verified"))


def test_plain_fields_count_from_listed_clients_only(way):
    """attack-G04"""
    refused(way, way.get("/restricted/x", *PLAIN), ASKED)
    refused(way, way.get("/regional/x", ("X-Region", "US")), ASKED)
    assert way.get("/restricted/x", *PLAIN, source=LISTED).status == 200
    assert way.get("/regional/x", ("X-Region", "US"), source=LISTED).status == 200
    refused(way, way.get("/regional/x", ("X-Region", "DE"), source=LISTED), ASKED)


def test_plain_fields_have_one_reading(way):
    """attack-G04"""
    young = ("X-User-Age", "12")
    refused(way, way.get("/restricted/x", young, *PLAIN, source=LISTED), ASKED)
    refused(way, way.get("/restricted/x", ("X_User_Age", "30"), PLAIN[1], source=LISTED), ASKED)
    for value in ("+30", "30.0", "30;12", "٣٠".encode().decode("latin-1")):
        refused(way, way.get("/restricted/x", ("X-User-Age", value), PLAIN[1], source=LISTED), ASKED)


# One authority


def test_another_host_is_no_way_around(way, adult):
    """attack-G05"""
    if way.alpn == "h2":
        refused(way, way.get("/restricted/x", ("host", "free.test")), MISDIRECTED, MALFORMED)
        return
    # Stock mitmproxy in reverse mode puts its own site's name there; the gate of that site is met all the same.
    other = "GET /restricted/x HTTP/1.1\r\nHost: free.test\r\n"
    token = "" if way.name == "addon-reverse" else f"{TOKEN}: {adult[1]}\r\n"
    reasons = (MALFORMED, MISDIRECTED) if token else (MALFORMED, ASKED)
    refused(way, way.raw(f"{other}{token}\r\n".encode()), *reasons)
    for head in (
        f"GET /restricted/x HTTP/1.1\r\nHost: {way.authority}\r\nHost: {way.authority}\r\n\r\n",
        f"GET /restricted/x HTTP/1.1\r\nHost: {way.authority}\r\nHOST: free.test\r\n\r\n",
        f"GET https://{way.authority}/restricted/x HTTP/1.1\r\nHost: {way.authority}\r\n\r\n",
        f"GET http://free.test/restricted/x HTTP/1.1\r\nHost: {way.authority}\r\n\r\n",
        "GET /restricted/x HTTP/1.1\r\n\r\n",
    ):
        refused(way, way.raw(head.encode()), *reasons)


def test_other_spellings_of_the_host_meet_the_gate(way):
    """attack-G05"""
    if way.alpn == "http/1.1":
        for host in (way.authority.upper(), way.authority.replace(".test", ".test.")):
            head = f"GET /restricted/x HTTP/1.1\r\nHost: {host}\r\n\r\n"
            refused(way, way.raw(head.encode()), ASKED)


def test_the_host_cannot_be_rewritten_behind_the_gate(world, way, adult):
    """attack-G05"""
    before = len(world.origin.heads)
    told = [(name, "/restricted/x") for name in ("X-Original-URL", "X_Rewrite_Url", "X-Forwarded-Uri")]
    assert way.get("/free/x", *told, ("X-Forwarded-Host", "evil.test")).status == 200
    head = world.origin.heads[before].lower()
    assert b"restricted" not in head
    assert b"evil.test" not in head


def test_the_reverse_door_serves_the_site_and_nothing_else(world, adult):
    """attack-G05"""
    way = world.ways["edge-reverse", "http/1.1"]
    before = len(world.origin.heads)
    for name in ("free.test", "unread.test", "media.test.evil", "media.tes"):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            way.open(sni=name)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", way.port), 3) as link, pytest.raises(ssl.SSLError):
        context.wrap_socket(link)  # names nobody
    for data, status in (
        (f"GET /free/x HTTP/1.1\r\nHost: {way.authority}\r\n\r\n", 421),  # the site has TLS only
        (f"GET http://{way.authority}/ HTTP/1.1\r\nHost: {way.authority}\r\n\r\n", 400),
        (f"CONNECT {way.authority} HTTP/1.1\r\nHost: {way.authority}\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    ):
        with socket.create_connection(("127.0.0.1", way.port), 3) as link:
            link.sendall(data.encode())
            assert read(link).status == status
    assert len(world.origin.heads) == before
    assert way.get("/restricted/x", adult).status == 200


# Tokens


def unsigned(person):
    head, payload, _ = person.token({"alg": "none"}).split(".")
    return f"{head}.{payload}."


def confused(person):
    """Signed with the public key as a shared secret."""
    signed = ".".join(person.token({"alg": "HS256"}).split(".")[:2])
    pem = person.key.as_pem(private=False)
    return f"{signed}.{part(hmac.digest(pem, signed.encode(), 'sha256'))}"


def encrypted(person):
    claims = json.dumps(person.claims()).encode()
    key = ECKey.import_key({**person.jwk(), "use": "enc", "alg": "ECDH-ES"})
    return jwe.encrypt_compact({"alg": "ECDH-ES", "enc": "A128GCM"}, claims, key)


def doubled(person):
    claims = json.dumps(person.claims(age_over_18=False, birthdate=None))
    return person.sign(f'{claims[:-1]},"age_over_18":true}}'.encode())


def spoilt(person):
    head, payload, _ = person.token().split(".")
    return f"{head}.{payload}.{part(bytes(64))}"


NOW = time.time
OTHER = Person("a")
TOKENS = {
    "nothing": (lambda p: "", BAD_TOKEN),
    "noise": (lambda p: "a.b.c", BAD_TOKEN),
    "none": (unsigned, BAD_TOKEN),
    "confusion": (confused, BAD_TOKEN),
    "spoilt": (spoilt, BAD_TOKEN),
    "other-key": (lambda p: OTHER.token(), BAD_TOKEN),
    "embedded-key": (lambda p: OTHER.token({"jwk": OTHER.jwk()}), BAD_TOKEN),
    "key-elsewhere": (
        lambda p: OTHER.token({"jku": "https://evil.test/jwks", "x5u": "https://evil.test"}),
        BAD_TOKEN,
    ),
    "unknown-kid": (lambda p: p.token({"kid": "b"}), BAD_TOKEN),
    "kid-that-is-a-path": (lambda p: p.token({"kid": "../../dev/null"}), BAD_TOKEN),
    "critical": (lambda p: p.token({"crit": ["exp"]}), BAD_TOKEN),
    "expired": (lambda p: p.token(exp=int(NOW()) - 1), BAD_TOKEN),
    "without-end": (lambda p: p.token(exp=None), BAD_TOKEN),
    "too-long": (lambda p: p.token(exp=int(NOW()) + 86_400), BAD_TOKEN),
    "future": (lambda p: p.token(nbf=int(NOW()) + 60), BAD_TOKEN),
    "end-as-text": (lambda p: p.token(exp=str(int(NOW()) + 60)), BAD_TOKEN),
    "other-audience": (lambda p: p.token(aud="somebody-else"), BAD_TOKEN),
    "part-of-audience": (lambda p: p.token(aud="edge"), BAD_TOKEN),
    "other-issuer": (lambda p: p.token(iss="https://evil.test"), BAD_TOKEN),
    "part-of-issuer": (lambda p: p.token(iss="https://age.tes"), BAD_TOKEN),
    "other-type": (lambda p: p.token({"typ": "at+jwt"}), BAD_TOKEN),
    "type-missing": (lambda p: p.token({"typ": None}, iss="https://typed.test"), BAD_TOKEN),
    "keys-out-of-reach": (lambda p: p.token(iss="https://down.test"), BAD_TOKEN),
    "encrypted": (encrypted, BAD_TOKEN),
    "doubled": (doubled, BAD_TOKEN),
    "padded": (lambda p: p.token() + "=", BAD_TOKEN),
    "bearer": (lambda p: f"Bearer {p.token()}", BAD_TOKEN),
    "text-for-yes": (lambda p: p.token(age_over_18="true", birthdate=None), ASKED),
    "number-for-yes": (lambda p: p.token(age_over_18=1, birthdate=None), ASKED),
    "contradiction": (lambda p: p.token(birthdate="2020-01-01"), ASKED),
    "other-age": (lambda p: p.token(age_over_18=None, age_over_16=True, birthdate=None), ASKED),
    "weak": (lambda p: p.token(age_assurance="self_declared"), ASKED),
    "made-up-assurance": (lambda p: p.token(age_assurance="absolutely"), ASKED),
    "too-young": (lambda p: p.token(age_over_18=False, birthdate=None), YOUNG),
}


def test_no_forged_or_stale_token_opens_a_gate(world, way):
    """attack-G06"""
    for name, (make, reason) in TOKENS.items():
        reply = way.get("/restricted/x", (TOKEN, make(world.person)))
        assert (name, reply.status, reply.reason) == (name, 403, reason)


def test_a_token_of_a_megabyte_is_refused(world, way):
    """attack-G06"""
    big = world.person.token(x="x" * 1_000_000)
    if way.alpn == "h2":
        # The library's own encoder takes a minute for it.
        fields = hpack.Encoder().encode(request(way.authority, "/restricted/x", (TOKEN, big)), huffman=False)
        pieces = [fields[i : i + 16_384] for i in range(0, len(fields), 16_384)]
        frames = [frame(9, 4 if i == len(pieces) - 1 else 0, 1, p) for i, p in enumerate(pieces)]
        frames[0] = frame(1, 1, 1, pieces[0])
        with way.open() as link, contextlib.suppress(OSError):
            link.sendall(PREFACE + b"".join(frames))
            while data := link.recv(65_536):
                assert b"adults only" not in data
    else:
        refused(way, way.get("/restricted/x", (TOKEN, big)), "request_too_large", MALFORMED)
    larger = world.person.token(x="x" * 9_000)
    refused(way, way.get("/restricted/x", (TOKEN, larger)), BAD_TOKEN)


@pytest.mark.parametrize("name", ["edge-reverse", "addon"])
def test_a_key_that_is_gone_takes_its_tokens_along(world, name):
    """attack-G06"""
    way, old, new = world.ways[name, "http/1.1"], world.person, Person("new")
    remembered, fresh = (TOKEN, old.token()), (TOKEN, new.token())
    assert way.get("/restricted/x", remembered).status == 200
    refused(way, way.get("/restricted/x", fresh), BAD_TOKEN)
    try:
        world.write_keys(way.node, new)
        wait(lambda: way.get("/restricted/x", fresh).status == 200)
        refused(way, way.get("/restricted/x", remembered), BAD_TOKEN)
    finally:
        world.write_keys(way.node, old)
        wait(lambda: way.get("/restricted/x", remembered).status == 200)


def wait(true, within_s=10.0):
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# What leaves, and what stays


def test_nothing_of_a_person_reaches_the_origin(world, way, adult):
    """attack-G07"""
    before = len(world.origin.heads)
    spelled = [(name, adult[1]) for name in (TOKEN, "Edgeguard_User", "edgeguard.user")]
    plain = [(name, "30") for name in ("X-User-Age", "X_User_Age", "x.user_age", "X-Region", "X_Region")]
    if way.name == "edge-reverse":
        plain += [
            (name, "192.0.2.77") for name in ("X-Forwarded-For", "X_Real_IP", "Forwarded", "True.Client.IP")
        ]
    assert way.get("/restricted/x", *spelled, *plain, ("X-Kept", "yes")).status == 200
    head = world.origin.heads[before].lower().replace(b"_", b"-").replace(b".", b"-")
    assert b"x-kept: yes" in head
    for name in (b"edgeguard", b"x-user-age", b"x-region", b"192-0-2-77", adult[1][:20].lower().encode()):
        assert name not in head


def test_a_cookie_carries_the_token_once_and_no_further(world, way, adult):
    """attack-G07"""
    before = len(world.origin.heads)
    assert way.get("/restricted/x", ("Cookie", f"theme=dark; eg-user={adult[1]}; lang=de")).status == 200
    head = world.origin.heads[before]
    assert b"theme=dark; lang=de" in head
    assert b"eg-user" not in head
    assert way.get("/restricted/x", ("Cookie", f"eg-user={adult[1]}"), adult).status == 403
    assert way.get("/restricted/x", ("Cookie", f"other={adult[1]}")).status == 403


def test_an_origin_cannot_speak_for_the_gate(way):
    """attack-G07"""
    reply = way.get("/free/soiled")
    assert reply.status == 200
    assert not [name for name, _ in reply.fields if name.lower().startswith(("edgeguard", "alt-svc"))]


class Cache:
    """A shared cache in front, as simple as RFC 9111 lets it be: it looks at the path alone."""

    def __init__(self, way):
        self.way, self.kept = way, {}

    def get(self, path, *fields):
        if path not in self.kept:
            reply = self.way.get(path, *fields)
            said = (reply.field("cache-control") or "").lower()
            if reply.status == 200 and "no-store" not in said and "private" not in said:
                self.kept[path] = reply
            return reply
        return self.kept[path]


def test_a_cache_in_front_gives_nothing_to_the_next_person(way, world, adult):
    """attack-G08"""
    cache = Cache(way)
    first = cache.get("/restricted/film", adult)
    assert first.status == 200
    assert [value for name, value in first.fields if name.lower() == "cache-control"] == ["private, no-store"]
    assert not [name for name, _ in first.fields if name.lower() in {"expires", "cdn-cache-control"}]
    refused(way, cache.get("/restricted/film"), ASKED)
    assert cache.get("/restricted/film", adult).status == 200
    assert way.get("/restricted/film").field("cache-control") == "no-store"
    assert "max-age=600" in cache.get("/free/film").field(
        "cache-control"
    )  # what no gate guards is left alone
    assert "/free/film" in cache.kept


# Answers


def test_a_legal_demand_is_451_with_who_blocks(way):
    """attack-G09"""
    reply = way.get("/ordered/x")
    assert (reply.status, reply.reason) == (451, ASKED)
    assert reply.field("link") == '<https://media.test/legal>; rel="blocked-by"'
    asked = way.get("/restricted/x")
    assert (asked.status, asked.field("link")) == (403, None)
    told = json.loads(asked.body)
    assert told["required"]["gate"] == "adults"
    assert told["type"] == f"https://help.test/age#{ASKED}"


def test_a_page_for_people_repeats_nothing_of_theirs(way, world):
    """attack-G09"""
    token = world.person.token(age_over_18=False, birthdate=None, region="FR")
    reply = way.get("/restricted/<script>", (TOKEN, token), ("accept", "text/html,*/*;q=0.8"))
    assert reply.status in {400, 403}
    reply = way.get("/restricted/x", (TOKEN, token), ("accept", "text/html,*/*;q=0.8"))
    assert (reply.status, reply.reason) == (403, YOUNG)
    assert reply.field("content-type").startswith("text/html")
    assert b"18 or older" in reply.body
    for own in (SUBJECT, token, "FR"):
        assert own.encode() not in reply.body


@pytest.mark.parametrize("name", ["edge-reverse", "addon"])
def test_a_gate_in_report_lets_pass_and_says_so(world, name):
    """attack-G09"""
    way = world.ways[name, "http/1.1"]
    assert way.get("/trial/x").status == 200
    part = way.get("/part/x").status
    wait(lambda: of_path(world, way, "/trial/x") and of_path(world, way, "/part/x"))
    assert of_path(world, way, "/trial/x")["would"] == [["would_deny", "trial"]]
    would = of_path(world, way, "/part/x").get("would")
    assert (part, would) in [(200, [["would_deny", "part"]]), (403, None)]


def of_path(world, way, path):
    return next((r for r in world.records(way.node) if r.get("path") == path), None)


# Time


def websocket(way, adult):
    link = way.open()
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    lines = [
        "GET /restricted/socket HTTP/1.1",
        f"Host: {way.authority}",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", ": ".join(adult), "", ""]
    link.sendall("\r\n".join(lines).encode())
    return link


def events(way, adult):
    link = way.open()
    if way.alpn == "h2":
        talk = Talk(link)
        talk.state.send_headers(1, request(way.authority, "/restricted/endless", adult), end_stream=True)
        talk.flush()
    else:
        head = f"GET /restricted/endless HTTP/1.1\r\nHost: {way.authority}\r\n{adult[0]}: {adult[1]}\r\n\r\n"
        link.sendall(head.encode())
    return link


def tunnel(way, adult):
    """Nobody looks inside: the gate is met by the CONNECT."""
    authority = f"unread.test:{way.world.origin.port}"
    link = socket.create_connection(("127.0.0.1", way.port), 3)
    link.sendall(
        f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{adult[0]}: {adult[1]}\r\n\r\n".encode()
    )
    assert b" 200 " in link.recv(4096)
    context = ssl.create_default_context(cafile=way.world.authority)
    secure = context.wrap_socket(link, server_hostname="unread.test")
    secure.sendall(f"GET /endless HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    return secure


LIVES = {
    **{f"websocket-{name}": (websocket, name, "http/1.1") for name in WAYS},
    **{f"sse-{name}": (events, name, "http/1.1") for name in WAYS},
    **{f"h2-{name}": (events, name, "h2") for name in WAYS},
    **{f"tunnel-{name}": (tunnel, name, "http/1.1") for name in ("edge", "addon")},
}


@pytest.fixture(scope="module")
def lives(world):
    """Every kind of stream, begun at once with a token of two seconds: what came, and when it ended."""
    expires = int(time.time()) + 3
    adult = (TOKEN, world.person.token(exp=expires))

    def live(kind):
        begin, name, alpn = LIVES[kind]
        data = b""
        with begin(world.ways[name, alpn], adult) as link, contextlib.suppress(OSError):
            while more := link.recv(65_536):
                data += more
                if time.time() > expires + 5:
                    return data, None
        return data, time.time() - expires

    with ThreadPoolExecutor(len(LIVES)) as pool:
        return dict(zip(LIVES, pool.map(live, LIVES), strict=True))


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"attack-G10-{kind}") for kind in LIVES])
def test_a_stream_ends_with_its_token(lives, kind):
    data, late_s = lives[kind]
    assert data.count(b"tick") > 5
    assert late_s is not None, "it was still open"
    assert -0.2 < late_s < 2.0


def test_a_tunnel_without_a_token_is_not_opened(world):
    """attack-G10"""
    for name in ("edge", "addon"):
        with socket.create_connection(("127.0.0.1", world.ports[name]), 3) as link:
            authority = f"unread.test:{world.origin.port}"
            link.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert ASKED.encode() in link.recv(4096)


# What is written down


def test_nothing_personal_is_written_anywhere(world):
    """attack-G11"""
    adult, young = world.person.token(), world.person.token(age_over_18=False, birthdate="2015-03-04")
    for way in world.ways.values():
        assert way.get(f"/restricted/mark?{TOKEN}={adult}", (TOKEN, adult)).status == 200
        refused(way, way.get("/restricted/mark", (TOKEN, young)), YOUNG)
    wait(lambda: all(_marked(world, node) for node in ("edge", "addon")))
    texts = {name: world.admin(name) for name in ("/metrics", "/status", "/readyz")}
    for node in ("edge", "addon"):
        texts[f"{node} decisions"] = (world.folder / node / "decisions.jsonl").read_text()
        texts[f"{node} output"] = world.output(node)
    seen = [SUBJECT, BIRTHDATE, "2015-03-04", *adult.split(".")[1:], *young.split(".")[1:]]
    for name, text in texts.items():
        for secret in seen:
            assert secret not in text, f"{secret} in {name}"
    bands = {
        record.get("age") for record in world.records("edge") if record.get("path") == "/restricted/mark"
    }
    assert bands == {"21+", "0-12"}


def _marked(world, node):
    records = [r for r in world.records(node) if r.get("path") == "/restricted/mark" and r["kind"] != "close"]
    return len(records) >= 8
