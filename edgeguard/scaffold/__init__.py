"""What `edgeguard init` writes: a first policy, its tests and a configuration."""

from importlib.resources import files
from pathlib import Path
from typing import Final

FILES: Final = ("policy.yaml", "tests/cases.yaml", "edgeguard.toml")


def write_project(folder: Path) -> list[Path]:
    """Writes the files into `folder`, which is made if missing; returns what was written.

    Raises FileExistsError, and writes nothing, if one of them is there already.
    """
    targets = [folder / name for name in FILES]
    for target in targets:
        if target.exists():
            raise FileExistsError(17, "exists already; nothing was written", str(target))
    for name, target in zip(FILES, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((files(__package__) / name).read_text(encoding="utf-8"), encoding="utf-8")
    return targets
