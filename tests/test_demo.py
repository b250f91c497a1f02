"""`make demo`'s command, as a newcomer runs it."""

import re
import subprocess
import sys

import pytest


@pytest.mark.long
@pytest.mark.timeout(150)
def test_the_demo_sees_what_it_expects(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edgeguard", "demo", "--keep", "kept"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^  (ok|DIFF) ", done.stdout, re.MULTILINE)
    assert len(rows) >= 24
    assert set(rows) == {"ok"}
    total, seconds = re.search(r"^(\d+) rows, 0 different, (\d+) s\.$", done.stdout, re.MULTILINE).groups()
    assert int(total) == len(rows)
    assert int(seconds) > 0  # under a minute on a quiet machine; the tests share theirs
    assert len(re.findall(r"^  edgeguard \w+", done.stdout.partition("Try next")[2], re.MULTILINE)) == 3
    assert "Traceback" not in "".join(file.read_text() for file in (tmp_path / "kept").glob("*.log"))


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [sys.executable, "-m", "edgeguard", "demo", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
