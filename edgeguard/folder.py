"""Policy folders on disk: `*.yaml` are modules, at any depth; what lies in a folder `tests` is cases.

The one place that reads policy sources from files, so that the builder, the tests, the command line and the developer proxy
all see the same policy.
"""

from collections.abc import Iterable
from pathlib import Path

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables

SUFFIXES = frozenset({".yaml", ".yml"})


def read_modules(folder: Path) -> dict[str, bytes]:
    """The modules of a policy folder and of the folders in it, path to content.

    Folders named `tests` and hidden ones hold no policy. Raises OSError; `NotADirectoryError` for a file.
    """
    if not folder.is_dir():
        next(folder.iterdir())  # says what is wrong the way the system does
    return _read(path for path in folder.rglob("*") if not _aside(path.relative_to(folder)))


def read_cases(folder: Path) -> dict[str, bytes]:
    """The YAML cases of a policy folder; empty if it has none. Raises OSError."""
    tests = folder / "tests"
    return _read(tests.rglob("*")) if tests.is_dir() else {}


def load_engine(folder: Path) -> Engine:
    """The engine of a policy folder, by the very steps that a bundle takes. Raises `PolicyErrors` and OSError."""
    return Engine(Tables.load(compile_policy(load_sources(read_modules(folder)))))


def _aside(name: Path) -> bool:
    return any(part == "tests" or part.startswith(".") for part in name.parts)


def _read(paths: Iterable[Path]) -> dict[str, bytes]:
    files = sorted(path for path in paths if path.suffix in SUFFIXES and path.is_file())
    return {str(path): path.read_bytes() for path in files}
