"""What an age gate costs a request: reading the token for the first time, knowing it again, and the gate itself."""

import json
import time
from collections.abc import Callable, Sequence

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from edgeguard.identity.tokens import TokenReader
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.request import Assurance, Client, Request, User
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables
from tests.bench.run import Run, percentile, time_batches

ISSUER = "https://age.example"
TOKENS = 256
POLICY = """
edgeguard: 1
module: media
owner: media
rules:
  - {id: media, effect: allow, to: ["media.example"], rationale: the site}
age_gates:
  - id: adults
    match: {to: ["media.example"], paths: ["/restricted/**"], methods: [GET, HEAD]}
    regions: [EU]
    require: {age: 18, assurance: estimated}
    rationale: what it asks for
    legal_ref: the law that asks
"""
OPEN, GATED = "/catalogue/film-1", "/restricted/film-1"


def measure(run: Run) -> dict[str, float]:
    samples = run.pick(300, 3000)
    figures: dict[str, float] = {}
    keys: dict[str, tuple[str, ECKey | OKPKey | RSAKey]] = {
        "es256": ("ES256", ECKey.generate_key("P-256", {"kid": "k"})),
        "ed25519": ("Ed25519", OKPKey.generate_key("Ed25519", {"kid": "k"})),
        "rs256": ("RS256", RSAKey.generate_key(2048, {"kid": "k"})),
    }
    for name, (algorithm, key) in keys.items():
        tokens, now = _tokens(algorithm, key)
        fresh = _reader(algorithm, key, cache=1)
        known = _reader(algorithm, key, cache=TOKENS * 2)
        figures[f"token.verify.{name}_us"] = _median(_reading(fresh, now), tokens, samples)
        if name == "es256":
            figures["token.known_us"] = _median(_reading(known, now), tokens, samples * 10)
        if known.read([tokens[0]], now) is None or known.read([tokens[0]], now).invalid:  # type: ignore[union-attr]
            raise RuntimeError("the tokens are refused, so this would measure refusals")
    return figures | _gates(run)


def _reader(algorithm: str, key: ECKey | OKPKey | RSAKey, cache: int) -> TokenReader:
    entry: dict[str, object] = {
        "issuer": ISSUER,
        "audience": ["bench"],
        "algorithms": [algorithm],
        "keys": [key.as_dict(private=False)],
        "typ": "JWT",
        "assurance": "estimated",
    }
    return TokenReader([entry], cache=cache)


def _tokens(algorithm: str, key: ECKey | OKPKey | RSAKey) -> tuple[list[str], float]:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": "bench",
        "nbf": now,
        "exp": now + 3000,
        "age_over_18": True,
        "region": "DE",
    }
    header = {"alg": algorithm, "kid": "k"}
    return [
        jwt.encode(header, claims | {"sub": str(n)}, key, algorithms=[algorithm]) for n in range(TOKENS)
    ], float(now)


def _reading(reader: TokenReader, now: float) -> Callable[[Sequence[object]], None]:
    def loop(tokens: Sequence[str]) -> None:
        read = reader.read
        for token in tokens:
            read((token,), now)

    return loop  # type: ignore[return-value]


def _gates(run: Run) -> dict[str, float]:
    engine = Engine(Tables.load(compile_policy(load_sources({"bench.yaml": POLICY.encode()}))))
    client = Client("web", identified=True)
    now = time.time()
    adult = User(18, None, Assurance.ESTIMATED, "DE", now + 3000)

    def asking(target: str, user: User | None) -> Callable[[Sequence[object]], None]:
        def loop(methods: Sequence[str]) -> None:
            decide = engine.decide
            for method in methods:
                decide(Request(client, "media.example", 443, "tls", method, target, user), now)

        return loop  # type: ignore[return-value]

    if not engine.decide(Request(client, "media.example", 443, "tls", "GET", GATED, adult), now).allow:
        raise RuntimeError("the gate refuses an adult, so this would measure refusals")
    methods = ["GET"] * TOKENS
    samples = run.pick(2000, 20_000)
    without = _median(asking(OPEN, None), methods, samples)
    passed = _median(asking(GATED, adult), methods, samples)
    refused = _median(asking(GATED, None), methods, samples)
    run.raw["gate"] = json.dumps({"open": without, "passed": passed, "refused": refused})
    return {"gate.passed_us": passed, "gate.refused_us": refused, "gate.added_us": max(0.0, passed - without)}


def _median(loop: Callable[[Sequence[object]], None], items: Sequence[object], samples: int) -> float:
    return percentile(time_batches(loop, items, batch=8, samples=samples), 0.5)
