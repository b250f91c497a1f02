"""`edgeguard release`: which application, infrastructure and policy belong together, and the way back."""

import hashlib
import json as jsonlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeguard.cli.console import fail, out, print_json

if TYPE_CHECKING:
    from edgeguard.bundle.documents import Environment as Policy
    from edgeguard.bundle.keys import Signer
    from edgeguard.bundle.manifest import Manifest
    from edgeguard.bundle.signing import Candidate, Release

release_app = typer.Typer(
    no_args_is_help=True,
    help="Release manifests: application, infrastructure and policy as one approved set.",
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Environment = Annotated[str, typer.Option("--environment", help="Whose release it is.")]
Root = Annotated[Path, typer.Option(help="The root to judge by.")]
Version = Annotated[int, typer.Option(min=1, help="Higher than every manifest before it.")]
Keys = Annotated[
    list[str] | None, typer.Option("--key", help="Release keys (.key, fd:N or command:...) that sign.")
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File with the passphrase of the keys, also /dev/fd/N.")
]
IssuedAt = Annotated[
    int | None, typer.Option(min=0, help="Unix seconds. Default: SOURCE_DATE_EPOCH, else the clock.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(release_app, name="release")


@release_app.command()
def create(
    bundle: Annotated[Path, typer.Option(help="The signed bundle.")],
    root: Root,
    environment: Environment,
    version: Version,
    app: Annotated[str, typer.Option(help="Digest of the application's image, `sha256:...`.")],
    infra: Annotated[str, typer.Option(help="Hash of the infrastructure plan, `sha256:...`.")],
    target: Out,
    tested: Annotated[
        list[str] | None, typer.Option(help="Policy hashes that were tested. Default: the bundle's.")
    ] = None,
    flags: Annotated[
        Path | None, typer.Option(help="JSON object of flags that were assumed. Default: the policy's own.")
    ] = None,
    rollback: Annotated[
        Path | None, typer.Option(help="The bundle of a rollback pair: reserves its version for it.")
    ] = None,
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    issued_at: IssuedAt = None,
    json: Json = False,
) -> None:
    """Bind a bundle to what it was approved with. Sign it at once with --key, or later with `release sign`."""
    from edgeguard.bundle.manifest import BundleName, Manifest
    from edgeguard.cli.files import clock
    from edgeguard.cli.signers import read_signers

    policy = _policy(root, environment)
    found = _candidate(bundle, environment, policy)
    back = _candidate(rollback, environment, policy) if rollback else None
    if back is not None and back.signatures < policy.widening:
        fail(
            f"{rollback}: {back.signatures} signatures; a way back takes {policy.widening}, as it may change all"
        )
    manifest = Manifest(
        environment=environment,
        version=version,
        issued_at=clock(issued_at),
        app=_digest(app, "--app"),
        infra=_digest(infra, "--infra"),
        bundle=BundleName(found.ref.version, found.identity),
        policy_hash=_policy_hash(found),
        tested=tuple(dict.fromkeys(_digest(t, "--tested") for t in tested or [_policy_hash(found)])),
        flags=_flags(flags, found),
        rollback=BundleName(back.ref.version, back.identity) if back else None,
    )
    _write(manifest, target, read_signers(key or [], passphrase_file), json=json)


@release_app.command()
def pair(
    bundle: Annotated[Path, typer.Option(help="The last known-good bundle, signed.")],
    manifest: Annotated[Path, typer.Option(help="The manifest that names it.")],
    root: Root,
    environment: Environment,
    bundle_version: Annotated[
        int, typer.Option(min=1, help="Reserved for the way back: one above the release's.")
    ],
    version: Version,
    target: Annotated[Path, typer.Option("--out", "-o", help="Folder for `bundle` and `manifest`.")],
    lifetime: Annotated[str, typer.Option(help="How long the way back stays open, such as 30d.")] = "30d",
    grace: Annotated[str, typer.Option(help="Grace of the bundle.")] = "0s",
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    issued_at: IssuedAt = None,
    json: Json = False,
) -> None:
    """Sign, at release time, the way back: the last good policy and application, under a version reserved for them."""
    from edgeguard.bundle.build import bundle_payload
    from edgeguard.bundle.documents import Kind, media_type
    from edgeguard.bundle.envelope import identity, seal
    from edgeguard.bundle.manifest import BundleName, Manifest
    from edgeguard.cli.files import clock, seconds, write
    from edgeguard.cli.signers import read_signers

    policy = _policy(root, environment)
    old = _candidate(bundle, environment, policy)
    release = _release(manifest, environment, policy)
    _belongs(manifest, release, old)
    if bundle_version <= old.ref.version or version <= release.ref.version:
        fail("versions only rise: --bundle-version and --version must be above those of the old pair")
    now = clock(issued_at)
    payload = bundle_payload(
        old.bundle.policy,
        environment=environment,
        version=bundle_version,
        issued_at=now,
        not_before=now,
        expires_at=now + seconds(lifetime),
        grace_s=seconds(grace),
        audience=old.bundle.audience,
        released=old.bundle.released,
    )
    before = release.manifest
    again = Manifest(
        environment=environment,
        version=version,
        issued_at=now,
        app=before.app,
        infra=before.infra,
        bundle=BundleName(bundle_version, identity(payload)),
        policy_hash=before.policy_hash,
        tested=before.tested,
        flags=before.flags,
    )
    signers = read_signers(key or [], passphrase_file)
    write(target / "bundle", seal(media_type(Kind.BUNDLE, environment), payload, signers))
    _write(again, target / "manifest", signers, json=json)


@release_app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A manifest, signed by some or nobody.")],
    key: Annotated[list[str], typer.Option(help="Release keys (.key, fd:N or command:...) that sign.")],
    target: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the file itself.")] = None,
    detached: Annotated[
        bool, typer.Option("--detached", help="Write only the signatures, for `release merge`; takes --out.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Add signatures to a manifest. Look at `release show` first."""
    from edgeguard.bundle.documents import Kind, check_type
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.bundle.manifest import Manifest
    from edgeguard.cli.files import judging
    from edgeguard.cli.signers import read_signers, sign_file

    data = file.read_bytes()
    with judging(file):
        envelope = Envelope.parse(data)
        check_type(envelope.type, Kind.MANIFEST, Manifest.parse(envelope.payload).environment)
    sign_file(file, data, read_signers(key, passphrase_file), target, detached=detached)
    out.print(f"{target or file}: signed by {len(key)} more")


@release_app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="The manifest, then detached signatures or copies.")],
    target: Out,
) -> None:
    """Join signatures that were made on different machines."""
    from edgeguard.cli.signers import merge_files

    out.print(f"{target}: signatures of {', '.join(merge_files(files, target))}")


@release_app.command()
def show(file: Annotated[Path, typer.Argument(help="A manifest.")], json: Json = False) -> None:
    """Show what a manifest says. Verifies nothing."""
    from edgeguard.bundle.signing import describe
    from edgeguard.cli.files import judging
    from edgeguard.cli.show import show as display

    with judging(file):
        facts = describe(file.read_bytes())
    display({"file": str(file), **facts}, json=json)


@release_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A manifest.")],
    root: Root,
    environment: Environment,
    bundle: Annotated[Path | None, typer.Option(help="Must be the bundle that it names.")] = None,
    app: Annotated[str, typer.Option(help="Must be its application, `sha256:...`.")] = "",
    infra: Annotated[str, typer.Option(help="Must be its infrastructure plan, `sha256:...`.")] = "",
    json: Json = False,
) -> None:
    """Judge a manifest as a node would, and compare it with what is about to run."""
    from edgeguard.cli.show import show as display

    policy = _policy(root, environment)
    release = _release(file, environment, policy)
    manifest = release.manifest
    if bundle is not None:
        _belongs(file, release, _candidate(bundle, environment, policy))
    for name, wanted, found in (("--app", app, manifest.app), ("--infra", infra, manifest.infra)):
        if wanted and _digest(wanted, name) != found:
            fail(f"{file}: refused: manifest_mismatch: {name} {wanted}, the manifest says {found}")
    facts = {
        "file": str(file),
        "verdict": "valid",
        "version": manifest.version,
        "bundle": manifest.bundle.identity,
        "policy_hash": manifest.policy_hash,
        "app": manifest.app,
        "infra": manifest.infra,
    }
    display(facts, json=json)


@release_app.command()
def rollback(
    folder: Annotated[Path, typer.Argument(metavar="PAIR", help="Folder of a rollback pair.")],
    root: Root,
    environment: Environment,
    directory: Annotated[Path, typer.Option("--dir", help="The repository.")],
    json: Json = False,
) -> None:
    """Put a rollback pair into the repository. No offline key takes part: the head signer names it next."""
    from edgeguard.cli.files import write
    from edgeguard.cli.show import show as display

    policy = _policy(root, environment)
    back = _candidate(folder / "bundle", environment, policy)
    release = _release(folder / "manifest", environment, policy)
    _belongs(folder / "manifest", release, back)
    now = time.time()
    if not back.bundle.not_before <= now < back.bundle.expires_at:
        fail(f"{folder}/bundle: not valid now; see `edgeguard bundle inspect {folder}/bundle`")
    if back.signatures < policy.widening:
        fail(f"{folder}/bundle: {back.signatures} signatures; nodes may ask for {policy.widening}")
    current = _current(directory, environment, policy)
    if current is not None:
        reserved = current.manifest.rollback
        if reserved != release.manifest.bundle or release.ref.version <= current.ref.version:
            held = f"version {reserved.version} {reserved.identity}" if reserved else "nothing"
            fail(
                f"{folder}: not the way back from release {current.ref.version}, which reserved {held}; "
                "build the old sources under a higher version instead"
            )
    for name in ("bundle", "manifest"):
        data = (folder / name).read_bytes()
        write(directory / "blobs" / hashlib.sha256(data).hexdigest(), data)
    facts = {
        "environment": environment,
        "version": release.ref.version,
        "bundle_version": back.ref.version,
        "policy_hash": release.manifest.policy_hash,
        "app": release.manifest.app,
    }
    display(facts, json=json)
    if not json:
        out.print("the head signer names it at its next renewal; start the application of that digest")


def _current(directory: Path, environment: str, policy: "Policy") -> "Release | None":
    """The release that the repository's head names."""
    from edgeguard.bundle.documents import Head, Kind, check_type
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.bundle.manifest import MEMBER
    from edgeguard.cli.files import judging

    place = directory / environment / "head"
    if not place.is_file():
        return None
    with judging(place):
        envelope = Envelope.parse(place.read_bytes())
        check_type(envelope.type, Kind.HEAD, environment)
        envelope.verify(*policy.head)
        ref = Head.parse(envelope.payload).members.get(MEMBER)
    return None if ref is None else _release(directory / "blobs" / ref.sha256, environment, policy)


def _policy(root: Path, environment: str) -> "Policy":
    from edgeguard.bundle.signing import parse_root
    from edgeguard.cli.files import judging

    with judging(root):
        found = parse_root(root.read_bytes()).environments.get(environment)
    if found is None:
        fail(f"{root}: the root knows no environment {environment!r}")
    return found


def _candidate(file: Path, environment: str, policy: "Policy") -> "Candidate":
    from edgeguard.bundle.signing import candidate
    from edgeguard.cli.files import judging

    data = file.read_bytes()
    with judging(file):
        return candidate(data, hashlib.sha256(data).hexdigest(), environment, policy)


def _release(file: Path, environment: str, policy: "Policy") -> "Release":
    from edgeguard.bundle.signing import release
    from edgeguard.cli.files import judging

    data = file.read_bytes()
    with judging(file):
        return release(data, hashlib.sha256(data).hexdigest(), environment, policy)


def _belongs(file: Path, release: "Release", bundle: "Candidate") -> None:
    from edgeguard.bundle.signing import manifest_of

    if manifest_of(bundle, [release]) is None or release.manifest.policy_hash != _policy_hash(bundle):
        named = release.manifest.bundle
        fail(
            f"{file}: refused: manifest_mismatch: it names bundle {named.version} {named.identity}, "
            f"this is {bundle.ref.version} {bundle.identity}"
        )


def _policy_hash(bundle: "Candidate") -> str:
    from edgeguard.bundle.build import policy_hash

    return policy_hash(bundle.bundle.policy)


def _digest(text: str, option: str) -> str:
    from edgeguard.bundle.manifest import is_hash

    if not is_hash(text):
        fail(f"{option} {text[:80]!r}: write `sha256:` and 64 lower-case hexadecimal digits", code=2)
    return text


def _flags(file: Path | None, bundle: "Candidate") -> dict[str, bool]:
    from edgeguard.bundle.build import decode_section

    if file is None:
        rules = decode_section(bundle.bundle.policy)["rules"]
        found = rules.get("flags", {}) if isinstance(rules, dict) else {}
    else:
        try:
            found = jsonlib.loads(file.read_bytes())
        except ValueError as error:
            fail(f"{file}: not JSON: {error}")
    if not isinstance(found, dict) or not all(isinstance(on, bool) for on in found.values()):
        fail(f"{file}: flags are a JSON object of names and true or false")
    return {str(name): bool(on) for name, on in found.items()}


def _write(manifest: "Manifest", target: Path, signers: "list[Signer]", *, json: bool) -> None:
    from edgeguard.bundle.documents import Kind
    from edgeguard.bundle.signing import add_signatures, describe, unsigned
    from edgeguard.cli.files import judging, write

    payload = manifest.to_payload()
    with judging(target):
        manifest.parse(payload)  # refuses what no node would take
    data = add_signatures(unsigned(Kind.MANIFEST, manifest.environment, payload), signers)
    write(target, data)
    if json:
        print_json({"file": str(target), **describe(data)})
        return
    out.print(
        f"manifest {manifest.version} for {manifest.environment}: {target}, {len(signers)} signatures, "
        f"bundle {manifest.bundle.version}, policy {manifest.policy_hash}"
    )
