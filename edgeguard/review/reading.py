"""What the tools read: policies as folders or bundle files, decision logs as JSON lines."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeguard.bundle.build import decode_section
from edgeguard.bundle.documents import Bundle
from edgeguard.bundle.envelope import Envelope
from edgeguard.bundle.refusal import Refusal
from edgeguard.folder import read_modules
from edgeguard.policy.compile import CompileError, compile_policy
from edgeguard.policy.source import load_sources

MAX_LINE_BYTES = 1 << 20


class InputError(ValueError):
    """A file is not what the tool needs. The message names it and says what it should be."""


def read_sections(place: Path) -> dict[str, Any]:
    """The compiled sections of a policy folder or of a bundle file, signed or not.

    Signatures are not checked here: that takes a root, and is what `edgeguard bundle verify` is for.
    Raises `PolicyErrors` for a folder with mistakes, `InputError` for a file that is no bundle, and OSError.
    """
    if place.is_dir():
        files = read_modules(place)
        if not files:
            raise InputError(f"{place}: holds no policy (*.yaml)")
        try:
            return dict(compile_policy(load_sources(files)))
        except CompileError as error:
            raise InputError(f"{place}: {error}") from None
    data = place.read_bytes()
    try:
        return decode_section(Bundle.parse(Envelope.parse(data).payload).policy)
    except Refusal as error:
        if place.suffix in {".yaml", ".yml"}:
            raise InputError(f"{place}: a policy is a folder; name the folder that holds this file") from None
        raise InputError(f"{place}: neither a policy folder nor a bundle: {error}") from None


def read_log(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(number, decoded line, or what is wrong with it) for every line of a decision log. Raises OSError."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield number, f"longer than {MAX_LINE_BYTES} bytes"
            elif line.strip():
                yield number, _decoded(line)


def _decoded(line: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"
