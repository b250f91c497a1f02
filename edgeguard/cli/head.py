"""`edgeguard head`: signs what is current, once or for ever. The only process with the online key."""

import asyncio
import hashlib
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeguard.cli.console import err, fail, out

if TYPE_CHECKING:
    from edgeguard.bundle.documents import BlobRef, Environment, Head
    from edgeguard.bundle.keys import Signer
    from edgeguard.bundle.signing import Candidate, Release


def register(app: typer.Typer) -> None:
    app.command()(head)


def head(
    environment: Annotated[str, typer.Option("--environment", help="Whose head it is.")],
    key: Annotated[
        list[str], typer.Option(help="Head keys (.key, fd:N or command:...). Two during a rotation.")
    ],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="The repository: its newest bundle is named, and the head is put there."),
    ] = None,
    url: Annotated[
        str, typer.Option(help="Publish to this bundle server instead; takes --bundle and --root.")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="File with the publish token.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificate authorities (PEM) of the server.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Name this signed bundle. Default: the newest in --dir.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Name this signed release manifest. Default: the newest in --dir that names the bundle."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Judge bundles by this root. Default: the newest in --dir.")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="Of each head, such as 15m.")] = "15m",
    every: Annotated[
        str, typer.Option(help="With --watch: renew this often. A third of the lifetime or less.")
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on until stopped.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Order every node to refuse everything.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase, also /dev/fd/N.")
    ] = None,
) -> None:
    """Sign a head that names the current bundle; with --watch, keep renewing it."""
    from edgeguard.cli.files import seconds
    from edgeguard.cli.signers import read_signers

    if (directory is None) == (not url):
        fail("give either --dir or --url", code=2)
    if url and (bundle is None or root is None or token_file is None):
        fail("--url takes --bundle, --root and --token-file", code=2)
    if directory is not None and not directory.is_dir():
        fail(f"{directory}: no such folder")
    life = seconds(lifetime)
    period = seconds(every) if every else max(life // 3, 1)
    if watch and period * 2 > life:
        fail(f"--every {period} s is too long for heads of {life} s: a late one would let the nodes go stale")
    signer = HeadSigner(
        environment, read_signers(key, passphrase_file), life, directory, bundle, root, manifest
    )
    signer.publish_to(url, token_file, ca_file)
    signer.renew(quarantine=quarantine)
    if watch:
        signer.watch(period)


class HeadSigner:
    """The current bundle and the last head, as far as files tell; everything is read anew each time."""

    def __init__(
        self,
        environment: str,
        signers: "list[Signer]",
        lifetime_s: int,
        directory: Path | None,
        bundle: Path | None,
        root: Path | None,
        manifest: Path | None = None,
    ) -> None:
        self._environment, self._signers, self._lifetime_s = environment, signers, lifetime_s
        self._directory, self._bundle, self._root = directory, bundle, root
        self._manifest = manifest
        self._releases: dict[str, Release] = {}
        self._url, self._token, self._ca_file = "", "", ""
        self._previous: Head | None = None
        self._named: Candidate | None = None
        self._blobs: dict[str, Candidate | None] = {}
        self._judged_by: Environment | None = None
        self._stop = threading.Event()

    def publish_to(self, url: str, token_file: Path | None, ca_file: Path | None) -> None:
        """Sends heads to a server from now on, if `url` is given."""
        if url and token_file:
            self._url, self._token = url, token_file.read_text().strip()
            self._ca_file = str(ca_file or "")

    def watch(self, period_s: int) -> None:
        """Renews until SIGTERM or SIGINT. A failure is reported and tried again: the old head runs on."""
        from edgeguard.bundle.refusal import Refusal

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        while not self._stop.wait(period_s):
            try:
                self.renew()
            except (Refusal, OSError, SystemExit) as error:
                err.print(f"edgeguard head: not renewed: {error}", markup=False)

    def renew(self, *, quarantine: bool = False) -> None:
        """Signs and delivers one head."""
        from edgeguard.bundle.signing import next_head, own_head, seal_head
        from edgeguard.cli.files import write

        place = self._directory / self._environment / "head" if self._directory else None
        if place is not None and place.is_file():
            self._previous = own_head(place.read_bytes(), self._environment, self._signers) or self._previous
        named = self._choose()
        current = next_head(
            self._previous,
            named.ref,
            self._environment,
            int(time.time()),
            self._lifetime_s,
            quarantine=quarantine,
            manifest=self._manifest_of(named),
        )
        data = seal_head(current, self._signers)
        if place is not None:
            write(place, data)
        else:
            self._send(data)
        if self._named is None or named.ref != self._named.ref or quarantine:
            out.print(
                f"head {current.version}: {self._environment} bundle {named.ref.version} ({named.ref.sha256[:16]}), "
                f"{len(data)} bytes" + (f", quarantine {current.quarantine}" if current.quarantine else "")
            )
            sys.stdout.flush()
        self._previous, self._named = current, named

    def _send(self, data: bytes) -> None:
        from edgeguard.sync.publish import PublishError, publish_bytes

        try:
            asyncio.run(publish_bytes(self._url, self._token, "head", data, ca_file=self._ca_file or None))
        except PublishError as error:
            fail(str(error))
        except ValueError as error:
            fail(f"--url {error}", code=2)

    def _policy(self) -> "Environment":
        from edgeguard.bundle.signing import parse_root

        place = self._root
        if place is None and self._directory is not None:
            numbered = [path for path in (self._directory / "root").glob("*.root") if path.stem.isdigit()]
            if not numbered:
                fail(f"{self._directory}/root: holds no root; publish one, or give --root")
            place = max(numbered, key=lambda path: int(path.stem))
        if place is None:
            fail("--root is missing", code=2)
        found = parse_root(place.read_bytes()).environments.get(self._environment)
        if found is None:
            fail(f"{place}: the root knows no environment {self._environment!r}")
        if found != self._judged_by:
            self._blobs.clear()
            self._releases.clear()
            self._judged_by = found
        return found

    def _choose(self) -> "Candidate":
        from edgeguard.bundle.manifest import MEMBER
        from edgeguard.bundle.signing import candidate, choose, manifest_of

        policy = self._policy()
        if self._bundle is not None:
            data = self._bundle.read_bytes()
            return candidate(data, hashlib.sha256(data).hexdigest(), self._environment, policy)
        self._read_blobs(policy)
        known = [item for item in self._blobs.values() if item is not None]
        if self._previous and MEMBER in self._previous.members:
            # Where manifests are in use, a bundle without one is not released.
            known = [item for item in known if manifest_of(item, self._releases.values())]
        last = self._previous.bundle.sha256 if self._previous else ""
        named = next((item for item in known if item.ref.sha256 == last), None)
        best = choose(known, policy, time.time(), named)
        if best is None:
            fail(
                f"{self._directory}/blobs: no bundle for {self._environment!r} that nodes would accept now "
                f"(first contact takes {policy.widening} release signatures)"
            )
        return best

    def _manifest_of(self, named: "Candidate") -> "BlobRef | None":
        from edgeguard.bundle.manifest import MEMBER
        from edgeguard.bundle.signing import manifest_of, release

        releases = list(self._releases.values())
        if self._manifest is not None:
            data = self._manifest.read_bytes()
            releases = [release(data, hashlib.sha256(data).hexdigest(), self._environment, self._policy())]
        found = manifest_of(named, releases)
        if found is None and (self._manifest or (self._previous and MEMBER in self._previous.members)):
            fail(
                f"no release manifest names bundle {named.ref.version}; see `edgeguard release create --help`"
            )
        return found.ref if found else None

    def _read_blobs(self, policy: "Environment") -> None:
        from edgeguard.bundle.documents import Kind, media_type
        from edgeguard.bundle.envelope import Envelope
        from edgeguard.bundle.refusal import Refusal, RefusalCode
        from edgeguard.bundle.signing import candidate, release

        folder = (self._directory or Path()) / "blobs"
        names = (
            {entry.name for entry in os.scandir(folder) if len(entry.name) == 64}
            if folder.is_dir()
            else set()
        )
        self._blobs = {name: item for name, item in self._blobs.items() if name in names}
        self._releases = {name: item for name, item in self._releases.items() if name in names}
        for name in names - self._blobs.keys():
            data = (folder / name).read_bytes()
            try:
                if hashlib.sha256(data).hexdigest() != name:
                    raise Refusal(RefusalCode.HASH_MISMATCH, name)
                if Envelope.parse(data).type == media_type(Kind.MANIFEST, self._environment):
                    self._releases[name] = release(data, name, self._environment, policy)
                    self._blobs[name] = None
                    continue
                found = candidate(data, name, self._environment, policy)
                # Only what choosing needs is kept: policies are large and old blobs many.
                self._blobs[name] = found._replace(bundle=replace(found.bundle, policy=b""))
            except Refusal:
                self._blobs[name] = None
