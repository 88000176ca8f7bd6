"""The cache of this machine: what can be fetched again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the folder of this machine's cache."""
    return Path(os.environ.get("CONCLAVE_CACHE") or user_cache_path("conclave")).absolute()
