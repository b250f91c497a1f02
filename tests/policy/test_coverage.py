"""Coverage: statements that decided, counted, watched, or kept another from deciding."""

from functools import partial

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.coverage import Coverage, measure
from edgeguard.policy.engine import Engine
from edgeguard.policy.mutation import engine_without
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables
from tests.policy.test_mutation import POLICY

NOW = 1_780_000_000
ADULT = {"age": 18}


def covered(*questions):
    policy = load_sources({"m.yaml": POLICY.encode()})
    engine = Engine(Tables.load(compile_policy(policy)))
    return measure(engine, [(q, NOW) for q in questions], partial(engine_without, policy))


def test_nothing_asked():
    coverage = covered()
    assert (coverage.percent, coverage.uncovered) == (0, ("all", "d", "e", "g", "l", "shop", "watched"))


def test_each_way_to_be_exercised():
    shop = {"client": "web", "claims": ["buyer"], "host": "shop.example", "port": 8443, "path": "/items/1"}
    assert covered(shop).covered == {"shop", "l"}
    assert covered(shop | {"claims": []}).covered == set()  # a near miss is no exercise
    assert covered({"host": "a.all.example", "path": "/"}).covered == {"g"}
    assert covered({"host": "w.all.example", "user": ADULT}).covered == {"all", "watched"}
    assert covered({"client": "bot", "host": "x.all.example"}).covered == {"d"}
    assert covered({"client": "web", "host": "x.all.example", "user": ADULT}).covered == {"all", "e"}


def test_a_question_that_is_none_exercises_nothing():
    assert covered({"hots": "x"}).covered == set()


def test_a_policy_without_statements_is_covered():
    assert Coverage(frozenset(), frozenset()).percent == 100
