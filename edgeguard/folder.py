"""Policy folders on disk: `*.yaml` are modules, `tests/*.yaml` are cases.

The one place that reads policy sources from files, so that the builder, the tests, the command line and the developer proxy
all see the same policy.
"""

from pathlib import Path

from edgeguard.policy.compile import compile_policy
from edgeguard.policy.engine import Engine
from edgeguard.policy.source import load_sources
from edgeguard.policy.tables import Tables

SUFFIXES = frozenset({".yaml", ".yml"})


def read_modules(folder: Path) -> dict[str, bytes]:
    """The modules of a policy folder, path to content. Raises OSError; `NotADirectoryError` for a file."""
    return _read(folder)


def read_cases(folder: Path) -> dict[str, bytes]:
    """The YAML cases of a policy folder; empty if it has none. Raises OSError."""
    tests = folder / "tests"
    return _read(tests) if tests.is_dir() else {}


def load_engine(folder: Path) -> Engine:
    """The engine of a policy folder, by the very steps that a bundle takes. Raises `PolicyErrors` and OSError."""
    return Engine(Tables.load(compile_policy(load_sources(read_modules(folder)))))


def _read(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return {str(path): path.read_bytes() for path in files}
