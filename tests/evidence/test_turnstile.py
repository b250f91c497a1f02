"""Several processes, one stream: whole lines, also after a death in the middle of one."""

import json
import os
import subprocess
import sys
from collections import defaultdict

from edgeguard.evidence.log import verify_chain
from edgeguard.evidence.turnstile import Turnstile, new_turnstile

WRITER = """
import sys, time
from edgeguard.evidence.log import DecisionLog
from edgeguard.evidence.record import Record
from edgeguard.evidence.turnstile import Turnstile
log = DecisionLog("-", 10_000, chain=sys.argv[1], turnstile=Turnstile(int(sys.argv[2])))
for number in range(3000):
    while not log.offer(Record(f"{sys.argv[1]}-{number}", time.time(), "connect", host="h" * 60)):
        time.sleep(0.01)
log.close()
"""


def test_lines_of_two_writers_stay_whole():
    """Through a pipe, where a slice of records is more than is written in one piece (pipe(7))."""
    fd = new_turnstile()
    readable, writable = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, str(fd)], stdout=writable, pass_fds=(fd,))
        for name in ("one", "two")
    ]
    os.close(writable)
    with open(readable, "rb") as stream:  # noqa: PTH123 - a descriptor
        data = stream.read()
    assert [writer.wait(10) for writer in writers] == [0, 0]
    os.close(fd)
    chains = defaultdict(list)
    for line in data.splitlines():
        chains[json.loads(line)["chain"]].append(line)
    assert {name: len(lines) for name, lines in chains.items()} == {"one": 3001, "two": 3001}
    assert all(verify_chain(lines).ok for lines in chains.values())


def test_the_next_writer_learns_of_a_death_in_the_middle():
    fd = new_turnstile()
    turnstile = Turnstile(fd)
    with turnstile.passing() as torn:
        assert not torn
    child = os.fork()
    if child == 0:
        passing = Turnstile(fd).passing()
        passing.__enter__()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with turnstile.passing() as torn:
        assert torn
    with turnstile.passing() as torn:
        assert not torn
    os.close(fd)
