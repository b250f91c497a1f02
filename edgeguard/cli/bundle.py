"""`edgeguard bundle`: build, sign, merge, inspect, verify and promote bundles."""

import time
from pathlib import Path
from typing import Annotated

import typer

from edgeguard.cli.console import fail, out, print_json

bundle_app = typer.Typer(no_args_is_help=True, help="Bundles: the policy of one environment, signed.")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Environment = Annotated[str, typer.Option("--environment", help="Whose bundle it is.")]
Version = Annotated[int, typer.Option(min=1, help="Higher than every version before it.")]
Lifetime = Annotated[str, typer.Option(help="How long it is valid, such as 30d.")]
Grace = Annotated[str, typer.Option(help="How long it is enforced as it is after the head has expired.")]
Audience = Annotated[list[str] | None, typer.Option("--audience", help="For these nodes only.")]
NotBefore = Annotated[int | None, typer.Option(help="Unix seconds. Default: when it is issued.")]
IssuedAt = Annotated[
    int | None, typer.Option(min=0, help="Unix seconds. Default: SOURCE_DATE_EPOCH, else the clock.")
]
Released = Annotated[int, typer.Option(min=0, help="End quarantine orders up to this number.")]


def register(app: typer.Typer) -> None:
    app.add_typer(bundle_app, name="bundle")


@bundle_app.command()
def build(
    policy: Annotated[Path, typer.Argument(metavar="POLICY_DIR", help="Folder with the YAML sources.")],
    environment: Environment,
    version: Version,
    target: Out,
    lifetime: Lifetime = "30d",
    grace: Grace = "0s",
    audience: Audience = None,
    not_before: NotBefore = None,
    released: Released = 0,
    issued_at: IssuedAt = None,
    json: Json = False,
) -> None:
    """Compile a policy folder into an unsigned bundle.

    The same sources give the same policy hash anywhere; with the same time of issue (--issued-at, or SOURCE_DATE_EPOCH)
    and the same options they give the same file, byte for byte.
    """
    from edgeguard.bundle.build import encode_section
    from edgeguard.cli.files import compiled

    section = encode_section(compiled(policy))
    _write_unsigned(
        section,
        environment,
        version,
        target,
        lifetime,
        grace,
        audience,
        not_before,
        released,
        issued_at,
        json=json,
    )


def _write_unsigned(
    section: bytes,
    environment: str,
    version: int,
    target: Path,
    lifetime: str,
    grace: str,
    audience: list[str] | None,
    not_before: int | None,
    released: int,
    issued_at: int | None,
    *,
    json: bool,
) -> None:
    from edgeguard.bundle.build import bundle_payload
    from edgeguard.bundle.documents import Kind
    from edgeguard.bundle.signing import describe, unsigned
    from edgeguard.cli.files import clock, seconds, write

    now = clock(issued_at)
    payload = bundle_payload(
        section,
        environment=environment,
        version=version,
        issued_at=now,
        not_before=now if not_before is None else not_before,
        expires_at=now + seconds(lifetime),
        grace_s=seconds(grace),
        audience=tuple(audience or ()),
        released=released,
    )
    data = unsigned(Kind.BUNDLE, environment, payload)
    write(target, data)
    facts = describe(data)
    if json:
        print_json({"file": str(target), **facts})
    else:
        out.print(f"bundle {version} for {environment}: {target}, {len(data)} bytes, not signed yet")
        out.print(f"policy {facts['policy_hash']}")


@bundle_app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A bundle, signed by some or nobody.")],
    key: Annotated[list[str], typer.Option(help="Release keys (.key, fd:N or command:...) that sign.")],
    sources: Annotated[
        Path, typer.Option(help="The reviewed policy folder: the bundle must be exactly what it compiles to.")
    ],
    target: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the file itself.")] = None,
    detached: Annotated[
        bool, typer.Option("--detached", help="Write only the signatures, for `bundle merge`; takes --out.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase, also /dev/fd/N.")
    ] = None,
    json: Json = False,
) -> None:
    """Sign a bundle, after rebuilding its policy from the sources: what was reviewed is what is signed."""
    from edgeguard.bundle.build import SourceMismatch, check_sources
    from edgeguard.bundle.documents import Kind, check_type
    from edgeguard.bundle.envelope import Envelope
    from edgeguard.bundle.signing import describe
    from edgeguard.cli.files import compiled, judging
    from edgeguard.cli.signers import read_signers, sign_file

    data = file.read_bytes()
    with judging(file):
        envelope = Envelope.parse(data)
        try:
            bundle = check_sources(envelope.payload, compiled(sources))
        except SourceMismatch as error:
            fail(f"{file}: {error}; build it again from {sources}")
        check_type(envelope.type, Kind.BUNDLE, bundle.environment)
        signed = sign_file(file, data, read_signers(key, passphrase_file), target, detached=detached)
    if json:
        print_json({"file": str(target or file), **describe(signed)})
    else:
        out.print(
            f"bundle {bundle.version} for {bundle.environment}: {target or file}, rebuilt from {sources}, signed"
        )


@bundle_app.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(help="The bundle, then detached signatures or signed copies.")
    ],
    target: Out,
) -> None:
    """Join signatures that were made on different machines."""
    from edgeguard.cli.signers import merge_files

    out.print(f"{target}: signatures of {', '.join(merge_files(files, target))}")


@bundle_app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A bundle or a head.")], json: Json = False) -> None:
    """Show what a bundle or a head says. Verifies nothing."""
    from edgeguard.bundle.signing import describe
    from edgeguard.cli.files import judging
    from edgeguard.cli.show import show

    with judging(file):
        facts = describe(file.read_bytes())
    show({"file": str(file), **facts}, json=json)


@bundle_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    root: Annotated[Path, typer.Option(help="The root to judge by.")],
    environment: Environment,
    audience: Annotated[str, typer.Option(help="The node's audience.")] = "",
    now: Annotated[int | None, typer.Option(help="Unix seconds. Default: the clock.")] = None,
    json: Json = False,
) -> None:
    """Judge a bundle as a node would on first contact: signatures, caps, policy, times."""
    from edgeguard.bundle.trust import BundleOffered, Refuse, TrustState, snapshot, step
    from edgeguard.cli.files import judging
    from edgeguard.cli.show import show

    moment = time.time() if now is None else now
    with judging(root):
        state = TrustState.start(root.read_bytes(), environment, audience=audience)
    state, effects = step(state, BundleOffered(file.read_bytes(), stored=True), moment)
    for effect in effects:
        if isinstance(effect, Refuse):
            fail(f"{file}: refused: {effect.refusal}")
    found = snapshot(state)
    if found is None or not found.not_before <= moment < found.closed_at:
        fail(f"{file}: properly signed, but not valid now: see `edgeguard bundle inspect {file}`")
    facts = {
        "file": str(file),
        "verdict": "valid",
        "environment": environment,
        "version": found.bundle_version,
        "bundle": found.bundle_id,
        "policy_hash": found.policy_hash,
        "signers": list(found.signers),
        "expires_at": found.closed_at,
    }
    show(facts, json=json)


@bundle_app.command()
def promote(
    file: Annotated[Path, typer.Argument(help="A signed bundle of another environment.")],
    root: Annotated[Path, typer.Option(help="The root that the bundle is judged by.")],
    source: Annotated[str, typer.Option("--from", help="Its environment.")],
    environment: Environment,
    version: Version,
    target: Out,
    lifetime: Lifetime = "30d",
    grace: Grace = "0s",
    audience: Audience = None,
    not_before: NotBefore = None,
    released: Released = 0,
    issued_at: IssuedAt = None,
    json: Json = False,
) -> None:
    """Take the policy of a verified bundle, byte for byte, into an unsigned bundle for another environment."""
    import hashlib

    from edgeguard.bundle.signing import candidate, parse_root
    from edgeguard.cli.files import judging

    with judging(root):
        found = parse_root(root.read_bytes()).environments.get(source)
    if found is None:
        fail(f"{root} knows no environment {source!r}")
    data = file.read_bytes()
    with judging(file):
        section = candidate(data, hashlib.sha256(data).hexdigest(), source, found).bundle.policy
    _write_unsigned(
        section,
        environment,
        version,
        target,
        lifetime,
        grace,
        audience,
        not_before,
        released,
        issued_at,
        json=json,
    )
