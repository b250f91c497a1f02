"""Keys as options name them: a file, `fd:N`, or `command:...` for whatever signs elsewhere.

The protocol of a command, one run per request, no shell in between:

    stdin  `edgeguard-signer-v1 public` LF                        stdout  a public key file (one line)
    stdin  `edgeguard-signer-v1 sign <key id>` LF, then the       stdout  the 64-byte signature in base64 (one line)
           message to its last byte, then end of file

The message is what Ed25519 signs, nothing more is hashed before. Exit code 0; otherwise the last line of stderr is shown.
A signature is checked against the public key before it is used.
"""

import base64
import binascii
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import typer

from edgeguard.bundle.keys import KeyFileError, PublicKey, Signer, SigningKey, protected
from edgeguard.cli.console import fail
from edgeguard.cli.files import PASSPHRASE_VARIABLE, passphrase_from, read_text, write

PROTOCOL = "edgeguard-signer-v1"
COMMAND = "command:"
DESCRIPTOR = "fd:"
TIMEOUT_S = 300.0
MAX_ANSWER_BYTES = 4096


class CommandSigner:
    """A key that another program holds."""

    def __init__(self, command: str) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise KeyFileError(f"{COMMAND}{command}: {error}") from None
        if not self._command:
            raise KeyFileError(f"{COMMAND} is followed by a program and its arguments")
        self.public = PublicKey.from_text(self._ask("public", b"").decode("ascii", "replace"))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature."""
        answer = self._ask(f"sign {self.public.id}", message)
        try:
            signature = base64.b64decode(answer.strip(), validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        if len(signature) != 64 or not self.public.verifies(message, signature):
            raise KeyFileError(
                f"{self._name}: what it answered is no signature by key {self.public.id}; "
                "it must sign the message as it is (Ed25519), and print base64"
            )
        return signature

    @property
    def _name(self) -> str:
        return COMMAND + shlex.join(self._command)

    def _ask(self, request: str, message: bytes) -> bytes:
        try:
            done = subprocess.run(  # noqa: S603 - the operator's own command, without a shell
                self._command,
                input=f"{PROTOCOL} {request}\n".encode() + message,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, ValueError) as error:
            raise KeyFileError(f"{self._name}: cannot be run: {error}") from None
        except subprocess.TimeoutExpired:
            raise KeyFileError(f"{self._name}: no answer in {TIMEOUT_S:.0f} s") from None
        if done.returncode != 0 or len(done.stdout) > MAX_ANSWER_BYTES:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise KeyFileError(f"{self._name}: exit code {done.returncode}, it said: {said[0][:200]}")
        return done.stdout


@cache
def _descriptor(number: str) -> str:
    # A pipe can be read once; the public and the secret half are asked for separately.
    if not number.isdigit():
        raise KeyFileError(f"{DESCRIPTOR}{number}: write the number of an open descriptor, as in fd:3")
    try:
        with os.fdopen(os.dup(int(number)), "rb") as file:
            return file.read(MAX_ANSWER_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{DESCRIPTOR}{number}: {error}") from None


def _text(name: str) -> str:
    if name.startswith(DESCRIPTOR):
        return _descriptor(name.removeprefix(DESCRIPTOR))
    return read_text(Path(name))


@cache
def _command(line: str) -> CommandSigner:
    return CommandSigner(line)


def read_public(name: str) -> PublicKey:
    """The public key that an option names. Raises KeyFileError."""
    if name.startswith(COMMAND):
        return _command(name.removeprefix(COMMAND)).public
    try:
        return PublicKey.from_text(_text(name))
    except KeyFileError as error:
        raise KeyFileError(f"{name}: {error}") from None


def can_sign(name: str) -> bool:
    """Whether an option names a key that signs, and not its public half alone."""
    return name.startswith(COMMAND) or "secret-key" in _text(name)[:40]


def read_signer(name: str, passphrase_file: Path | None = None) -> Signer:
    """The key that an option names; asks for a passphrase on a terminal if nothing else gives it."""
    if name.startswith(COMMAND):
        return _command(name.removeprefix(COMMAND))
    text = _text(name)
    try:
        passphrase = None
        if protected(text):
            passphrase = passphrase_from(passphrase_file)
            if passphrase is None and sys.stdin.isatty():
                passphrase = typer.prompt(f"Passphrase of {name}", hide_input=True, err=True).encode()
        return SigningKey.from_text(text, passphrase)
    except KeyFileError as error:
        hint = (
            f"; give --passphrase-file or set {PASSPHRASE_VARIABLE}" if "none was given" in str(error) else ""
        )
        raise type(error)(f"{name}: {error}{hint}") from None


def read_signers(names: Iterable[str], passphrase_file: Path | None = None) -> list[Signer]:
    return [read_signer(name, passphrase_file) for name in names]


def unique(names: Iterable[str], option: str) -> list[PublicKey]:
    """The public keys that an option names, each once."""
    keys = [read_public(name) for name in names]
    if len(set(keys)) != len(keys):
        fail(f"{option}: the same key twice; a threshold counts distinct keys")
    return keys


def sign_file(
    file: Path, data: bytes, signers: Iterable[Signer], target: Path | None, *, detached: bool
) -> bytes:
    """Writes the signed envelope, or the signatures alone; answers the envelope as it was signed."""
    from edgeguard.bundle.signing import add_signatures, detach

    signers = list(signers)
    if not detached:
        signed = add_signatures(data, signers)
        write(target or file, signed)
        return signed
    if target is None:
        fail("--detached takes --out", code=2)
    write(target, detach(data, signers).encode())
    return data


def merge_files(files: Iterable[Path], target: Path) -> list[str]:
    """Writes the merged envelope; answers the ids of the keys that signed it."""
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.bundle.signing import merge

    data = merge([path.read_bytes() for path in files])
    write(target, data)
    return [item.hint.hex() for item in Envelope.parse(data).signatures]
