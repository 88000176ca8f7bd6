"""Other versions of packages than those installed, for processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def environment_with(packages: tuple[str, ...], place: Path) -> dict[str, str]:
    """Install packages, without what they need, into a folder; return the environment of a process that imports them.

    Skips the test if the package index has none of them, or none for this Python.
    """
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), *packages]
    if subprocess.run(install, check=False).returncode:
        pytest.skip(f"no package index with {', '.join(packages)}")
    return {**os.environ, "PYTHONPATH": str(place)}
