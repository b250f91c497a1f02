"""The state folder: crash safety, damage, permissions, locking."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from edgeguard.sync.store import Store, StoreError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def store(folder):
    store = Store.open(folder)
    yield store
    store.close()


async def newest(store, role="head"):
    slots, _ = await store.read(role)
    return slots[0].data if slots else None


@pytest.mark.parametrize("role", ["head", "bundle", "marks"])
async def test_the_stored_bytes_are_the_served_bytes(store, folder, role):
    data = bytes(range(256)) * 3
    slot = await store.write(role, data)
    assert (folder / slot.name).read_bytes() == data
    assert (folder / slot.name).stat().st_mode & 0o777 == 0o600
    assert slot.sha256 == hashlib.sha256(data).hexdigest()
    assert await newest(store, role) == data


async def test_two_slots_are_kept_and_all_roots(store, folder):
    for number in range(1, 6):
        await store.write("head", b"%d" % number)
        await store.write("root", b"root %d" % number, sequence=number)
    slots, damaged = await store.read("head")
    assert [slot.data for slot in slots] == [b"5", b"4"]
    assert damaged == ()
    roots, _ = await store.read("root")
    assert [slot.sequence for slot in roots] == [5, 4, 3, 2, 1]
    assert len(list(folder.iterdir())) == 1 + 2 + 5


async def test_the_same_bytes_are_not_written_twice(store, folder):
    first = await store.write("head", b"x")
    inode = (folder / first.name).stat().st_ino
    assert await store.write("head", b"x") == first
    assert (folder / first.name).stat().st_ino == inode


DAMAGE = {
    "flip": lambda path: path.write_bytes(b"Y" + path.read_bytes()[1:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:3]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "writable": lambda path: path.chmod(0o666),
    "link": lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")),
    "hard": lambda path: os.link(path, path.with_name("other")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", [pytest.param(how, id=f"fault-E5-{how}") for how in DAMAGE])
async def test_a_damaged_slot_falls_back_to_the_other(store, folder, damage):
    await store.write("bundle", b"older bytes")
    slot = await store.write("bundle", b"newer bytes")
    DAMAGE[damage](folder / slot.name)
    slots, damaged = await store.read("bundle")
    assert [slot.data for slot in slots] == [b"older bytes"]
    assert damaged == (slot.name,)


async def test_a_damaged_slot_is_healed_by_writing_again(store, folder):
    slot = await store.write("bundle", b"newer bytes")
    (folder / slot.name).write_bytes(b"")
    assert await store.write("bundle", b"newer bytes") == slot
    assert await newest(store, "bundle") == b"newer bytes"
    (folder / slot.name).write_bytes(b"")
    await store.discard(slot.name)
    await store.discard("lock")
    assert {path.name for path in folder.iterdir()} == {"lock"}


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        pytest.param(
            lambda path: path.chmod(0o770), "may be written by others.*chmod 700", id="fault-E11-group"
        ),
        pytest.param(lambda path: path.chmod(0o707), "may be written by others", id="fault-E11-world"),
        pytest.param(
            lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
            "symbolic link",
            id="fault-E11-link",
        ),
        pytest.param(lambda path: (path.rmdir(), path.write_text("")), "cannot open", id="fault-E11-file"),
    ],
)
def test_a_folder_that_others_can_change_is_refused(folder, mend, message):
    Store.open(folder).close()
    (folder / "lock").unlink()
    mend(folder)
    with pytest.raises(StoreError, match=message):
        Store.open(folder)


@pytest.mark.parametrize("owner", [pytest.param(12345, id="fault-E11-owner")])
def test_a_folder_of_somebody_else_is_refused(folder, monkeypatch, owner):
    Store.open(folder).close()
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    with pytest.raises(StoreError, match=r"belongs to uid .* runs as 12345"):
        Store.open(folder)


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-E9")])
async def test_a_second_process_reads_only(store, folder, case):
    await store.write("head", b"first")
    second = Store.open(folder)
    try:
        assert not second.writable
        assert await newest(second) == b"first"
        with pytest.raises(PermissionError, match="another process"):
            await second.write("head", b"second")
        store.close()
        assert second.acquire()
        await second.write("head", b"second")
    finally:
        second.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from edgeguard.sync.store import Store
store = Store.open(Path(sys.argv[1]))
print(store.writable, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-E10")])
def test_the_lock_dies_with_its_holder(folder, case):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"True\n"
        waiting = Store.open(folder)
        assert not waiting.writable
        child.kill()
        child.wait()
        assert waiting.acquire()
        waiting.close()


@pytest.mark.parametrize("case", [pytest.param(None, id="fault-E2")])
async def test_a_file_that_lost_its_bytes_in_a_power_cut(store, folder, case):
    await store.write("bundle", b"one")
    lost = folder / f"bundle.2.{hashlib.sha256(b'two').hexdigest()}"
    lost.write_bytes(b"")
    lost.chmod(0o600)
    assert await newest(store, "bundle") == b"one"
    await store.write("bundle", b"three")
    assert await newest(store, "bundle") == b"three"


@pytest.mark.parametrize("step", [pytest.param(step, id=f"fault-E8-{step}") for step in ("fsync", "rename")])
async def test_a_full_disk_leaves_what_was_there(store, folder, monkeypatch, step):
    await store.write("head", b"one")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        await store.write("head", b"two")
    monkeypatch.undo()
    assert await newest(store) == b"one"
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"head", "lock"}
