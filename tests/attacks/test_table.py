"""The table of docs/threat-model.md and the tests say the same: no row without a test of that name, none without a row."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "threat-model.md"
ROW = re.compile(r"^\| ([A-Z]\d\d(?:, [A-Z]\d\d)*) \|(.*)\|$", re.MULTILINE)


def rows():
    """(row, the files named in its line; none for a row that cannot come up)."""
    for ids, line in ROW.findall(DOCUMENT.read_text(encoding="utf-8")):
        files = re.findall(r"`(tests/[\w/]+\.py)`", line)
        for row in ids.split(", "):
            yield row, files


@cache
def ids(file):
    """The rows in the ids of a file's tests: texts, names and docstrings of tests (`tests/conftest.py`)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module = ast.get_docstring(tree, clean=False)
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != module:
            texts.append(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            texts.append(node.name.replace("attack_", "-attack-"))
    return {row for text in texts for row in re.findall(r"\battack-([A-Z]\d\d)(?:\b|_)", text)}


@pytest.mark.parametrize(("row", "files"), [pytest.param(r, f, id=r) for r, f in rows() if f])
def test_a_row_has_a_test_of_its_name(row, files):
    """In an id, so that `pytest -k attack-H01` finds it."""
    for file in files:
        assert row in ids(ROOT / file), f"{file} has no id attack-{row}"


def test_every_row_stands_once():
    found = [row for row, _ in rows()]
    assert len(found) == len(set(found))


def test_every_id_of_a_test_is_a_row():
    known = {row for row, _ in rows()}
    begun = {row[0] for row, files in rows() if files}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for row in ids(file):
            assert row in known or row[0] not in begun, f"{file.name}: attack-{row} is not in {DOCUMENT.name}"
