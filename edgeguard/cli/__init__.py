"""The command line: one file per command group, no logic."""


def main() -> None:
    """Entry point of the `edgeguard` console script."""
    from edgeguard.cli.app import run

    run()
