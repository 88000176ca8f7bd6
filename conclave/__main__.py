"""Run the command line: `conclave`, or `python -m conclave`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]  # the folder that our packages lie in
PACKAGES = ("orchestrator", "fusion", "workers")


class _OurPackages:
    """Finds our packages in their folder, whatever of the same name the current folder or PYTHONPATH has."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find one of our packages."""
        return PathFinder.find_spec(name, [str(ROOT)], target) if name in PACKAGES else None


def _hides_ours(folder: str) -> bool:
    path = Path(folder).resolve()
    return path != ROOT and any((path / name).is_dir() or (path / f"{name}.py").is_file() for name in PACKAGES)


def main() -> None:
    """Run the command line. What its environment asks of Python counts for users' own programs, not for it and what it starts.

    No file of a user hides our packages. Warnings are no errors: libraries warn, and Ray doesn't start then.
    """
    sys.meta_path.insert(0, _OurPackages)
    if "error" in os.environ.get("PYTHONWARNINGS", ""):
        del os.environ["PYTHONWARNINGS"]
        warnings.filters = [entry for entry in warnings.filters if entry[0] != "error"]
    if folders := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders.split(os.pathsep) if not _hides_ours(folder))
    from orchestrator.cli import main

    main()


if __name__ == "__main__":
    main()
