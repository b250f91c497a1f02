"""`python -m edgeguard` is the console script."""

from edgeguard.cli import main

main()
