"""Find the layout that a team file names, and compute the key of its image source."""

from __future__ import annotations

import hashlib

from workers.config.extensions import LAYOUTS
from workers.config.specs import DataSpec
from workers.data.layout import Layout


def source_of(spec: DataSpec) -> Layout:
    """Return the layout that reads a data set's images."""
    return LAYOUTS[spec.dataset](spec)


def source_key(spec: DataSpec) -> str:
    """Return a key of the source without reading its images: a hash of layout, path, file stats and image size."""
    parts = [spec.dataset, spec.size, *source_of(spec).fingerprint()]
    if spec.validation == "fuse":  # newer settings count only if used, so that existing stores keep their key
        parts.append("val is fuse")
    if spec.duplicates == "drop":
        parts.append("without duplicates")
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
