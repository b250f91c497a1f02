"""Lines that are written from what earlier ones have said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edgeguard.evidence import lines as module
from edgeguard.evidence.lines import Lines, Written, encode, own_of
from edgeguard.evidence.record import GAPS, MAX_ITEMS, MAX_TEXT
from tests.evidence.test_record import FULL

PREV = "0" * 64
OWN = ("id", "time", "connection", *(name for gap in GAPS for name in gap))


class Said:
    """An entry of a given record."""

    def __init__(self, record, key="one"):
        self._record = record
        self._key = key
        self.shaped = 0

    def __call__(self):
        self.shaped += 1
        return self._record

    def parts(self):
        return self._key, own_of(self._record)


own_values = st.fixed_dictionaries(
    {
        "id": st.text(max_size=9),
        "time": st.floats(0, 4e9),
        "connection": st.none() | st.text(max_size=9),
        "path": st.none() | st.text(max_size=9),
        "query_keys": st.just(()) | st.tuples(st.text(max_size=9)),
        "staleness_s": st.none() | st.floats(0, 1e6),
        "sent": st.none() | st.integers(0, 1 << 40),
        "received": st.none() | st.integers(0, 1 << 40),
    }
)


@given(st.lists(own_values, min_size=2, max_size=4), st.booleans())
def test_a_later_one_of_a_sort_gets_the_line_that_it_would_have_got_alone(values, paths):
    written = Lines(paths=paths, chain="w")
    for number, own in enumerate(values):
        assert set(own) == set(OWN)
        record = structs.replace(FULL, **own)
        entry = Said(record)
        sort, its_own = written.sort_of(entry)
        line = sort.line(its_own, 7, PREV)
        assert line == encode(record, 7, PREV, paths=paths, chain="w")
        assert Written(sort.record, its_own).whole() == record
        assert entry.shaped == (number == 0)
        said = json.loads(line)
        for name in OWN[2:]:
            if own[name] in {None, ()} or (not paths and name in GAPS[0]):
                assert name not in said or (name == "query_keys" and paths)
            elif name == "staleness_s":
                assert said[name] == pytest.approx(own[name], abs=0.001)
            elif name != "query_keys" or own["path"] is not None:
                assert said[name] == (list(own[name]) if name == "query_keys" else own[name])


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "KNOWN_SORTS", 3)
    written = Lines()
    for number in range(10):
        written.sort_of(Said(FULL, number))
        assert len(written._sorts) <= 3


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "h" * (MAX_TEXT + 1)},
        {"names": ("n",) * (MAX_ITEMS + 1)},
        {"overrides": ("o",) * (MAX_ITEMS + 1)},
        {"names": ("n" * 100,) * 40},
    ],
)
def test_what_is_large_is_not_kept(fields):
    written = Lines()
    written.sort_of(Said(structs.replace(FULL, **fields)))
    assert not written._sorts
