"""Files that survive a crash: one way to write and one way to read.

A write goes to a new temporary file (`O_EXCL`, `O_NOFOLLOW`), is flushed to the disk, takes its final
name by rename(2), and then the folder itself is flushed. So a reader sees the old bytes or the new bytes,
never half of them, whatever moment the power goes. A read refuses symbolic links, devices, and anything
over its cap. Every path is relative to an open folder, so that nobody can swap the folder meanwhile.

Each runs as one piece in a worker thread: whoever is cancelled while it waits leaves no half of it behind.
"""

import contextlib
import errno
import os
import secrets
import stat

from aiofiles.os import wrap

TEMPORARY_SUFFIX = ".tmp"


class UnsafeFileError(OSError):
    """The file is not a plain file, is too big, or may be written by others."""


def open_folder(path: str | os.PathLike[str]) -> int:
    """An open descriptor of the folder itself, never of what a symbolic link points to. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _write(folder: int, name: str, data: bytes, mode: int) -> None:
    temporary = f".{name[:64]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, mode, dir_fd=folder), "wb", buffering=0) as file:  # noqa: PTH123
            os.fchmod(file.fileno(), mode)  # the umask may not widen or narrow what the caller asked for
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _read(folder: int, name: str, cap: int, private: bool) -> bytes:
    # O_NONBLOCK: a FIFO with nobody at the other end must not hold us.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFileError(f"{name}: a symbolic link") from error
        raise
    try:
        _check_plain(os.fstat(descriptor), name, cap, private=private)
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        data = file.read(cap + 1)
    if len(data) > cap:
        raise UnsafeFileError(f"{name}: larger than {cap} bytes")
    return data


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _read_in(folder: str | os.PathLike[str], name: str, cap: int) -> bytes:
    descriptor = open_folder(folder)
    try:
        return _read(descriptor, name, cap, private=False)
    finally:
        os.close(descriptor)


def _write_in(folder: str | os.PathLike[str], name: str, data: bytes, mode: int) -> None:
    descriptor = open_folder(folder)
    try:
        _write(descriptor, name, data, mode)
    finally:
        os.close(descriptor)


_read_in_off_loop = wrap(_read_in)
_write_in_off_loop = wrap(_write_in)
_write_off_loop = wrap(_write)
_read_off_loop = wrap(_read)
_remove_off_loop = wrap(_remove)


async def write_durably(folder: int, name: str, data: bytes, *, mode: int = 0o600) -> None:
    """Puts `data` under `name` in the open folder: all of it, on the disk, or not at all. Raises OSError."""
    await _write_off_loop(folder, name, data, mode)


async def read_plain(folder: int, name: str, cap: int, *, private: bool = False) -> bytes:
    """The bytes of a regular file of at most `cap` bytes.

    With `private`, the file must belong to this user, be writable by nobody else, and have one name only.
    Raises FileNotFoundError, UnsafeFileError, OSError.
    """
    data: bytes = await _read_off_loop(folder, name, cap, private)
    return data


async def read_in(folder: str | os.PathLike[str], name: str, cap: int) -> bytes:
    """As `read_plain`, with the folder by its path, which is opened for this one reading."""
    data: bytes = await _read_in_off_loop(folder, name, cap)
    return data


async def write_in(folder: str | os.PathLike[str], name: str, data: bytes, *, mode: int) -> None:
    """As `write_durably`, with the folder by its path, which is opened for this one writing."""
    await _write_in_off_loop(folder, name, data, mode)


async def remove(folder: int, name: str) -> None:
    """Removes `name`, if it is there. Raises OSError."""
    await _remove_off_loop(folder, name)


def _check_plain(found: os.stat_result, name: str, cap: int, *, private: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFileError(f"{name}: not a regular file")
    if found.st_size > cap:
        raise UnsafeFileError(f"{name}: larger than {cap} bytes")
    if private and (found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_nlink != 1):
        raise UnsafeFileError(f"{name}: belongs to or may be changed by somebody else")
