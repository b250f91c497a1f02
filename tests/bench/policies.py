"""Policies of the corpus, compiled once per process and size."""

import time
from functools import cache

from edgeguard.bundle.build import decode_section, encode_section
from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.tables import Tables
from tests.bench.corpus import Corpus, corpus


@cache
def named(size: int) -> Corpus:
    return corpus(size)


@cache
def section(size: int) -> bytes:
    """The policy section, as a bundle carries it."""
    return encode_section(compile_policy(named(size).policy()))


def engine(size: int) -> Engine:
    """A fresh engine over tables that came out of a section, as on a node."""
    return Engine(Tables.load(decode_section(section(size))))


NOW = float(int(time.time()))
