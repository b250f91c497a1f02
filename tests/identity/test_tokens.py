"""Token attacks: each is a way in that somebody's library left open once."""

import base64
import hmac
import json
import warnings

import pytest
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from edgeguard.identity.jwks import JwksError, KeyRing, read_jwks
from edgeguard.identity.tokens import TokenReader
from edgeguard.policy.request import Assurance, User

NOW = 1_800_000_000.0
EC = ECKey.generate_key("P-256", {"kid": "ec"})
EC2 = ECKey.generate_key("P-256", {"kid": "ec2"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
CLAIMS = {
    "iss": "https://idp.example",
    "aud": "edgeguard",
    "nbf": NOW - 60,
    "exp": NOW + 300,
    "sub": "alice",
    "age_over_18": True,
}


def public(*keys):
    return [key.as_dict(private=False) for key in keys]


def issuer(**changes):
    return {
        "id": "idp",
        "issuer": "https://idp.example",
        "audience": ["edgeguard"],
        "algorithms": ["ES256", "EdDSA", "RS256"],
        "keys": public(EC, EC2, ED, RSA),
        "max_lifetime_s": 3600,
        "leeway_s": 30,
        "typ": None,
        "assurance": "estimated",
        "age_verified_means": 18,
    } | changes


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(claims=None, key=EC, header=None, payload=None):
    header = {"alg": "ES256", "typ": "JWT", "kid": "ec"} | (header or {})
    header = {name: value for name, value in header.items() if value is not None}
    data = payload if payload is not None else json.dumps(CLAIMS | (claims or {})).encode()
    signed = f"{b64(json.dumps(header).encode())}.{b64(data)}"
    return f"{signed}.{b64(jws.JWSRegistry.algorithms[header['alg']].sign(signed.encode(), key))}"


@pytest.fixture
def reader():
    return TokenReader([issuer()])


def test_good_token(reader):
    user = reader.read([sign()], NOW)
    assert user == User(
        age_at_least=18, assurance=Assurance.ESTIMATED, expires=NOW + 330, subject=user.subject
    )
    assert user.subject is not None
    assert "alice" not in user.subject


@pytest.mark.parametrize(
    ("key", "header"),
    [(ED, {"alg": "EdDSA", "kid": "ed"}), (RSA, {"alg": "RS256", "kid": "rsa"}), (EC2, {"kid": "ec2"})],
    ids=["EdDSA", "RS256", "second-key"],
)
def test_pinned_algorithms(reader, key, header):
    assert reader.read([sign(key=key, header=header)], NOW).age_at_least == 18


def test_nobody(reader):
    assert reader.read([], NOW) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"iss": "https://idp.example/"},
        {"iss": None},
        {"iss": ["https://idp.example"]},
        {"aud": "other"},
        {"aud": []},
        {"aud": ["other", 1, "edgeguard"]},
        {"aud": None},
        {"exp": NOW - 31},
        {"exp": None},
        {"exp": str(NOW + 300)},
        {"exp": True},
        {"exp": -1},
        {"exp": NOW + 3631},
        {"nbf": NOW + 31},
        {"nbf": "0"},
        {"iat": NOW + 31},
        {"iat": None},
    ],
    ids=repr,
)
def test_claims_that_refuse(reader, claims):
    assert reader.read([sign(claims)], NOW) == User(invalid=True)


@pytest.mark.parametrize(
    "claims",
    [{"aud": ["other", "edgeguard"]}, {"exp": NOW - 29}, {"nbf": NOW + 29}, {"exp": int(NOW) + 3600}],
    ids=repr,
)
def test_claims_that_pass(reader, claims):
    assert reader.read([sign(claims)], NOW).age_at_least == 18


def test_missing_exp(reader):
    bare = {name: value for name, value in CLAIMS.items() if name != "exp"}
    assert reader.read([sign(payload=json.dumps(bare).encode())], NOW).invalid


def unsigned(header, signature=""):
    return f"{b64(json.dumps(header).encode())}.{b64(json.dumps(CLAIMS).encode())}.{signature}"


def confused():
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'ec'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    return f"{signed}.{b64(hmac.digest(EC.as_pem(private=False), signed.encode(), 'sha256'))}"


def attacks():
    attacker = ECKey.generate_key("P-256")
    good = sign()
    head, body, signature = good.split(".")
    text = json.dumps(CLAIMS)
    yield "none", unsigned({"alg": "none"})
    yield "none-with-signature", unsigned({"alg": "none"}, signature)
    yield "None-case", unsigned({"alg": "NoNe"}, signature)
    yield "no-alg", unsigned({"typ": "JWT"}, signature)
    yield "alg-list", unsigned({"alg": ["ES256"]}, signature)
    yield "hs256-with-public-key", confused()
    yield "unpinned-alg", sign(key=ECKey.generate_key("P-384"), header={"alg": "ES384"})
    yield "foreign-key", sign(key=attacker)
    yield "embedded-jwk", sign(key=attacker, header={"jwk": attacker.as_dict(private=False), "kid": None})
    yield "jku", sign(key=attacker, header={"jku": "https://evil.example/jwks"})
    yield "x5c", sign(key=attacker, header={"x5c": ["MIIB"], "x5u": "https://evil.example/"})
    yield "unknown-kid", sign(header={"kid": "other"})
    yield "no-kid-and-several-keys", sign(header={"kid": None})
    yield "kid-number", unsigned({"alg": "ES256", "kid": 1}, signature)
    yield "wrong-kid", sign(header={"kid": "ec2"})
    yield "kid-of-another-type", sign(header={"kid": "rsa"})
    yield "crit", unsigned({"alg": "ES256", "kid": "ec", "crit": ["exp"]}, signature)
    yield "b64", unsigned({"alg": "ES256", "kid": "ec", "b64": False}, signature)
    yield "typ-of-another-kind", sign(header={"typ": "at+jwt"})
    yield "typ-number", sign(header={"typ": None}).replace(".", ".", 1)[:-2]
    yield "duplicate-claim", sign(payload=(text[:-1] + ', "age_over_18": true}').encode())
    yield "duplicate-nested", sign(payload=(text[:-1] + ', "x": {"a": 1, "a": 2}}').encode())
    yield "nan", sign(payload=text.replace(str(NOW + 300), "NaN").encode())
    yield "infinite-exp", sign(payload=text.replace(str(NOW + 300), "1e999").encode())
    yield "not-an-object", sign(payload=b'["iss"]')
    yield "not-json", sign(payload=b"hello")
    yield "not-utf8", sign(payload=b'{"iss": "\xff"}')
    yield "utf16", sign(payload=text.encode("utf-16"))
    yield "deep", sign(payload=b"[" * 2000)
    yield "huge-number", sign(payload=text.replace(str(NOW + 300), "9" * 5000).encode())
    yield "changed-body", f"{head}.{b64(text.replace('alice', 'mallory').encode())}.{signature}"
    yield "truncated-signature", good[:-4]
    yield "two-parts", f"{head}.{body}"
    yield "four-parts", f"{good}.x"
    yield "padding", f"{head}=.{body}.{signature}"
    yield "spaces", f" {good}"
    yield "bearer", f"Bearer {good}"
    yield "newline", f"{good}\n"
    yield "empty", ""
    yield "one-megabyte", "a" * 1_000_000
    yield "megabyte-parts", f"{head}.{'A' * 1_000_000}.{signature}"
    yield "non-ascii", good.replace("e", "\u0435", 1)
    yield "surrogate", good + "\udcff"
    yield "jwe", jwe.encrypt_compact({"alg": "dir", "enc": "A128GCM"}, text, OctKey.generate_key(128))


@pytest.mark.parametrize("token", [pytest.param(token, id=name) for name, token in attacks()])
def test_attacks(reader, token):
    assert reader.read([token], NOW) == User(invalid=True)


def test_two_values_are_invalid_even_if_equal(reader):
    token = sign()
    assert reader.read([token, token], NOW).invalid
    assert reader.read([token], NOW).age_at_least == 18


def test_string_true_is_unknown_not_invalid(reader):
    assert reader.read([sign({"age_over_18": "true"})], NOW).age_at_least is None


def test_single_key_needs_no_kid():
    reader = TokenReader([issuer(keys=public(EC))])
    assert reader.read([sign(header={"kid": None})], NOW).age_at_least == 18


def test_pinned_typ():
    reader = TokenReader([issuer(typ="age+jwt")])
    assert reader.read([sign(header={"typ": "application/AGE+jwt"})], NOW).age_at_least == 18
    assert reader.read([sign()], NOW).invalid
    assert reader.read([sign(header={"typ": None})], NOW).invalid


def test_result_is_remembered_until_it_expires(reader, monkeypatch):
    token = sign({"nbf": NOW})
    first = reader.read([token], NOW)
    monkeypatch.setattr("edgeguard.identity.tokens._check_signature", lambda *_: pytest.fail("checked again"))
    assert reader.read([token], NOW + 329) is first
    assert reader.read([token], NOW + 330).invalid
    monkeypatch.undo()
    assert reader.read([token], NOW - 31).invalid
    assert reader.read([token], NOW).age_at_least == 18


def test_memory_is_bounded():
    reader = TokenReader([issuer()], cache=10)
    for n in range(30):
        assert reader.read([sign({"sub": str(n)})], NOW).age_at_least == 18
    assert len(reader._cache) == 10


def test_birthdate_is_not_remembered_past_the_date(reader):
    token = sign({"birthdate": "2000-01-01", "age_over_18": None})
    user = reader.read([token], NOW)
    assert user.expires <= NOW + 330
    assert user.age_at_least == 27


def test_two_entries_of_one_issuer():
    reader = TokenReader([issuer(keys=public(EC), audience="a"), issuer(keys=public(EC2), audience="b")])
    assert reader.read([sign({"aud": "b"}, key=EC2, header={"kid": "ec2"})], NOW).age_at_least == 18
    assert reader.read([sign({"aud": "b"})], NOW).invalid


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"audience": []},
        {"audience": [1]},
        {"keys": [{"kty": "EC"}]},
        {"keys": [{"kty": "oct", "k": "AAAA"}]},
        {"keys": [EC.as_dict(private=True)]},
        {"keys": [EC.as_dict(private=False) | {"use": "enc"}]},
        {"assurance": "sure"},
    ],
    ids=[
        "symmetric",
        "none",
        "no-algorithm",
        "no-audience",
        "audience-of-another-type",
        "half-a-key",
        "secret-key-material",
        "private-key",
        "key-for-encryption",
        "unknown-assurance",
    ],
)
def test_issuer_that_cannot_be_used_makes_its_tokens_invalid(changes, caplog):
    reader = TokenReader([issuer(**changes)])
    assert "cannot be used" in caplog.text
    assert reader.read([sign()], NOW).invalid


def test_short_rsa_keys_are_refused(caplog):
    weak = {"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": b64(bytes([0x80]) + bytes(126) + b"\x01")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TokenReader([issuer(keys=[weak])])
    assert "RSA keys need 2048 bits" in caplog.text


def test_other_curves_are_refused(caplog):
    TokenReader([issuer(keys=public(OKPKey.generate_key("Ed448")))])
    assert "must be on Ed25519" in caplog.text


def test_subjects_are_hashed_under_a_key():
    one, same = TokenReader([issuer()], subject_key=b"k"), TokenReader([issuer()], subject_key=b"k")
    other = TokenReader([issuer()])
    token = [sign()]
    assert one.read(token, NOW).subject == same.read(token, NOW).subject != other.read(token, NOW).subject
    assert one.read([sign({"sub": 7})], NOW).subject is None


def test_configured_region():
    assert TokenReader([issuer()], region="DE").read([sign()], NOW).region == "DE"


def test_nbf_is_required_unless_the_issuer_leaves_it_out():
    bare = {name: value for name, value in CLAIMS.items() if name != "nbf"}
    token = sign(payload=json.dumps(bare).encode())
    assert TokenReader([issuer()]).read([token], NOW).invalid
    assert TokenReader([issuer(nbf="optional")]).read([token], NOW).age_at_least == 18
    late = sign(payload=json.dumps(bare | {"iat": NOW + 31}).encode())
    assert TokenReader([issuer(nbf="optional")]).read([late], NOW).invalid


def test_a_pinned_typ_has_to_be_there():
    reader = TokenReader([issuer(typ="JWT")])
    assert reader.read([sign()], NOW).age_at_least == 18
    assert reader.read([sign(header={"typ": None})], NOW).invalid


URL = "https://idp.example/jwks"


@pytest.fixture
def outside():
    """A ring, a reader whose only issuer has its keys there, and what the ring was asked for."""
    asked = []
    ring = KeyRing(asked.append)
    return ring, TokenReader([issuer(keys=[], jwks_url=URL)], ring=ring), asked


def jwks(*keys):
    return read_jwks(json.dumps({"keys": public(*keys)}).encode())


def test_keys_from_outside(outside):
    ring, reader, asked = outside
    assert reader.read([sign()], NOW).invalid
    assert asked == [URL]
    ring.put(URL, jwks(EC), NOW + 100)
    user = reader.read([sign()], NOW)
    assert user.age_at_least == 18
    assert reader.read([sign(key=ED, header={"alg": "EdDSA", "kid": "ed"})], NOW).invalid
    assert asked == [URL, URL]


def test_a_verified_token_falls_with_its_key(outside):
    ring, reader, _ = outside
    ring.put(URL, jwks(EC, EC2), NOW + 100)
    assert reader.read([sign()], NOW).age_at_least == 18
    ring.put(URL, jwks(EC2), NOW + 100)
    assert reader.read([sign()], NOW).invalid


def test_keys_that_cannot_be_renewed_end(outside):
    ring, reader, _ = outside
    ring.put(URL, jwks(EC), NOW + 100)
    assert not reader.read([sign()], NOW + 99).invalid
    assert reader.read([sign()], NOW + 100).invalid


def test_an_issuer_without_a_place_for_keys_is_left_out(caplog):
    assert TokenReader([issuer(keys=[])]).read([sign()], NOW).invalid
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"no", "not JSON"),
        (b"[]", "not a list"),
        (b'{"keys": {}}', "not a list"),
        (b'{"keys": [1]}', "not a list"),
        (b'{"keys": []}', "none can be used"),
        (json.dumps({"keys": [OctKey.generate_key(256).as_dict()]}).encode(), "none can be used"),
        (json.dumps({"keys": [EC.as_dict(private=True)]}).encode(), "private"),
        (json.dumps({"keys": [public(EC)[0] | {"use": "enc"}]}).encode(), "none can be used"),
        (json.dumps({"keys": public(EC, EC)}).encode(), "twice"),
        (json.dumps({"keys": public(EC) * 65}).encode(), "more than 64"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=[
        "text",
        "array",
        "map",
        "numbers",
        "empty",
        "secret",
        "private",
        "encryption",
        "twice",
        "many",
        "deep",
    ],
)
def test_bad_key_sets(document, message):
    with pytest.raises(JwksError, match=message):
        read_jwks(document)


def test_foreign_keys_are_left_out():
    mixed = {"keys": [{"kty": "new", "kid": "x"}, *public(EC)]}
    assert [key.kid for key in read_jwks(json.dumps(mixed).encode())] == ["ec"]
