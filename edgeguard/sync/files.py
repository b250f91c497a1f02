"""Files that survive a crash: one way to write and one way to read.

A write goes to a new temporary file (`O_EXCL`, `O_NOFOLLOW`), is flushed to the disk, takes its final
name by rename(2), and then the folder itself is flushed. So a reader sees the old bytes or the new bytes,
never half of them, whatever moment the power goes. A read refuses symbolic links, devices, and anything
over its cap. Every path is relative to an open folder, so that nobody can swap the folder meanwhile.
"""

import contextlib
import errno
import os
import secrets
import stat

import aiofiles
from aiofiles import os as async_os

TEMPORARY_SUFFIX = ".tmp"

_fsync = async_os.wrap(os.fsync)
_unlink = async_os.wrap(os.unlink)
_rename = async_os.wrap(os.rename)


class UnsafeFileError(OSError):
    """The file is not a plain file, is too big, or may be written by others."""


def open_folder(path: str | os.PathLike[str]) -> int:
    """An open descriptor of the folder itself, never of what a symbolic link points to. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


async def write_durably(folder: int, name: str, data: bytes, *, mode: int = 0o600) -> None:
    """Puts `data` under `name` in the open folder: all of it, on the disk, or not at all. Raises OSError."""
    temporary = f".{name[:64]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"

    def create(path: str, _flags: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, mode, dir_fd=folder)
        os.fchmod(descriptor, mode)  # the umask may not widen or narrow what the caller asked for
        return descriptor

    try:
        async with aiofiles.open(temporary, "wb", opener=create) as file:
            await file.write(data)
            await file.flush()
            await _fsync(file.fileno())
        await _rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)  # one directory entry; also runs when the task is cancelled
        raise
    await _fsync(folder)


async def read_plain(folder: int, name: str, cap: int, *, private: bool = False) -> bytes:
    """The bytes of a regular file of at most `cap` bytes.

    With `private`, the file must belong to this user, be writable by nobody else, and have one name only.
    Raises FileNotFoundError, UnsafeFileError, OSError.
    """

    def open_plain(path: str, _flags: int) -> int:
        # O_NONBLOCK: a FIFO with nobody at the other end must not hold us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnsafeFileError(f"{path}: a symbolic link") from error
            raise
        try:
            _check_plain(os.fstat(descriptor), path, cap, private=private)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async with aiofiles.open(name, "rb", opener=open_plain) as file:
        data = await file.read(cap + 1)
    if len(data) > cap:
        raise UnsafeFileError(f"{name}: larger than {cap} bytes")
    return data


async def remove(folder: int, name: str) -> None:
    """Removes `name`, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        await _unlink(name, dir_fd=folder)


def _check_plain(found: os.stat_result, name: str, cap: int, *, private: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFileError(f"{name}: not a regular file")
    if found.st_size > cap:
        raise UnsafeFileError(f"{name}: larger than {cap} bytes")
    if private and (found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_nlink != 1):
        raise UnsafeFileError(f"{name}: belongs to or may be changed by somebody else")
