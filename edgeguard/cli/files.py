"""Files of the signing commands: passphrases, policy folders, durable writes, durations."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import typer

from edgeguard.bundle.keys import KeyFileError
from edgeguard.cli.console import fail

PASSPHRASE_VARIABLE = "EDGEGUARD_PASSPHRASE"  # noqa: S105 - the name of a variable
MAX_KEY_FILE_BYTES = 4096
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str) -> int:
    """`90s`, `15m`, `6h`, `30d`, `5w`; a bare number is seconds."""
    match = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 15m, 6h, 30d or 5w")
    return int(match[1]) * _UNITS[match[2] or "s"]


def clock(issued_at: int | None = None) -> int:
    """When a document is issued, Unix seconds: `issued_at`, else `SOURCE_DATE_EPOCH`, else now.

    https://reproducible-builds.org/specs/source-date-epoch/
    """
    if issued_at is not None:
        return issued_at
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    if fixed is None:
        return int(time.time())
    if not re.fullmatch(r"[0-9]{1,15}", fixed):
        fail(
            f"SOURCE_DATE_EPOCH={fixed[:40]!r} is no number of seconds since 1970; unset it or mend it",
            code=2,
        )
    return int(fixed)


def passphrase_from(file: Path | None) -> bytes | None:
    """The passphrase from a file (also `/dev/fd/3`) or the environment; None if neither has one."""
    if file is not None:
        return file.read_bytes().rstrip(b"\r\n")
    value = os.environ.get(PASSPHRASE_VARIABLE)
    return value.encode() if value is not None else None


@contextlib.contextmanager
def judging(path: Path) -> Iterator[None]:
    """Ends the process with one message that names the file if what is inside is refused."""
    from edgeguard.bundle.refusal import Refusal

    try:
        yield
    except Refusal as refusal:
        fail(f"{path}: refused: {refusal}")


def read_text(path: Path) -> str:
    """A small text file. Raises KeyFileError if it is none."""
    with path.open("rb") as file:
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    try:
        if len(data) > MAX_KEY_FILE_BYTES:
            raise KeyFileError(f"{path}: far too long for a key file")
        return data.decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: not a key file") from None


def write(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Writes a whole file or nothing: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not replace and path.exists():
        fail(f"{path}: exists already; choose another name")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_sources(folder: Path) -> dict[str, bytes]:
    """The modules of a policy folder that holds at least one."""
    from edgeguard.folder import read_modules

    if not folder.is_dir():
        fail(f"{folder}: no such policy folder")
    found = read_modules(folder)
    if not found:
        fail(f"{folder}: holds no policy (*.yaml)")
    return found


def compiled(folder: Path) -> dict[str, object]:
    """The compiled sections of a policy folder. Raises `PolicyErrors` with every mistake."""
    from edgeguard.policy.compile import compile_policy
    from edgeguard.policy.source import load_sources

    return dict(compile_policy(load_sources(read_sources(folder))))
