"""Runs one update again and again, and kills it at the n-th system call while it writes its state.

    python killer.py BASE URL STEP

For n = 1, 1 + STEP, ... a child gets a copy of BASE, loads it and updates from URL under ptrace(2). The
stops at entry and exit of every system call of every thread are counted while the state is being written,
and the child is killed at the n-th. Prints a JSON line for each child: its folder, what it had put in
force, where it was killed (null: it ended by itself, which is the last line).
"""

import asyncio
import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from edgeguard.sync.clock import TrustedClock
from edgeguard.sync.config import SyncConfig
from edgeguard.sync.fetch import Fetcher
from edgeguard.sync.profile import Profile
from edgeguard.sync.store import Store
from edgeguard.sync.update import Mirror, Updater

TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
OPTIONS = 0x1 | 0x8 | 0x100000  # TRACESYSGOOD, TRACECLONE, EXITKILL
WALL = 0x40000000
ENTRY = 1
ARM, DISARM = 9991, 9992
"""System calls that do not exist: the child says with them when it is writing."""

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


class SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


def ptrace(request, pid, address=None, data=None):
    if libc.ptrace(request, pid, address, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


async def update(state, url, activated):
    """What a node does: load, one cycle, and an end in good order."""
    store = Store.open(state)
    profile, root = await Profile.read(store)
    config = SyncConfig(profile.environment, state, (url,))

    def on_snapshot(snapshot):
        now = None if snapshot is None else (snapshot.bundle_version, snapshot.quarantined, snapshot.revoked)
        os.write(activated, json.dumps(now).encode() + b"\n")

    updater = Updater(config, root, store, TrustedClock(), on_snapshot=on_snapshot)
    await updater.load(counted=True)
    async with Fetcher(url, config.fetch) as fetcher:
        cycle = await updater.refresh(Mirror(fetcher))
    await updater.keep_report()
    await updater.steady(ending=True)
    store.close()
    return cycle.ok


def child(state, url, activated):
    real = Store.write

    async def write(*args, **kwargs):
        libc.syscall(ARM)
        try:
            return await real(*args, **kwargs)
        finally:
            libc.syscall(DISARM)

    Store.write = write
    ptrace(TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    asyncio.run(update(state, url, activated))


def trace(pid, at):
    """Follows the child until stop number `at`; answers whether it was killed there, and the call's number."""
    os.waitpid(pid, 0)
    ptrace(SETOPTIONS, pid, None, OPTIONS)
    ptrace(SYSCALL, pid)
    armed, count, info = False, 0, SyscallInfo()
    while True:
        tid, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if tid == pid:
                return None
            continue
        sig = os.WSTOPSIG(status)
        deliver = 0
        if sig == signal.SIGTRAP | 0x80:
            ptrace(GET_SYSCALL_INFO, tid, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == ENTRY and info.nr in {ARM, DISARM}:
                armed = info.nr == ARM
            elif armed:
                count += 1
                if count == at:
                    os.kill(pid, signal.SIGKILL)
                    reap()
                    return info.nr if info.op == ENTRY else -1
        elif sig not in {signal.SIGTRAP, signal.SIGSTOP}:
            deliver = sig
        try:
            ptrace(SYSCALL, tid, None, deliver)
        except ProcessLookupError:
            continue


def reap():
    try:
        while True:
            os.waitpid(-1, WALL)
    except ChildProcessError:
        pass


def main():
    base, url, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    at = 1
    while True:
        state = base.with_name(f"{base.name}-{at}")
        shutil.copytree(base, state, copy_function=shutil.copy2)
        state.chmod(0o700)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(state, url, write)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        killed = trace(pid, at)
        with os.fdopen(read) as pipe:
            activated = [json.loads(line) for line in pipe]
        sys.stdout.write(json.dumps([str(state), activated, killed, at]) + "\n")
        sys.stdout.flush()  # before the next fork
        if killed is None:
            break
        at += step


main()
