"""`edgeguard keygen` and `edgeguard root`: keys, and the root that says what they may do."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeguard.cli.console import fail, out, print_json

if TYPE_CHECKING:
    from edgeguard.bundle.documents import Caps, Root

root_app = typer.Typer(no_args_is_help=True, help="The root: who may sign what, in which environment.")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File with the passphrase of the keys, also /dev/fd/N.")
]


def register(app: typer.Typer) -> None:
    app.command()(keygen)
    app.add_typer(root_app, name="root")


def keygen(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Writes OUT.key (secret) and OUT.pub.")],
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[
        bool,
        typer.Option("--no-passphrase", help="Leave the secret in the clear: development and tests only."),
    ] = False,
    json: Json = False,
) -> None:
    """Make an Ed25519 key pair, the secret half sealed with a passphrase."""
    from edgeguard.bundle.keys import SigningKey
    from edgeguard.cli.files import PASSPHRASE_VARIABLE, passphrase_from, write

    passphrase = None if no_passphrase else passphrase_from(passphrase_file)
    if passphrase is None and not no_passphrase:
        if not os.isatty(0):
            fail(f"no passphrase: give --passphrase-file, set {PASSPHRASE_VARIABLE}, or say --no-passphrase")
        passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True).encode()
    if passphrase == b"":
        fail("the passphrase is empty; say --no-passphrase if that is meant")
    secret, public = Path(f"{target}.key"), Path(f"{target}.pub")
    if secret.exists() or public.exists():
        fail(f"{secret if secret.exists() else public}: exists already; a key is never overwritten")
    key = SigningKey.generate(os.urandom)
    write(secret, key.to_text(passphrase, os.urandom, name=target.name).encode(), mode=0o600, replace=False)
    write(public, key.public.to_text(target.name).encode(), replace=False)
    if json:
        print_json(
            {"id": key.public.id, "secret": str(secret), "public": str(public), "sealed": not no_passphrase}
        )
    else:
        out.print(
            f"key {key.public.id}: {secret} ({'in the clear' if no_passphrase else 'sealed'}), {public}"
        )


Environment = Annotated[str, typer.Option("--environment", help="Lower-case letters, digits and hyphens.")]
Essentials = Annotated[
    list[str] | None,
    typer.Option("--essential", help="host:port that a closed node may be configured to reach."),
]
HeadLifetime = Annotated[str | None, typer.Option(help="Longest life of a head. First: 6h.")]
BundleLifetime = Annotated[str | None, typer.Option(help="Longest life of a bundle. First: 35d.")]
Grace = Annotated[str | None, typer.Option(help="Longest grace that a bundle may carry. First: 1d.")]
VersionJump = Annotated[
    int | None, typer.Option(min=1, help="How far a version may rise at once. First: 2^32.")
]
BundleBytes = Annotated[int | None, typer.Option(min=1, help="Largest bundle. First: 64 MiB.")]
IssuedAt = Annotated[
    int | None, typer.Option(min=0, help="Unix seconds. Default: SOURCE_DATE_EPOCH, else the clock.")
]


def _caps(
    caps: "Caps",
    head_lifetime: str | None,
    bundle_lifetime: str | None,
    grace: str | None,
    version_jump: int | None,
    bundle_bytes: int | None,
    essential: list[str] | None,
) -> "Caps":
    """`caps` with what was given. `--essential ""` alone takes all of them away."""
    from edgeguard.cli.files import seconds

    given: dict[str, Any] = {
        "head_lifetime_s": None if head_lifetime is None else seconds(head_lifetime),
        "bundle_lifetime_s": None if bundle_lifetime is None else seconds(bundle_lifetime),
        "grace_s": None if grace is None else seconds(grace),
        "version_jump": version_jump,
        "bundle_bytes": bundle_bytes,
        "essentials": None if essential is None else tuple(text for text in essential if text),
    }
    return replace(caps, **{name: value for name, value in given.items() if value is not None})


@root_app.command()
def init(
    environment: Environment,
    root_key: Annotated[
        list[str], typer.Option(help="Root keys: a .key (or fd:N, command:...) signs at once, a .pub later.")
    ],
    release_key: Annotated[list[str], typer.Option(help="Keys that sign bundles (.pub or .key).")],
    head_key: Annotated[list[str], typer.Option(help="Keys that sign the head (.pub or .key).")],
    target: Annotated[Path, typer.Option("--out", "-o", help="The signed root.")],
    threshold: Annotated[int, typer.Option(min=1, help="Root signatures that a root needs.")] = 1,
    release_threshold: Annotated[int, typer.Option(min=1, help="Signatures that a bundle needs.")] = 1,
    widening: Annotated[
        int | None,
        typer.Option(min=1, help="Signatures to change age, identity or exceptions. Default: 2, or all."),
    ] = None,
    head_threshold: Annotated[int, typer.Option(min=1, help="Signatures that a head needs.")] = 1,
    lifetime: Annotated[str, typer.Option(help="Of the root, such as 365d.")] = "365d",
    head_lifetime: HeadLifetime = None,
    bundle_lifetime: BundleLifetime = None,
    grace: Grace = None,
    version_jump: VersionJump = None,
    bundle_bytes: BundleBytes = None,
    essential: Essentials = None,
    floor: Annotated[int, typer.Option(min=0, help="Lowest bundle version.")] = 0,
    issued_at: IssuedAt = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make version 1 of a root for one environment; `root rotate` adds more."""
    from edgeguard.bundle.documents import Caps, Quorum, Root
    from edgeguard.bundle.documents import Environment as Policy
    from edgeguard.cli.files import clock, seconds
    from edgeguard.cli.signers import unique

    roots = unique(root_key, "--root-key")
    releases, heads = unique(release_key, "--release-key"), unique(head_key, "--head-key")
    if overlap := (set(roots) & {*releases, *heads}) | (set(releases) & set(heads)):
        fail(f"key {min(overlap).id} is given for two roles; whoever takes one must not have the other")
    policy = Policy(
        Quorum(tuple(releases), release_threshold),
        widening if widening is not None else max(release_threshold, min(2, len(releases))),
        Quorum(tuple(heads), head_threshold),
        _caps(Caps(), head_lifetime, bundle_lifetime, grace, version_jump, bundle_bytes, essential),
        floor,
    )
    now = clock(issued_at)
    root = Root(1, now, now + seconds(lifetime), Quorum(tuple(roots), threshold), {environment: policy})
    _finish(root, target, root_key, passphrase_file, json=json)


@root_app.command()
def rotate(
    current: Annotated[Path, typer.Argument(help="The root in force.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="The next root.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Root keys (.key, fd:N or command:...) that sign, old and new.")
    ] = None,
    root_key: Annotated[
        list[str] | None, typer.Option(help="The root keys from now on. Omitted: as before.")
    ] = None,
    threshold: Annotated[int | None, typer.Option(min=1)] = None,
    environment: Annotated[
        str, typer.Option(help="The environment that the next options change or add.")
    ] = "",
    release_key: Annotated[list[str] | None, typer.Option(help="Its release keys from now on.")] = None,
    release_threshold: Annotated[int | None, typer.Option(min=1)] = None,
    widening: Annotated[int | None, typer.Option(min=1)] = None,
    head_key: Annotated[list[str] | None, typer.Option(help="Its head keys from now on.")] = None,
    head_threshold: Annotated[int | None, typer.Option(min=1)] = None,
    floor: Annotated[
        int | None,
        typer.Option(min=0, help="Lowest bundle version. Set it when a release key is taken away."),
    ] = None,
    head_lifetime: HeadLifetime = None,
    bundle_lifetime: BundleLifetime = None,
    grace: Grace = None,
    version_jump: VersionJump = None,
    bundle_bytes: BundleBytes = None,
    essential: Essentials = None,
    lifetime: Annotated[str, typer.Option(help="Of the next root.")] = "365d",
    issued_at: IssuedAt = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make the next root: other keys, thresholds or floor. Old and new root keys must sign it."""
    from edgeguard.bundle.documents import Caps, Quorum
    from edgeguard.bundle.documents import Environment as Policy
    from edgeguard.bundle.signing import parse_root
    from edgeguard.cli.files import clock, seconds
    from edgeguard.cli.signers import unique

    old = parse_root(current.read_bytes())
    roots = Quorum(
        tuple(unique(root_key, "--root-key")) if root_key else old.root.keys, threshold or old.root.threshold
    )
    environments = dict(old.environments)
    caps = (head_lifetime, bundle_lifetime, grace, version_jump, bundle_bytes, essential)
    changes = (release_key, release_threshold, widening, head_key, head_threshold, floor, *caps)
    if not environment and any(change is not None for change in changes):
        fail("these options change an environment: name it with --environment", code=2)
    if environment:
        known = environments.get(environment)
        if known is None and not (release_key and head_key):
            fail(f"environment {environment!r} is new: give --release-key and --head-key")
        releases = (
            tuple(unique(release_key, "--release-key"))
            if release_key
            else known.release.keys
            if known
            else ()
        )
        heads = tuple(unique(head_key, "--head-key")) if head_key else known.head.keys if known else ()
        wanted = release_threshold or (known.release.threshold if known else 1)
        environments[environment] = Policy(
            Quorum(releases, wanted),
            widening or (known.widening if known else max(wanted, min(2, len(releases)))),
            Quorum(heads, head_threshold or (known.head.threshold if known else 1)),
            _caps(known.caps if known else Caps(), *caps),
            floor if floor is not None else known.floor if known else 0,
        )
    now = clock(issued_at)
    root = replace(
        old,
        version=old.version + 1,
        issued_at=now,
        expires_at=now + seconds(lifetime),
        root=roots,
        environments=environments,
    )
    _finish(root, target, key or [], passphrase_file, json=json, before=old.root.threshold)


def _finish(
    root: "Root", target: Path, keys: list[str], passphrase_file: Path | None, *, json: bool, before: int = 0
) -> None:
    from edgeguard.bundle.documents import Kind
    from edgeguard.bundle.signing import add_signatures, describe, unsigned
    from edgeguard.cli.files import write
    from edgeguard.cli.signers import can_sign, read_signers

    payload = root.to_payload()
    root.parse(payload)  # refuses what no node would take
    secrets = [name for name in keys if can_sign(name)]
    data = add_signatures(unsigned(Kind.ROOT, "", payload), read_signers(secrets, passphrase_file))
    write(target, data)
    needed = max(root.root.threshold, before)
    if json:
        print_json({"file": str(target), **describe(data)})
        return
    out.print(
        f"root {root.version}: {target}, {len(secrets)} signatures, {root.root.threshold} of its own needed"
    )
    if len(secrets) < needed:
        out.print(f"sign it on: edgeguard root sign {target} --key ROOT.key")


@root_app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A root, signed by some or nobody.")],
    key: Annotated[list[str], typer.Option(help="Root keys (.key, fd:N or command:...) that sign.")],
    target: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the file itself.")] = None,
    detached: Annotated[
        bool, typer.Option("--detached", help="Write only the signatures, for `root merge`; takes --out.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Add signatures to a root. Look at `root inspect` first."""
    from edgeguard.bundle.documents import Kind, check_type
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.cli.signers import read_signers, sign_file

    data = file.read_bytes()
    check_type(Envelope.parse(data).type, Kind.ROOT)
    sign_file(file, data, read_signers(key, passphrase_file), target, detached=detached)
    out.print(f"{target or file}: signed by {len(key)} more")


@root_app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="The root, then detached signatures or signed copies.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
) -> None:
    """Join signatures that were made on different machines."""
    from edgeguard.cli.signers import merge_files

    out.print(f"{target}: signatures of {', '.join(merge_files(files, target))}")


@root_app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A root.")], json: Json = False) -> None:
    """Show what a root says, and whether it meets its own threshold."""
    from edgeguard.bundle.documents import Kind, check_type
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.bundle.refusal import Refusal
    from edgeguard.bundle.signing import describe, parse_root
    from edgeguard.cli.show import show

    data = file.read_bytes()
    check_type(Envelope.parse(data).type, Kind.ROOT)
    try:
        parse_root(data)
        verdict = "meets its own threshold"
    except Refusal as refusal:
        verdict = f"not valid yet: {refusal.detail}"
    show({"file": str(file), "verdict": verdict, **describe(data)}, json=json)
