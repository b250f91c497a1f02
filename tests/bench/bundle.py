"""How large the signed documents are on the wire, for the policies of the corpus."""

import os
import time

import zstandard

from edgeguard.bundle.build import decode_section
from edgeguard.bundle.keys import SigningKey
from tests.bench.corpus import NAME
from tests.bench.policies import section
from tests.bench.run import Run
from tests.bench.world import signed

LEVEL = 19
"""A bundle never changes, so the server may compress it once and well."""


def measure(run: Run) -> dict[str, float]:
    figures: dict[str, float] = {}
    release, head_key = SigningKey(os.urandom(32)), SigningKey(os.urandom(32))
    for size in (1000, 10_000):
        bundle, head = signed(
            decode_section(section(size)),
            1,
            now=int(time.time()),
            lifetime_s=3600,
            release=release,
            head=head_key,
        )
        figures[f"bundle.plain_bytes.{size}"] = len(bundle)
        figures[f"bundle.wire_bytes.{size}"] = len(zstandard.ZstdCompressor(level=LEVEL).compress(bundle))
        figures[f"bundle.zstd3_bytes.{size}"] = len(zstandard.ZstdCompressor(level=3).compress(bundle))
        figures["bundle.head_bytes"] = len(head)
    run.note(
        f"bundle.wire_bytes: corpus {NAME!r}, zstd level {LEVEL}, one signature; prose is not in the bundle"
    )
    run.note("bundle.wire_bytes: the bundle server does not compress yet; plain_bytes is what it sends")
    return figures
